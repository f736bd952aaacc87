"""Network of the agent as an RLlib module, for env runners and learners."""

import dataclasses
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from envs.utils.errors import InputError
from exploration.agent.policy import (
    CnnLstm,
    PolicyConfig,
    behaviour_log_probabilities,
    check_exploration,
)


def use_half(precision: str, device: torch.device) -> bool:
    """Return True to train under bf16 autocast.

    Raises InputError for a precision that is none of fp32, bf16, auto.
    """
    if precision not in ("fp32", "bf16", "auto"):
        raise InputError(f"precision {precision!r}: choose fp32, bf16 or auto")
    if precision != "auto":
        return precision == "bf16"
    # Emulated, bf16 is slower than fp32; with matrix instructions for it an update takes half the
    # time.
    return device.type == "cuda" or bool(torch.cpu._is_amx_tile_supported())


class AgentModule(TorchRLModule, ValueFunctionAPI):
    """Recurrent policy and value.

    `model_config` holds `channels` and `lstm_dim` of `PolicyConfig`, and `precision`.

    Observations uint8 BTHWC; state {"h": (B, D), "c": (B, D)}. Acting for exploration goes by the
    mixture of `behaviour_log_probabilities`, evaluation by the most likely action.
    """

    model_config: Any
    action_space: Any
    observation_space: Any

    def setup(self) -> None:
        """Build the network for the env's frames and number of actions."""
        fields = {field.name for field in dataclasses.fields(PolicyConfig)} - {"actions", "size"}
        given = {name: value for name, value in self.model_config.items() if name in fields}
        if "channels" in given:
            given["channels"] = tuple(given["channels"])
        size = self.observation_space.shape[0]
        self.network = CnnLstm(PolicyConfig(actions=int(self.action_space.n), size=size, **given))
        self.epsilon, self.temperature = 0.0, 1.0
        self.precision = self.model_config.get("precision", "fp32")

    def set_exploration(self, epsilon: float, temperature: float) -> None:
        """Set the epsilon and temperature that `forward_exploration` acts with."""
        check_exploration(epsilon, temperature)
        self.epsilon, self.temperature = epsilon, temperature

    def get_initial_state(self) -> dict[str, Tensor]:
        """Return the state of one episode at its start, without a batch dimension."""
        h_BD, c_BD = self.network.start_state(1)
        return {"h": h_BD[0], "c": c_BD[0]}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        state = batch[Columns.STATE_IN]
        logits_BTA, values_BT, (h_BD, c_BD) = self.network(
            batch[Columns.OBS], (state["h"], state["c"])
        )
        return {
            Columns.ACTION_DIST_INPUTS: logits_BTA,
            Columns.VF_PREDS: values_BT,
            Columns.STATE_OUT: {"h": h_BD, "c": c_BD},
        }

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            output = self._forward(batch)
        logits_BTA = output.pop(Columns.ACTION_DIST_INPUTS)
        # Every output is kept with its step, and the old values are not needed.
        del output[Columns.VF_PREDS]
        # Categorical(logits=log p) is p, so that RLlib's ACTION_LOGP is the mixture's own.
        output[Columns.ACTION_DIST_INPUTS] = behaviour_log_probabilities(
            logits_BTA, self.epsilon, self.temperature
        )
        return output

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        device = next(
            self.network.parameters()
        ).device  # known only now: RLlib moves the module after its set-up
        with torch.autocast(device.type, torch.bfloat16, enabled=use_half(self.precision, device)):
            output = self._forward(batch)
        return {
            name: output[name].float() for name in (Columns.ACTION_DIST_INPUTS, Columns.VF_PREDS)
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """Compute the values (B, T) of a batch's observations."""
        values_BT: Tensor = self._forward(batch)[Columns.VF_PREDS]
        return values_BT
