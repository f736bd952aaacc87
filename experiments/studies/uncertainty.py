"""Calibration of the uncertainty: maps of idle and moving scenes (Fig. 6), reliability, separation.

The query is the reward's: two frames given, three predicted in one pass, the distributions of the
last one's tokens. Shapes: B windows, N tokens of the last frame, H x W pixels.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from envs.episodes.frame_distance import UNSEEN, distances_by_game
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
from exploration.reward.factory import RewardConfig
from exploration.reward.token_entropy import uncertainty_reward
from worldmodel.config import CONTEXT, WINDOW
from worldmodel.evaluation.calibration import auc, reliability
from worldmodel.evaluation.codebook_stats import moving_patches
from worldmodel.models.world_model import normalised_entropy
from worldmodel.uncertainty import Windows

AUCS = {
    "patches": "moving/static",
    "plain": "moving/plain",
    "scenes": "scenes",
    "unseen": "unseen/seen",
}
"""AUCs of `separate` and the heads of their columns."""
SCENES = 4
"""Idle and moving scenes drawn of each game."""


@dataclass(frozen=True)
class TokenPredictions:
    """Predictions of the model for windows of one game."""

    frames_BHWC: Tensor
    """Last frames, uint8."""
    given_BHWC: Tensor
    """Last given frames, uint8."""
    entropy_BN: Tensor
    disagreement_BN: Tensor
    """(B, 0) if it is not measured."""
    confidence_BN: Tensor
    """Probability of the most likely code."""
    correct_BN: Tensor
    """True if it is the code of the ground truth."""
    surprise_BN: Tensor
    """-ln p of the ground truth's code."""
    moving_BN: Tensor
    """True if the patch has changed since the last given frame."""
    plain_BN: Tensor
    """True if it has not changed, and has a single colour."""

    @property
    def reward_B(self) -> Tensor:
        """Reward of each window (Eq. 2-4)."""
        return reward_of(self.entropy_BN)

    def scenes(self) -> tuple[Tensor, Tensor]:
        """Return the indices of the quarters of windows with the least and the most motion."""
        order = self.moving_BN.float().mean(1).argsort(stable=True)
        quarter = max(1, len(order) // 4)
        return order[:quarter], torch.flip(order[-quarter:], [0])


def run(args: UncertaintyArgs) -> None:
    """Query the model, measure calibration, draw."""
    model = open_study_model(args)
    with disagreement_scorer(args) as scorer:
        query = partial(predict_tokens, scorer=scorer)
        parts = map_windows(query, args, model, WINDOW, args.stride)
    games = {game: _concat(of_game) for game, of_game in parts.items()}
    together = _concat(list(games.values()))
    references = distances_by_game(args.reference_data)
    unseen = {
        game: torch.from_numpy(references[game](predictions.given_BHWC.numpy()) > UNSEEN)
        for game, predictions in games.items()
        if game in references
    }
    all_unseen = torch.cat(list(unseen.values())) if unseen.keys() == games.keys() else None
    results = {
        "overall": measure_calibration(together, all_unseen),
        "games": {
            game: measure_calibration(predictions, unseen.get(game))
            for game, predictions in games.items()
        },
    }
    pictures = {game: draw_maps(predictions) for game, predictions in games.items()}
    pictures = {"": plot_uncertainty(results, together), **pictures}
    write_result(args, "uncertainty", results, pictures)
    console.print(separation_table(results))


@contextmanager
def disagreement_scorer(args: UncertaintyArgs) -> Iterator[Any]:
    """Yield the scorer of disagreement, with heads of its own; None without reference data."""
    if not args.reference_data:
        yield None
        return
    reward = RewardConfig("disagreement", data=tuple(map(str, args.reference_data)))
    with (
        tempfile.TemporaryDirectory() as heads,
        reward.open(args.model, Path(heads), precision=args.precision, seed=0) as make_scorer,
    ):
        yield make_scorer and make_scorer()


def separation_table(results: Mapping[str, Any]) -> Table:
    """Return the AUCs of each game, and of all if there are several."""
    table = Table("AUC of", "by", "ECE", *AUCS.values(), box=None, header_style="bold")
    overall = {"all": results["overall"]} if len(results["games"]) > 1 else {}
    for game, result in {**results["games"], **overall}.items():
        for name, separated in result["separation"].items():
            ece = f"{result['ece']:.3f}" if name == "entropy" else ""
            values = ("-" if value is None else f"{value:.3f}" for value in separated.values())
            table.add_row(game, name, ece, *values)
    return table


def reward_of(uncertainty_BN: Tensor) -> Tensor:
    """Return the reward (B,) of windows by the uncertainty of their tokens (Eq. 3-4)."""
    return torch.from_numpy(uncertainty_reward(uncertainty_BN.numpy()))


@torch.inference_mode()
def predict_tokens(windows: StudyWindows, scorer: Any = None) -> TokenPredictions:
    """Return the model's predictions for a batch of windows; `scorer` is that of disagreement."""
    frames, model = windows.frames_BTCHW, windows.model
    logits = model.dynamics.head(model.query_hidden(frames[:, :CONTEXT], windows.actions_BT))
    logits = logits.float()
    truth_BN = model.tokenizer.encode(frames)[:, -1].flatten(1)
    log_p = logits.log_softmax(-1)
    best = log_p.max(-1)
    moving = moving_patches(frames[:, [CONTEXT - 1, WINDOW - 1]], model.cfg.grid).flatten(1)
    disagreement_BN = torch.empty(len(frames), 0)
    if scorer is not None:
        batch = Windows(windows.frames_BTHWC.cpu().numpy(), windows.actions_BT.cpu().numpy())
        disagreement_BN = torch.from_numpy(scorer.score_windows(batch).tokens_BN)
    predictions = (
        windows.frames_BTHWC[:, -1],
        windows.frames_BTHWC[:, CONTEXT - 1],
        normalised_entropy(logits),
        disagreement_BN,
        best.values.exp(),
        best.indices == truth_BN,
        -log_p.gather(-1, truth_BN[..., None]).squeeze(-1),
        moving,
        ~moving & plain_patches(frames[:, -1], model.cfg.grid).flatten(1),
    )
    return TokenPredictions(*(part.cpu() for part in predictions))


def plain_patches(frames_BCHW: Tensor, grid: int) -> Tensor:
    """Mark patches of a single colour, bool (B, grid, grid)."""
    patch = frames_BCHW.shape[-1] // grid
    patches = frames_BCHW.unflatten(-1, (grid, patch)).unflatten(-3, (grid, patch))
    return (patches.amax((-1, -3)) == patches.amin((-1, -3))).all(1)


def _concat(parts: Sequence[TokenPredictions]) -> TokenPredictions:
    names = [field.name for field in fields(TokenPredictions)]
    return TokenPredictions(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def measure_calibration(
    predictions: TokenPredictions, unseen_B: Tensor | None = None
) -> dict[str, Any]:
    """Return calibration and separation of windows as JSON data.

    `unseen_B` marks the windows whose last given frame is unlike all frames of the training data.
    """
    idle, moving = predictions.scenes()
    separation = {"entropy": separate(predictions.entropy_BN, predictions, unseen_B)}
    if predictions.disagreement_BN.numel():
        separation["disagreement"] = separate(predictions.disagreement_BN, predictions, unseen_B)

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
        "separation": separation,
        "unseen_share": None if unseen_B is None else mean(unseen_B),
    }


def separate(
    uncertainty_BN: Tensor, predictions: TokenPredictions, unseen_B: Tensor | None
) -> dict[str, float | None]:
    """Return how well an uncertainty tells patches and windows apart: the values of AUCS."""
    moving, plain = predictions.moving_BN, predictions.plain_BN
    idle_scenes, moving_scenes = predictions.scenes()
    quarters = torch.cat([idle_scenes, moving_scenes])
    is_moving = torch.arange(len(quarters)) >= len(idle_scenes)
    reward_B, either = reward_of(uncertainty_BN), moving | plain
    return {
        "patches": auc(uncertainty_BN.flatten(), moving.flatten()),
        "plain": auc(uncertainty_BN[either], moving[either]),
        "scenes": auc(reward_B[quarters], is_moving),
        "unseen": None if unseen_B is None else auc(reward_B, unseen_B),
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
