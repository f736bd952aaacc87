"""Stages of a table: play, explorers, models and scores of one seed.

All tables of a folder share them, so that the second table finds most of what it needs:

<out>/seed-0/data/<play>/            episodes
<out>/seed-0/models/<model>/         world models
<out>/seed-0/scores/<model>/         scores on each test set: <test>-<mode>.json and .npz
<out>/seed-0/stages/                 records of the finished stages, which are not run again
"""

from dataclasses import replace
from typing import Any

import exploration
from experiments.configuration import override
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.data_stages import collect_frames, deep_test_stage, play_until
from experiments.pipeline.runner import Stage, StageContext
from experiments.pipeline.stages import base_model_stages
from experiments.reproduction.model_stages import evaluation_stage, model_stages
from experiments.reproduction.plans import PLAYERS, Play, TablePlan, base_episodes
from exploration.agent.policy import policy_spec
from exploration.archive import ArchiveConfig, play_from_archive
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig

REWARDS = {
    "agent": "token-entropy",
    "random-features": "random-features",
    "vae": "vae",
    "trained-agent": "extrinsic",
}
"""Player that is an agent -> its reward."""
TESTS = ("held-out", "basic", "diverse")
"""Players of test sets, besides an expert's and deep play."""
EXPERT_EPSILON = 0.15
"""Probability of a random action in the test set of an expert (App. A.2)."""


def plan_stages(c: PipelineConfig, plan: TablePlan, test_player: str) -> list[Stage]:
    """Return the stages of a table, in order. test_player: expert or deep."""
    base = plan.base or base_episodes(c)
    stages = [episodes_stage(c, base, c.random_episodes, c.random_steps)]
    if plan.trains_base and c.pretraining_games:
        many = Play("pretraining", c.pretraining_games)
        stages.append(episodes_stage(c, many, c.pretraining_episodes, c.pretraining_steps))
        stages += base_model_stages(c, f"data-{base.name}", f"data-{many.name}")
    elif plan.trains_base:
        stages += base_model_stages(c, f"data-{base.name}")
    for play in plan.plays:
        if play.player == "test":
            stages += test_stages(c, play, test_player)
        elif play != base:
            stages += playing_stages(c, play)
    for model in plan.models:
        stages += model_stages(c, model)
    stages += [evaluation_stage(c, row, test_player) for row in plan.rows]
    return list({stage.name: stage for stage in stages}.values())


def seed_of(c: PipelineConfig, play: Play) -> int:
    """Return the seed of a player, so that no two of them play the same episodes."""
    return 1_000 * c.seed + 10 * PLAYERS.index(play.player)


def episodes_stage(
    c: PipelineConfig, play: Play, episodes: int, steps: int, agent: str | None = None
) -> Stage:
    """Return the stage that plays each game at random or with an agent.

    It plays as many frames as `episodes` of `steps` steps have, in episodes of at most `steps`.
    """
    frames = episodes * steps
    expert = play.player == "test"
    kind, epsilon = ("expert", EXPERT_EPSILON) if expert else ("checkpoint", c.explored_epsilon)

    def run(context: StageContext) -> dict[str, Any]:
        policy = "random" if agent is None else f"{kind}:{context.path(agent) / 'best'}"
        spec = policy_spec(policy, epsilon=0.0 if agent is None else epsilon)
        played = {
            game: collect_frames(
                game,
                context.out,
                frames,
                steps,
                policy=spec,
                seed=seed_of(c, play),
                workers=c.workers,
                actions=c.actions,
                options=play.options,
            )
            for game in play.games
        }
        return {"frames": played}

    name, games = f"data-{play.name}", ", ".join(play.games)
    settings = [play.games, c.seed, frames, steps, epsilon, *c.actions, *play.options]
    description = f"play {games}: {play.player}, {frames:,} frames"
    inputs = () if agent is None else (agent,)
    return Stage(name, description, run, inputs, f"data/{play.name}", settings)


def playing_stages(c: PipelineConfig, play: Play) -> list[Stage]:
    """Return the stages that record a player's episodes, and train it before if it is an agent."""
    episodes, steps = c.explored_episodes, c.explored_steps
    if play.player in TESTS:
        episodes = c.test_episodes
    if play.player == "trained-agent":  # as much as the random play that it is compared with
        episodes, steps = c.random_episodes, c.random_steps
    if play.player == "archive":
        return [archive_play_stage(c, play, episodes * steps)]
    learner = play.agent or play
    if learner.player not in REWARDS:
        return [episodes_stage(c, play, episodes, steps)]
    explorer = training_stage(c, learner, RewardConfig(REWARDS[learner.player]))
    return [explorer, episodes_stage(c, play, episodes, steps, explorer.name)]


def test_stages(c: PipelineConfig, play: Play, player: str) -> list[Stage]:
    """Return the stages that record the test set of a game, by an expert or by deep play."""
    if player == "deep":
        stage = deep_test_stage(replace(c, games=play.games))
        return [replace(stage, name=f"data-{play.name}", output=f"data/{play.name}")]
    expert = training_stage(c, play, RewardConfig("extrinsic"))
    return [expert, episodes_stage(c, play, c.test_episodes, c.explored_steps, expert.name)]


def training_stage(c: PipelineConfig, play: Play, reward: RewardConfig) -> Stage:
    """Return the stage that trains an agent on a reward: an expert if it is the game's own."""
    expert = reward.name == "extrinsic"

    def run(context: StageContext) -> dict[str, Any]:
        base = context.path(f"data-{base_episodes(c).name}")
        data = (str(base),) if reward.name == "vae" else ()
        changes = {"precision": c.precision, **({} if expert else c.explore)}
        preset = explore_preset(f"expert-{c.preset}" if expert else c.preset)
        scorer = c.reward_backend if reward.name == "token-entropy" else "auto"
        exploration.explore(
            play.games,
            None if expert else context.path("model-base"),
            context.out,
            config=override(preset, changes, "settings", "explore."),
            reward=replace(reward, data=data, scorer=scorer),
            env_options=play.options,
            resume=context.resume,
            seed=seed_of(c, play),
        )
        return {}

    name = f"explore-{play.name}"
    inputs = () if expert else ("model-base", f"data-{base_episodes(c).name}")
    settings = [play.games, c.seed, c.preset, c.precision, c.explore, reward.name, *play.options]
    description = f"train the agent of {play.name} on {reward.name}"
    return Stage(name, description, run, inputs, f"explore/{play.name}", settings)


def archive_play_stage(c: PipelineConfig, play: Play, frames: int) -> Stage:
    """Return the stage that plays on from savestates that the base model is uncertain about."""
    changes = {"precision": c.precision, **c.archive}
    config = override(ArchiveConfig(), changes, "settings", "archive.")
    (game,) = play.games

    def run(context: StageContext) -> dict[str, Any]:
        def play_episodes(episodes: int) -> None:
            play_from_archive(
                [game],
                context.path("model-base"),
                context.out,
                replace(config, episodes=episodes),
                RewardConfig(),
                workers=c.workers,
                seed=seed_of(c, play),
                actions=c.actions,
            )

        size = config.round_episodes
        played = play_until(game, context.out, frames, config.steps, play_episodes, size)
        return {"frames": played}

    settings = [game, c.seed, frames, c.archive, c.precision, *c.actions]
    description = f"play on from an archive of {game}, {frames:,} frames"
    name = f"data-{play.name}"
    return Stage(name, description, run, ("model-base",), f"data/{play.name}", settings)
