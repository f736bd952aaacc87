"""Fitting of an action map on labelled clips, and its agreement on others.

Shapes: A real actions, K latent actions.
"""

from dataclasses import replace

import numpy as np
import torch

from envs.utils.errors import InputError
from envs.utils.progress import progress
from worldmodel.data.batch import to_float_frames
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.models.action_map import ActionMap, Counts, agreement
from worldmodel.models.latent_action import LatentActionModel

_BATCH = 8
"""Clips per batch."""


def fit_action_map(
    lam: LatentActionModel, clips: ClipDataset, *, actions: int = 5, count: int = 0
) -> ActionMap:
    """Fit an action map by counting the latent actions of labelled clips.

    `actions` is A; `count` is the number of clips, evenly spaced, 0 for all. A few hundred
    transitions per game are enough. Clips whose stride is their length - 1 count each transition
    once. Raise InputError without clips, or for an action outside 0..A-1.
    """
    return ActionMap(count_actions(lam, clips, actions=actions, count=count))


def measure_action_map(
    action_map: ActionMap, lam: LatentActionModel, clips: ClipDataset, *, count: int = 0
) -> ActionMap:
    """Return the map with its agreement on other labelled clips, game by game."""
    counts = count_actions(lam, clips, actions=len(action_map.table()), count=count)
    measured = {
        game: agreement(table, action_map.latent_actions(game)) for game, table in counts.items()
    }
    return replace(action_map, measured=measured)


def count_actions(
    lam: LatentActionModel, clips: ClipDataset, *, actions: int, count: int = 0
) -> dict[str, Counts]:
    """Count how often latent action k is inferred for action a -> game: int64 (A, K)."""
    if not len(clips):
        raise InputError("no labelled clip: the episodes are shorter than a clip; give longer ones")
    device = next(lam.parameters()).device
    counts = {game: np.zeros((actions, lam.cfg.lam.codes), np.int64) for game in clips.games}
    window_ids = clips.evenly_spaced(count)
    with progress("reading latent actions", len(window_ids)) as bar, torch.inference_mode():
        for start in range(0, len(window_ids), _BATCH):
            batch = clips.batch(window_ids[start : start + _BATCH])
            real_BT = batch.actions_BT.numpy()
            if real_BT.min() < 0 or real_BT.max() >= actions:
                raise InputError(
                    f"labelled clips: expected actions 0 to {actions - 1}, got {real_BT.max()}"
                )
            latent_BT = lam.encode(to_float_frames(batch.frames_BTHWC.to(device))).cpu().numpy()
            for game, real_T, latent_T in zip(
                batch.games_B.tolist(), real_BT, latent_BT, strict=True
            ):
                np.add.at(counts[clips.games[game]], (real_T, latent_T), 1)
            bar.advance(len(real_BT))
    return counts
