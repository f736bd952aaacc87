"""The stages of several rounds: explore, collect, fine-tune, and measure how unsure each model is of each round's play.

Round k's agent seeks what model k-1 is unsure of and begins as the agent of round k-1; what it brings back makes
model k out of model k-1. One reward service runs through all rounds: its weights are swapped while it answers.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage, StageContext
from experiments.pipeline.stages import collect_play, explore, joined, stage_table, train_component

APP_NAME = "autoexplore-rounds"
SHARED = ("collect-random", "tokenizer", "dynamics", "model-base")
"""Stages before the first round: those of the pipeline."""
WINDOWS = 48
"""Windows of each game of each round's play that every model is asked about."""


class Service:
    """The reward service of all rounds: started with the first model that is asked for, swapped to later ones."""

    def __init__(self, plan: PipelineConfig) -> None:
        self.plan, self.running = plan, False

    def show(self, model: Path) -> float:
        """Let the app answer from this model -> seconds that the swap took, 0 where the app had to be started."""
        from exploration.config import recipe
        from worldmodel import serve

        started = time.monotonic()
        if self.running:
            serve.swap(APP_NAME, model)
            return time.monotonic() - started
        chosen = recipe(self.plan.preset)
        serve.run(model.absolute(), app_name=APP_NAME, steps=chosen.maskgit_steps, replicas=chosen.replicas)
        self.running = True
        return 0.0

    def stop(self) -> None:
        """End the app, if it was started."""
        from worldmodel import serve

        if self.running:
            serve.stop(APP_NAME)


def rounds_table(c: PipelineConfig, rounds: int, service: Service) -> list[Stage]:
    """The stages of `rounds` rounds, in order."""
    shared = {stage.name: stage for stage in stage_table(c)}
    stages = [shared[name] for name in SHARED]
    stages.append(measured(0))
    for place in range(1, rounds + 1):
        stages += one_round(c, place, service)
    measures = tuple(f"measure-{place}" for place in range(rounds + 1))
    report = Stage("report-rounds", "draws the report", draw_report, measures, "report", weight=5, settings=rounds)
    return [*stages, report]


def one_round(c: PipelineConfig, place: int, service: Service) -> list[Stage]:
    """The stages of round `place`, from 1."""
    folder, before = f"rounds/{place}", f"explore-{place - 1}"
    play = [c.games, c.seed]
    data = tuple(play_stage(number) for number in range(place + 1))
    decoder, dynamics = f"decoder-{place}", f"dynamics-{place}"
    bases = ("tokenizer", "dynamics") if place == 1 else (f"decoder-{place - 1}", f"dynamics-{place - 1}")
    model = model_stage(place - 1)
    return [
        Stage(
            f"explore-{place}",
            f"round {place}: an agent goes where {model} is unsure",
            partial(explore_round, place=place, service=service),
            inputs=(model, *([before] if place > 1 else [])),
            output=f"{folder}/explore",
            weight=200,
            settings=[*play, c.preset, c.explore, c.scorer],
        ),
        Stage(
            play_stage(place),
            f"round {place}: the explorer plays, {c.explored_episodes} episodes of each game",
            partial(
                collect_play,
                part="explored",
                episodes=c.explored_episodes,
                steps=c.explored_steps,
                agent=f"explore-{place}",
                place=place,
            ),
            inputs=(f"explore-{place}",),
            output=f"{folder}/data",
            weight=20,
            settings=[*play, c.explored_episodes, c.explored_steps, c.explored_epsilon],
        ),
        Stage(
            decoder,
            f"round {place}: fine-tunes the tokenizer's decoder alone",
            partial(train_component, component="tokenizer", data=data, changes=c.decoder_finetune, init=bases[0]),
            inputs=(bases[0], *data),
            output=f"{folder}/decoder",
            weight=30,
            settings=[c.preset, c.seed, c.decoder_finetune],
        ),
        Stage(
            dynamics,
            f"round {place}: fine-tunes the dynamics model",
            partial(
                train_component,
                component="dynamics",
                data=data,
                changes=c.dynamics_finetune,
                tokenizer="tokenizer",
                init=bases[1],
            ),
            inputs=("tokenizer", bases[1], *data),
            output=f"{folder}/dynamics",
            weight=60,
            settings=[c.preset, c.seed, c.dynamics_finetune],
        ),
        joined(str(place), decoder, dynamics),
        measured(place),
    ]


def play_stage(place: int) -> str:
    """The stage that recorded a round's play; round 0 is the random agent's."""
    return f"collect-{place}" if place else "collect-random"


def model_stage(place: int) -> str:
    """The stage that made a round's model; round 0 is the one that learnt from random play."""
    return f"model-{place}" if place else "model-base"


def measured(place: int) -> Stage:
    """The stage that measures what round `place` has added: its play under all models, its model on all play."""
    seen = range(place + 1)
    return Stage(
        f"measure-{place}",
        f"asks how unsure the models are of the screens visited up to round {place}",
        partial(measure, place=place),
        inputs=(*map(model_stage, seen), *map(play_stage, seen)),
        output=f"rounds/{place}/measure.json",
        weight=10,
        settings=WINDOWS,
    )


def explore_round(job: StageContext, *, place: int, service: Service) -> dict[str, Any]:
    """Explore under the weights of the round before, swapped into the running service, from the agent before."""
    model = model_stage(place - 1)
    options: dict[str, Any] = {}
    seconds = None
    if job.plan.scorer == "serve":
        seconds = service.show(job.path(model))
        options["app"] = APP_NAME
    if place > 1:
        options["init"] = job.path(f"explore-{place - 1}") / "best"
    explore(job, model=model, place=place, **options)
    return {"swap_seconds": seconds}


def measure(job: StageContext, *, place: int) -> dict[str, Any]:
    """`measure.json`: mean entropy of fixed windows of play j under model m, for the pairs that are new in this round.

    {"entropy": [[m, j, mean over all tokens, mean reward], ...], "screens": game -> {"frames", "seen", "new"}}
    """
    from envs.utils.atomic_io import write_json_atomic
    from experiments.reports.screens import seen_by_game
    from exploration.reward.token_entropy import uncertainty_reward
    from worldmodel.uncertainty import load_model, window_entropies

    pairs = [(model, place) for model in range(place)] + [(place, play) for play in range(place + 1)]
    windows = {play: fixed_windows(job.path(play_stage(play))) for _, play in pairs}
    models = {number: load_model(job.path(model_stage(number))) for number, _ in pairs}
    rows = []
    for number, play in pairs:
        entropy_BN = window_entropies(models[number], *windows[play])
        rows.append([number, play, float(entropy_BN.mean()), float(uncertainty_reward(entropy_BN).mean())])
    earlier = [seen_by_game(job.path(play_stage(number))) for number in range(place)]
    screens = {}
    for game, seen in seen_by_game(job.path(play_stage(place))).items():
        known: set[bytes] = set().union(*(before[game].ids for before in earlier if game in before))
        screens[game] = {"frames": seen.frames, "seen": len(seen.ids), "new": len(seen.ids - known)}
    write_json_atomic(job.out, {"round": place, "entropy": rows, "screens": screens})
    return {"lines": say(place, rows, screens)}


def say(place: int, rows: list[list[Any]], screens: dict[str, dict[str, int]]) -> list[str]:
    """What a round changed, for the person who waits."""
    from envs.utils.progress import console

    mean = {(number, play): value for number, play, value, _ in rows}
    new = sum(counts["new"] for counts in screens.values())
    words = f"round {place}: {new:,} screens that no earlier round had"
    if place:
        words += (
            f"; entropy on its screens {mean[place - 1, place]:.3f} before learning, {mean[place, place]:.3f} after"
        )
    console.print(words)
    return [words]


def fixed_windows(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """WINDOWS windows of each game of recorded play, evenly spread over its episodes: always the same ones.

    Frames (B, 5, H, W, C) and actions (B, 4).
    """
    from envs.episodes.dataset import EpisodeReader
    from exploration.reward.token_entropy import cut_windows
    from worldmodel.uncertainty import WINDOW

    reader = EpisodeReader(folder)
    frames, actions = [], []
    for game in dict.fromkeys(reader.games):
        own = [index for index, name in enumerate(reader.games) if name == game]
        places = [(index, step) for index in own for step in range(reader.num_frames(index) - WINDOW + 1)]
        chosen = [places[at] for at in np.linspace(0, len(places) - 1, min(WINDOWS, len(places))).astype(int)]
        for index in dict.fromkeys(index for index, _ in chosen):
            episode = reader[index]
            windows = cut_windows(episode.frames_THWC, np.asarray(episode.actions), len(episode.frames_THWC) - 1)
            steps = [step for other, step in chosen if other == index]
            frames.append(windows.frames_B5HWC[steps])
            actions.append(windows.actions_B4[steps])
    return np.concatenate(frames), np.concatenate(actions)


def draw_report(job: StageContext) -> dict[str, Any]:
    """The report, and its main figures as lines of text."""
    from experiments.reports.rounds_report import build

    return {"lines": build(job.context.root, job.out)}
