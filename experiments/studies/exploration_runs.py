"""One cell of the study of exploration: a game and a seed, from the base model to scores.

<out>/<game>/seed-0/data/       base data, data of each arm, test sets
<out>/<game>/seed-0/models/     base model and its fine-tunings
<out>/<game>/seed-0/windows/    windows of each test set that are scored, <test>.npz
<out>/<game>/seed-0/scores/     scores of each window, <model>-<test>.npz
<out>/<game>/seed-0/stages/     records of the finished stages, which are not run again
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import exploration
from envs import action_names
from envs.collect.collector import collect
from envs.collect.policies import PolicySpec, builtin_policy
from envs.episodes.dataset import EpisodeReader
from envs.episodes.frame_distance import distances_by_game
from envs.utils.run_dir import read_metrics
from experiments.arguments import default_threads
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.data_stages import collect_frames, deep_test_stage, play_until
from experiments.pipeline.runner import Context, Stage, StageContext, run_stages
from experiments.pipeline.stages import finetune_stages, join_stage, train_stage
from experiments.studies.exploration_cell import (
    AGENTS,
    ARCHIVES,
    ARMS,
    EPISODE_STEPS,
    TESTS,
    UNTRAINED,
    StudyCell,
)
from experiments.studies.exploration_scores import score_stage, summary_stage, windows_stage
from exploration.agent.policy import policy_spec
from exploration.archive import ArchiveConfig, play_from_archive
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig


def run_study_cell(cell: StudyCell) -> dict[str, Any]:
    """Run the missing stages of a cell and return the content of its `cell.json`."""
    torch.set_num_threads(cell.threads or default_threads())
    pipeline = PipelineConfig(
        preset=cell.preset,
        games=(cell.game,),
        seed=cell.seed,
        threads=cell.threads,
        precision=cell.precision,
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
    stages += [windows_stage(cell, test) for test in TESTS]
    stages += [score_stage(cell, model) for model in models]
    return [*stages, summary_stage(cell, models)]


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
        played = collect_frames(
            cell.game, context.out, wanted, EPISODE_STEPS, policy=spec, seed=seed
        )
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
        config = ArchiveConfig(precision=cell.precision)
        if agent is not None:
            config = replace(config, policy=agent_policy(agent, context))
        data = (str(context.path("data-base")),) if reward == "disagreement" else ()

        def play(episodes: int) -> None:
            play_from_archive(
                [cell.game],
                context.path("model-base"),
                context.out,
                replace(config, episodes=episodes),
                RewardConfig(reward, data=data),
                seed=cell.part_seed(arm),
            )

        size = config.round_episodes
        played = play_until(cell.game, context.out, cell.steps, config.steps, play, size)
        return {"frames": played}

    inputs = ("model-base", "data-base", *([agent] if agent else []))
    settings = [cell.game, cell.seed, cell.steps, reward, *cell.chosen_precision]
    return Stage(f"data-{arm}", f"play with {arm}", run, inputs, f"data/{arm}", settings)


def test_stage(cell: StudyCell, c: PipelineConfig, test: str) -> Stage:
    """Return the stage that plays a test set."""
    if test == "deep":
        return replace(deep_test_stage(c), name="data-deep", output="data/deep")
    names = action_names([cell.game])
    policies = {"near": "random", "far": "dirichlet:0.3"}
    policies |= {name: f"hold:{names.index(name)}" for name in ("left", "right")}
    return policy_stage(cell, test, policies[test], cell.test_episodes * EPISODE_STEPS)
