"""Fit an action map on labelled clips, and measure how well it fits others.

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
"""Clips read together."""


def fit_action_map(
    lam: LatentActionModel, clips: ClipDataset, *, actions: int = 5, count: int = 0
) -> ActionMap:
    """Infer the latent actions of labelled clips and count them. `actions`: A, real ones.

    `count`: number of clips, evenly spaced; all for 0. A few hundred transitions of a game
    will do. Clips whose stride is their length - 1 count each transition once. Raise InputError
    where there is no clip, or an action that is none of 0..A-1.
    """
    return ActionMap(count_actions(lam, clips, actions=actions, count=count))


def measure_action_map(
    action_map: ActionMap, lam: LatentActionModel, clips: ClipDataset, *, count: int = 0
) -> ActionMap:
    """Return the same map with its agreement on other labelled clips, for each of their games."""
    found = count_actions(lam, clips, actions=len(action_map.table()), count=count)
    measured = {
        game: agreement(table, action_map.latent_actions(game)) for game, table in found.items()
    }
    return replace(action_map, measured=measured)


def count_actions(
    lam: LatentActionModel, clips: ClipDataset, *, actions: int, count: int = 0
) -> dict[str, Counts]:
    """Count how often each latent action (K) is inferred where each real one (A) was taken -> game:
    int64 (A, K).
    """
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
