"""Threads of a command, on a machine of your own and as a job, and games without a ROM."""

import json
import os

import pytest

from envs import catalog
from envs.utils.errors import InputError
from experiments.arguments import (
    JOB_VARIABLE,
    NO_RESOURCES_VARIABLE,
    default_threads,
    playable_games,
)

CORES = len(os.sched_getaffinity(0))
JOB = json.dumps({"runtime_env": {"env_vars": {}}})
CHOSEN = json.dumps({"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}})


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, CORES),
        ({"OMP_NUM_THREADS": "nonsense"}, CORES),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", JOB_VARIABLE: JOB, NO_RESOURCES_VARIABLE: "1"}, CORES),
        ({"OMP_NUM_THREADS": "1", JOB_VARIABLE: CHOSEN, NO_RESOURCES_VARIABLE: "1"}, 1),
        ({"OMP_NUM_THREADS": "1", JOB_VARIABLE: JOB}, 1),
        ({"OMP_NUM_THREADS": "7", JOB_VARIABLE: JOB, NO_RESOURCES_VARIABLE: "1"}, 7),
    ],
)
def test_the_one_thread_that_ray_gives_a_job_is_ignored(
    variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", JOB_VARIABLE, NO_RESOURCES_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_threads() == expected


def test_games_without_a_rom_are_left_out_of_a_pretraining(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    owned = {"Airstriker-Genesis"}
    monkeypatch.setattr(catalog, "has_rom", owned.__contains__)
    named = ["Airstriker-Genesis", "Corridor", "platformers-50"]
    assert playable_games(named, "--base-games") == ("Airstriker-Genesis", "Corridor")
    assert "--base-games: 2 of 52 games have a ROM here" in capsys.readouterr().out
    assert len(playable_games(named, "--base-games", roms=False)) == 52
    assert playable_games([], "--base-games") == ()
    with pytest.raises(InputError, match="none of these 50 games has a ROM"):
        playable_games(["platformers-50"], "--base-games")
