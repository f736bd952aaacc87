"""Pipelines of several games, each with a world model of its own."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.pipeline.config import PRESETS
from experiments.pipeline.games_apart import run_games
from experiments.reports.games_report import build_games_report
from experiments.reports.results import read_results
from tests.fixtures.processes import processes_of, wait_for

PLAN = dataclasses.replace(PRESETS["debug"], games_apart=True)


@pytest.fixture
def run(finished_run: tuple[Path, str], tmp_path: Path) -> Path:
    """Run of one game, as `pipeline --games-apart` leaves it."""
    shutil.copytree(finished_run[0], tmp_path / "games" / "Counting")
    config = json.dumps({"pipeline": dataclasses.asdict(PLAN)})
    (tmp_path / "config.json").write_text(config)
    return tmp_path


def test_summary_holds_the_gains_of_the_main_explorer(run: Path) -> None:
    lines = build_games_report(run, run / "report")
    summary = json.loads((run / "summary.json").read_text())
    results = read_results(run / "games/Counting/evaluation", PLAN.explorers, PLAN.tests)
    mean, low, high = summary["deep_play"]["explored_minus_random_psnr"]
    assert mean == pytest.approx(results.gain("archive", "deep", "psnr").mean)
    assert low is None
    assert high is None, "a single episode gives no interval"
    for name, model in (("base", "base"), ("random", "random"), ("explored", "archive")):
        expected = results.get(model, "deep").mean_psnr
        assert summary["deep_play"][f"{name}_psnr"] == pytest.approx(expected)
    assert summary["games"]["Counting"]["deep_play"] == summary["deep_play"]
    assert set(summary["deep_play"]["explorers"]) == {"archive", "agent"}
    timings = json.loads((run / "games/Counting/timings.json").read_text())
    assert summary["seconds"] == timings["total"]
    page = (run / "report" / "index.html").read_text()
    assert lines[0] in page.replace("&#39;", "'")
    assert "games/Counting/report/index.html" in page
    order = ["dB delta-PSNR over", "what only the archive found", "where each player", "<table>"]
    places = [page.index(text) for text in order]
    assert places == sorted(places), "the gain, the film, the map, the table"


def test_report_is_created_again(run: Path) -> None:
    build_games_report(run, run / "report")
    before = (run / "report" / "index.html").read_text()
    assert execute(["report", str(run)]) == 0
    assert (run / "report" / "index.html").read_text() == before


@pytest.mark.slow
def test_finished_games_are_skipped_and_a_failed_one_is_named(run: Path) -> None:
    """The second game cannot start: something else is in its folder."""
    (run / "games" / "Corridor").mkdir()
    (run / "games" / "Corridor" / "thesis.txt").write_text("")
    config = dataclasses.replace(PLAN, games=("Counting", "Corridor"), threads=2)
    records = {file: file.read_text() for file in (run / "games/Counting/stages").iterdir()}
    with pytest.raises(InputError, match=r"Corridor failed: .*holds something else.*Corridor\.log"):
        run_games(config, run, None)
    assert {file: file.read_text() for file in records} == records
    assert "Nothing was left to do." in (run / "games" / "Counting.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "code", "games"),
    [(signal.SIGINT, 130, ["Counting", "Corridor"]), (signal.SIGKILL, -9, ["Counting"])],
)
def test_the_pipelines_stop_with_the_process_that_started_them(
    stop: signal.Signals, code: int, games: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "experiments", "pipeline", "--preset", "debug"]
    command += ["--games", *games, "--games-apart", "--threads", "2"]
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        # Tests that a shell runs in the background ignore Ctrl+C, and so would the command.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: len(list(out.glob("games/*/stages/collect-random.json"))) == len(games))
        process.send_signal(stop)
        assert process.wait(60) == code
        wait_for(lambda: not processes_of(out))
    finally:
        process.kill()
