"""RLlib's learner around the actor-critic loss of `exploration.agent.loss`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ray.exceptions import RayActorError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor

from exploration.agent.loss import actor_critic_loss
from exploration.agent.replay_buffer import Batch

ANSWER_SECONDS = 30.0
"""Longest time in which a live learner answers; one that waits for another learner does not."""


def deep_copy_arrays(value: Any) -> Any:
    """Copy every array of a nested state."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: deep_copy_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(deep_copy_arrays(item) for item in value)
    return value


class ExploreLearner(TorchLearner):
    """RLlib's learner with `actor_critic_loss`, whose coefficients are in `config.loss`.

    Its batches hold the arrays of `ReplayBuffer.sample`.
    """

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state as a whole, also where RLlib would keep weights that have seen as many
        updates.

        The arrays are copied: the optimizer writes into the arrays that it is given, and those in
        Ray's object store are shared by all learners of a machine.
        """
        before, self._weights_seq_no = self._weights_seq_no, 0
        super().set_state(deep_copy_arrays(state))
        if before:  # runners take over only weights that are newer than theirs
            self._weights_seq_no = max(self._weights_seq_no, before + 1)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Compute the loss of one batch.

        Raises FloatingPointError, before any weight changes, if it is not finite.
        """
        parts = actor_critic_loss(
            fwd_out[Columns.ACTION_DIST_INPUTS], fwd_out[Columns.VF_PREDS], batch, config.loss
        )
        loss = parts.pop("loss")
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss {loss.item()} with parts { {k: v.item() for k, v in parts.items()} }"
            )
        self.metrics.log_dict(parts, key=module_id, window=1)
        return loss


def as_learner_batch(batch: Batch) -> MultiAgentBatch:
    """Convert the arrays of `ReplayBuffer.sample` to the batch that RLlib's learner takes."""
    columns: dict[str, Any] = {name: rows for name, rows in batch.items() if name not in ("h", "c")}
    columns[Columns.STATE_IN] = {"h": batch["h"], "c": batch["c"]}
    return MultiAgentBatch(
        {DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=int(np.sum(batch["valid"]))
    )


@contextmanager
def quiet_actor_errors() -> Iterator[None]:
    """Keep RLlib from logging the errors of learners, which are raised here anyway."""
    logger = logging.getLogger("ray.rllib.utils.actor_manager")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def learner_is_gone(algorithm: Any) -> bool:
    """Return True if the process of a learner has ended; the other learners report only a broken
    connection."""
    if not algorithm.config.num_learners:
        return False
    answers = algorithm.learner_group.foreach_learner(
        _ping, healthy_only=False, timeout_seconds=ANSWER_SECONDS
    )
    return any(isinstance(answer.get(), RayActorError) for answer in answers)


def _ping(learner: Any) -> None:
    """Do nothing, which only a live actor can."""
