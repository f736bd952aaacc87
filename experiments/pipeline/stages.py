"""Stages of the pipeline in their order, and the functions that run them."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
import torch

import exploration
from envs.collect.collector import collect
from envs.collect.policies import PolicySpec
from envs.episodes.dataset import EpisodeReader
from envs.utils.progress import progress
from envs.utils.ray_session import node_resources
from experiments.arguments import default_threads
from experiments.configuration import override
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage, StageContext
from experiments.reports.build import build
from exploration.agent.policy import policy_spec
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig
from worldmodel import GenieReduxG, loading, preset
from worldmodel.evaluation.evaluate import evaluate
from worldmodel.training.config import train_preset
from worldmodel.training.train import TrainingRun, train

SEEDS = {
    "random": 0,
    "explored": 1,
    "more-random": 2,
    "test-random": 3,
    "test-explored": 4,
    "explore": 5,
}
"""Added to 1,000 times the run's seed: no two parts play the same episodes."""

MODELS = ("base", "random", "explored")
"""The models compared; `models/<name>` holds each."""
TEST_SETS = ("random", "explored")
"""Agents of the held-out episodes; `data/test-<name>` holds each."""


def stage_table(c: PipelineConfig) -> list[Stage]:
    """Return the stages of a pipeline, in order."""
    games = f"{len(c.games)} game{'s' if len(c.games) > 1 else ''}"
    play = [c.games, c.seed]
    whole, long = c.random_episodes, c.explored_steps
    base = ("collect-random",)
    return [
        played(
            c,
            "random",
            f"a random agent plays {games}, {whole} episodes each",
            whole,
            c.random_steps,
        ),
        train_stage(
            c,
            "tokenizer",
            "learns to turn frames into tokens and back",
            component="tokenizer",
            changes=c.tokenizer,
            data=base,
            output="tokenizer",
        ),
        train_stage(
            c,
            "dynamics",
            "learns to predict the tokens of the next frame from the past and the action",
            component="dynamics",
            changes=c.dynamics,
            data=base,
            output="dynamics",
        ),
        joined("base", "tokenizer", "dynamics"),
        Stage(
            "explore",
            "an agent learns to go where the base model is uncertain",
            explore,
            inputs=("model-base",),
            output="explore",
            settings=[*play, c.preset, c.explore, c.reward_backend],
        ),
        played(
            c,
            "explored",
            f"the explorer plays {games}, {c.explored_episodes} episodes each",
            c.explored_episodes,
            long,
        ),
        Stage(
            "collect-more-random",
            "the random agent plays as many frames more, for the comparison",
            collect_as_much,
            inputs=("collect-explored",),
            output="data/more-random",
            settings=[*play, long],
        ),
        played(c, "test-random", "held-out episodes of the random agent", c.test_episodes, long),
        played(c, "test-explored", "held-out episodes of the explorer", c.test_episodes, long),
        *compared(c, "explored", "collect-explored", "the explorer's data"),
        *compared(c, "random", "collect-more-random", "as much random play"),
        Stage(
            "evaluate",
            "evaluates the three models on the held-out episodes",
            evaluate_models,
            inputs=(
                *(f"model-{name}" for name in MODELS),
                *(f"collect-test-{name}" for name in TEST_SETS),
            ),
            output="evaluation",
            settings=[c.evaluate, c.seed],
        ),
        Stage("report", "draws the report", draw_report, inputs=("evaluate",), output="report"),
    ]


def check_settings(c: PipelineConfig) -> None:
    """Raise InputError for an unknown setting of a stage, before the first one starts."""
    for name, base in (
        ("tokenizer", train_preset("tokenizer", c.preset)),
        ("dynamics", train_preset("dynamics", c.preset)),
        ("decoder_finetune", train_preset("tokenizer", c.preset, "finetune")),
        ("dynamics_finetune", train_preset("dynamics", c.preset, "finetune")),
        ("explore", explore_preset(c.preset)),
    ):
        override(base, getattr(c, name), "settings", f"{name}.")


def played(c: PipelineConfig, part: str, says: str, episodes: int, steps: int) -> Stage:
    """Return the stage that records `part` of the data, by the explorer if the name ends so."""
    explorer = part.endswith("explored")
    return Stage(
        f"collect-{part}",
        says,
        partial(collect_play, part=part, episodes=episodes, steps=steps),
        inputs=("explore",) if explorer else (),
        output=f"data/{part}",
        settings=[c.games, c.seed, episodes, steps, *([c.explored_epsilon] if explorer else [])],
    )


def train_stage(
    c: PipelineConfig,
    name: str,
    says: str,
    *,
    component: Literal["tokenizer", "dynamics"],
    changes: dict[str, Any],
    data: tuple[str, ...],
    output: str,
    init: str | None = None,
) -> Stage:
    """Return the stage that trains, or with `init` fine-tunes, a component on the data of
    others."""
    tokenizer = "tokenizer" if component == "dynamics" else None
    weights = [stage for stage in (tokenizer, init) if stage is not None]
    return Stage(
        name,
        says,
        partial(
            train_component,
            component=component,
            data=data,
            changes=changes,
            tokenizer=tokenizer,
            init=init,
        ),
        inputs=(*weights, *data),
        output=output,
        settings=[c.preset, c.seed, changes],
    )


def finetuned(
    c: PipelineConfig,
    side: str,
    says: tuple[str, str],
    *,
    data: tuple[str, ...],
    bases: tuple[str, str],
    folder: str,
) -> list[Stage]:
    """Return the stages that fine-tune the decoder and the dynamics of `bases`, and join them."""
    decoder, dynamics = f"decoder-{side}", f"dynamics-{side}"
    return [
        train_stage(
            c,
            decoder,
            says[0],
            component="tokenizer",
            changes=c.decoder_finetune,
            data=data,
            output=f"{folder}/decoder",
            init=bases[0],
        ),
        train_stage(
            c,
            dynamics,
            says[1],
            component="dynamics",
            changes=c.dynamics_finetune,
            data=data,
            output=f"{folder}/dynamics",
            init=bases[1],
        ),
        joined(side, decoder, dynamics),
    ]


def compared(c: PipelineConfig, side: str, data: str, words: str) -> list[Stage]:
    """Return the stages of one side of the comparison; both sides have the same settings and
    seed."""
    return finetuned(
        c,
        side,
        (
            f"fine-tunes the tokenizer's decoder alone, with {words}",
            f"fine-tunes the dynamics model, with {words}",
        ),
        data=("collect-random", data),
        bases=("tokenizer", "dynamics"),
        folder=f"finetune/{side}",
    )


def joined(name: str, tokenizer: str, dynamics: str) -> Stage:
    """Return the stage that joins a tokenizer and a dynamics model as `models/<name>`."""
    return Stage(
        f"model-{name}",
        "puts tokenizer and dynamics model together",
        partial(join, tokenizer=tokenizer, dynamics=dynamics),
        inputs=(tokenizer, dynamics),
        output=f"models/{name}",
    )


def part_seed(c: PipelineConfig, part: str, place: int = 0) -> int:
    """Return the seed of a part, in round `place` where there are several."""
    return 1_000 * c.seed + 10 * place + SEEDS[part]


def collect_play(
    job: StageContext,
    *,
    part: str,
    episodes: int,
    steps: int,
    agent: str = "explore",
    place: int = 0,
) -> dict[str, Any]:
    """Collect episodes of one agent, equally many of each game. agent: the explorer's stage.

    `collect` completes a set that an interrupted run has begun.
    """
    c: PipelineConfig = job.config
    explorer = part.endswith("explored")
    policy: str | PolicySpec = "random"
    if explorer:
        best = f"checkpoint:{job.path(agent) / 'best'}"
        policy = policy_spec(best, epsilon=c.explored_epsilon)
    done = collect(
        c.games,
        str(job.out),
        episodes=episodes,
        steps=steps,
        policy=policy,
        workers=c.workers,
        seed=part_seed(c, part, place),
    )
    return {"frames": done.frames, "episodes": done.episodes}


def collect_as_much(job: StageContext) -> dict[str, Any]:
    """Collect random play until each game has as many frames as in the explorer's data, to within
    one episode."""
    c: PipelineConfig = job.config
    wanted = frames_by_game(job.path("collect-explored"))
    for game in c.games:
        episodes = 0
        while (there := frames_by_game(job.out).get(game, 0)) < wanted.get(game, 0):
            mean = there / episodes if episodes else c.explored_steps + 1
            episodes += max(1, round((wanted[game] - there) / mean))
            collect(
                [game],
                str(job.out),
                episodes=episodes,
                steps=c.explored_steps,
                policy="random",
                workers=c.workers,
                seed=part_seed(c, "more-random"),
            )
    return {"frames": sum(frames_by_game(job.out).values()), "wanted": sum(wanted.values())}


def frames_by_game(folder: Path) -> Counter[str]:
    """Return the frames of each game in a folder of episodes; empty where there is none yet."""
    if not (folder / "manifest.json").exists():
        return Counter()
    counts: Counter[str] = Counter()
    for record in EpisodeReader(folder).records:
        counts[record.game] += record.num_frames
    return counts


def train_component(
    job: StageContext,
    *,
    component: Literal["tokenizer", "dynamics"],
    data: tuple[str, ...],
    changes: dict[str, Any],
    tokenizer: str | None = None,
    init: str | None = None,
) -> dict[str, Any]:
    """Train, or with `init` fine-tune, one component; of a tokenizer the decoder alone.

    The dynamics model keeps the base tokenizer: fine-tuned decoders do not change the tokens.
    """
    c: PipelineConfig = job.config
    threads = max(1, (c.threads or default_threads()) // max(1, c.train_workers))
    checkpoint = train(
        TrainingRun(
            component,
            config=preset(c.preset),
            recipe=train_preset(
                component,
                c.preset,
                "finetune" if init else None,
                seed=c.seed,
                num_threads=threads,
                **changes,
            ),
            data=[str(job.path(name)) for name in data],
            out=job.out,
            init=job.path(init) if init else None,
            tokenizer=job.path(tokenizer) if tokenizer else None,
            decoder_only=component == "tokenizer" and init is not None,
            cache_dir=job.context.root / "cache",
        ),
        workers=c.train_workers,
        resume=job.resume,
    )
    return {"checkpoint": str(checkpoint)}


def join(job: StageContext, *, tokenizer: str, dynamics: str) -> dict[str, Any]:
    """Save a tokenizer and a dynamics model as one model."""

    model = loading.build_world_model(job.path(tokenizer), job.path(dynamics))
    model.save(job.out)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def explore(
    job: StageContext,
    *,
    model: str = "model-base",
    place: int = 0,
    app: str | None = None,
    init: Path | None = None,
) -> dict[str, Any]:
    """Train the explorer on the uncertainty of a stage's model, from the policy `init` if given.

    app: the running reward service.
    """
    c: PipelineConfig = job.config
    explorer = override(explore_preset(c.preset), c.explore, "settings", "explore.")
    if "envs_per_runner" not in c.explore:
        explorer = explorer.with_envs_for(len(c.games))
    exploration.explore(
        c.games,
        job.path(model),
        job.out,
        config=explorer,
        reward=RewardConfig(scorer=c.reward_backend, app=app),
        init=init,
        resume=job.resume,
        seed=part_seed(c, "explore", place),
    )
    return {}


def evaluate_models(job: StageContext) -> dict[str, Any]:
    """Write `evaluation/<model>-<test set>.json` for the three models on both test sets.

    Each of the six is a Ray task with one torch thread, one on each core or GPU: that is faster
    than one after the other with all cores. Results of an interrupted run are kept.
    """
    c: PipelineConfig = job.config
    parts = [
        (name, test, (job.out / f"{name}-{test}.json").resolve())
        for name in MODELS
        for test in TEST_SETS
    ]
    todo = [part for part in parts if not part[2].exists()]
    at_a_time = c.threads or default_threads()
    place = node_resources("train")
    cpus = 1 if place.resources else max(1, int(ray.cluster_resources()["CPU"]) // at_a_time)
    device = "cuda" if place.gpus else "cpu"
    task = ray.remote(num_cpus=cpus, num_gpus=place.gpus, resources=place.resources, max_retries=1)(
        evaluate_part
    )
    cache = str((job.context.root / "cache").resolve())
    running = {}
    for name, test, path in todo:
        model, data = (
            job.path(f"model-{name}").resolve(),
            job.path(f"collect-test-{test}").resolve(),
        )
        settings = {"seed": c.seed, **c.evaluate}
        running[task.remote(str(model), str(data), cache, str(path), device, settings)] = path.stem
    try:
        with progress("evaluating", len(parts), len(parts) - len(todo)) as bar:
            while running:
                (done,), _ = ray.wait(list(running))
                ray.get(done)
                bar.advance(note=running.pop(done))
    finally:
        for task_left in running:
            ray.cancel(task_left, force=True)
    return {}


def evaluate_part(
    model: str, data: str, cache: str, out: str, device: str, options: dict[str, Any]
) -> None:
    """Evaluate one model on one test set, in its own process."""
    torch.set_num_threads(1)
    evaluate(GenieReduxG.load(model, device), [data], cache_dir=cache, out=out, **options)


def draw_report(job: StageContext) -> dict[str, Any]:
    """Draw the report; return its main figures as lines of text."""
    return {"lines": build(job.context.root, job.out)}
