"""Stages of the pipeline in their order, and the functions that run them.

Names, settings and outputs of the stages are part of their records in a run's folder.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import exploration
from envs import action_names
from envs.utils.progress import progress
from envs.utils.ray_session import node_resources
from experiments.arguments import default_threads
from experiments.configuration import override
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.data_stages import (
    archive_stage,
    as_much_stage,
    collect_stage,
    deep_test_stage,
    part_seed,
)
from experiments.pipeline.runner import Stage, StageContext
from experiments.reports.pipeline_report import build_pipeline_report
from exploration.archive import ArchiveConfig
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig
from worldmodel import GenieReduxG, WorldModelConfig, loading, preset
from worldmodel.evaluation.evaluate import evaluate
from worldmodel.evaluation.far_windows import FarWindows
from worldmodel.evaluation.ray_tasks import map_ray_tasks
from worldmodel.training.config import train_preset
from worldmodel.training.train import TrainingRun, train

DEEP_SHARE = 0.25
"""Share of the windows of the test set `deep` that is evaluated."""


def sides_of(c: PipelineConfig) -> tuple[str, ...]:
    """Return the players whose data are compared: random, then the explorers."""
    return ("random", *c.explorers)


def models_of(c: PipelineConfig) -> tuple[str, ...]:
    """Return the models that are compared; `models/<name>` holds each."""
    return ("base", *sides_of(c))


def stage_table(c: PipelineConfig) -> list[Stage]:
    """Return the stages of a pipeline, in order."""
    stages = first_stages(c)
    if "agent" in c.explorers:
        stages.append(explore_stage(c, "explore", run_explorer, ("model-base",)))
        stages.append(collect_stage(c, "agent", c.explored_episodes, c.explored_steps))
    if "archive" in c.explorers:
        stages.append(archive_stage(c))
    stages.append(as_much_stage(c))
    for test in c.tests:
        stages.append(
            deep_test_stage(c)
            if test == "deep"
            else collect_stage(c, f"test-{test}", c.test_episodes, c.explored_steps)
        )
    # All sides of the comparison have the same base, settings and seed.
    base = ("collect-random",) if c.finetune_data == "half" else ()
    for side in sides_of(c):
        data = "collect-more-random" if side == "random" else f"collect-{side}"
        stages += finetune_stages(c, side, (*base, data))
    evaluation = Stage(
        "evaluate",
        "evaluate the models on the test episodes",
        evaluate_models,
        inputs=(
            *(f"model-{name}" for name in models_of(c)),
            *(f"collect-test-{test}" for test in c.tests),
            *(("collect-random",) if "deep" in c.tests else ()),
        ),
        output="evaluation",
        settings=[c.evaluate, c.seed, c.precision, DEEP_SHARE],
    )
    return [*stages, evaluation, report_stage("report", build_pipeline_report, ("evaluate",))]


def first_stages(c: PipelineConfig) -> list[Stage]:
    """Return the stages that play at random and train the base model."""
    base = replace(c, games=c.games_of_base)
    stages = [collect_stage(base, "random", c.random_episodes, c.random_steps)]
    if not c.pretraining_games:
        return [*stages, *base_model_stages(c, "collect-random")]
    many = replace(c, games=c.pretraining_games)
    pretraining = collect_stage(many, "pretraining", c.pretraining_episodes, c.pretraining_steps)
    return [*stages, pretraining, *base_model_stages(c, "collect-random", pretraining.name)]


def base_model_stages(c: PipelineConfig, data: str, pretraining: str | None = None) -> list[Stage]:
    """Return the stages that train the base model on the episodes of the stage `data`.

    With the episodes of a stage `pretraining` they are the paper's (section 4): the tokenizer
    learns from both, the dynamics model from those (GenieRedux-G-200, here the model `pretrained`),
    and then from `data` (GenieRedux-G-50).
    """
    tokenizer = train_stage(
        c, "tokenizer", "train the tokenizer", (pretraining, data) if pretraining else (data,)
    )
    if pretraining is None:
        dynamics = [train_stage(c, "dynamics", "train the dynamics model", (data,))]
    else:
        first, what = "dynamics-pretraining", "train the dynamics model on many games"
        dynamics = [
            train_stage(c, first, what, (pretraining,)),
            join_stage("pretrained", "tokenizer", first),
            train_stage(c, "dynamics", "train it on the base games", (data,), first, recipe="g50"),
        ]
    return [tokenizer, *dynamics, join_stage("base", "tokenizer", "dynamics")]


def check_settings(c: PipelineConfig) -> None:
    """Raise InputError for an unknown setting of a stage, before the first one starts."""
    for name, base in (
        ("model", preset(c.preset)),
        ("tokenizer", train_preset("tokenizer", c.preset)),
        ("lam", train_preset("lam", c.preset)),
        ("dynamics", train_preset("dynamics", c.preset)),
        ("decoder_finetune", train_preset("tokenizer", c.preset, "finetune")),
        ("dynamics_finetune", train_preset("dynamics", c.preset, "finetune")),
        ("explore", explore_preset(c.preset)),
        ("archive", ArchiveConfig()),
    ):
        override(base, getattr(c, name), "settings", f"{name}.")


def model_config(c: PipelineConfig) -> WorldModelConfig:
    """Return the configuration of the world model, with the actions of the games."""
    config = override(preset(c.preset), c.model, "settings", "model.")
    return config.with_actions(action_names(c.games, c.actions))


def train_stage(
    c: PipelineConfig,
    name: str,
    description: str,
    data: tuple[str, ...],
    init: str | None = None,
    output: str | None = None,
    *,
    tokenizer: str = "tokenizer",
    lam: str | None = None,
    recipe: str | None = None,
) -> Stage:
    """Return the stage that trains a component, or fine-tunes that of the stage `init`, on `data`.

    `recipe` is the name of its settings; None for those of a training from scratch, or of
    fine-tuning with `init`.

    The name begins with tokenizer, lam, decoder or dynamics. Of a tokenizer only the decoder is
    fine-tuned, so that tokens stay the same and every dynamics model uses the base tokenizer. A
    dynamics model is trained on the tokens of the stage `tokenizer`, and on the latent actions of
    the stage `lam` if there is one.
    """
    part = name.split("-")[0]
    component = "tokenizer" if part == "decoder" else part
    config = model_config(c)
    recipe = recipe or ("finetune" if init else None)
    finetuned = recipe == "finetune"
    changes = getattr(c, f"{part}_finetune" if finetuned else part)
    threads = max(1, (c.threads or default_threads()) // max(1, c.train_workers))
    options: dict[str, Any] = {"seed": c.seed, "num_threads": threads}
    if c.precision != "auto":
        options["precision"] = c.precision
    options |= changes
    training = TrainingRun(
        component,
        config=config.with_latent_actions() if lam else config,
        recipe=train_preset(component, c.preset, recipe, **options),
        data=(),
        out=Path(),
        decoder_only=part == "decoder",
    )
    tokens = tokenizer if component == "dynamics" else None
    # The base model's uncertainty chooses the clips that an explorer's model is fine-tuned on.
    priority = "model-base" if finetuned and changes.get("prioritised") else None

    def run(context: StageContext) -> dict[str, Any]:
        specification = replace(
            training,
            data=[str(context.path(stage)) for stage in data],
            out=context.out,
            init=context.path(init) if init else None,
            tokenizer=context.path(tokens) if tokens else None,
            lam=context.path(lam) if lam else None,
            priority_model=context.path(priority) if priority else None,
            cache_dir=context.root / "cache",
        )
        checkpoint = train(specification, workers=c.train_workers, resume=context.resume)
        return {"checkpoint": str(checkpoint)}

    inputs = (*(stage for stage in (tokens, lam, init, priority) if stage), *data)
    settings = [c.preset, c.seed, c.precision, c.model, changes]
    return Stage(name, description, run, inputs, output or name, settings, training)


def finetune_stages(
    c: PipelineConfig,
    side: str,
    data: tuple[str, ...],
    bases: tuple[str, str] = ("tokenizer", "dynamics"),
    folder: str | None = None,
) -> list[Stage]:
    """Return the stages that fine-tune decoder and dynamics model of `bases`, and join them."""
    folder = folder or f"finetune/{side}"
    decoder, dynamics = f"decoder-{side}", f"dynamics-{side}"
    return [
        train_stage(c, decoder, "fine-tune the decoder alone", data, bases[0], f"{folder}/decoder"),
        train_stage(
            c, dynamics, "fine-tune the dynamics model", data, bases[1], f"{folder}/dynamics"
        ),
        join_stage(side, decoder, dynamics),
    ]


def join_stage(name: str, tokenizer: str, dynamics: str, lam: str | None = None) -> Stage:
    """Return the stage that joins the parts of a world model as `models/<name>`.

    They are a tokenizer, a dynamics model and, of a GenieRedux, a latent action model.
    """
    inputs = (tokenizer, dynamics, *([lam] if lam else []))

    def run(context: StageContext) -> dict[str, Any]:
        model = loading.build_world_model(*map(context.path, inputs))
        model.save(context.out)
        return {"parameters": sum(p.numel() for p in model.parameters())}

    what = "join the three as a world model" if lam else "join the two as a world model"
    return Stage(f"model-{name}", what, run, inputs, f"models/{name}")


def explore_stage(
    c: PipelineConfig,
    name: str,
    run: Callable[[StageContext], dict[str, Any]],
    inputs: tuple[str, ...],
    output: str = "explore",
) -> Stage:
    """Return a stage that trains an explorer. inputs: its model's stage first."""
    description = f"train the explorer on the uncertainty of {inputs[0]}"
    settings = [c.games, c.seed, c.preset, c.precision, c.explore, c.reward_backend]
    return Stage(name, description, run, inputs, output, settings)


def report_stage(
    name: str,
    build: Callable[[Path, Path], list[str]],
    inputs: tuple[str, ...],
    settings: Any = None,
) -> Stage:
    """Return the stage that creates the report; its result holds the main results as lines."""

    def run(context: StageContext) -> dict[str, Any]:
        return {"lines": build(context.root, context.out)}

    return Stage(name, "create the report", run, inputs, "report", settings)


def run_explorer(
    context: StageContext,
    *,
    model: str = "model-base",
    round_number: int = 0,
    app: str | None = None,
    init: Path | None = None,
) -> dict[str, Any]:
    """Train the explorer on the uncertainty of a stage's model with `exploration.explore`.

    `app`: the running reward service. `init`: folder of the policy whose weights it starts with.
    """
    c: PipelineConfig = context.config
    changes = {"precision": c.precision, **c.explore}
    config = override(explore_preset(c.preset), changes, "settings", "explore.")
    if "envs_per_runner" not in c.explore:
        config = config.with_envs_for(len(c.games))
    exploration.explore(
        c.games,
        context.path(model),
        context.out,
        config=config,
        reward=RewardConfig(scorer=c.reward_backend, app=app),
        init=init,
        resume=context.resume,
        seed=part_seed(c, "explore", round_number),
    )
    return {}


def evaluate_models(context: StageContext) -> dict[str, Any]:
    """Write `evaluation/<model>-<test set>.json` for all models and test sets.

    Each is a Ray task with one torch thread, which is faster than one after the other with all
    threads. Results of an interrupted run are kept. Of the test set `deep`, the quarter of the
    windows that is least like the base model's training data is evaluated.
    """
    c: PipelineConfig = context.config
    nodes = node_resources("train")
    cache = (context.root / "cache").resolve()
    options = {"seed": c.seed, **c.evaluate}
    calls = []
    for name in models_of(c):
        for test in c.tests:
            out = (context.out / f"{name}-{test}.json").resolve()
            model, data = context.path(f"model-{name}"), context.path(f"collect-test-{test}")
            base = str(context.path("collect-random").resolve())
            far = FarWindows((base,), DEEP_SHARE) if test == "deep" else None
            chosen = {**options, "far": far}
            calls.append((model.resolve(), data.resolve(), cache, out, c.precision, chosen))
    missing = [call for call in calls if not call[3].exists()]
    # Labelled nodes limit the tasks by their resources, a single machine by its cores.
    at_a_time = len(calls) if nodes.resources else c.threads or default_threads()
    with progress("evaluating", len(calls), len(calls) - len(missing)) as bar:
        for number, _ in map_ray_tasks(evaluate_part, missing, at_a_time=at_a_time, on=nodes):
            bar.advance(note=missing[number][3].stem)
    return {}


def evaluate_part(
    model: Path, data: Path, cache: Path, out: Path, precision: str, options: dict[str, Any]
) -> None:
    """Evaluate one model on one test set, in its own process."""
    world = GenieReduxG.load(model, "auto", precision)
    evaluate(world, [str(data)], cache_dir=cache, out=out, **options)
