"""A device for tests that is not the CPU and refuses tensors of two devices, as a GPU does.

It is written in device.cpp. Torch has to be told of it before the first backward pass, and then
knows it for the whole process. So the checks that use it have a process of their own:
`pytest tests/stand_in_device/checks.py`.
"""

import getpass
import hashlib
import os
import shutil
import subprocess
import tempfile
import types
from pathlib import Path

import torch

NAME = "standin"
_SOURCE = Path(__file__).with_name("device.cpp")


def register() -> torch.device:
    """Make the device known to torch in this process, and return it.

    The first call on a machine compiles it, which takes about a minute.
    """
    torch.ops.load_library(str(_built()))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module(f"torch.{NAME}"))
    return torch.device(NAME, 0)


class _Module(types.ModuleType):
    """The counterpart of `torch.cuda`, as far as torch asks for it."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Do nothing: without a generator the numbers are drawn by the CPU's."""


def _built() -> Path:
    """Return the compiled device, which is kept for all runs with this torch and this source."""
    key = hashlib.sha256(torch.__version__.encode() + _SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"autoexplore-tests-{getpass.getuser()}"
    library = folder / f"{NAME}-{key}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        temporary = library.with_suffix(f".{os.getpid()}.tmp")
        compile_device(temporary)
        os.replace(temporary, library)  # whole or absent, though others may build it too
    return library


def compile_device(library: Path) -> None:
    """Compile the device against this torch. Raises RuntimeError without a compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        needs = "the stand-in device needs a C++ compiler"
        raise RuntimeError(f"{needs}, and there is no {compiler}: install one")
    root, abi = Path(torch.__file__).parent, int(torch.compiled_with_cxx11_abi())
    flags = ["-std=c++20", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    places = [f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include", f"-L{root}/lib"]
    libraries = ["-ltorch_cpu", "-lc10"]
    command = [compiler, *flags, *places, str(_SOURCE), "-o", str(library), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the stand-in device could not be built:\n{done.stderr[-4000:]}")
