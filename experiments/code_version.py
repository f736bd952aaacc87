"""Version of the code that makes a result."""

import functools
import hashlib
from importlib.util import find_spec
from pathlib import Path

from experiments import __version__

PACKAGES = ("envs", "worldmodel", "exploration", "experiments")


@functools.cache
def code_version() -> str:
    """Return the version of this package and 12 digits of the sha256 of all its modules."""
    digest = hashlib.sha256()
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None
        root = Path(str(spec.origin)).parent
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{name}/{file.relative_to(root).as_posix()}\n".encode())
            digest.update(file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"
