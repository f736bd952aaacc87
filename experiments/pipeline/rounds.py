"""Stages of several rounds: explore, collect, fine-tune, measure uncertainty on all data so far.

The agent of round k seeks the uncertainty of model k-1 and starts as the agent of round k-1; its
episodes fine-tune model k-1 to model k. One reward service runs through all rounds: its weights are
swapped while it answers.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.episodes.dataset import EpisodeReader
from envs.utils.atomic_io import write_json_atomic
from envs.utils.progress import console
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.runner import Stage, StageContext
from experiments.pipeline.stages import collect_play, explore, finetuned, stage_table
from experiments.reports.rounds_report import build
from experiments.reports.screens import seen_by_game
from exploration.config import explore_preset
from exploration.reward.token_entropy import uncertainty_reward
from worldmodel import serve
from worldmodel.uncertainty import WINDOW, cut_windows, load_model, window_entropies

APP_NAME = "autoexplore-rounds"
SHARED = ("collect-random", "tokenizer", "dynamics", "model-base")
"""Stages before the first round: those of the pipeline."""
WINDOWS = 48
"""Windows of each game and round that every model scores."""


class Service:
    """Reward service of all rounds: started with the first model, swapped to later ones."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config, self.running = config, False

    def show(self, model: Path) -> float:
        """Serve this model; return the seconds of the swap, 0 where the app had to be started."""
        started = time.monotonic()
        if self.running:
            serve.update_weights(APP_NAME, model)
            return time.monotonic() - started
        chosen = explore_preset(self.config.preset)
        settings = serve.ServeConfig(
            app_name=APP_NAME, steps=chosen.maskgit_steps, replicas=chosen.replicas
        )
        serve.deploy(model.absolute(), settings)
        self.running = True
        return 0.0

    def stop(self) -> None:
        """Stop the app if it was started."""
        if self.running:
            serve.shutdown(APP_NAME)


def rounds_table(c: PipelineConfig, rounds: int, service: Service) -> list[Stage]:
    """Return the stages of `rounds` rounds, in order."""
    shared = {stage.name: stage for stage in stage_table(c)}
    stages = [shared[name] for name in SHARED]
    stages.append(measured(0))
    for place in range(1, rounds + 1):
        stages += one_round(c, place, service)
    measures = tuple(f"measure-{place}" for place in range(rounds + 1))
    report = Stage(
        "report-rounds",
        "draws the report",
        draw_report,
        measures,
        "report",
        settings=rounds,
    )
    return [*stages, report]


def one_round(c: PipelineConfig, place: int, service: Service) -> list[Stage]:
    """Return the stages of round `place`, from 1."""
    folder, before = f"rounds/{place}", f"explore-{place - 1}"
    play = [c.games, c.seed]
    data = tuple(play_stage(number) for number in range(place + 1))
    bases = (
        ("tokenizer", "dynamics")
        if place == 1
        else (f"decoder-{place - 1}", f"dynamics-{place - 1}")
    )
    model = model_stage(place - 1)
    return [
        Stage(
            f"explore-{place}",
            f"round {place}: an agent goes where {model} is uncertain",
            partial(explore_round, place=place, service=service),
            inputs=(model, *([before] if place > 1 else [])),
            output=f"{folder}/explore",
            settings=[*play, c.preset, c.explore, c.reward_backend],
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
            settings=[*play, c.explored_episodes, c.explored_steps, c.explored_epsilon],
        ),
        *finetuned(
            c,
            str(place),
            (
                f"round {place}: fine-tunes the tokenizer's decoder alone",
                f"round {place}: fine-tunes the dynamics model",
            ),
            data=data,
            bases=bases,
            folder=folder,
        ),
        measured(place),
    ]


def play_stage(place: int) -> str:
    """Return the stage that recorded a round's episodes; round 0 is the random agent's."""
    return f"collect-{place}" if place else "collect-random"


def model_stage(place: int) -> str:
    """Return the stage that made a round's model; round 0 is trained on random play."""
    return f"model-{place}" if place else "model-base"


def measured(place: int) -> Stage:
    """Return the stage that scores the data of round `place` by all models, and all data by its
    model."""
    seen = range(place + 1)
    return Stage(
        f"measure-{place}",
        f"measures uncertainty on the screens visited up to round {place}",
        partial(measure, place=place),
        inputs=(*map(model_stage, seen), *map(play_stage, seen)),
        output=f"rounds/{place}/measure.json",
        settings=WINDOWS,
    )


def explore_round(job: StageContext, *, place: int, service: Service) -> dict[str, Any]:
    """Explore on the model of the round before, swapped into the service, from the agent before."""
    model = model_stage(place - 1)
    options: dict[str, Any] = {}
    seconds = None
    if job.config.reward_backend == "serve":
        seconds = service.show(job.path(model))
        options["app"] = APP_NAME
    if place > 1:
        options["init"] = job.path(f"explore-{place - 1}") / "best"
    explore(job, model=model, place=place, **options)
    return {"swap_seconds": seconds}


def measure(job: StageContext, *, place: int) -> dict[str, Any]:
    """Write `measure.json`: mean entropy of fixed windows of data j under model m, for new pairs.

    {"entropy": [[m, j, mean over all tokens, mean reward], ...], "screens": game -> {"frames",
    "seen", "new"}}
    """
    pairs = [(model, place) for model in range(place)] + [
        (place, play) for play in range(place + 1)
    ]
    windows = {play: fixed_windows(job.path(play_stage(play))) for _, play in pairs}
    models = {number: load_model(job.path(model_stage(number))) for number, _ in pairs}
    rows = []
    for number, play in pairs:
        entropy_BN = window_entropies(models[number], *windows[play])
        rows.append(
            [number, play, float(entropy_BN.mean()), float(uncertainty_reward(entropy_BN).mean())]
        )
    earlier = [seen_by_game(job.path(play_stage(number))) for number in range(place)]
    screens = {}
    for game, seen in seen_by_game(job.path(play_stage(place))).items():
        known: set[bytes] = set().union(*(before[game].ids for before in earlier if game in before))
        screens[game] = {"frames": seen.frames, "seen": len(seen.ids), "new": len(seen.ids - known)}
    write_json_atomic(job.out, {"round": place, "entropy": rows, "screens": screens})
    return {"lines": say(place, rows, screens)}


def say(place: int, rows: list[list[Any]], screens: dict[str, dict[str, int]]) -> list[str]:
    """Print and return the changes of a round."""
    mean = {(number, play): value for number, play, value, _ in rows}
    new = sum(counts["new"] for counts in screens.values())
    words = f"round {place}: {new:,} screens that no earlier round had"
    if place:
        before, after = mean[place - 1, place], mean[place, place]
        words += f"; entropy on its screens {before:.3f} before learning, {after:.3f} after"
    console.print(words)
    return [words]


def fixed_windows(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return WINDOWS windows of each game, evenly spread over its episodes and always the same.

    Frames (B, 5, H, W, C) and actions (B, 4).
    """
    reader = EpisodeReader(folder)
    frames, actions = [], []
    for game in dict.fromkeys(reader.games):
        own = [index for index, name in enumerate(reader.games) if name == game]
        places = [
            (index, step) for index in own for step in range(reader.num_frames(index) - WINDOW + 1)
        ]
        chosen = [
            places[at]
            for at in np.linspace(0, len(places) - 1, min(WINDOWS, len(places))).astype(int)
        ]
        for index in dict.fromkeys(index for index, _ in chosen):
            episode = reader[index]
            windows = cut_windows(episode.frames_THWC, episode.actions.astype(np.int64))
            steps = [step for other, step in chosen if other == index]
            frames.append(windows.frames_B5HWC[steps])
            actions.append(windows.actions_B4[steps])
    return np.concatenate(frames), np.concatenate(actions)


def draw_report(job: StageContext) -> dict[str, Any]:
    """Draw the report; return its main figures as lines of text."""
    return {"lines": build(job.context.root, job.out)}
