"""Commands explore, expert and compare: what they do, and one line for bad input."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from envs.archive.archive import Archive
from envs.archive.cells import CellGrid
from envs.collect import collect
from envs.controls import COINRUN_ACTIONS
from envs.episodes.dataset import EpisodeReader, recorded_actions
from envs.games.corridor import CELLS_PER_ROOM, ROOMS, read_cell
from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from experiments.arguments import GameArgs
from exploration.agent.config import PolicyConfig
from exploration.agent.policy import CnnLstm, load_policy, policy_spec, save_policy
from exploration.config import PRESETS, explore_preset
from exploration.evaluate import mean_with_interval, summarize_seeds
from exploration.reward.factory import RewardConfig
from exploration.train import explore
from tests.envs.games.test_coinrun import needs_game
from tests.experiments.test_cli import ROM_IS_MISSING, complaint
from worldmodel import GenieReduxG, load_world_model
from worldmodel.evaluation.evaluate import evaluate

GAME = "Airstriker-Genesis"


def test_bad_input_is_one_line(ray_cluster, tiny_world, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    game = ["explore", "Counting", "--model", str(tiny_world), *out]
    model = ["--model", str(tiny_world), *out]
    assert "did you mean" in complaint(capsys, "explore", "Kangaro-Atari2600", *model)
    assert "envs.roms" in complaint(capsys, "explore", ROM_IS_MISSING, *model)
    for fraction in ("0", "2", "-0.5"):
        assert "top_fraction" in complaint(capsys, *game, "--top-fraction", fraction)
    assert "--model" in complaint(capsys, "explore", "Counting", *out)
    assert "--reward-data" in complaint(capsys, *game, "--reward", "vae")
    assert "money" in complaint(capsys, *game, "--reward", "money")
    three = ["explore", "Counting", "Corridor", "NoisyTV", *model]
    few = ["--runners", "0", "--envs-per-runner", "1"]
    assert "need as many envs" in complaint(capsys, *three, *few)
    assert "no game" in complaint(capsys, "explore", "--model", str(tiny_world), *out)
    assert "epsilon" in complaint(capsys, "expert", "Counting", "--epsilon", "2", *out)
    assert not (tmp_path / "run").exists()
    two = save_policy(
        tmp_path / "two",
        CnnLstm(PolicyConfig(actions=("left", "right"), channels=(4, 4, 4, 4), lstm_dim=8)),
    )
    policy = ["--policy", f"checkpoint:{two}", "--out", str(tmp_path / "data")]
    assert "actions" in complaint(capsys, "collect", "Counting", *policy)


def test_games_by_query():
    atari = GameArgs(console=("Atari2600",), motion=("platformer",), limit=3).select()
    assert len(atari) == 3
    assert all(game.endswith("-Atari2600") for game in atari)
    named = GameArgs(games=("Airstriker-Genesis", *atari[:1]), console=("Genesis",)).select()
    assert named == ["Airstriker-Genesis"]
    with pytest.raises(InputError, match="matches"):
        GameArgs(games=("Airstriker-Genesis",), console=("Nes",)).select()


@pytest.mark.slow
def test_many_games_get_an_env_each_and_a_return_each(ray_cluster, tmp_path):
    games = ["Counting", "Corridor", "NoisyTV"]
    config = explore_preset("debug", runners=1, epochs=1).with_envs_for(len(games))
    explore(games, None, tmp_path, config=config, reward=RewardConfig("count-bonus"))
    (row,) = read_metrics(tmp_path)
    for game in games:
        assert row[f"explore/intrinsic_return/{game}"] > 0
        assert row[f"evaluation/intrinsic_return/{game}"] > 0
    assert json.loads((tmp_path / "config.json").read_text())["envs_per_runner"] == 3
    longer = dataclasses.replace(config, epochs=2)
    with pytest.raises(InputError, match="reward"):
        explore(games, None, tmp_path, config=longer, reward=RewardConfig("random"), resume=True)


@pytest.mark.slow
def test_from_a_game_to_a_test_set_of_deep_play(ray_cluster, tmp_path, monkeypatch, capsys):
    """Train an expert of the corridor, whose reward grows from room to room: it gets farther than
    random play."""
    preset = PRESETS["expert-debug"]
    loss = dataclasses.replace(preset.loss, gamma=0.9)
    preset = dataclasses.replace(
        preset,
        loss=loss,
        epochs=8,
        runners=0,
        envs_per_runner=4,
        steps_per_epoch=60,
        max_steps=60,
        updates_per_epoch=16,
        batch_size=8,
        epsilon=0.3,
        final_epsilon=0.1,
        epsilon_epochs=8,
        lr=5e-3,
        evaluate_every=4,
        evaluation_steps=60,
        precision="fp32",
        normalize_rewards=True,
    )
    monkeypatch.setitem(PRESETS, "expert-debug", preset)
    argv = ["expert", "Corridor", "--preset", "debug", "--episodes", "3", "--steps", "60"]
    argv += ["--out", str(tmp_path)]
    assert execute(argv) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 episodes of Corridor" in printed
    assert "warning: the expert is not better" not in printed
    compared = json.loads((tmp_path / "agent" / "random_play.json").read_text())
    expert, random = compared["expert"], compared["random"]
    assert (compared["game"], compared["steps"]) == ("Corridor", 60)
    assert expert["return"] > random["return"] + 5
    assert expert["screens"] > random["screens"]
    best = json.loads((tmp_path / "agent" / "best" / "config.json").read_text())["about"]
    assert compared["evaluation_return"] == best["evaluation_return"]
    assert f"return {expert['return']:.1f} of the expert, {random['return']:.1f} of" in printed
    reader = EpisodeReader(tmp_path / "data")
    assert len(reader) == 3
    assert all(
        "expert" in reader[index].policy_id and "0.15" in reader[index].policy_id
        for index in range(3)
    )
    cells = [read_cell(frame) for index in range(3) for frame in reader[index].frames_THWC]
    assert np.mean(cells) > ROOMS * CELLS_PER_ROOM / 2
    assert "already holds" in complaint(capsys, *argv)
    assert execute([*argv, "--resume"]) == 0


@pytest.mark.slow
def test_agents_are_compared_over_seeds(ray_cluster, tiny_world, tmp_path: Path, capsys):
    argv = ["compare", "Counting", "--model", str(tiny_world), "--preset", "debug", "--seeds", "2"]
    argv += ["--episodes", "1", "--steps", "12", "--windows", "3", "--out", str(tmp_path)]
    assert execute(argv) == 0
    result = json.loads((tmp_path / "agents.json").read_text())
    assert set(result["seeds"]) == {"0", "1"}
    assert result["seeds"]["0"]["Counting"]["random"]["frames"] == 13
    assert "uncertainty" in capsys.readouterr().out
    rows = [
        {"explorer": {"uncertainty": 3, "screens": 4}, "random": {"uncertainty": x, "screens": 1}}
        for x in (1, 2)
    ]
    table = summarize_seeds(rows)
    assert table["uncertainty"]["difference"] == {
        "mean": 1.5,
        "half_width": pytest.approx(12.7062 * 0.5),
    }
    assert table["screens"]["difference"] == {"mean": 3.0, "half_width": 0.0}
    assert mean_with_interval(np.array([1.0]))["half_width"] == float("inf")


@needs_game
@pytest.mark.slow
def test_coinrun_is_explored_with_its_seven_actions(ray_cluster, tiny_world, tmp_path):
    config = explore_preset("debug", runners=0)
    best = explore(
        ["CoinRun"], None, tmp_path / "run", config=config, reward=RewardConfig("count-bonus")
    )
    assert load_policy(best).action_names == COINRUN_ACTIONS
    row = read_metrics(tmp_path / "run")[-1]
    shares = [row[f"explore/action_share/CoinRun/{name}"] for name in COINRUN_ACTIONS]
    assert sum(shares) == pytest.approx(1)
    summary = collect(
        ["CoinRun"],
        tmp_path / "data",
        episodes=2,
        steps=20,
        policy=policy_spec(f"checkpoint:{best}"),
    )
    assert summary.played_episodes == 2
    flags = ["--preset", "debug", "--iterations", "2", "--data", str(tmp_path / "data")]
    tokenizer, dynamics = tmp_path / "tokenizer", tmp_path / "dynamics"
    assert execute(["train", "tokenizer", *flags, "--out", str(tokenizer)]) == 0
    flags += ["--tokenizer", str(tokenizer), "--out", str(dynamics)]
    assert execute(["train", "dynamics", *flags]) == 0
    assert GenieReduxG.load(dynamics / "model").actions == 7, "as many as the data"
    with pytest.raises(InputError, match="the world model has 5 actions, the games have 7"):
        explore(["CoinRun"], tiny_world, tmp_path / "other", config=config)


@pytest.mark.slow
def test_a_game_is_explored_with_chosen_actions(ray_cluster, tmp_path):
    """Data bring their actions to the model, the model to the agent, the agent to the game."""
    actions, data = ("right", "left", "jump", "jump+right", "none"), str(tmp_path / "data")
    play = ["collect", GAME, "--episodes", "2", "--steps", "40"]
    assert execute([*play, "--actions", ",".join(actions), "--out", data]) == 0
    flags = ["--preset", "debug", "--iterations", "2", "--data", data]
    tokenizer, dynamics = tmp_path / "tokenizer", tmp_path / "dynamics"
    assert execute(["train", "tokenizer", *flags, "--out", str(tokenizer)]) == 0
    flags += ["--tokenizer", str(tokenizer)]
    assert execute(["train", "dynamics", *flags, "--out", str(dynamics)]) == 0
    model = dynamics / "model"
    assert GenieReduxG.load(model).cfg.action_names == actions

    config = explore_preset("debug", runners=0)
    best = explore([GAME], model, tmp_path / "run", config=config)
    assert load_policy(best).action_names == actions
    agent = policy_spec(f"checkpoint:{best}")
    collect([GAME], tmp_path / "played", episodes=1, steps=20, policy=agent)
    assert recorded_actions([str(tmp_path / "played")]) == actions

    archive = ["--policy", "archive", "--model", str(model)]
    assert execute([*play, *archive, "--out", str(tmp_path / "archive")]) == 0
    assert recorded_actions([str(tmp_path / "archive")]) == actions
    explore([GAME], model, tmp_path / "from-archive", config=config, archive=tmp_path / "archive")
    with pytest.raises(
        InputError, match=r"is an archive of actions right, .*none, not \(the game's own\)"
    ):
        Archive(GAME, EpisodeReader(data)[0].rom_sha1, CellGrid()).load(
            tmp_path / "archive" / "archive" / GAME
        )

    own = str(tmp_path / "own")
    assert execute([*play, "--out", own]) == 0
    with pytest.raises(InputError, match=r"has the actions .*none, the data have right, .*down"):
        evaluate(load_world_model(model), [own])
