"""Updates by the learners, with batches of the replay buffer."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from exploration.agent.entropy_bonus import EntropyBonus
from exploration.agent.loss import LOSS_PARTS
from exploration.agent.packed_batch import PackedBatch
from exploration.agent.replay_buffer import ReplayBuffer, Scale
from exploration.part_timer import PartTimer

UPDATES_PER_CALL = 8
"""Updates in one call of the learners: a call costs the driver as much as sending a batch."""


class Updates:
    """Updates by all learners of an algorithm."""

    def __init__(
        self, config: Any, learner_group: Any, metrics: Any, actions: int, timer: PartTimer
    ) -> None:
        self._config, self._learner_group, self._metrics = config, learner_group, metrics
        self._actions, self._timer = actions, timer
        self.done = 0
        """Updates since the algorithm was built."""
        self.entropy_scale = 1.0
        """Scale of the `bonus`."""

    @property
    def bonus(self) -> EntropyBonus:
        """Entropy bonus of the next update."""
        c = self._config
        return EntropyBonus(
            c.entropy_coeff, c.target_entropy, math.log(self._actions), self.entropy_scale
        )

    def make_epoch(self, replay: ReplayBuffer) -> None:
        """Make one epoch's updates, and log the means of the loss terms under `learning`."""
        c = self._config
        with self._timer("scale rewards"):
            scale = reward_scale(replay, c.gamma) if c.normalize_rewards else None
        terms: dict[str, list[float]] = {name: [] for name in LOSS_PARTS}
        for made in range(0, c.updates, UPDATES_PER_CALL):
            with self._timer("draw batches"):
                batches = [
                    replay.sample_packed(c.batch_size, c.seq_len, c.burn_in, scale)
                    for _ in range(min(UPDATES_PER_CALL, c.updates - made))
                ]
            found, errors = self.make(batches)
            for name, values in found.items():
                terms[name] += values
            with self._timer("set priorities"):
                for batch, errors_BT in zip(batches, errors, strict=bool(errors)):
                    replay.set_errors(batch, errors_BT)
        means = {name: float(np.mean(values)) for name, values in terms.items()}
        means["entropy_coeff"] = self.bonus.coefficient
        self._metrics.log_dict(means, key="learning", window=1)

    def make(
        self, batches: list[PackedBatch]
    ) -> tuple[dict[str, list[float]], list[NDArray[np.float32]]]:
        """Make an update with each batch.

        Returns their loss terms, those of the first learner, and the errors of batches that were
        drawn by priority.
        """
        learners = self._config.num_learners
        # RLlib would cut one batch inside a segment; each learner gets whole ones.
        dealt = [batch.shares(max(learners, 1)) for batch in batches]
        shares = [list(share) for share in zip(*dealt, strict=True)]
        data: dict[str, Any] = {"batches": shares} if learners else {"batch": shares[0]}
        lifetime = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self._metrics.peek(lifetime)}
        with self._timer("send batches"):
            made = self._learner_group.update(**data, timesteps=steps, bonus=self.bonus)
        self._metrics.aggregate([each.metrics for each in made], key=LEARNER_RESULTS)
        self.done += len(batches)
        self.entropy_scale = made[0].bonus.scale
        return made[0].terms, [
            dealt_back(errors) for errors in zip(*(each.errors for each in made), strict=True)
        ]


def dealt_back(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the rows of a batch from those of its `PackedBatch.parts`."""
    rows = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.float32)
    for number, part in enumerate(parts):
        rows[number :: len(parts)] = part
    return rows


def reward_scale(replay: ReplayBuffer, gamma: float) -> Scale:
    """Compute the scale of rewards to mean 0 and deviation 1 - gamma, game by game.

    A return is then a weighted mean of rewards of deviation 1.
    """
    horizon = 1 / max(1 - float(gamma), 1e-3)
    scale = replay.reward_scale()
    return {game: (mean, width * horizon) for game, (mean, width) in scale.items()}
