"""Map from real actions to latent ones, fitted by counting which latent action is inferred for each
recorded one.

Shapes: A real actions, K latent actions. counts_AK[a, k]: how often k was inferred where a was
taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.utils.errors import InputError

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ActionMap:
    """Latent action that stands for each real one in each game, and how well it does."""

    counts: Mapping[str, Counts]
    """Game -> counts_AK, all of one shape."""
    measured: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """Game -> `agreement` on clips that the map was not learnt from, where `measure_action_map` was
    called."""

    def __post_init__(self) -> None:
        shapes = {table.shape for table in self.counts.values()}
        if (
            len(shapes) != 1
            or min(next(iter(shapes))) < 1
            or any((table < 0).any() for table in self.counts.values())
        ):
            raise InputError(
                "action map: expected counts (A, K) of one or more games, "
                f"got shapes {sorted(shapes)}"
            )

    def table(self, game: str | None = None) -> Counts:
        """Return counts_AK of a game, or of all games for None and for a game that the map was not
        fitted on.
        """
        if game is not None and game in self.counts:
            return self.counts[game]
        return np.sum(list(self.counts.values()), 0)

    def latent_actions(self, game: str | None = None) -> list[int]:
        """Return the latent action for each real one, (A,): the one with the highest `scores`."""
        best: list[int] = scores(self.table(game)).argmax(1).tolist()
        return best

    def confidence(self, game: str | None = None) -> list[float]:
        """Return the `scores` of the chosen latent actions, (A,) in [0, 1].

        1: that latent action is inferred where this real one is taken, always and nowhere else.
        Real actions that do the same as others, or nothing, share a latent action, and none of them
        can come near 1.
        """
        best: list[float] = scores(self.table(game)).max(1).tolist()
        return best

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, which `from_dict` reads."""
        counts = {game: table.tolist() for game, table in self.counts.items()}
        return {
            "counts": counts,
            "measured": {game: dict(values) for game, values in self.measured.items()},
        }

    @classmethod
    def from_dict(cls, plain: Any) -> "ActionMap":
        """Build the map from the data of `to_dict`. Raises InputError for anything else."""
        try:
            counts = {
                str(game): np.array(table, np.int64) for game, table in plain["counts"].items()
            }
            return cls(
                counts, {str(game): dict(values) for game, values in plain["measured"].items()}
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"action map: expected the counts of each game, got something else ({error})"
            ) from None


def scores(counts_AK: Counts) -> NDArray[np.float64]:
    """Score how well each latent action stands for each real one, (A, K) in [0, 1]: sqrt(P(k|a)
    P(a|k)).

    The share of a that is inferred as k alone would map every action to a latent one that only says
    "the background moved"; the share of k that was a alone would map it to one that was read twice.
    0 where neither was seen.
    """
    counts = counts_AK.astype(np.float64)
    of_real = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    of_latent = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    return np.sqrt(of_real * of_latent)


def agreement(counts_AK: Counts, latents_A: list[int]) -> dict[str, float]:
    """Measure how well latent actions tell real ones on clips that a map was not fitted on.

    `agreement`: share of transitions whose inferred latent action is the one that the map gives for
    the real action; `chance`: its value if both were independent; `kappa`: (agreement - chance) /
    (1 - chance); `information`: mutual information of both over the entropy of the real actions, in
    [0, 1]. NaN without transitions.
    """
    total = counts_AK.sum()
    joint_AK = counts_AK / total if total else np.full(counts_AK.shape, np.nan)
    real_A, latent_K = joint_AK.sum(1), joint_AK.sum(0)
    agreed = float(joint_AK[np.arange(len(joint_AK)), latents_A].sum())
    chance = float((real_A * latent_K[latents_A]).sum())
    independent_AK = real_A[:, None] * latent_K[None, :]
    seen = joint_AK > 0
    mutual = (
        float((joint_AK[seen] * np.log(joint_AK[seen] / independent_AK[seen])).sum())
        if total
        else np.nan
    )
    entropy = float(-(real_A[real_A > 0] * np.log(real_A[real_A > 0])).sum()) if total else np.nan
    return {
        "transitions": float(total),
        "agreement": agreed,
        "chance": chance,
        "kappa": (agreed - chance) / (1 - chance) if chance < 1 else 0.0,
        "information": mutual / entropy if entropy else 0.0,
    }
