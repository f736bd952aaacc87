"""Stages of the pipeline that play games."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.collect.collector import collect
from envs.collect.policies import PolicySpec, builtin_policy
from envs.episodes.dataset import EpisodeReader
from experiments.configuration import override
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage, StageContext
from exploration.agent.policy import policy_spec
from exploration.archive import ArchiveConfig, play_from_archive
from exploration.reward.factory import RewardConfig

SEEDS = {
    "random": 0,
    "agent": 1,
    "more-random": 2,
    "test-random": 3,
    "test-agent": 4,
    "explore": 5,
    "archive": 6,
    "test-deep": 7,
    "pretraining": 8,
}
"""Offsets from 1,000 times the run's seed, so that no two parts play the same episodes."""
DEEP_POLICY = "sticky:0.9"
"""Policy of the test set `deep`, of another kind than the explorers'."""


def collect_stage(
    c: PipelineConfig,
    part: str,
    episodes: int,
    steps: int,
    round_number: int = 0,
) -> Stage:
    """Return the stage that records a part of the data: `episodes` of at most `steps` per game.

    The part's name ends in its player: random or agent. The agent is that of a round if a
    `round_number` is given. `collect` completes the data set of an interrupted run.
    """
    player = part.split("-")[-1]
    name, agent, output = f"collect-{part}", "explore", f"data/{part}"
    if round_number:
        name, agent = f"collect-{round_number}", f"explore-{round_number}"
        output = f"rounds/{round_number}/data"

    def run(context: StageContext) -> dict[str, Any]:
        policy: str | PolicySpec = "random"
        if player == "agent":
            checkpoint = f"checkpoint:{context.path(agent) / 'best'}"
            policy = policy_spec(checkpoint, epsilon=c.explored_epsilon)
        summary = collect(
            c.games,
            str(context.out),
            episodes=episodes,
            steps=steps,
            policy=policy,
            workers=c.workers,
            seed=part_seed(c, part, round_number),
            actions=c.actions,
        )
        return {"frames": summary.frames, "episodes": summary.episodes}

    games = f"{len(c.games)} game{'s' if len(c.games) > 1 else ''}"
    how = "with the agent" if player == "agent" else "at random"
    purpose = " for the test set" if part.startswith("test") else ""
    settings = [c.games, c.seed, episodes, steps, *c.actions]
    return Stage(
        name,
        f"play {games} {how}{purpose}, {episodes} episodes each",
        run,
        inputs=(agent,) if player == "agent" else (),
        output=output,
        settings=[*settings, *([c.explored_epsilon] if player == "agent" else [])],
    )


def archive_stage(
    c: PipelineConfig,
    model: str = "model-base",
    previous: str | None = None,
    round_number: int = 0,
) -> Stage:
    """Return the stage that plays where the model of a stage is uncertain.

    In a round with a `round_number`, `previous` is the stage whose archive is carried on.
    """
    return _archive_stage(
        c,
        "archive",
        f"play on from savestates chosen by the uncertainty of {model}",
        c.explored_episodes,
        ArchiveConfig(),
        RewardConfig(),
        model=model,
        previous=previous,
        round_number=round_number,
    )


def deep_test_stage(c: PipelineConfig) -> Stage:
    """Return the stage that records the test set `deep`: play far from the start of each game.

    It is Go-Explore on the game's own score, which no training sees, from an archive of its own.
    """
    return _archive_stage(
        c,
        "test-deep",
        "play on from savestates chosen by the game's score for the test set",
        c.test_episodes,
        ArchiveConfig(policy=builtin_policy(DEEP_POLICY)),
        RewardConfig("extrinsic"),
    )


def _archive_stage(
    c: PipelineConfig,
    part: str,
    description: str,
    episodes: int,
    config: ArchiveConfig,
    reward: RewardConfig,
    *,
    model: str | None = None,
    previous: str | None = None,
    round_number: int = 0,
) -> Stage:
    """Return a stage that plays from an archive, as many steps as `episodes` whole ones have."""
    config = override(config, {"precision": c.precision, **c.archive}, "settings", "archive.")
    steps = episodes * c.explored_steps
    config = replace(config, episodes=max(1, steps // config.steps))

    def run(context: StageContext) -> dict[str, Any]:
        summary = play_from_archive(
            c.games,
            context.path(model) if model else None,
            context.out,
            config,
            reward,
            previous=context.path(previous) if previous else None,
            workers=c.workers,
            seed=part_seed(c, part, round_number),
            actions=c.actions,
        )
        return {"frames": summary.frames, "episodes": summary.episodes}

    name, output = f"collect-{part}", f"data/{part}"
    if round_number:
        name, output = f"collect-{round_number}", f"rounds/{round_number}/data"
    inputs = tuple(stage for stage in (model, previous) if stage)
    settings = [c.games, c.seed, steps, c.archive, reward.name, config.policy.name, *c.actions]
    if model:
        settings.append(c.precision)
    return Stage(name, description, run, inputs, output, settings)


def as_much_stage(c: PipelineConfig) -> Stage:
    """Return the stage that plays at random for as long as the main explorer did."""
    return Stage(
        "collect-more-random",
        "play as many frames at random, for the comparison",
        collect_as_much,
        inputs=(f"collect-{c.explorers[0]}",),
        output="data/more-random",
        settings=[c.games, c.seed, c.explored_steps, *c.actions],
    )


def collect_as_much(context: StageContext) -> dict[str, Any]:
    """Collect random play until each game has as many frames as in the explorer's data.

    The explorer is the first one. Up to one episode more, since episodes are whole.
    """
    c: PipelineConfig = context.config
    wanted = frames_by_game(context.path(f"collect-{c.explorers[0]}"))
    for game in c.games:
        collect_frames(
            game,
            context.out,
            wanted[game],
            c.explored_steps,
            seed=part_seed(c, "more-random"),
            workers=c.workers,
            actions=c.actions,
        )
    return {"frames": frames_by_game(context.out).total(), "wanted": wanted.total()}


def collect_frames(game: str, out: Path, frames: int, steps: int, **options: Any) -> int:
    """Collect episodes of at most `steps` steps until a game has `frames` frames in `out`.

    `options` are those of `collect`. Returns the number of frames, up to one episode more, since
    episodes are whole.
    """

    def play(episodes: int) -> None:
        collect([game], str(out), episodes=episodes, steps=steps, **options)

    return play_until(game, out, frames, steps, play)


def play_until(
    game: str, out: Path, frames: int, steps: int, play: Callable[[int], None], multiple: int = 1
) -> int:
    """Call `play` with more and more episodes until a game has `frames` frames in `out`.

    `steps` is the length of an episode that does not end early, `multiple` divides every number of
    episodes. Returns the number of frames.
    """
    episodes = 0
    while (found := frames_by_game(out)[game]) < frames:
        mean = found / episodes if episodes else steps + 1
        missing = max(1, round((frames - found) / mean))
        episodes += -(-missing // multiple) * multiple
        play(episodes)
    return found


def frames_by_game(folder: Path) -> Counter[str]:
    """Return the frames of each game in a folder of episodes; empty if it does not exist yet."""
    counts: Counter[str] = Counter()
    if (folder / "manifest.json").exists():
        for record in EpisodeReader(folder).records:
            counts[record.game] += record.num_frames
    return counts


def part_seed(c: PipelineConfig, part: str, round_number: int = 0) -> int:
    """Return the seed of a part of a pipeline or of a round."""
    return 1_000 * c.seed + 10 * round_number + SEEDS[part]
