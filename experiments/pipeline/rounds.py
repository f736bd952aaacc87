"""Stages of several rounds: explore, collect, fine-tune, measure uncertainty on all data so far.

The player of round k seeks the uncertainty of model k-1; its episodes fine-tune model k-1 to model
k. The player is the first one of `explorers`: an agent, which starts as that of round k-1, or an
archive of savestates, which carries on that of round k-1. One reward service serves the agents of
all rounds: its weights are swapped without a restart.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.episodes.dataset import EpisodeReader
from envs.utils.atomic_io import write_json_atomic
from envs.utils.progress import console
from experiments.pipeline.config import PipelineConfig
from experiments.pipeline.data_stages import archive_stage, collect_stage
from experiments.pipeline.runner import Stage, StageContext
from experiments.pipeline.stages import (
    explore_stage,
    finetune_stages,
    first_stages,
    report_stage,
    run_explorer,
)
from experiments.reports.rounds_report import build_rounds_report
from experiments.reports.screens import seen_by_game
from exploration.config import explore_preset
from exploration.reward.token_entropy import uncertainty_reward
from worldmodel import WorldModel, serve
from worldmodel.config import CONTEXT, WINDOW
from worldmodel.data.batch import to_float_frames
from worldmodel.metrics import frame_psnr
from worldmodel.uncertainty import cut_windows, load_model, window_entropies

APP_NAME = "autoexplore-rounds"
WINDOWS, BATCH = 48, 8
"""Windows of each game and round on which every model is measured, and how many at a time."""


class Service:
    """Reward service of all rounds: started with the first model, then swapped to later ones."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config, self.running = config, False

    def show(self, model: Path) -> float:
        """Serve `model`; return the seconds of the swap, 0 if the app had to be started."""
        if self.running:
            started = time.monotonic()
            serve.update_weights(APP_NAME, model)
            return time.monotonic() - started
        preset = explore_preset(self.config.preset)
        settings = serve.ServeConfig(
            app_name=APP_NAME, steps=preset.maskgit_steps, replicas=preset.replicas
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
    stages = [*first_stages(c), measure_stage(0)]
    for number in range(1, rounds + 1):
        stages += one_round(c, number, service)
    measures = tuple(f"measure-{number}" for number in range(rounds + 1))
    return [*stages, report_stage("report-rounds", build_rounds_report, measures, rounds)]


def one_round(c: PipelineConfig, number: int, service: Service) -> list[Stage]:
    """Return the stages of a round, from 1."""
    folder, before = f"rounds/{number}", number - 1
    data = tuple(map(play_stage, range(number + 1)))
    bases = (f"decoder-{before}", f"dynamics-{before}") if before else ("tokenizer", "dynamics")
    if c.explorers[0] == "archive":
        previous = play_stage(before) if before else None
        play = [archive_stage(c, model_stage(before), previous, number)]
    else:
        run = partial(explore_round, number=number, service=service)
        inputs = (model_stage(before), *([f"explore-{before}"] if before else []))
        play = [
            explore_stage(c, f"explore-{number}", run, inputs, f"{folder}/explore"),
            collect_stage(c, "agent", c.explored_episodes, c.explored_steps, number),
        ]
    return [
        *play,
        *finetune_stages(c, str(number), data, bases, folder),
        measure_stage(number),
    ]


def play_stage(number: int) -> str:
    """Return the stage that recorded a round's episodes; those of round 0 are random play."""
    return f"collect-{number}" if number else "collect-random"


def model_stage(number: int) -> str:
    """Return the stage that made a round's model; that of round 0 is trained on random play."""
    return f"model-{number}" if number else "model-base"


def measure_stage(number: int) -> Stage:
    """Return the stage that measures a round's play by all models, and all play by its model."""
    rounds = range(number + 1)
    return Stage(
        f"measure-{number}",
        f"measure the uncertainty on the screens up to round {number}",
        partial(measure_round, number=number),
        inputs=(*map(model_stage, rounds), *map(play_stage, rounds)),
        output=f"rounds/{number}/measure.json",
        settings=WINDOWS,
    )


def explore_round(context: StageContext, *, number: int, service: Service) -> dict[str, Any]:
    """Train the previous round's agent on the previous round's model, served by the service."""
    model = model_stage(number - 1)
    options: dict[str, Any] = {}
    seconds = None
    if context.config.reward_backend == "serve":
        seconds = service.show(context.path(model))
        options["app"] = APP_NAME
    if number > 1:
        options["init"] = context.path(f"explore-{number - 1}") / "best"
    run_explorer(context, model=model, round_number=number, **options)
    return {"swap_seconds": seconds}


def measure_round(context: StageContext, *, number: int) -> dict[str, Any]:
    """Write `measure.json`: entropy and error of model m on fixed windows of play j, for new pairs.

    {"models": [[m, j, mean entropy over all tokens, mean reward, PSNR of the last frame], ...],
     "screens": {game: {"frames", "seen", "new"}}}
    """
    pairs = [(model, number) for model in range(number)]
    pairs += [(number, play) for play in range(number + 1)]
    windows = {play: fixed_windows(context.path(play_stage(play))) for _, play in pairs}
    models = {
        model: load_model(context.path(model_stage(model)), "auto", context.config.precision)
        for model, _ in pairs
    }
    rows: list[list[Any]] = []
    for model, play in pairs:
        entropy_BN = window_entropies(models[model], *windows[play])
        reward_B = uncertainty_reward(entropy_BN)
        psnr = prediction_psnr(models[model], *windows[play])
        rows.append([model, play, float(entropy_BN.mean()), float(reward_B.mean()), psnr])
    earlier = [seen_by_game(context.path(play_stage(play))) for play in range(number)]
    screens = {}
    for game, seen in seen_by_game(context.path(play_stage(number))).items():
        new = seen.ids.difference(*(before[game].ids for before in earlier if game in before))
        screens[game] = {"frames": seen.frames, "seen": len(seen.ids), "new": len(new)}
    write_json_atomic(context.out, {"round": number, "models": rows, "screens": screens})
    line = _describe_round(number, rows, screens)
    console.print(line)
    return {"lines": [line]}


def _describe_round(number: int, rows: list[list[Any]], screens: dict[str, dict[str, int]]) -> str:
    """Return the changes of a round as a line of text."""
    new = sum(counts["new"] for counts in screens.values())
    line = f"round {number}: {new:,} screens that no earlier round had"
    if number:
        measured = {(model, play): (entropy, psnr) for model, play, entropy, _, psnr in rows}
        entropy, psnr = zip(measured[number - 1, number], measured[number, number], strict=True)
        line += "; on its screens entropy {:.3f} before learning, {:.3f} after, ".format(*entropy)
        line += "PSNR {:.1f} and {:.1f} dB".format(*psnr)
    return line


@torch.inference_mode()
def prediction_psnr(
    model: WorldModel, frames_B5HWC: NDArray[np.uint8], actions_B4: NDArray[np.int64]
) -> float:
    """Return the mean PSNR in dB of the last frame of windows, predicted in one pass from two."""
    values = []
    for start in range(0, len(frames_B5HWC), BATCH):
        rows = slice(start, start + BATCH)
        frames = to_float_frames(torch.from_numpy(frames_B5HWC[rows]).to(model.device))
        actions = torch.from_numpy(actions_B4[rows].astype(np.int64)).to(model.device)
        generator = torch.Generator(model.device).manual_seed(0)
        predicted = model.generate(frames[:, :CONTEXT], actions, steps=1, generator=generator)
        values.append(frame_psnr(predicted[:, -1], frames[:, -1]))
    return float(torch.cat(values).mean())


def fixed_windows(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return WINDOWS windows of each game, always the same, evenly spread over its episodes.

    Frames (B, 5, H, W, C) and actions (B, 4).
    """
    reader = EpisodeReader(folder)
    frames, actions = [], []
    for game in dict.fromkeys(reader.games):
        positions = [
            (index, step)
            for index, name in enumerate(reader.games)
            if name == game
            for step in range(reader.num_frames(index) - WINDOW + 1)
        ]
        count = min(WINDOWS, len(positions))
        chosen = [positions[at] for at in np.linspace(0, len(positions) - 1, count).astype(int)]
        for index in dict.fromkeys(index for index, _ in chosen):
            episode = reader[index]
            steps = [step for other, step in chosen if other == index]
            windows = cut_windows(episode.frames_THWC, episode.actions)
            frames.append(windows.frames_B5HWC[steps])
            actions.append(windows.actions_B4[steps])
    return np.concatenate(frames), np.concatenate(actions)
