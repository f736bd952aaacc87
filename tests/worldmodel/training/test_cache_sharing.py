"""Ranks on one machine or several, whose cache folders are shared or not, open the same data.

A machine is a folder here: ranks see each other's files if they have the same one.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.worldmodel.training.conftest import CONFIG
from worldmodel.data.cache_sharing import share_cache
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.training.config import train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.setup import open_data
from worldmodel.training.train import TrainingRun

RECIPE = train_preset("dynamics", "debug", iterations=1_000, clip_stride=5, prioritised=0.5)
DEADLINE = 100.0
"""Seconds after which ranks that still wait for each other are killed."""
SERVER = "from tests.worldmodel.training.test_cache_sharing import serve; serve()"


def serve() -> None:
    """Start runs, one of them per list of folders, and answer with the results of their ranks.

    One process imports torch, and the ranks are forks of it.
    """
    for line in sys.stdin:
        options = json.loads(line)
        ranks: list[tuple[int, Path]] = []
        for number, folders in enumerate(options["runs"]):
            for rank in range(len(folders)):
                result = Path(options["scratch"]) / f"{number}-{rank}.json"
                child = os.fork()
                if child == 0:
                    options["meet"] = str(Path(options["scratch"]) / f"meet-{number}")
                    result.write_text(json.dumps(open_on_rank(options, folders, rank)))
                    os._exit(0)
                ranks.append((child, result))
        end = time.monotonic() + DEADLINE
        for child, _ in ranks:
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                if time.monotonic() > end:
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.01)
        answers = [json.loads(file.read_text()) if file.exists() else None for _, file in ranks]
        print(json.dumps(answers), flush=True)


def open_on_rank(options: dict[str, Any], folders: list[str], rank: int) -> dict[str, Any]:
    """Open the data as a training run does, and return what the rank did and has."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = Tokenizer(CONFIG), LatentActionModel(CONFIG)
    encoded = {}
    for model in models:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        encoded[model.component] = 0
        watch(model, encoded, options["fails"] if rank == options["failing"] else None)
    dynamics = Dynamics(CONFIG.with_latent_actions())
    dynamics.set_codebook(models[0].codebook)
    job = TrainingRun(
        "dynamics",
        CONFIG,
        RECIPE,
        [options["data"]],
        Path(options["scratch"]) / "run",
        Path(folders[rank]),
        priority_model=Path(options["world"]),
    )
    if len(folders) > 1:
        meet = f"file://{options['meet']}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=len(folders))
    worker = Worker(torch.device("cpu"), rank, len(folders))
    try:
        if options["fails"] == "other data":
            with share_cache(job.cache, rank, len(folders)) as sharing:
                sharing.check_same(str(rank))
        windows, _ = open_data(job, DynamicsObjective(dynamics, *models), worker)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    batch = windows.batch(np.arange(len(windows)))
    digest = hashlib.sha256(batch.tokens_BThw.numpy().tobytes())
    digest.update(batch.latent_actions_BT.numpy().tobytes())
    digest.update(windows.sampler(0).batch(0, 50).tobytes())
    return {"data": digest.hexdigest(), "windows": len(windows), **encoded}


def watch(model: Any, encoded: dict[str, int], fails: str | None) -> None:
    """Count the windows that a model encodes, and let it fail."""
    encode = model.encode

    def counted(frames_BTCHW: torch.Tensor) -> torch.Tensor:
        if fails == "full disk":
            raise OSError(28, "No space left on device")
        if fails == "defect":
            raise ZeroDivisionError("defect")
        if fails == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        encoded[model.component] += len(frames_BTCHW)
        return encode(frames_BTCHW)

    model.encode = counted


Open = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def start(server: subprocess.Popen[str], data: str, tiny_world: Path) -> Open:
    """A function that opens data on the ranks of runs. A letter for each rank names its folder."""

    def open_runs(
        home: Path, *runs: str, fails: str | None = None, failing: int | None = None
    ) -> list[Any]:
        scratch = home / f"scratch-{time.monotonic_ns()}"
        scratch.mkdir()
        options = {"data": data, "world": str(tiny_world), "scratch": str(scratch)}
        options |= {"fails": fails, "failing": failing}
        options["runs"] = [[str(home / folder) for folder in run] for run in runs]
        server.stdin.write(json.dumps(options) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    return open_runs


@pytest.fixture(scope="module")
def one_rank(start: Open, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder that one rank filled, and its result."""
    home = tmp_path_factory.mktemp("alone")
    (result,) = start(home, "o")
    return home / "o", result


@pytest.fixture
def open_runs(start: Open, tmp_path: Path) -> Open:
    """The function, for folders of the test."""
    return partial(start, tmp_path)


@pytest.fixture
def alone(one_rank: tuple[Path, dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """The result of one rank, and what it wrote in folder `o`."""
    folder, result = one_rank
    shutil.copytree(folder, tmp_path / "o")
    return result


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("folders", ["aa", "ab", "aab", "aaaa", "aabb"])
def test_ranks_that_see_a_folder_share_its_work_and_all_have_the_same_tokens(
    folders: str, open_runs: Open, alone: dict[str, Any], tmp_path: Path
) -> None:
    """One machine or one folder on several, a folder each, and uneven machines."""
    results = open_runs(folders)
    for folder in set(folders):
        assert contents(tmp_path / folder) == contents(tmp_path / "o")
        mine = [row for row, name in zip(results, folders, strict=True) if name == folder]
        for model in ("tokenizer", "lam"):
            assert all(row[model] for row in mine)
            assert sum(row[model] for row in mine) == alone["windows"] == alone[model]
    assert {row["data"] for row in results} == {alone["data"]}


@pytest.mark.parametrize("folders", ["on", "oon", "nnoo", "ooo"])
def test_a_new_machine_fills_its_folder_while_the_others_wait(
    folders: str, open_runs: Open, alone: dict[str, Any], tmp_path: Path
) -> None:
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "o").iterdir()}
    results = open_runs(folders)
    assert {row["data"] for row in results} == {alone["data"]}
    assert [bool(row["tokenizer"]) for row in results] == [name == "n" for name in folders]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "o").iterdir()} == written


@pytest.mark.parametrize(
    ("folders", "failing", "fails", "seen"),
    [
        ("aa", 1, "full disk", "InputError: cannot store tokens in"),
        ("aabb", 3, "full disk", "InputError: cannot store tokens in"),
        ("aab", 2, "defect", "ZeroDivisionError: defect"),
        ("aab", None, "other data", "InputError: the ranks of this run have different copies"),
    ],
)
def test_an_error_on_one_rank_is_that_of_all(
    folders: str, failing: int | None, fails: str, seen: str, open_runs: Open, tmp_path: Path
) -> None:
    results = open_runs(folders, failing=failing, fails=fails)
    assert all(seen in row["error"] for row in results), results
    for folder in set(folders):
        names = contents(tmp_path / folder)
        assert not [name for name in names if "tokens" in name or name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["aa", "aabb"])
def test_ranks_end_when_one_is_killed_and_what_it_wrote_is_not_used(
    folders: str, open_runs: Open, alone: dict[str, Any], tmp_path: Path
) -> None:
    results = open_runs(folders, failing=1, fails="killed")
    assert results[1] is None
    for row in (*results[:1], *results[2:]):
        assert row is not None, "waits for ever"
        assert "another rank is gone" in row["error"]
    assert len([name for name in contents(tmp_path / "a") if name.startswith(".tokens")]) == 1
    assert {row["data"] for row in open_runs(folders)} == {alone["data"]}


def test_runs_that_fill_a_folder_at_the_same_time_do_not_meet(
    open_runs: Open, alone: dict[str, Any], tmp_path: Path
) -> None:
    results = open_runs("aa", "aa", "a")
    assert {row["data"] for row in results} == {alone["data"]}
    assert contents(tmp_path / "a") == contents(tmp_path / "o")


def test_a_folder_that_cannot_be_written_to_is_refused_on_all_ranks(
    open_runs: Open, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("a file")
    results = open_runs("af")
    assert all("InputError: cannot write to" in row["error"] for row in results)
