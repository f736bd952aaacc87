"""Map from real to latent actions, fitted by counting inferred latent actions for recorded ones.

Shapes: A real actions, K latent actions. counts_AK[a, k] is the number of transitions with the real
action a and the inferred latent action k.
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
    """Latent action for each real one in each game, and a score of the match."""

    counts: Mapping[str, Counts]
    """Game -> counts_AK, all of one shape."""
    measured: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """Game -> `agreement` on clips that the map was not fitted on, set by `measure_action_map`."""

    def __post_init__(self) -> None:
        tables = self.counts.values()
        shapes = {table.shape for table in tables}
        tables_fit = len(shapes) == 1 and all(len(shape) == 2 and min(shape) for shape in shapes)
        if not tables_fit or any((table < 0).any() for table in tables):
            raise InputError(
                f"action map: expected counts (A, K) of one or more games, "
                f"got shapes {sorted(shapes)}"
            )

    def table(self, game: str | None = None) -> Counts:
        """Return counts_AK of a game; those of all games for None or an unknown game."""
        if game is not None and game in self.counts:
            return self.counts[game]
        return np.sum(list(self.counts.values()), 0)

    def latent_actions(self, game: str | None = None) -> list[int]:
        """Return the latent action with the highest score for each real action, (A,)."""
        best: list[int] = scores(self.table(game)).argmax(1).tolist()
        return best

    def confidence(self, game: str | None = None) -> list[float]:
        """Return the scores of `latent_actions`, (A,) in [0, 1].

        1 means that the latent action is inferred exactly where the real one is taken. Real actions
        with the same effect, or none, share a latent action and cannot come near 1.
        """
        best: list[float] = scores(self.table(game)).max(1).tolist()
        return best

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, which `from_dict` reads."""
        counts = {game: table.tolist() for game, table in self.counts.items()}
        return {"counts": counts, "measured": {g: dict(v) for g, v in self.measured.items()}}

    @classmethod
    def from_dict(cls, plain: Any) -> "ActionMap":
        """Build the map from `to_dict` data. Raises InputError for anything else."""
        try:
            counts = {game: np.array(table, np.int64) for game, table in plain["counts"].items()}
            return cls(counts, {game: dict(value) for game, value in plain["measured"].items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"action map: expected the counts of each game, got something else ({error})"
            ) from None


def scores(counts_AK: Counts) -> NDArray[np.float64]:
    """Score how well each latent action stands for each real one: sqrt(P(k|a) P(a|k)), (A, K).

    P(k|a) alone would map every action to a latent action that only means "the background moved",
    P(a|k) alone to one that was inferred twice. The score is 0 if neither was observed.
    """
    counts = counts_AK.astype(np.float64)
    latent_given_real = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    real_given_latent = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    return np.sqrt(latent_given_real * real_given_latent)


def agreement(counts_AK: Counts, latents_A: list[int]) -> dict[str, float]:
    """Measure how well latent actions predict real ones on clips that a map was not fitted on.

    `agreement`: share of transitions whose inferred latent action is that of the map. `chance`: its
    value if both were independent. `kappa`: (agreement - chance) / (1 - chance). `information`:
    their mutual information / the entropy of the real actions, in [0, 1]. NaN without transitions.
    """
    total = counts_AK.sum()
    joint_AK = counts_AK / total if total else np.full(counts_AK.shape, np.nan)
    real_A, latent_K = joint_AK.sum(1), joint_AK.sum(0)
    agreed = float(joint_AK[np.arange(len(joint_AK)), latents_A].sum())
    chance = float((real_A * latent_K[latents_A]).sum())
    mutual = entropy = np.nan
    if total:
        seen = joint_AK > 0
        ratio = joint_AK[seen] / (real_A[:, None] * latent_K)[seen]
        mutual = float((joint_AK[seen] * np.log(ratio)).sum())
        entropy = float(-(real_A[real_A > 0] * np.log(real_A[real_A > 0])).sum())
    return {
        "transitions": float(total),
        "agreement": agreed,
        "chance": chance,
        "kappa": (agreed - chance) / (1 - chance) if chance < 1 else 0.0,
        "information": mutual / entropy if entropy else 0.0,
    }
