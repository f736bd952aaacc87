"""The pipeline as a whole, then skipping, resuming and repeating of stages that write one file."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.episodes.dataset import EpisodeReader
from envs.utils.errors import InputError
from envs.utils.progress import console, format_duration
from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from experiments.commands import pipeline
from experiments.pipeline.config import PRESETS, pipeline_preset
from experiments.pipeline.data_stages import frames_by_game
from experiments.pipeline.games_apart import of_one_game
from experiments.pipeline.runner import Context, Stage, StageContext, output_hash, run_stages
from experiments.pipeline.stages import check_settings, model_config, sides_of, stage_table
from exploration.agent.policy import load_policy
from worldmodel.models.genie import load_world_model


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return modification time and size of every file."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.stat().st_size)
        for file in files
    }


def test_runs_from_games_to_report(finished_run: tuple[Path, str]) -> None:
    run, printed = finished_run
    stages = [stage.name for stage in stage_table(PRESETS["debug"])]
    timings = json.loads((run / "timings.json").read_text())
    assert list(timings["seconds"]) == stages
    assert all(f"{stage}: " in printed for stage in stages)
    assert " elapsed)" in printed
    lines = printed.strip().splitlines()
    path = str((run / "report" / "index.html").resolve()).replace(" ", "")
    assert "".join(lines).replace(" ", "").endswith(path)
    assert {file.name for file in (run / "models").iterdir()} == {
        "base",
        "random",
        "archive",
        "agent",
    }
    assert read_metrics(run / "tokenizer")[-1]["step"] == 20
    assert any((run / "tokenizer" / "tensorboard").iterdir())


def test_second_run_skips_every_stage(finished_run: tuple[Path, str], ray_cluster: None) -> None:
    run, _ = finished_run
    before = snapshot(run)
    with console.capture() as printed:
        pipeline.run(pipeline.Args(out=run, pipeline=PRESETS["debug"]))
    after = snapshot(run)
    assert printed.get().count("already there") == len(stage_table(PRESETS["debug"]))
    assert "Nothing was left to do." in printed.get()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"config.json", "timings.json"}


def test_test_episodes_are_in_no_training_data(finished_run: tuple[Path, str]) -> None:
    data = finished_run[0] / "data"
    sessions = {folder.name: set(EpisodeReader(folder).session_ids) for folder in data.iterdir()}
    assert set(sessions) == {
        "random",
        "archive",
        "agent",
        "more-random",
        "test-random",
        "test-deep",
    }
    assert sum(map(len, sessions.values())) == len(set().union(*sessions.values()))
    players = {
        name: {record.policy_id for record in EpisodeReader(data / name).records}
        for name in sessions
    }
    assert players["test-random"] == players["random"] == players["more-random"] == {"random"}
    assert players["test-deep"] == {"archive-extrinsic-sticky0.9"}
    assert players["archive"] == {"archive-token-entropy-dirichlet0.3"}
    (agent,) = players["agent"]
    assert agent.startswith("checkpoint")


def test_the_comparison_is_fair(finished_run: tuple[Path, str]) -> None:
    """All sides have the same base, settings, seed and number of frames."""
    run, _ = finished_run
    archive, agent, random = (
        frames_by_game(run / "data" / name) for name in ("archive", "agent", "more-random")
    )
    longest = PRESETS["debug"].explored_steps + 1
    for game, frames in archive.items():
        assert frames <= random[game] < frames + longest
        assert abs(frames - agent[game]) <= longest
    for part in ("decoder", "dynamics"):
        sides = [
            json.loads((run / "finetune" / side / part / "config.json").read_text())
            for side in ("archive", "agent", "random")
        ]
        data = [side.pop("data") for side in sides]
        assert sides[0] == sides[1] == sides[2]
        names = [[Path(folder).name for folder in folders] for folders in data]
        assert names == [["archive"], ["agent"], ["more-random"]], "new data alone"


def test_fine_tuned_decoders_leave_tokens_alone(finished_run: tuple[Path, str]) -> None:
    import torch

    from experiments.reports.images import load_float_frames
    from worldmodel import GenieReduxG

    run, _ = finished_run
    frames = load_float_frames(EpisodeReader(run / "data/test-deep")[0].frames_THWC[:8])
    models = [GenieReduxG.load(run / "models" / name) for name in ("base", "random", "archive")]
    tokens = [model.tokenizer.encode(frames) for model in models]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])
    made = [model.tokenizer.decode(tokens[0]) for model in models]
    assert not torch.equal(made[0], made[2])


class Toy:
    """Two stages, of which the second reads the first; each writes a file and counts its calls."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.text = root, [], "one"
        self.fail: Exception | KeyboardInterrupt | None = None

    def stage(
        self, name: str, inputs: tuple[str, ...], act: Callable[[StageContext], None]
    ) -> Stage:
        def run(job: StageContext) -> dict[str, Any]:
            self.calls.append((name, job.resume))
            act(job)
            return {"from": name}

        settings = self.text if name == "first" else None
        return Stage(name, "write", run, inputs, f"{name}.txt", settings)

    def run(self) -> list[str]:
        def first(job: StageContext) -> None:
            job.out.write_text(self.text)

        def second(job: StageContext) -> None:
            if self.fail is not None:
                raise self.fail
            job.out.write_text(job.path("first").read_text() * 2)
            assert job.result("first") == {"from": "first"}

        return run_stages(
            [self.stage("first", (), first), self.stage("second", ("first",), second)],
            Context(self.root, None),
        )


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def test_finished_stages_are_skipped(toy: Toy) -> None:
    assert toy.run() == ["first", "second"]
    assert toy.run() == []
    assert (toy.root / "second.txt").read_text() == "oneone"


def test_changed_settings_repeat_the_dependent_stages(toy: Toy) -> None:
    toy.run()
    toy.text = "two"
    assert toy.run() == ["first", "second"]
    assert (toy.root / "second.txt").read_text() == "twotwo"
    assert toy.calls[-2:] == [("first", False), ("second", False)]


def test_a_missing_or_changed_output_is_written_again(toy: Toy) -> None:
    toy.run()
    (toy.root / "second.txt").unlink()
    assert toy.run() == ["second"]
    (toy.root / "first.txt").write_text("tampered")
    assert toy.run() == ["first"]  # its output is as before, so the second is skipped


def test_an_interrupted_stage_is_resumed(toy: Toy) -> None:
    toy.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    toy.fail = None
    assert toy.run() == ["second"]
    assert toy.calls == [("first", False), ("second", False), ("second", True)]


def test_durations_have_one_unit_or_two() -> None:
    durations = [format_duration(seconds) for seconds in (9, 95, 700, 5400)]
    assert durations == ["9 s", "1 min 35 s", "12 min", "1.5 h"]


def test_output_hash_sees_every_byte(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"1")
    before = output_hash(tmp_path)
    (tmp_path / "sub" / "a").write_bytes(b"2")
    assert output_hash(tmp_path) != before


def test_presets_are_checked_and_complete() -> None:
    with pytest.raises(InputError, match="preset"):
        pipeline_preset("huge")
    with pytest.raises(InputError, match="workers 0"):
        dataclasses.replace(pipeline_preset("debug"), workers=0)
    with pytest.raises(InputError, match="add it to --explorers"):
        dataclasses.replace(pipeline_preset("debug"), explorers=("archive",), tests=("agent",))
    assert pipeline_preset("cpu") == PRESETS["cpu"]
    for made in PRESETS.values():
        stages = stage_table(of_one_game(made, made.games[0]))
        names = [stage.name for stage in stages]
        assert len(set(names)) == len(names)
        for place, stage in enumerate(stages):
            assert set(stage.inputs) <= set(names[:place])  # stages before it
        assert len({stage.output for stage in stages}) == len(names)
    assert dataclasses.replace(PRESETS["cpu"], seed=1) != PRESETS["cpu"]


def test_the_world_model_takes_other_sizes() -> None:
    plain = PRESETS["debug"]
    deeper = dataclasses.replace(plain, model={"tokenizer": {"encoder_blocks": 2}})
    assert model_config(plain).tokenizer.encoder_blocks == 1
    assert model_config(deeper).tokenizer.encoder_blocks == 2
    assert model_config(deeper).dynamics == model_config(plain).dynamics
    with pytest.raises(InputError, match="did you mean model"):
        check_settings(dataclasses.replace(plain, model={"tokenizer": {"encoder_block": 2}}))
    # Another size repeats every training, and nothing that does not depend on one.
    pairs = zip(stage_table(plain), stage_table(deeper), strict=True)
    changed = [stage.name for stage, other in pairs if stage.settings != other.settings]
    assert changed == [
        "tokenizer",
        "dynamics",
        *(f"{part}-{side}" for side in sides_of(plain) for part in ("decoder", "dynamics")),
    ]


@pytest.mark.slow
def test_the_steps_of_the_readme_one_by_one(ray_cluster: None, tmp_path: Path) -> None:
    data, test = str(tmp_path / "random"), str(tmp_path / "test")
    tokenizer, dynamics, agent = (
        str(tmp_path / name) for name in ("tokenizer", "dynamics", "agent")
    )
    small = ["--preset", "debug"]
    for argv in (
        ["collect", "Airstriker-Genesis", "--episodes", "4", "--steps", "40", "--out", data],
        ["train", "tokenizer", *small, "--data", data, "--iterations", "2", "--out", tokenizer],
        [
            *("train", "dynamics", *small, "--data", data, "--tokenizer", tokenizer),
            *("--iterations", "2", "--model.dynamics.objective", "masked_frames"),
            *("--out", dynamics),
        ],
        [
            *("collect", "Airstriker-Genesis", "--episodes", "1", "--steps", "40"),
            *("--seed", "1", "--out", test),
        ],
        [
            *("evaluate", f"{dynamics}/model", "--data", test, "--sampling-steps", "1"),
            *("--horizon", "4", "--out", str(tmp_path / "e.json")),
        ],
        [
            *("explore", "Airstriker-Genesis", *small, "--model", f"{dynamics}/model"),
            *("--epochs", "1", "--out", agent),
        ],
    ):
        assert execute(argv) == 0, argv
    assert "Airstriker-Genesis" in (tmp_path / "e.json").read_text()
    assert load_world_model(f"{dynamics}/model").cfg.dynamics.objective == "masked_frames"
    assert load_policy(f"{agent}/best").act(np.zeros((64, 64, 3), np.uint8)) in range(5)
