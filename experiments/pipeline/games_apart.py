"""Pipelines of several games at once, each with a world model of its own.

    <out>/games/<game>/       run of the game's pipeline
    <out>/games/<game>.json   its settings
    <out>/games/<game>.log    what it printed
    <out>/report/             results of all games
    <out>/summary.json        main results as numbers

Each pipeline is a process with one torch thread, so that two games take as long as one.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from envs.utils.interrupt import PARENT_VARIABLE
from envs.utils.progress import console, progress
from experiments.arguments import default_threads
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.stages import stage_table

POLL_SECONDS = 1.0


def run_games(config: PipelineConfig, out: Path, ray_address: str | None) -> None:
    """Run the pipeline of each game, as many at a time as there are threads.

    Ctrl+C is passed on to the pipelines, which save their work first; if this process is killed,
    they stop in the same way (on Linux). Raises InputError with the last line of a pipeline that
    failed, once the others are finished.
    """
    at_a_time = min(len(config.games), config.threads or default_threads())
    command = [sys.executable, "-m", "experiments", "pipeline"]
    if ray_address is not None:
        command += ["--ray-address", ray_address]
    waiting, running = list(config.games), dict[str, subprocess.Popen[bytes]]()
    failed = []
    # Those of an earlier run would be counted although its settings may have been others.
    for game in config.games:
        (game_folder(out, game) / "timings.json").unlink(missing_ok=True)
    done = 0
    stages = sum(len(stage_table(of_one_game(config, game))) for game in config.games)
    with progress("stages", stages) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < at_a_time:
                    game = waiting.pop(0)
                    running[game] = _start(command, config, out, game, at_a_time)
                time.sleep(POLL_SECONDS)
                for game in [game for game in running if running[game].poll() is not None]:
                    if running.pop(game).returncode:
                        failed.append(game)
                        console.print(f"{game} failed: see {_log(out, game)}; the others go on")
                finished = sum(count_finished(out, game) for game in config.games)
                bar.advance(finished - done, _describe(out, running))
                done = finished
        finally:
            for process in running.values():
                process.send_signal(signal.SIGINT)
            for process in running.values():
                process.wait()
    if failed:
        log = _log(out, failed[0])
        lines = log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
        reason = last.strip().removeprefix("autoexplore: ")
        raise InputError(f"the pipeline of {failed[0]} failed: {reason} (see {log})")


def of_one_game(config: PipelineConfig, game: str) -> PipelineConfig:
    """Return the configuration of a game's own pipeline."""
    return dataclasses.replace(config, games=(game,), games_apart=False)


def game_folder(out: Path, game: str) -> Path:
    """Return the folder of a game's pipeline."""
    return out / "games" / game


def _log(out: Path, game: str) -> Path:
    return out / "games" / f"{game}.log"


def count_finished(out: Path, game: str) -> int:
    """Return the number of stages of a game that this run has finished or found finished."""
    timings = game_folder(out, game) / "timings.json"
    return len(json.loads(timings.read_text())["seconds"]) if timings.exists() else 0


def _start(
    command: list[str], config: PipelineConfig, out: Path, game: str, at_a_time: int
) -> subprocess.Popen[bytes]:
    """Start the pipeline of a game; its output goes to a file."""
    threads = max(1, (config.threads or default_threads()) // at_a_time)
    workers = max(1, config.workers // at_a_time)
    own = dataclasses.replace(of_one_game(config, game), threads=threads, workers=workers)
    folder = game_folder(out, game)
    settings = out / "games" / f"{game}.json"
    write_json_atomic(settings, {"pipeline": dataclasses.asdict(own)})
    flags = ["--preset", config.preset, "--config", str(settings), "--out", str(folder)]
    with _log(out, game).open("ab") as log:
        # A session of its own: Ctrl+C reaches it once, from here.
        return subprocess.Popen(
            [*command, *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # Two learners with a thread for each core would wait for each other.
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                PARENT_VARIABLE: str(os.getpid()),
            },
            start_new_session=True,
        )


def _describe(out: Path, running: Mapping[str, object]) -> str:
    """Return the stages that run now."""
    parts = []
    for game in running:
        records = (game_folder(out, game) / "stages").glob("*.json")
        newest = max(records, key=lambda path: path.stat().st_mtime, default=None)
        parts.append(f"{game}: {newest.stem if newest else 'starting'}")
    return ", ".join(parts)
