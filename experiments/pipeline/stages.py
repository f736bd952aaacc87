"""The stages of the loop: what each calls in envs, worldmodel and exploration, and in what order they run."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

from experiments.arguments import default_threads
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage, StageContext
from worldmodel import loading

SEEDS = {"random": 0, "explored": 1, "more-random": 2, "test-random": 3, "test-explored": 4, "explore": 5}
"""Added to 1,000 times the run's seed: no two parts play the same episodes."""

MODELS = ("base", "random", "explored")
"""The models compared; `models/<name>` holds each."""
TEST_SETS = ("random", "explored")
"""Whose held-out episodes; `data/test-<name>` holds each."""


def stage_table(c: PipelineConfig) -> list[Stage]:
    """The stages of a plan, in order. Weights are seconds on two cores at preset cpu."""
    games = f"{len(c.games)} game{'s' if len(c.games) > 1 else ''}"
    play = [c.games, c.seed]
    whole, long = c.random_episodes, c.explored_steps
    return [
        played(c, "random", f"a random agent plays {games}, {whole} episodes each", whole, c.random_steps, weight=20),
        Stage(
            "tokenizer",
            "learns to turn frames into tokens and back",
            partial(train_component, component="tokenizer", data=("collect-random",), changes=c.tokenizer),
            inputs=("collect-random",),
            output="tokenizer",
            weight=220,
            settings=[c.preset, c.seed, c.tokenizer],
        ),
        Stage(
            "dynamics",
            "learns to predict the tokens of the next frame from the past and the action",
            partial(
                train_component,
                component="dynamics",
                data=("collect-random",),
                changes=c.dynamics,
                tokenizer="tokenizer",
            ),
            inputs=("collect-random", "tokenizer"),
            output="dynamics",
            weight=280,
            settings=[c.preset, c.seed, c.dynamics],
        ),
        joined("base", "tokenizer", "dynamics"),
        Stage(
            "explore",
            "an agent learns to go where the base model is unsure",
            explore,
            inputs=("model-base",),
            output="explore",
            weight=200,
            settings=[*play, c.preset, c.explore, c.scorer],
        ),
        played(
            c,
            "explored",
            f"the explorer plays {games}, {c.explored_episodes} episodes each",
            c.explored_episodes,
            long,
            weight=20,
        ),
        Stage(
            "collect-more-random",
            "the random agent plays as many frames more, for the comparison",
            collect_as_much,
            inputs=("collect-explored",),
            output="data/more-random",
            weight=15,
            settings=[*play, long],
        ),
        played(c, "test-random", "held-out episodes of the random agent", c.test_episodes, long, weight=8),
        played(c, "test-explored", "held-out episodes of the explorer", c.test_episodes, long, weight=10),
        *finetuned(c, "explored", "collect-explored", "what the explorer saw"),
        *finetuned(c, "random", "collect-more-random", "as much random play"),
        Stage(
            "evaluate",
            "measures the three models on the held-out episodes",
            evaluate_models,
            inputs=(*(f"model-{name}" for name in MODELS), *(f"collect-test-{name}" for name in TEST_SETS)),
            output="evaluation",
            weight=110,
            settings=[c.evaluate, c.seed],
        ),
        Stage("report", "draws the report", draw_report, inputs=("evaluate",), output="report", weight=30),
    ]


def played(c: PipelineConfig, part: str, says: str, episodes: int, steps: int, *, weight: float) -> Stage:
    """The stage that records `part` of the data: by the explorer where the name ends so, else by the random agent."""
    explorer = part.endswith("explored")
    return Stage(
        f"collect-{part}",
        says,
        partial(collect_play, part=part, episodes=episodes, steps=steps),
        inputs=("explore",) if explorer else (),
        output=f"data/{part}",
        weight=weight,
        settings=[c.games, c.seed, episodes, steps, *([c.explored_epsilon] if explorer else [])],
    )


def finetuned(c: PipelineConfig, side: str, data: str, words: str) -> list[Stage]:
    """The base model fine-tuned for one side of the comparison: both sides get the same settings and seed."""
    decoder, dynamics = f"decoder-{side}", f"dynamics-{side}"
    both = ("collect-random", data)
    return [
        Stage(
            decoder,
            f"fine-tunes the tokenizer's decoder alone, with {words}",
            partial(train_component, component="tokenizer", data=both, changes=c.decoder_finetune, init="tokenizer"),
            inputs=("tokenizer", *both),
            output=f"finetune/{side}/decoder",
            weight=30,
            settings=[c.preset, c.seed, c.decoder_finetune],
        ),
        Stage(
            dynamics,
            f"fine-tunes the dynamics model, with {words}",
            partial(
                train_component,
                component="dynamics",
                data=both,
                changes=c.dynamics_finetune,
                tokenizer="tokenizer",
                init="dynamics",
            ),
            inputs=("tokenizer", "dynamics", *both),
            output=f"finetune/{side}/dynamics",
            weight=60,
            settings=[c.preset, c.seed, c.dynamics_finetune],
        ),
        joined(side, decoder, dynamics),
    ]


def joined(name: str, tokenizer: str, dynamics: str) -> Stage:
    """The stage that puts a tokenizer and a dynamics model together as `models/<name>`."""
    return Stage(
        f"model-{name}",
        "puts tokenizer and dynamics model together",
        partial(join, tokenizer=tokenizer, dynamics=dynamics),
        inputs=(tokenizer, dynamics),
        output=f"models/{name}",
        weight=1,
    )


def part_seed(c: PipelineConfig, part: str, place: int = 0) -> int:
    """The seed of a part, in the round `place` where there are several."""
    return 1_000 * c.seed + 10 * place + SEEDS[part]


def collect_play(
    job: StageContext, *, part: str, episodes: int, steps: int, agent: str = "explore", place: int = 0
) -> dict[str, Any]:
    """Episodes of one agent, as many of each game; `agent`: the stage that made the explorer, where it plays.

    Collecting completes a set that is there by itself.
    """
    from envs.collect.collector import collect
    from exploration.agent.policy import policy_spec

    c: PipelineConfig = job.plan
    explorer = part.endswith("explored")
    best = f"checkpoint:{job.path(agent) / 'best'}"
    policy = policy_spec(best, epsilon=c.explored_epsilon) if explorer else "random"
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
    """Random play until each game has as many frames as the explorer's data has of it, to within one episode."""
    from envs.collect.collector import collect

    c: PipelineConfig = job.plan
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
    """Frames of each game in a folder of episodes; empty where there is no folder yet."""
    from envs.episodes.dataset import EpisodeReader

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
    """Train, or with `init` fine-tune, one component in this process. A tokenizer is fine-tuned in its decoder alone.

    The dynamics model is fine-tuned with the base tokenizer: a fine-tuned decoder leaves the tokens as they were.
    """
    from worldmodel import preset
    from worldmodel.training.config import train_preset
    from worldmodel.training.train import train

    c: PipelineConfig = job.plan
    threads = max(1, (c.threads or default_threads()) // max(1, c.train_workers))
    checkpoint = train(
        component,
        config=preset(c.preset),
        recipe=train_preset(component, c.preset, "finetune" if init else None, seed=c.seed, num_threads=threads, **changes),
        data=[str(job.path(name)) for name in data],
        out=job.out,
        workers=c.train_workers,
        resume=job.resume,
        init=job.path(init) if init else None,
        tokenizer=job.path(tokenizer) if tokenizer else None,
        decoder_only=component == "tokenizer" and init is not None,
        cache_dir=job.context.root / "cache",
    )
    return {"checkpoint": str(checkpoint)}


def join(job: StageContext, *, tokenizer: str, dynamics: str) -> dict[str, Any]:
    """Save a tokenizer and a dynamics model as one model."""

    model = loading.build_world_model(job.path(tokenizer), job.path(dynamics))
    model.save(job.out)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def explore(job: StageContext, *, model: str = "model-base", place: int = 0, **options: Any) -> dict[str, Any]:
    """Train the explorer on the uncertainty of the model that a stage made; options: of `exploration.explore`."""
    import exploration

    c: PipelineConfig = job.plan
    exploration.explore(
        list(c.games),
        job.path(model),
        job.out,
        preset=c.preset,
        scorer=c.scorer,
        resume=job.resume,
        seed=part_seed(c, "explore", place),
        **{**c.explore, **options},
    )
    return {}


def evaluate_models(job: StageContext) -> dict[str, Any]:
    """`evaluation/<model>-<test set>.json` for the three models on both halves of the test set.

    Each of the six is a Ray task with one torch thread, as many at a time as there are cores, or GPUs for this: that is
    faster than one after the other with all cores. What an interrupted run has written is kept.
    """
    import ray

    from envs.utils.progress import progress
    from envs.utils.ray_session import node_resources

    c: PipelineConfig = job.plan
    parts = [(name, test, (job.out / f"{name}-{test}.json").resolve()) for name in MODELS for test in TEST_SETS]
    todo = [part for part in parts if not part[2].exists()]
    at_a_time = c.threads or default_threads()
    place = node_resources("train")
    cpus = 1 if place.resources else max(1, int(ray.cluster_resources()["CPU"]) // at_a_time)
    device = "cuda" if place.gpus else "cpu"
    task = ray.remote(num_cpus=cpus, num_gpus=place.gpus, resources=place.resources, max_retries=1)(evaluate_part)
    cache = str((job.context.root / "cache").resolve())
    running = {}
    for name, test, path in todo:
        model, data = job.path(f"model-{name}").resolve(), job.path(f"collect-test-{test}").resolve()
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


def evaluate_part(model: str, data: str, cache: str, out: str, device: str, options: dict[str, Any]) -> None:
    """Evaluate one model on one test set; runs in a process of its own."""
    import torch

    from worldmodel import GenieReduxG
    from worldmodel.evaluation.evaluate import evaluate

    torch.set_num_threads(1)
    evaluate(GenieReduxG.load(model, device), [data], cache_dir=cache, out=out, **options)


def draw_report(job: StageContext) -> dict[str, Any]:
    """The report, and its main figures as lines of text."""
    from experiments.reports.build import build

    return {"lines": build(job.context.root, job.out)}
