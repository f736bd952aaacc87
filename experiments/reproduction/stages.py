"""Stages of a table: play, explorers, models and scores of one seed.

All tables of a folder share them, so that the second table finds most of what it needs:

<out>/seed-0/data/<play>/            episodes
<out>/seed-0/models/<model>/         world models
<out>/seed-0/scores/<model>/         scores on each test set: <test>-<mode>.json and .npz
<out>/seed-0/stages/                 records of the finished stages, which are not run again
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import exploration
from experiments.configuration import override
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.data_stages import collect_frames, deep_test_stage, play_until
from experiments.pipeline.runner import Stage, StageContext
from experiments.pipeline.stages import DEEP_SHARE, finetune_stages, join_stage, train_stage
from experiments.reproduction.plans import PLAYERS, Model, Play, TablePlan, named
from exploration.agent.policy import policy_spec
from exploration.archive import ArchiveConfig, play_from_archive
from exploration.config import explore_preset
from exploration.reward.factory import RewardConfig
from worldmodel import GenieReduxG
from worldmodel.evaluation.evaluate import evaluate
from worldmodel.evaluation.far_windows import FarWindows

REWARDS = {"agent": "token-entropy", "random-features": "random-features", "vae": "vae"}
"""Player that is an agent -> its reward."""
EXPERT_EPSILON = 0.15
"""Probability of a random action in the test set of an expert (App. A.2)."""
SCRATCH_ITERATIONS = 15_000
"""Steps of the paper's models from scratch (section 5); other presets train as long as the base."""


def plan_stages(c: PipelineConfig, plan: TablePlan, test_player: str) -> list[Stage]:
    """Return the stages of a table, in order. test_player: expert or deep."""
    base = Play("base", c.games)
    stages = [
        episodes_stage(c, base, c.random_episodes * c.random_steps),
        train_stage(c, "tokenizer", "train the tokenizer", (f"data-{base.name}",)),
        train_stage(c, "dynamics", "train the dynamics model", (f"data-{base.name}",)),
        join_stage("base", "tokenizer", "dynamics"),
    ]
    for play in plan.plays:
        if play.player == "test":
            stages += test_stages(c, play, test_player)
        elif play != base:
            stages += playing_stages(c, play)
    for model in plan.models:
        stages += model_stages(c, model)
    measured = dict.fromkeys((row.model, row.test, row.mode) for row in plan.rows)
    stages += [evaluation_stage(c, *measure, test_player) for measure in measured]
    return list({stage.name: stage for stage in stages}.values())


def seed_of(c: PipelineConfig, play: Play) -> int:
    """Return the seed of a player, so that no two of them play the same episodes."""
    return 1_000 * c.seed + 10 * PLAYERS.index(play.player)


def episodes_stage(c: PipelineConfig, play: Play, frames: int, agent: str | None = None) -> Stage:
    """Return the stage that plays `frames` frames of each game, at random or with an agent."""
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
                c.explored_steps,
                policy=spec,
                seed=seed_of(c, play),
                workers=c.workers,
                actions=c.actions,
            )
            for game in play.games
        }
        return {"frames": played}

    name, games = f"data-{play.name}", ", ".join(play.games)
    settings = [play.games, c.seed, frames, c.explored_steps, epsilon, *c.actions]
    description = f"play {games}: {play.player}, {frames:,} frames"
    inputs = () if agent is None else (agent,)
    return Stage(name, description, run, inputs, f"data/{play.name}", settings)


def playing_stages(c: PipelineConfig, play: Play) -> list[Stage]:
    """Return the stages that record a player's episodes, and train it before if it is an agent."""
    frames = c.explored_episodes * c.explored_steps
    if play.player == "held-out":
        frames = c.test_episodes * c.explored_steps
    if play.player == "archive":
        return [archive_play_stage(c, play, frames)]
    if play.player not in REWARDS:
        return [episodes_stage(c, play, frames)]
    explorer = training_stage(c, play, RewardConfig(REWARDS[play.player]))
    return [explorer, episodes_stage(c, play, frames, explorer.name)]


def test_stages(c: PipelineConfig, play: Play, player: str) -> list[Stage]:
    """Return the stages that record the test set of a game, by an expert or by deep play."""
    if player == "deep":
        stage = deep_test_stage(replace(c, games=play.games))
        return [replace(stage, name=f"data-{play.name}", output=f"data/{play.name}")]
    expert = training_stage(c, play, RewardConfig("extrinsic"))
    return [expert, episodes_stage(c, play, c.test_episodes * c.explored_steps, expert.name)]


def training_stage(c: PipelineConfig, play: Play, reward: RewardConfig) -> Stage:
    """Return the stage that trains an agent on a reward: an expert if it is the game's own."""
    expert = reward.name == "extrinsic"

    def run(context: StageContext) -> dict[str, Any]:
        base = context.path(f"data-{named('base', c.games)}")
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
            resume=context.resume,
            seed=seed_of(c, play),
        )
        return {}

    name = f"explore-{play.name}"
    inputs = () if expert else ("model-base", f"data-{named('base', c.games)}")
    settings = [play.games, c.seed, c.preset, c.precision, c.explore, reward.name]
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


def model_stages(c: PipelineConfig, model: Model) -> list[Stage]:
    """Return the stages that train a model of a table."""
    data = tuple(f"data-{play.name}" for play in model.play)
    if model.start == "base":
        base = (f"data-{named('base', c.games)}",) if c.finetune_data == "half" else ()
        return finetune_stages(c, model.name, (*base, *data))
    changes = c.dynamics
    if c.preset == "paper" and model.start == "decoder":
        changes = {**changes, "iterations": SCRATCH_ITERATIONS}
    dynamics = train_stage(
        replace(c, model={**c.model, **model.settings}, dynamics=changes),
        f"dynamics-{model.name}",
        f"train the dynamics model of {model.name} from scratch",
        data,
        output=f"scratch/{model.name}",
    )
    decoder = f"decoder-{model.decoder_of}" if model.start == "decoder" else "tokenizer"
    return [dynamics, join_stage(model.name, decoder, dynamics.name)]


def score_path(model: str, test: Sequence[Play], mode: str) -> str:
    """Return the path of a model's scores on a test set, in the folder of a seed."""
    name = named(test[0].player, [game for play in test for game in play.games])
    return f"scores/{model}/{name}-{mode}.json"


def evaluation_stage(
    c: PipelineConfig, model: str, test: tuple[Play, ...], mode: str, test_player: str
) -> Stage:
    """Return the stage that evaluates a model on a test set.

    Of deep play the windows are evaluated that are least like the base model's data.
    """
    deep = test_player == "deep" and test[0].player == "test"

    def run(context: StageContext) -> dict[str, Any]:
        base = str(context.path(f"data-{named('base', c.games)}"))
        world = GenieReduxG.load(context.path(f"model-{model}"), "auto", c.precision)
        result = evaluate(
            world,
            [str(context.path(f"data-{play.name}")) for play in test],
            cache_dir=context.root / "cache",
            out=context.out,
            far=FarWindows((base,), DEEP_SHARE) if deep else None,
            **{"seed": c.seed, **c.evaluate, "mode": mode},
        )
        return {"windows": result["overall"]["windows"]}

    output = score_path(model, test, mode)
    name = output.removesuffix(".json").replace("scores/", "score-").replace("/", "-")
    inputs = (
        f"model-{model}",
        f"data-{named('base', c.games)}",
        *(f"data-{play.name}" for play in test),
    )
    settings = [c.evaluate, c.seed, c.precision, mode, deep and DEEP_SHARE]
    return Stage(name, f"evaluate {model}, {mode}", run, inputs, output, settings)
