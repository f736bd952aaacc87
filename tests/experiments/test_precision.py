"""`--precision`: every command with `--device` has it, and it reaches the models."""

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import worldmodel
from envs.collect import CollectSummary
from experiments.__main__ import COMMANDS, execute, parse
from experiments.arguments import DeviceArgs
from experiments.commands import collect, reproduce
from experiments.reproduction.items import find_item
from experiments.studies.ablation import plan_grid
from experiments.studies.ablation_runs import dynamics_run, run_cell, tokenizer_run
from experiments.studies.exploration import plan_cells
from experiments.studies.exploration_runs import agent_stage, arm_from_archive
from experiments.studies.exploration_scores import score_stage
from exploration.archive import ArchiveConfig
from exploration.reward.factory import RewardConfig

WITHOUT = {
    "benchmark": "measures the precision that each device computes best",
    "export": "only reads latent actions, in fp32 as in training",
}
"""Commands with --device whose models have one precision, and why."""


def field_types(flags: Any) -> dict[str, Any]:
    """Return the types of the fields of a dataclass by name."""
    return {field.name: field.type for field in dataclasses.fields(flags)}


def flag_classes() -> Iterator[tuple[str, type]]:
    """Yield every command, or study, and the class of its flags."""
    for name in COMMANDS:
        queue: list[Any] = [import_module(f"experiments.commands.{name}").Args]
        while queue:
            hint = queue.pop()
            if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
                queue += typing.get_args(hint)
                continue
            hints = field_types(hint)
            if "which" in hints:
                queue.append(hints["which"])
            else:
                yield name, hint


def has_precision(hint: Any) -> bool:
    """Return True if a class of flags, or a configuration in it, has a precision."""
    if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return any(has_precision(part) for part in typing.get_args(hint))
    hints = field_types(hint)
    return "precision" in hints or any(map(has_precision, hints.values()))


WITH_DEVICE = {
    f"{name} {flags.__name__}": flags
    for name, flags in flag_classes()
    if issubclass(flags, DeviceArgs) and name not in WITHOUT
}


def test_the_commands_that_run_models_are_found() -> None:
    names = {name.split()[0] for name in WITH_DEVICE}
    assert {"collect", "evaluate", "explore", "pipeline", "play", "report", "study"} <= names
    assert sum(name.startswith("study") for name in WITH_DEVICE) >= 7


@pytest.mark.parametrize("name", WITH_DEVICE)
def test_commands_with_a_device_have_a_precision(name: str) -> None:
    assert has_precision(WITH_DEVICE[name])


@pytest.mark.parametrize(
    "words",
    [
        "evaluate M --data D",
        "generate M --data D --out O",
        "play M --data D",
        "study uncertainty M --data D --out O",
        "study people make --models a=M b=N --data D --out O",
    ],
)
def test_a_command_of_one_model_loads_it_in_the_precision(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse([*words.split(), "--precision", "bf16"])[1]
    while hasattr(args, "which"):
        args = args.which
    loaded: list[Any] = []
    monkeypatch.setattr(worldmodel, "load_world_model", lambda *given, **_: loaded.append(given))
    args.load_model(Path("M"))
    assert loaded == [(Path("M"), "auto", "bf16")]


def test_collect_scores_savestates_in_the_precision(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def play(*arguments: Any, **_: Any) -> CollectSummary:
        given.extend(arguments)
        return CollectSummary()

    monkeypatch.setattr("exploration.archive.play_from_archive", play)
    monkeypatch.setattr(collect, "ray_session", lambda address: nullcontext())
    argv = ["collect", "Corridor", "--policy", "archive", "--model", str(tiny_world)]
    assert execute([*argv, "--out", str(tmp_path / "data"), "--precision", "bf16"]) == 0
    (config,) = [item for item in given if isinstance(item, ArchiveConfig)]
    assert config.precision == "bf16"


def test_a_report_runs_its_models_in_the_precision_of_flag_or_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "base-random.json").write_text("{}")
    seen: list[Any] = []
    module = "experiments.reports.pipeline_report.build_pipeline_report"
    monkeypatch.setattr(module, lambda root, out, precision: seen.append(precision) or [])
    for flags in (["--precision", "bf16"], []):
        assert execute(["report", str(tmp_path), *flags]) == 0
    assert seen == ["bf16", "auto"]


def test_reproduce_overrides_the_precision_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"precision": "fp32"}))
    for flags, expected in (
        ([], "auto"),
        (["--config", str(file)], "fp32"),
        (["--config", str(file), "--precision", "bf16"], "bf16"),
    ):
        args = parse(["reproduce", "table5", "--preset", "debug", *flags])[1]
        config = reproduce.configuration(args, find_item("table5"), plays=False)
        assert config.precision == expected


def ablation(tmp_path: Path, precision: str) -> Any:
    argv = ["study", "ablation", "--data", "D", "--out", str(tmp_path / precision)]
    return plan_grid(parse([*argv, "--preset", "gpu", "--precision", precision])[1].which)


def test_an_ablation_trains_and_evaluates_in_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = {name: ablation(tmp_path, name) for name in ("auto", "fp32", "bf16")}
    for name, grid in grids.items():
        runs = tokenizer_run(grid, 0, None), dynamics_run(grid, "base", 0, None)
        assert {run.recipe.precision for run in runs} == {name}
    assert "precision" not in grids["auto"].identity(), "studies from before go on"
    assert grids["bf16"].identity()["precision"] == "bf16"

    module, loaded = "experiments.studies.ablation_runs", []

    class Loaded(Exception):
        """The model is loaded."""

    class Model:
        def save(self, folder: Path) -> None:
            pass

    def load(*given: Any) -> None:
        loaded.extend(given[1:])
        raise Loaded

    monkeypatch.setattr(f"{module}.train", lambda *_, **__: True)
    monkeypatch.setattr(f"{module}.build_world_model", lambda *_: Model())
    monkeypatch.setattr(f"{module}.load_world_model", load)
    with pytest.raises(Loaded):
        run_cell(grids["bf16"], "base", 0, None)
    assert loaded == ["auto", "bf16"]


def exploration_cell(tmp_path: Path, *flags: str) -> Any:
    argv = ["study", "exploration", "Corridor", "--preset", "debug", "--out", str(tmp_path)]
    return plan_cells(parse([*argv, *flags])[1].which)[0]


def test_a_study_of_exploration_plays_and_scores_in_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        out, resume = tmp_path / "out", False

        def path(self, stage: str) -> Path:
            return tmp_path / stage

    precisions: list[str] = []

    def record(find: Callable[..., str]) -> Callable[..., Any]:
        def replaced(*given: Any, **options: Any) -> int:
            precisions.append(find(given, options))
            return 0

        return replaced

    def play_once(game: str, out: Path, steps: int, length: int, play: Any, size: int) -> int:
        play(1)
        return 0

    module = "experiments.studies.exploration_runs"
    monkeypatch.setattr("exploration.explore", record(lambda _, o: o["config"].precision))
    monkeypatch.setattr(f"{module}.play_from_archive", record(lambda g, _: g[3].precision))
    monkeypatch.setattr(f"{module}.play_until", play_once)
    scores = "experiments.studies.exploration_scores"
    monkeypatch.setattr(f"{scores}.GenieReduxG.load", record(lambda g, _: g[2]))
    monkeypatch.setattr(f"{scores}.TESTS", ())
    cell = exploration_cell(tmp_path, "--precision", "bf16")
    stages = (
        agent_stage(cell, "explore", None),
        arm_from_archive(cell, "archive-entropy", "token-entropy"),
        score_stage(cell, "base"),
    )
    for stage in stages:
        stage.run(typing.cast(Any, Context()))
    assert precisions == ["bf16"] * 3
    assert all("bf16" in str(stage.settings) for stage in stages), "another one plays anew"
    plain = exploration_cell(tmp_path)
    assert "precision" not in plain.settings, "studies from before go on"
    assert (cell.settings["precision"], plain.chosen_precision) == ("bf16", [])


def test_networks_of_a_reward_are_trained_in_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded(Exception):
        """The model is loaded."""

    def load(path: Path, device: str, precision: str) -> None:
        raise Loaded(precision)

    monkeypatch.setattr("worldmodel.uncertainty.load_model", load)
    reward = RewardConfig("disagreement", data=("D",))
    opened = reward.open(tmp_path, tmp_path, seed=0, precision="bf16")
    with pytest.raises(Loaded, match="bf16"), opened:
        pass
