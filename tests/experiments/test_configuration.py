"""Presets, --config files and explicit flags: which wins, what comes back, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from envs.utils.errors import InputError
from experiments.__main__ import parse
from experiments.pipeline.config import PRESETS as PIPELINES
from exploration.config import PRESETS as EXPLORERS
from tests.experiments.test_cli import complaint
from worldmodel import preset
from worldmodel.training.config import TrainConfig, train_preset
from worldmodel.training.run_spec import TrainingRun


def parsed(*argv: str) -> Any:
    return parse(list(argv))[1]


def write(folder: Path, values: Any) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps(values))
    return str(file)


def test_the_preset_is_the_default_of_every_flag() -> None:
    args = parsed("train", "dynamics", "--preset", "debug", "--recipe", "finetune")
    assert args.training == train_preset("dynamics", "debug", "finetune")
    assert args.model == preset("debug")
    assert parsed("train", "tokenizer", "--recipe=finetune").decoder_only
    assert parsed("explore", "--preset=debug", "--out", "x").explorer == EXPLORERS["debug"]
    assert parsed("compare", "--model", "m", "--out", "x").explorer == EXPLORERS["cpu"]
    assert parsed("expert", "Counting", "--out", "x").explorer == EXPLORERS["expert-cpu"]
    assert parsed("pipeline", "--out", "x", "--preset", "paper").pipeline == PIPELINES["paper"]
    assert (
        parsed(
            "pipeline", "--out", "x", "--preset", "debug", "--rounds", "1"
        ).pipeline.reward_backend
        == "serve"
    )


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    first, second = dataclasses.fields(TrainConfig)[:2]
    file = tmp_path / "train.yaml"
    file.write_text(
        f"{first.name}: 17\ntraining:\n  {second.name}: 8\n  lr: 2e-3\nmodel: {{frames: 9}}\n"
    )
    flag = f"--{second.name.replace('_', '-')}"
    args = parsed("train", "tokenizer", "--preset", "debug", "--config", str(file), flag, "4")
    expected = {first.name: 17, second.name: 4, "lr": 2e-3}
    assert args.training == dataclasses.replace(train_preset("tokenizer", "debug"), **expected)
    assert args.model == dataclasses.replace(preset("debug"), frames=9)


def test_the_file_of_a_training_gives_the_same_run(tmp_path: Path) -> None:
    changed = dataclasses.replace(train_preset("dynamics", "debug"), betas=(0.8, 0.9), seed=3)
    run = TrainingRun(
        component="dynamics",
        config=preset("cpu"),
        recipe=changed,
        data=("/data/one",),
        out=tmp_path,
        cache_dir=tmp_path,
        tokenizer=Path("/runs/tokenizer"),
    )
    args = parsed("train", "dynamics", "--config", write(tmp_path, run.identity()), "--out", "x")
    assert (args.training, args.model) == (changed, run.config)
    assert (args.data, args.tokenizer, args.joint_lam) == (run.data, run.tokenizer, False)


def test_the_file_of_an_exploration_gives_the_same_run(tmp_path: Path) -> None:
    reward = {"name": "vae", "scorer": "local", "data": ["/data"], "app": None}
    explorer = dataclasses.replace(EXPLORERS["debug"], lr=0.5)
    recorded = {"games": ["Counting"], "model": "/model", "seed": 4, "reward": reward}
    file = write(tmp_path, recorded | dataclasses.asdict(explorer))
    args = parsed("explore", "--config", file, "--out", "x")
    assert (args.games, args.model, args.seed) == (("Counting",), Path("/model"), 4)
    assert (args.reward, args.reward_data, args.reward_backend) == ("vae", ("/data",), "local")
    assert args.explorer == explorer
    assert parsed("compare", "--config", file, "--out", "x").explorer == explorer
    assert parsed("expert", "--config", file, "--out", "x").explorer == explorer
    recorded = {"games": ["Counting"], "model": "/model", "scorer": "local", "seed": 1, "trials": 3}
    file = write(tmp_path, {"tune": recorded | dataclasses.asdict(explorer)})
    args = parsed("tune", "--config", file, "--out", "x")
    assert (args.explorer, args.trials, args.reward_backend) == (explorer, 3, "local")


def test_the_file_of_a_pipeline_gives_the_same_run(tmp_path: Path) -> None:
    config = dataclasses.replace(PIPELINES["debug"], tokenizer={"iterations": 3}, seed=2)
    file = write(tmp_path, {"rounds": 2, "pipeline": dataclasses.asdict(config)})
    args = parsed("pipeline", "--config", file, "--out", "x")
    assert (args.rounds, args.pipeline) == (2, config)


def test_a_wrong_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    for command, values, words in (
        (
            ["train", "tokenizer"],
            {"iteratons": 3},
            "unknown setting iteratons: did you mean iterations",
        ),
        (
            ["train", "tokenizer"],
            {"model": {"dynamics": {"block": 3}}},
            "model.dynamics.block: did",
        ),
        (["explore", "Counting"], {"loss": {"gama": 3}}, "loss.gama: did you mean loss.gamma"),
        (["pipeline"], {"random_episode": 3}, "did you mean random_episodes"),
        (
            ["pipeline"],
            {"preset": "debug", "tokenizer": {"iteratons": 1}},
            "tokenizer.iteratons: did",
        ),
        (["train", "tokenizer"], {"batch_size": "many"}, "batch_size = 'many': expected int"),
        (["train", "tokenizer"], ["a list"], "expected settings"),
    ):
        argv = [*command, "--config", write(tmp_path, values), *out]
        assert words in complaint(capsys, *argv), values
    gone = str(tmp_path / "gone.yaml")
    assert gone in complaint(capsys, "pipeline", "--config", gone, *out)
    with pytest.raises(InputError, match="at least 0"):
        parsed("train", "tokenizer", "--config", write(tmp_path, {"ema": 2}))
    assert not (tmp_path / "run").exists()
