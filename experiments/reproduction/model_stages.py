"""Stages of a table that train its models and evaluate them."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.episodes.dataset import EpisodeReader
from envs.episodes.overlap import refuse_shared_episodes
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage, StageContext, stages_behind
from experiments.pipeline.stages import DEEP_SHARE, finetune_stages, join_stage, train_stage
from experiments.reproduction.plans import Model, Play, TableRow, base_episodes, named
from worldmodel.evaluation.evaluate import evaluate
from worldmodel.evaluation.far_windows import FarWindows
from worldmodel.models.genie import load_world_model

SCRATCH_ITERATIONS = 15_000
"""Steps of the paper's models from scratch (section 5); other presets train as long as the base."""


def model_stages(c: PipelineConfig, model: Model) -> list[Stage]:
    """Return the stages that train a model of a table."""
    name, data = model.name, tuple(f"data-{play.name}" for play in model.play)
    if model.start == "base":
        base = (f"data-{base_episodes(c).name}",) if c.finetune_data == "half" else ()
        return finetune_stages(c, name, (*base, *data))
    c = replace(c, model={**c.model, **model.settings})
    parts, own = [], name if model.start == "scratch" else model.tokenizer_of
    tokenizer, lam = f"tokenizer-{own}" if own else "tokenizer", None
    if model.start == "scratch":
        what = f"train the tokenizer of {name}"
        parts.append(train_stage(c, tokenizer, what, data, output=f"tokenizers/{name}"))
    if model.latent:
        lam, what = f"lam-{name}", f"train the latent action model of {name}"
        parts.append(train_stage(c, lam, what, data, output=f"lams/{name}"))
    changes = c.dynamics
    if c.preset == "paper" and model.start == "decoder":
        changes = {**changes, "iterations": SCRATCH_ITERATIONS}
    dynamics = train_stage(
        replace(c, dynamics=changes),
        f"dynamics-{name}",
        f"train the dynamics model of {name} from scratch",
        data,
        output=f"scratch/{name}",
        tokenizer="tokenizer" if model.start == "decoder" else tokenizer,
        lam=lam,
    )
    decoder = f"decoder-{model.decoder_of}" if model.start == "decoder" else tokenizer
    return [*parts, dynamics, join_stage(name, decoder, dynamics.name, lam)]


def score_path(row: TableRow) -> Path:
    """Return the path of a row's scores in the folder of a seed."""
    return Path("scores") / row.model / f"{_score_name(row)}.json"


def score_stage_name(row: TableRow) -> str:
    """Return the name of the stage that computes a row's scores."""
    return f"score-{row.model}-{_score_name(row)}"


def _score_name(row: TableRow) -> str:
    """Return the name of the scores of a row's model."""
    name = f"{_test_name(row.test)}-{row.mode}"
    return name if row.source == "recorded" else f"{name}-{row.source}"


def _test_name(test: Iterable[Play]) -> str:
    plays = tuple(test)
    return named(plays[0].player, [game for play in plays for game in play.games])


def refuse_learned_episodes(context: StageContext, model: str, tests: Iterable[Path]) -> None:
    """Raise InputError if a model, or one that it goes back to, learned from a test episode."""
    behind = stages_behind(context.root, f"model-{model}")
    learned = [context.path(name) for name in behind if name.startswith("data-")]
    for test in tests:
        refuse_shared_episodes(EpisodeReader(test).session_ids, learned)


def evaluation_stage(c: PipelineConfig, row: TableRow, test_player: str) -> Stage:
    """Return the stage that evaluates a row's model on its test set.

    Of deep play the windows are evaluated that are least like the base model's data.
    """
    deep = test_player == "deep" and row.test[0].player == "test"
    driven = {"actions": row.actions, "predictor": "lam" if row.part == "lam" else "dynamics"}

    def run(context: StageContext) -> dict[str, Any]:
        base = str(context.path(f"data-{base_episodes(c).name}"))
        tests = [context.path(f"data-{play.name}") for play in row.test]
        refuse_learned_episodes(context, row.model, tests)
        world = load_world_model(context.path(f"model-{row.model}"), "auto", c.precision)
        result = evaluate(
            world,
            [str(test) for test in tests],
            cache_dir=context.root / "cache",
            out=context.out,
            far=FarWindows((base,), DEEP_SHARE) if deep else None,
            **{"seed": c.seed, **c.evaluate, "mode": row.mode, **driven},
        )
        return {"windows": result["overall"]["windows"]}

    inputs = (
        f"model-{row.model}",
        f"data-{base_episodes(c).name}",
        *(f"data-{play.name}" for play in row.test),
    )
    source = [] if row.source == "recorded" else [row.source]
    settings = [c.evaluate, c.seed, c.precision, row.mode, deep and DEEP_SHARE, *source]
    return Stage(
        score_stage_name(row),
        ", ".join([f"evaluate {row.model}", row.mode, *source]),
        run,
        inputs,
        str(score_path(row)),
        settings,
    )
