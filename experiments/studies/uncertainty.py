"""Calibration of the uncertainty: maps of idle and moving scenes (Fig. 6), reliability, separation.

The query is the reward's: two frames given, three predicted in one pass, the distributions of the
last one's tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from envs.utils.images import heat_map, png
from envs.utils.progress import console
from experiments.reports.images import film_strip
from experiments.studies.arguments import UncertaintyArgs
from experiments.studies.common import (
    COLOURS,
    StudyWindows,
    figure_png,
    map_windows,
    new_figure,
    open_study_model,
    write_result,
)
from exploration.reward.token_entropy import uncertainty_reward
from worldmodel.config import CONTEXT, WINDOW
from worldmodel.evaluation.calibration import auc, reliability
from worldmodel.evaluation.codebook_stats import moving_patches
from worldmodel.models.world_model import normalised_entropy

SCENES = 4
"""Idle and moving scenes drawn of each game."""


@dataclass(frozen=True)
class TokenPredictions:
    """Predictions of the model for windows of one game. B windows, N tokens of the last frame."""

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
        """Reward of each window (Eq. 2-4)."""
        return torch.from_numpy(uncertainty_reward(self.entropy_BN.numpy()))

    def scenes(self) -> tuple[Tensor, Tensor]:
        """Return the indices of the quarters of windows with the least and the most motion."""
        order = self.moving_BN.float().mean(1).argsort(stable=True)
        quarter = max(1, len(order) // 4)
        return order[:quarter], torch.flip(order[-quarter:], [0])


def run(args: UncertaintyArgs) -> None:
    """Query the model, measure calibration, draw."""
    model = open_study_model(args)
    parts = map_windows(predict_tokens, args, model, WINDOW, args.stride)
    games = {game: _concat(of_game) for game, of_game in parts.items()}
    together = _concat(list(games.values()))
    results = {
        "overall": measure_calibration(together),
        "games": {game: measure_calibration(predictions) for game, predictions in games.items()},
    }
    pictures = {game: draw_maps(predictions) for game, predictions in games.items()}
    pictures = {"": plot_uncertainty(results, together), **pictures}
    write_result(args, "uncertainty", results, pictures)
    labels = {"ece": "ECE", "auc_patches": "AUC of moving patches", "auc_scenes": "of scenes"}
    for game, result in {**results["games"], "all": results["overall"]}.items():
        values = ", ".join(
            f"{label} {'-' if result[name] is None else format(result[name], '.3f')}"
            for name, label in labels.items()
        )
        console.print(f"{game}: {values}")


@torch.inference_mode()
def predict_tokens(windows: StudyWindows) -> TokenPredictions:
    """Return the model's predictions for a batch of windows."""
    frames, model = windows.frames_BTCHW, windows.model
    logits = model.dynamics.head(model.query_hidden(frames[:, :CONTEXT], windows.actions_BT))
    logits = logits.float()
    truth_BN = model.tokenizer.encode(frames)[:, -1].flatten(1)
    log_p = logits.log_softmax(-1)
    best = log_p.max(-1)
    moving = moving_patches(frames[:, [CONTEXT - 1, WINDOW - 1]], model.cfg.grid)
    return TokenPredictions(
        windows.frames_BTHWC[:, -1],
        normalised_entropy(logits),
        best.values.exp(),
        best.indices == truth_BN,
        -log_p.gather(-1, truth_BN[..., None]).squeeze(-1),
        moving.flatten(1),
    )


def _concat(parts: Sequence[TokenPredictions]) -> TokenPredictions:
    names = [field.name for field in fields(TokenPredictions)]
    return TokenPredictions(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def measure_calibration(predictions: TokenPredictions) -> dict[str, Any]:
    """Return calibration and separation of windows as JSON data."""
    idle, moving = predictions.scenes()
    quarters = torch.cat([idle, moving])
    is_moving = torch.arange(len(quarters)) >= len(idle)

    def mean(values: Tensor) -> float | None:
        return values.double().mean().item() if len(values) else None

    entropy, changed = predictions.entropy_BN.flatten(), predictions.moving_BN.flatten()
    correct, reward_B = predictions.correct_BN.flatten(), predictions.reward_B
    return {
        "windows": len(predictions.entropy_BN),
        **reliability(predictions.confidence_BN.flatten(), correct),
        "accuracy": mean(correct),
        "surprise_nats": mean(predictions.surprise_BN.flatten()),
        "entropy": {
            "static_patches": mean(entropy[~changed]),
            "moving_patches": mean(entropy[changed]),
        },
        "reward": {"idle_scenes": mean(reward_B[idle]), "moving_scenes": mean(reward_B[moving])},
        "auc_patches": auc(entropy, changed),
        "auc_scenes": auc(reward_B[quarters], is_moving),
    }


def draw_maps(predictions: TokenPredictions) -> bytes:
    """Return a PNG of frames and token entropies: idle scenes on the left, moving ones right."""
    chosen = torch.cat([scenes[:SCENES] for scenes in predictions.scenes()])
    frames = predictions.frames_BHWC[chosen].numpy()
    entropy_BN = predictions.entropy_BN
    side = round(entropy_BN.shape[1] ** 0.5)
    entropy_Bhw = entropy_BN[chosen].reshape(-1, side, side).numpy()
    return png(film_strip([frames, heat_map(entropy_Bhw, frames, float(entropy_BN.max()))], 2))


def plot_uncertainty(results: Mapping[str, Any], together: TokenPredictions) -> bytes:
    """Return a PNG of reliability, entropies of static and moving patches, rewards of scenes."""
    figure = new_figure(13, 4)
    curve, patches, rewards = figure.subplots(1, 3)
    sets = dict(results["games"])
    if len(sets) > 1:
        sets["all"] = results["overall"]
    curve.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    for number, (game, result) in enumerate(sets.items()):
        x, y = ([part[name] for part in result["bins"]] for name in ("confidence", "accuracy"))
        colour, label = COLOURS[number % len(COLOURS)], f"{game}, ECE {result['ece']:.3f}"
        curve.plot(x, y, marker="o", markersize=3, color=colour, label=label)
    curve.set(xlabel="confidence of the most likely code", ylabel="share in which it was correct")
    entropy, changed = together.entropy_BN.flatten(), together.moving_BN.flatten()
    idle, moving = (together.reward_B[scenes] for scenes in together.scenes())
    for axes, x_label, groups in (
        (patches, "entropy of a token", (entropy[~changed], entropy[changed])),
        (rewards, "reward of a scene", (idle, moving)),
    ):
        for values, label, colour in zip(groups, ("idle", "moving"), COLOURS[:2], strict=True):
            if len(values):
                style: dict[str, Any] = {"alpha": 0.6, "color": colour, "label": label}
                axes.hist(values.numpy(), bins=30, range=(0, 1), density=True, **style)
        axes.set(xlabel=x_label, ylabel="density")
    return figure_png(figure)
