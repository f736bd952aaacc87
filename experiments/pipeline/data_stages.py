"""Stages of the pipeline that play games."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.collect.collector import collect
from envs.collect.policies import PolicySpec
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
}
"""Offsets from 1,000 times the run's seed, so that no two parts play the same episodes."""
DEEP_POLICY = "dirichlet:0.3"
"""Policy of the test set `deep`: each episode has random action probabilities and repeats."""


def collect_stage(
    c: PipelineConfig,
    part: str,
    episodes: int,
    steps: int,
    round_number: int = 0,
) -> Stage:
    """Return the stage that records a part of the data: `episodes` of at most `steps` per game.

    The part's name ends in its player: random, deep or agent. The agent is that of a round if a
    `round_number` is given. `collect` completes the data set of an interrupted run.
    """
    player = part.split("-")[-1]
    name, agent, output = f"collect-{part}", "explore", f"data/{part}"
    if round_number:
        name, agent = f"collect-{round_number}", f"explore-{round_number}"
        output = f"rounds/{round_number}/data"

    def run(context: StageContext) -> dict[str, Any]:
        policy: str | PolicySpec = DEEP_POLICY if player == "deep" else "random"
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
        )
        return {"frames": summary.frames, "episodes": summary.episodes}

    games = f"{len(c.games)} game{'s' if len(c.games) > 1 else ''}"
    how = {"agent": "with the agent", "deep": "with random policies that persist"}
    purpose = " for the test set" if part.startswith("test") else ""
    settings = [c.games, c.seed, episodes, steps]
    return Stage(
        name,
        f"play {games} {how.get(player, 'at random')}{purpose}, {episodes} episodes each",
        run,
        inputs=(agent,) if player == "agent" else (),
        output=output,
        settings=[*settings, *([c.explored_epsilon] if player == "agent" else [])],
    )


def archive_stage(c: PipelineConfig, steps: int) -> Stage:
    """Return the stage that plays `steps` steps of each game from an archive of savestates."""
    config = override(ArchiveConfig(), c.archive, "settings", "archive.")
    config = replace(config, episodes=max(1, steps // config.steps))

    def run(context: StageContext) -> dict[str, Any]:
        summary = play_from_archive(
            c.games,
            context.path("model-base"),
            context.out,
            config,
            RewardConfig(),
            workers=c.workers,
            seed=part_seed(c, "archive"),
        )
        return {"frames": summary.frames, "episodes": summary.episodes}

    description = "play on from savestates chosen by the uncertainty of model-base"
    settings = [c.games, c.seed, steps, c.archive]
    inputs = ("model-base",)
    return Stage("collect-archive", description, run, inputs, "data/archive", settings)


def as_much_stage(c: PipelineConfig) -> Stage:
    """Return the stage that plays at random for as long as the main explorer did."""
    return Stage(
        "collect-more-random",
        "play as many frames at random, for the comparison",
        collect_as_much,
        inputs=(f"collect-{c.explorers[0]}",),
        output="data/more-random",
        settings=[c.games, c.seed, c.explored_steps],
    )


def collect_as_much(context: StageContext) -> dict[str, Any]:
    """Collect random play until each game has as many frames as in the explorer's data.

    The explorer is the first one. Up to one episode more, since episodes are whole.
    """
    c: PipelineConfig = context.config
    wanted = frames_by_game(context.path(f"collect-{c.explorers[0]}"))
    for game in c.games:
        episodes = 0
        while (frames := frames_by_game(context.out)[game]) < wanted[game]:
            mean = frames / episodes if episodes else c.explored_steps + 1
            episodes += max(1, round((wanted[game] - frames) / mean))
            collect(
                [game],
                str(context.out),
                episodes=episodes,
                steps=c.explored_steps,
                policy="random",
                workers=c.workers,
                seed=part_seed(c, "more-random"),
            )
    return {"frames": frames_by_game(context.out).total(), "wanted": wanted.total()}


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
