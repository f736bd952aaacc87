"""Calibration of the uncertainty: maps of idle and moving scenes (Fig. 6), reliability, separation.

The query is the reward's: two frames given, three predicted in one pass, the distributions of the
last one's tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.utils.images import heat_map, png
from envs.utils.progress import console
from experiments.reports.images import film_strip
from experiments.studies.common import (
    COLOURS,
    ModelArgs,
    figure_png,
    new_figure,
    open_model,
    windows_of,
    write_result,
)
from exploration.reward.token_entropy import CONTEXT, uncertainty_reward
from worldmodel.evaluation.calibration import auc, reliability
from worldmodel.evaluation.codebook_stats import moving_patches
from worldmodel.models.world_model import normalised_entropy
from worldmodel.uncertainty import WINDOW

SCENES = 4
"""Idle and moving scenes drawn of each game."""


@dataclass(frozen=True, kw_only=True)
class Args(ModelArgs):
    """Write uncertainty.json, uncertainty.png and uncertainty-GAME.png to --out."""

    limit: int = 64
    """Maximum number of windows of each game, evenly spread."""
    stride: int = 5
    """Frames between the starts of two windows."""


@dataclass(frozen=True)
class Asked:
    """Answers of the model for windows of one game. B windows, N tokens of the last frame."""

    frames_BHWC: Tensor
    """Last frames, uint8."""
    entropy_BN: Tensor
    confidence_BN: Tensor
    """Probability of the most likely code."""
    correct_BN: Tensor
    """True if it is the code of the ground truth."""
    surprise_BN: Tensor
    """-ln p of the ground truth's code."""
    moving_BN: Tensor
    """True if the patch has changed since the last given frame."""

    @property
    def reward_B(self) -> Tensor:
        """Return the reward of each window (Eq. 2-4)."""
        return torch.from_numpy(uncertainty_reward(self.entropy_BN.numpy()))


def run(args: Args) -> None:
    """Query the model, measure calibration, draw."""
    games = ask(args)
    together = joined(list(games.values()))
    figures = {
        "overall": judge(together),
        "games": {game: judge(asked) for game, asked in games.items()},
    }
    pictures = {game: draw_maps(asked) for game, asked in games.items()}
    write_result(args, "uncertainty", figures, {"": plot(figures, together), **pictures})
    for game, of in {**figures["games"], "all": figures["overall"]}.items():
        told = ", ".join(
            f"{words} {of[name]:.3f}" if of[name] is not None else f"{words} -"
            for name, words in (
                ("ece", "ECE"),
                ("auc_patches", "AUC of moving patches"),
                ("auc_scenes", "of scenes"),
            )
        )
        console.print(f"{game}: {told}")


def ask(args: Args) -> dict[str, Asked]:
    """Return the model's answers for windows of each game."""
    model = open_model(args)
    parts: dict[str, list[Asked]] = {}
    for windows in windows_of(args, model, WINDOW, args.stride):
        frames, driven = windows.frames_BTCHW, windows.model
        with torch.inference_mode():
            hidden = driven.query_hidden(frames[:, :CONTEXT], windows.actions_BT)
            logits = driven.dynamics.head(hidden).float()
        came = model.tokenizer.encode(frames)[:, -1].flatten(1)
        log_p = logits.log_softmax(-1)
        best = log_p.max(-1)
        asked = Asked(
            windows.frames_BTHWC[:, -1],
            normalised_entropy(logits),
            best.values.exp(),
            best.indices == came,
            -log_p.gather(-1, came[..., None]).squeeze(-1),
            moving_patches(frames[:, [CONTEXT - 1, WINDOW - 1]], model.cfg.grid).flatten(1),
        )
        parts.setdefault(windows.game, []).append(asked)
    return {game: joined(of) for game, of in parts.items()}


def joined(parts: Sequence[Asked]) -> Asked:
    """Return all windows of several parts."""
    return Asked(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Asked))
    )


def scenes(asked: Asked) -> tuple[Tensor, Tensor]:
    """Return the quarters of windows with least and most motion, int64 each."""
    order = asked.moving_BN.float().mean(1).argsort(stable=True)
    quarter = max(1, len(order) // 4)
    return order[:quarter], torch.flip(order[-quarter:], [0])


def judge(asked: Asked) -> dict[str, Any]:
    """Return calibration and separation of windows, as JSON data."""
    idle, moving = scenes(asked)
    quarter = torch.cat([idle, moving])
    is_moving = torch.arange(len(quarter)) >= len(idle)

    def mean(values: Tensor) -> float | None:
        return values.double().mean().item() if len(values) else None

    entropy, where = asked.entropy_BN.flatten(), asked.moving_BN.flatten()
    return {
        "windows": len(asked.entropy_BN),
        **reliability(asked.confidence_BN.flatten(), asked.correct_BN.flatten()),
        "accuracy": mean(asked.correct_BN.flatten()),
        "surprise_nats": mean(asked.surprise_BN.flatten()),
        "entropy": {
            "static_patches": mean(entropy[~where]),
            "moving_patches": mean(entropy[where]),
        },
        "reward": {
            "idle_scenes": mean(asked.reward_B[idle]),
            "moving_scenes": mean(asked.reward_B[moving]),
        },
        "auc_patches": auc(entropy, where),
        "auc_scenes": auc(asked.reward_B[quarter], is_moving),
    }


def draw_maps(asked: Asked) -> bytes:
    """Return a PNG of frames and the entropy of their tokens: idle scenes left, moving ones
    right."""
    idle, moving = (some[:SCENES] for some in scenes(asked))
    chosen = torch.cat([idle, moving])
    frames: np.ndarray[Any, Any] = asked.frames_BHWC[chosen].numpy()
    side = round(asked.entropy_BN.shape[1] ** 0.5)
    entropy = asked.entropy_BN[chosen].reshape(-1, side, side).numpy()
    return png(
        film_strip([frames, heat_map(entropy, frames, high=float(asked.entropy_BN.max()))], scale=2)
    )


def plot(figures: Mapping[str, Any], together: Asked) -> bytes:
    """Return a PNG of reliability, entropies of static and moving patches, rewards of scenes."""
    figure = new_figure(13, 4)
    curve, patches, rewards = figure.subplots(1, 3)
    sets = {
        **figures["games"],
        **({"all": figures["overall"]} if len(figures["games"]) > 1 else {}),
    }
    curve.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    for number, (game, of) in enumerate(sets.items()):
        x, y = ([part[name] for part in of["bins"]] for name in ("confidence", "accuracy"))
        colour = COLOURS[number % len(COLOURS)]
        curve.plot(
            x, y, marker="o", markersize=3, color=colour, label=f"{game}, ECE {of['ece']:.3f}"
        )
    curve.set(xlabel="confidence of the likeliest code", ylabel="share in which it came")
    curve.legend(fontsize=7, frameon=False)
    entropy, where = together.entropy_BN.flatten(), together.moving_BN.flatten()
    idle, moving = scenes(together)
    for axes, still, moved, label in (
        (patches, entropy[~where], entropy[where], "entropy of a token"),
        (rewards, together.reward_B[idle], together.reward_B[moving], "reward of a scene"),
    ):
        for values, name, colour in ((still, "idle", COLOURS[0]), (moved, "moving", COLOURS[1])):
            if len(values):
                axes.hist(
                    values.numpy(),
                    bins=30,
                    range=(0, 1),
                    density=True,
                    alpha=0.6,
                    color=colour,
                    label=name,
                )
        axes.set(xlabel=label, ylabel="density")
        axes.legend(fontsize=7, frameon=False)
    return figure_png(figure)
