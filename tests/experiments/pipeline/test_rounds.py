"""Rounds of exploring and learning: swapped weights, skipped stages, added rounds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from experiments.pipeline import rounds
from experiments.reports.rounds_report import describe_rounds
from tests.fixtures.datasets import record
from worldmodel import serve


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record the calls that set the service's model, and pass them on."""
    calls: list[tuple[str, str]] = []
    for name in ("deploy", "update_weights"):
        real = getattr(serve, name)

        def recorded(*arguments: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            path = arguments[0] if name == "deploy" else arguments[1]
            calls.append((name, Path(path).name))
            return real(*arguments, **options)

        monkeypatch.setattr(serve, name, recorded)
    return calls


@pytest.fixture
def out(finished_run: tuple[Path, str], tmp_path: Path) -> Path:
    """Return a finished pipeline, whose base model the rounds go on from."""
    return Path(shutil.copytree(finished_run[0], tmp_path / "run"))


@pytest.mark.slow
def test_two_rounds_run_as_one_command_which_then_repeats_only_missing_stages(
    ray_cluster: None,
    served: list[tuple[str, str]],
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = (out / "dynamics/metrics.jsonl").stat().st_mtime_ns
    argv = ["pipeline", "--out", str(out), "--preset", "debug", "--explorers", "agent"]
    argv += ["--rounds", "2"]
    assert execute(argv) == 0
    assert (out / "dynamics/metrics.jsonl").stat().st_mtime_ns == base
    assert served == [("deploy", "base"), ("update_weights", "1")]
    record = json.loads((out / "stages/explore-2.json").read_text())["result"]
    assert record["swap_seconds"] > 0
    assert "Round 2:" in capsys.readouterr().out
    found = json.loads((out / "report/rounds.json").read_text())
    assert {(model, play) for model, play, _, _ in found["models"]} == {
        (m, p) for m in range(3) for p in range(3)
    }
    assert all(0 <= value <= 1 and psnr > 0 for _, _, value, psnr in found["models"])
    assert len(found["new"]) == 3
    page = (out / "report/index.html").read_text()
    assert "after round 2" in page
    assert "<svg" in page

    assert execute(argv) == 0
    assert "Nothing was left to do" in capsys.readouterr().out
    assert len(served) == 2
    before = (out / "rounds/2/explore/metrics.jsonl").stat().st_mtime_ns
    (out / "stages/measure-2.json").unlink()
    assert execute(argv) == 0
    assert (out / "rounds/2/explore/metrics.jsonl").stat().st_mtime_ns == before, (
        "a finished stage was run again"
    )
    assert execute([*argv[:-1], "-1"]) == 2
    assert [row["step"] for row in read_metrics(out / "rounds/2/explore")] == [1, 2]


@pytest.mark.slow
def test_rounds_carry_on_one_archive(ray_cluster: None, out: Path) -> None:
    argv = ["pipeline", "--out", str(out), "--preset", "debug", "--rounds", "2"]
    assert execute([*argv, "--explorers", "archive"]) == 0
    cells = [
        json.loads((out / f"rounds/{number}/data/archive/Counting/cells.json").read_text())["cells"]
        for number in (1, 2)
    ]
    first, second = ({cell["key"]: cell["seen"] for cell in each} for each in cells)
    assert all(second[key] >= seen for key, seen in first.items())
    assert sum(second.values()) > sum(first.values())
    assert "after round 2" in (out / "report/index.html").read_text()


def test_windows_are_always_the_same_and_the_words_follow_the_numbers(
    tmp_path: Path,
) -> None:
    record(tmp_path / "data", episodes=2, steps=40)
    frames, actions = rounds.fixed_windows(tmp_path / "data")
    assert frames.shape == (rounds.WINDOWS, 5, 64, 64, 3)
    assert actions.shape == (rounds.WINDOWS, 4)
    assert np.array_equal(frames, rounds.fixed_windows(tmp_path / "data")[0])
    words = describe_rounds({(0, 1): 0.5, (1, 1): 0.4, (1, 2): 0.6, (2, 2): 0.7}, [10, 3, 0])
    assert "in 1 of 2 rounds" in words
    assert words.endswith("in 1 of 2.")
