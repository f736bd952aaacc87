"""One cell of the study of exploration: a game and a seed, from the base model to scores.

<out>/<game>/seed-0/data/       base data, data of each arm, test sets
<out>/<game>/seed-0/models/     base model and its fine-tunings
<out>/<game>/seed-0/scores/     scores of each window, <model>-<test>.npz
<out>/<game>/seed-0/stages/     records of the finished stages, which are not run again
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import exploration
from envs import action_names
from envs.collect.collector import collect
from envs.collect.policies import PolicySpec, builtin_policy
from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_distance import UNSEEN, distances_by_game
from envs.utils.run_dir import read_metrics
from experiments.arguments import default_threads
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.data_stages import collect_frames, deep_test_stage
from experiments.pipeline.runner import Context, Stage, StageContext, run_stages
from experiments.pipeline.stages import DEEP_SHARE, finetune_stages, join_stage, train_stage
from exploration.agent.policy import policy_spec
from exploration.archive import ArchiveConfig, play_from_archive
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig
from worldmodel import GenieReduxG
from worldmodel.evaluation.evaluate import (
    ClipSource,
    EvalWorker,
    plan_batches,
    windows_by_game,
)
from worldmodel.evaluation.far_windows import FarWindows, last_given_frames
from worldmodel.evaluation.window_metrics import Settings, concat_scores

ARMS = (
    "random",
    "random-longer",
    "sticky",
    "zipf",
    "dirichlet",
    "hold",
    "agent",
    "archive-entropy",
    "archive-disagreement",
    "archive-count",
    "agent-archive",
)
"""Explorers of the study; the first is the baseline of every difference.

random-longer plays as many steps as the agent in its training and its play together."""
UNTRAINED = {
    "random": "random",
    "sticky": "sticky:0.9",
    "zipf": "zipf:2",
    "dirichlet": "dirichlet:0.3",
}
ARCHIVES = {
    "archive-entropy": "token-entropy",
    "archive-disagreement": "disagreement",
    "archive-count": "count-bonus",
}
TESTS = ("near", "far", "left", "right", "deep")
"""near: random play; far: another seed of the random policy family; left, right: that button with
15 % random ones; deep: Go-Explore on the game's own score, of which the share of windows that is
least like the base data is scored, as in the pipeline's test set."""
CONTROL_TESTS = ("far", "deep")
"""Tests of which the tables show delta-PSNR, and whose Frechet distance is measured."""
FAR = 3.0
"""Distance in grey levels from the base data at which a window counts as unlike all of it."""
EPISODE_STEPS = 400
"""Length of the episodes that begin at the start of a game; those from an archive have 100."""
DATA = ("new", "half")
"""Data of a fine-tuning: the arm's alone, or the base data besides."""
AGENTS = {"agent": "explore", "agent-archive": "explore-archive"}
"""Arms that are played by a trained agent, and the stage that trains it."""
HALVES = ("decoder", "dynamics")
"""Parts of a world model that fine-tuning changes."""


@dataclass(frozen=True)
class StudyCell:
    """A game and a seed of the study, with its settings."""

    out: Path
    game: str
    seed: int
    preset: Literal["debug", "cpu", "paper"]
    arms: tuple[str, ...]
    data: tuple[str, ...]
    factorial: tuple[str, ...]
    """Arms of which decoder and dynamics model are scored apart, each with the other part of the
    random arm."""
    steps: int
    """Emulator steps of each arm."""
    base_steps: int
    test_episodes: int
    limit: int
    training: dict[str, dict[str, Any]]
    """Changes to the training of tokenizer, dynamics, decoder_finetune and dynamics_finetune."""
    explore: dict[str, Any]
    """Changes to the explorer."""
    threads: int = 0

    @property
    def root(self) -> Path:
        """Folder of the cell."""
        return self.out / self.game / f"seed-{self.seed}"

    @property
    def finetuned(self) -> list[tuple[str, str]]:
        """Rows of the study below that of the base model: arm, or arm and part, and its data."""
        names = [*self.arms, *(f"{arm}-{half}" for arm in self.factorial for half in HALVES)]
        return [(name, data) for name in names for data in self.data]

    def part_seed(self, part: str) -> int:
        """Return the seed of a part, so that no two parts play the same episodes."""
        parts = ("base", *ARMS, *TESTS, "explore", "pilot")
        return 1_000 * self.seed + 10 * parts.index(part)


def run_study_cell(cell: StudyCell) -> dict[str, Any]:
    """Run the missing stages of a cell and return the content of its `cell.json`."""
    torch.set_num_threads(cell.threads or default_threads())
    pipeline = PipelineConfig(
        preset=cell.preset,
        games=(cell.game,),
        seed=cell.seed,
        threads=cell.threads,
        test_episodes=cell.test_episodes,
        explored_steps=EPISODE_STEPS,
        reward_backend="local",
        tokenizer=cell.training.get("tokenizer", {}),
        dynamics=cell.training.get("dynamics", {}),
        decoder_finetune=cell.training["decoder_finetune"],
        dynamics_finetune=cell.training["dynamics_finetune"],
    )
    context = Context(cell.root, pipeline)
    run_stages(stages_of(cell, pipeline), context)
    return dict(json.loads((cell.root / "cell.json").read_text()))


def stages_of(cell: StudyCell, c: PipelineConfig) -> list[Stage]:
    """Return the stages of a cell, in order."""
    stages = [
        policy_stage(cell, "base", "random", cell.base_steps),
        train_stage(c, "tokenizer", "train the tokenizer", ("data-base",)),
        train_stage(c, "dynamics", "train the dynamics model", ("data-base",)),
        join_stage("base", "tokenizer", "dynamics"),
    ]
    if {"agent", "random-longer"} & {*cell.arms}:
        stages.append(agent_stage(cell, "explore", None))
    for arm in cell.arms:
        stages += arm_stages(cell, arm)
        for data in cell.data:
            inputs = (f"data-{arm}",) if data == "new" else ("data-base", f"data-{arm}")
            stages += finetune_stages(c, f"{arm}-{data}", inputs)
    for arm in cell.factorial:
        for data in cell.data:
            mine, other = f"{arm}-{data}", f"{ARMS[0]}-{data}"
            stages += [
                join_stage(f"{arm}-decoder-{data}", f"decoder-{mine}", f"dynamics-{other}"),
                join_stage(f"{arm}-dynamics-{data}", f"decoder-{other}", f"dynamics-{mine}"),
            ]
    models = ["base", *(f"{name}-{data}" for name, data in cell.finetuned)]
    stages += [test_stage(cell, c, test) for test in TESTS]
    tests = [f"data-{test}" for test in TESTS]
    stages += [score_stage(cell, model) for model in models]
    summary = Stage(
        "cell",
        "summarise the cell",
        partial(summarise, cell),
        (
            *(f"score-{model}" for model in models),
            *tests,
            *(f"data-{arm}" for arm in cell.arms),
            *(AGENTS[arm] for arm in cell.arms if arm in AGENTS),
        ),
        "cell.json",
        [cell.game, cell.seed],
    )
    return [*stages, summary]


def policy_stage(
    cell: StudyCell,
    part: str,
    policy: str | Callable[[StageContext], PolicySpec],
    frames: int,
    agent: str | None = None,
) -> Stage:
    """Return the stage that plays with a policy from the start of the game.

    It plays `frames` frames, and as many more as the `agent` of a stage has played in its training.
    """

    def run(context: StageContext) -> dict[str, Any]:
        spec = builtin_policy(policy) if isinstance(policy, str) else policy(context)
        wanted = frames + (training_steps(context.path(agent)) if agent else 0)
        seed = cell.part_seed(part)
        played = collect_frames(cell.game, context.out, wanted, EPISODE_STEPS, spec, seed)
        return {"frames": played, "policy": spec.name}

    inputs = (agent,) if agent else () if isinstance(policy, str) else ("data-base",)
    settings = [cell.game, cell.seed, frames, policy if isinstance(policy, str) else part]
    return Stage(f"data-{part}", f"play with {part}", run, inputs, f"data/{part}", settings)


def arm_stages(cell: StudyCell, arm: str) -> list[Stage]:
    """Return the stages that collect the data of an arm."""
    if arm in UNTRAINED:
        return [policy_stage(cell, arm, UNTRAINED[arm], cell.steps)]
    if arm == "random-longer":
        return [policy_stage(cell, arm, "random", cell.steps, AGENTS["agent"])]
    if arm == "hold":
        return [policy_stage(cell, arm, partial(best_button, cell), cell.steps)]
    if arm in ARCHIVES:
        return [arm_from_archive(cell, arm, ARCHIVES[arm])]
    stage = AGENTS[arm]
    if arm == "agent":
        play = policy_stage(cell, arm, partial(agent_policy, stage), cell.steps)
        return [replace(play, inputs=(stage,))]
    archive = "archive-entropy"
    explorer = agent_stage(cell, stage, f"data-{archive}")
    return [explorer, arm_from_archive(cell, arm, ARCHIVES[archive], stage)]


def training_steps(agent: Path) -> int:
    """Return the emulator steps that the training of an agent took, without its evaluations."""
    return int(read_metrics(agent)[-1]["explore/env_steps"])


def agent_policy(stage: str, context: StageContext) -> PolicySpec:
    """Return the policy of the best agent of a stage, with 10 % random actions."""
    return policy_spec(f"checkpoint:{context.path(stage) / 'best'}", epsilon=0.1)


def best_button(cell: StudyCell, context: StageContext) -> PolicySpec:
    """Return the policy that holds the button that leads farthest from the base data.

    Each button gets one episode, which the arm's steps do not count.
    """
    distance = distances_by_game([context.path("data-base")])[cell.game]
    reached: dict[int, float] = {}
    for action in range(len(action_names([cell.game]))):
        pilot = context.root / "data" / "pilot" / str(action)
        seed = cell.part_seed("pilot")
        policy = f"hold:{action}"
        collect(
            [cell.game], pilot, episodes=1, steps=EPISODE_STEPS, policy=policy, seed=seed,
            progress=False,
        )  # fmt: skip
        reached[action] = float(distance(EpisodeReader(pilot)[0].frames_THWC[::4]).mean())
    return builtin_policy(f"hold:{max(reached, key=reached.__getitem__)}")


def agent_stage(cell: StudyCell, name: str, archive: str | None) -> Stage:
    """Return the stage that trains an agent, at the cells of an archive if there is one."""

    def run(context: StageContext) -> dict[str, Any]:
        exploration.explore(
            [cell.game],
            context.path("model-base"),
            context.out,
            config=replace(explore_preset(cell.preset), **cell.explore),
            archive=None if archive is None else context.path(archive),
            reference_data=[context.path("data-base")],
            resume=context.resume,
            seed=cell.part_seed("explore"),
        )
        return {}

    inputs = ("model-base", "data-base", *([archive] if archive else []))
    return Stage(name, "train the agent", run, inputs, name, [cell.seed, cell.explore])


def arm_from_archive(cell: StudyCell, arm: str, reward: str, agent: str | None = None) -> Stage:
    """Return the stage that plays on from an archive, with a random policy family or an agent."""

    def run(context: StageContext) -> dict[str, Any]:
        config = ArchiveConfig(episodes=max(1, cell.steps // ArchiveConfig.steps))
        if agent is not None:
            config = replace(config, policy=agent_policy(agent, context))
        data = (str(context.path("data-base")),) if reward == "disagreement" else ()
        summary = play_from_archive(
            [cell.game],
            context.path("model-base"),
            context.out,
            config,
            RewardConfig(reward, data=data),
            seed=cell.part_seed(arm),
        )
        return {"frames": summary.frames}

    inputs = ("model-base", "data-base", *([agent] if agent else []))
    settings = [cell.game, cell.seed, cell.steps, reward]
    return Stage(f"data-{arm}", f"play with {arm}", run, inputs, f"data/{arm}", settings)


def test_stage(cell: StudyCell, c: PipelineConfig, test: str) -> Stage:
    """Return the stage that plays a test set."""
    if test == "deep":
        return replace(deep_test_stage(c), name="data-deep", output="data/deep")
    names = action_names([cell.game])
    policies = {"near": "random", "far": "dirichlet:0.3"}
    policies |= {name: f"hold:{names.index(name)}" for name in ("left", "right")}
    return policy_stage(cell, test, policies[test], cell.test_episodes * EPISODE_STEPS)


def score_stage(cell: StudyCell, model: str) -> Stage:
    """Return the stage that scores the windows of every test set with a model."""

    def run(context: StageContext) -> dict[str, Any]:
        world = GenieReduxG.load(context.path(f"model-{model}"))
        context.out.mkdir(parents=True, exist_ok=True)
        for test in TESTS:
            np.savez(context.out / f"{test}.npz", **score_windows(cell, world, test, context))
        return {}

    inputs = (f"model-{model}", "data-base", *(f"data-{test}" for test in TESTS))
    settings = [cell.limit, DEEP_SHARE]
    return Stage(f"score-{model}", f"score {model}", run, inputs, f"scores/{model}", settings)


def score_windows(
    cell: StudyCell, world: GenieReduxG, test: str, context: StageContext
) -> dict[str, Any]:
    """Return the scores of each window of a test set, and the distance of its given frame.

    Of a test of control it has the Frechet distance of all windows besides, if there is a network.
    """
    settings = Settings(mode="autoregressive", steps=1, seed=cell.seed)
    source = ClipSource([str(context.path(f"data-{test}"))], str(context.root / "cache"), None)
    clips = source.open(settings)
    windows, base = windows_by_game(clips), context.path("data-base")
    if test == "deep":
        windows, _ = FarWindows((str(base),), DEEP_SHARE).choose(clips, windows, settings.context)
    batches = plan_batches(windows, settings, cell.limit)
    worker = EvalWorker(world, settings, source, None, distance=test in CONTROL_TESTS)
    scores = concat_scores(list(worker.score(batches, clips)))
    window_ids = np.concatenate([batch.window_ids for batch in batches]).tolist()
    given_NHWC = last_given_frames(clips, window_ids, settings.context)
    result = scores.by_window() | {"distance": distances_by_game([base])[cell.game](given_NHWC)}
    if scores.fits:
        result["fid"] = scores.fits["prediction"].distance(scores.fits["real"])
    return result


def summarise(cell: StudyCell, context: StageContext) -> dict[str, Any]:
    """Write `cell.json`: what each arm did, where it went, and the test frames in its data.

    `leak` is the share of a test's different frames that the arm's data hold bit for bit.
    """
    base = distances_by_game([context.path("data-base")])[cell.game]
    tests = {test: frame_hashes(context.path(f"data-{test}")) for test in TESTS}
    arms = {}
    for arm in cell.arms:
        folder = context.path(f"data-{arm}")
        frames, distances = frame_hashes(folder), base(every_eighth_frame(folder))
        arms[arm] = {
            "frames": sum(record.num_frames for record in EpisodeReader(folder).records),
            "distance": float(distances.mean()),
            "unseen": float((distances > UNSEEN).mean()),
            "leak": {test: len(frames & seen) / len(seen) for test, seen in tests.items()},
            "actions": action_shares(folder, cell.game),
        }
        if arm in AGENTS:
            agent = context.path(AGENTS[arm])
            last = read_metrics(agent)[-1]
            arms[arm] |= {
                "mutual_information": last[f"explore/mutual_information/{cell.game}"],
                "training_steps": training_steps(agent),
            }
    record = {"game": cell.game, "seed": cell.seed, "arms": arms}
    context.out.write_text(json.dumps(record, indent=2) + "\n")
    return {}


def action_shares(folder: Path, game: str) -> dict[str, float]:
    """Return the share of each action in the steps of a data set."""
    reader = EpisodeReader(folder)
    actions = np.concatenate([reader[index].actions for index in range(len(reader))])
    return {name: float((actions == a).mean()) for a, name in enumerate(action_names([game]))}


def frame_hashes(folder: Path) -> set[int]:
    """Return hashes of the distinct frames of a data set."""
    reader = EpisodeReader(folder)
    return {
        hash(frame_HWC.tobytes())
        for index in range(len(reader))
        for frame_HWC in reader[index].frames_THWC
    }


def every_eighth_frame(folder: Path) -> Any:
    """Return every eighth frame of a data set, uint8 (N, H, W, C)."""
    reader = EpisodeReader(folder)
    return np.concatenate([reader[index].frames_THWC[::8] for index in range(len(reader))])
