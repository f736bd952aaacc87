"""RLlib's learner with the actor-critic loss of `exploration.agent.loss`."""

import copy
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.exceptions import RayActorError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor

from exploration.agent.entropy_bonus import EntropyBonus
from exploration.agent.loss import LOSS_PARTS, actor_critic_loss
from exploration.agent.packed_batch import Batch

LEARNER_CLASS = "_WrappedExecutable"
"""Class of the actors of RLlib's learners, as Ray's messages name it."""
PING_SECONDS = 30.0
"""Longest answer of a live learner. One that waits for another learner does not answer."""


@dataclass(frozen=True)
class UpdateResults:
    """Result of the updates of one call."""

    metrics: Any
    """RLlib's metrics of the learner."""
    terms: dict[str, list[float]]
    """Loss terms LOSS_PARTS of each update."""
    bonus: EntropyBonus
    """Entropy bonus of the next update."""
    errors: list[NDArray[np.float32]]
    """Errors of the values (B, T) in each update with a batch that was drawn by priority."""


class ExploreLearner(TorchLearner):
    """RLlib's learner with `actor_critic_loss`, whose coefficients are in `config.loss`.

    Its batches hold the arrays of `ReplayBuffer.sample`.
    """

    _errors_BT: Tensor
    """Errors of the values in the last update."""

    def update(self, *arguments: Any, **options: Any) -> Any:
        """Make an update with each `PackedBatch` of a list, the first with the given `bonus`.

        Several learners decompress their frames in parallel, and what is sent to them is small.
        Each adjusts the bonus by the entropy of its own share, until the next call. Returns
        `UpdateResults`.
        """
        packed: Any = options.pop("training_data").batch
        bonus: EntropyBonus = options.pop("bonus")
        terms: dict[str, list[float]] = {name: [] for name in LOSS_PARTS}
        errors: list[NDArray[np.float32]] = []
        for each in packed:
            batch = each.unpack()
            batch["entropy_coeff"] = np.full(len(each.clips), bonus.coefficient, np.float32)
            data = TrainingData(batch=as_learner_batch(batch))
            super().update(training_data=data, _no_metrics_reduce=True, **options)
            for name, values in terms.items():
                value = torch.as_tensor(self.metrics.peek((DEFAULT_MODULE_ID, name)))
                values.append(value.detach().item())
            bonus = bonus.adjusted(terms["entropy"][-1])
            if "weight" in batch:
                errors.append(self._errors_BT.cpu().numpy())
        return UpdateResults(self.metrics.reduce(), terms, bonus, errors)

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a whole state, even if RLlib would keep weights with as many updates.

        The arrays are copied: the optimizer writes into the arrays it is given, and all learners of
        a machine share those in Ray's object store.
        """
        before, self._weights_seq_no = self._weights_seq_no, 0
        super().set_state(copy.deepcopy(state))
        if before:  # runners accept only weights newer than theirs
            self._weights_seq_no = max(self._weights_seq_no, before + 1)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Compute the loss of a batch.

        Raises FloatingPointError, before any weight changes, if it is not finite.
        """
        parts = actor_critic_loss(
            fwd_out[Columns.ACTION_DIST_INPUTS], fwd_out[Columns.VF_PREDS], batch, config.loss
        )
        loss, self._errors_BT = parts.pop("loss"), parts.pop("errors")
        if not torch.isfinite(loss):
            values = {name: value.item() for name, value in parts.items()}
            raise FloatingPointError(f"loss {loss.item()} with parts {values}")
        self.metrics.log_dict(parts, key=module_id, window=1)
        return loss


def as_learner_batch(batch: Batch) -> MultiAgentBatch:
    """Convert the arrays of `ReplayBuffer.sample` to a batch of RLlib's learner."""
    columns: dict[str, Any] = {name: rows for name, rows in batch.items() if name not in ("h", "c")}
    columns[Columns.STATE_IN] = {"h": batch["h"], "c": batch["c"]}
    steps = int(batch["valid"].sum())
    return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=steps)


def quiet_learner_errors() -> None:
    """Keep RLlib from logging errors of learners, which are raised anyway."""
    logging.getLogger("ray.rllib.utils.actor_manager").addFilter(_is_of_another_actor)


def _is_of_another_actor(record: logging.LogRecord) -> bool:
    """Return False for a message about a learner, which Ray Train's executor class runs."""
    return LEARNER_CLASS not in record.getMessage()


def learner_is_lost(algorithm: Any) -> bool:
    """Return True if the process of a learner has died.

    The other learners report only a broken connection.
    """
    if not algorithm.config.num_learners:
        return False
    answers = algorithm.learner_group.foreach_learner(
        _ping, healthy_only=False, timeout_seconds=PING_SECONDS
    )
    return any(isinstance(answer.get(), RayActorError) for answer in answers)


def _ping(learner: Any) -> None:
    """Do nothing, which only a live actor can."""
