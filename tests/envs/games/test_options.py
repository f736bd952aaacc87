"""Options of games on the command line: CoinRun in chosen levels."""

import json
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.episodes.dataset import EpisodeReader
from envs.games.options import format_env_options, parse_env_options
from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.commands import expert, explore
from tests.envs.games.test_coinrun import needs_game


@needs_game
def test_options_are_read_and_written() -> None:
    options = (("levels", 200), ("velocity", "painted"))
    assert parse_env_options(["velocity=painted", "levels=200"], ["CoinRun"]) == options
    assert parse_env_options(format_env_options(dict(options)), ["CoinRun"]) == options
    assert parse_env_options([], ["Counting"]) == ()


@needs_game
@pytest.mark.parametrize(
    ("text", "game", "message"),
    [
        ("levels", "CoinRun", "give name=value"),
        ("level=3", "CoinRun", "CoinRun has no option level: .* levels, start_level, velocity"),
        ("levels=many", "CoinRun", "levels=many: give a whole number"),
        ("levels=-1", "CoinRun", "levels -1 from start_level 0 are not within"),
        ("velocity=blue", "CoinRun", "velocity must be painted or black"),
        ("levels=3", "Counting", "Counting has no option levels: CoinRun alone"),
    ],
)
def test_wrong_options_are_one_line(
    text: str, game: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        parse_env_options([text], [game])
    commands = (["collect", game, "--steps", "5"], ["explore", game], ["expert", game])
    for command in commands:
        assert execute([*command, "--out", str(tmp_path / "out"), "--env-options", text]) == 2
        printed = capsys.readouterr().err
        assert "option" in printed or "CoinRun" in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@needs_game
@pytest.mark.parametrize("policy", [["random"], ["archive:random", "--reward", "count-bonus"]])
def test_collect_plays_in_the_chosen_levels(
    policy: list[str], ray_cluster: None, tmp_path: Path
) -> None:
    argv = ["collect", "CoinRun", "--episodes", "4", "--steps", "8", "--out", str(tmp_path)]
    argv += ["--env-options", "levels=2", "start_level=5", "--workers", "1", "--policy", *policy]
    assert execute(argv) == 0
    starts = [envs.make("CoinRun", levels=1, start_level=level).reset()[0] for level in (5, 6)]
    reader = EpisodeReader(tmp_path)
    assert len(reader) == 4
    for index in range(len(reader)):
        assert reader[index].info["options"] == {"levels": 2, "start_level": 5}
        first = reader[index].frames_THWC[0]
        if not reader[index].info.get("path"):
            assert any(np.array_equal(first, start) for start in starts)


@needs_game
@pytest.mark.slow
def test_explore_records_its_levels_and_reads_them_again(ray_cluster: None, tmp_path: Path) -> None:
    argv = ["explore", "CoinRun", "--preset", "debug", "--reward", "count-bonus"]
    argv += ["--out", str(tmp_path), "--env-options", "levels=2"]
    assert execute(argv) == 0
    file = tmp_path / "config.json"
    assert json.loads(file.read_text())["env_options"] == {"levels": 2}
    assert explore.defaults(["--config", str(file)]).env_options == ("levels=2",)
    assert expert.defaults(["--config", str(file)]).env_options == ("levels=2",)
