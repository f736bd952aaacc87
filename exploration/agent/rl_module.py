"""The agent's network as an RLlib module, for env runners and learners."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor
from torch.distributions import Dirichlet
from torch.nn.functional import one_hot

from envs.controls import numbered_actions
from exploration.agent.bandit import ARMS, epsilon_family
from exploration.agent.config import PolicyConfig, check_exploration
from exploration.agent.policy import CnnLstm, behaviour_log_probabilities
from worldmodel.devices import autocast, resolve_precision

LONGEST_BURST = 1_000
"""Steps after which a burst ends at the latest."""


def action_names_of(space: Any, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return names of the actions of a Discrete space, "action 0" and so on if none are known."""
    return tuple(names) if names else numbered_actions(int(space.n))


class AgentModule(TorchRLModule, ValueFunctionAPI):
    """Recurrent policy and value function.

    `model_config` holds `channels`, `lstm_dim`, `feature_norm` and maybe `actions` of
    `PolicyConfig`, `precision`, `burn_in`, `burst_exponent`, `noise_alpha`, `sticky` and
    `epsilon_spread`.
    Observations are uint8 BTHWC; the state is {"h": (B, D), "c": (B, D)}. With bursts it has
    "burst" (B, 2) too, the held action and the steps for which it is still held; with a
    `noise_alpha` also "noise" (B, A), the episode's distribution of random actions, zeros before
    its first step; with `sticky` actions "previous" (B, A), the action of the step before, one-hot,
    zeros before the first; with an `epsilon_spread` "arm" (B, 1), 1 plus the index of the episode's
    epsilon in `epsilon_family`, 0 before its first step. Exploration samples actions from
    `behaviour_log_probabilities`, evaluation takes the most likely one.
    """

    model_config: Any
    action_space: Any
    observation_space: Any

    def setup(self) -> None:
        """Build the network for the env's frame size and number of actions."""
        settings = self.model_config
        network = PolicyConfig(
            actions=action_names_of(self.action_space, settings.get("actions")),
            channels=tuple(settings["channels"]),
            lstm_dim=settings["lstm_dim"],
            feature_norm=settings["feature_norm"],
            size=self.observation_space.shape[0],
        )
        self.network = CnnLstm(network)
        self.epsilon, self.temperature = 0.0, 1.0
        self.precision, self.burn_in = settings["precision"], settings["burn_in"]
        self.burst_exponent, self.noise_alpha = settings["burst_exponent"], settings["noise_alpha"]
        self.sticky, self.epsilon_spread = settings["sticky"], settings["epsilon_spread"]
        self.arm_odds_K = torch.full((ARMS,), 1 / ARMS)
        # Probabilities of the lengths of bursts, up to a factor.
        self.lengths_N = torch.arange(1.0, LONGEST_BURST + 1) ** -self.burst_exponent

    def set_exploration(
        self, epsilon: float, temperature: float, arm_odds_K: NDArray[np.float32] | None = None
    ) -> None:
        """Set the epsilon and temperature of `forward_exploration`, and the odds of the arms."""
        check_exploration(epsilon, temperature)
        self.epsilon, self.temperature = epsilon, temperature
        if arm_odds_K is not None:
            self.arm_odds_K = torch.from_numpy(arm_odds_K)

    @property
    def epsilons(self) -> float | NDArray[np.float32]:
        """Epsilon of exploration, or that of each arm."""
        if self.epsilon_spread:
            return epsilon_family(self.epsilon, self.epsilon_spread)
        return self.epsilon

    def get_initial_state(self) -> dict[str, Tensor]:
        """Return the state at the start of an episode, without a batch dimension."""
        h_BD, c_BD = self.network.start_state(1)
        state = {"h": h_BD[0], "c": c_BD[0]}
        if self.burst_exponent:
            state["burst"] = torch.zeros(2)
        if self.noise_alpha:
            state["noise"] = torch.zeros(len(self.network.config.actions))
        if self.sticky:
            state["previous"] = torch.zeros(len(self.network.config.actions))
        if self.epsilon_spread:
            state["arm"] = torch.zeros(1)
        return state

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        state = batch[Columns.STATE_IN]
        logits_BTA, values_BT, (h_BD, c_BD) = self.network(
            batch[Columns.OBS], (state["h"], state["c"])
        )
        return {
            Columns.ACTION_DIST_INPUTS: logits_BTA,
            Columns.VF_PREDS: values_BT,
            Columns.STATE_OUT: {**state, "h": h_BD, "c": c_BD},
        }

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        output = self._forward(batch)
        if self.sticky:
            logits_BTA = output[Columns.ACTION_DIST_INPUTS]
            greedy_BTA = behaviour_log_probabilities(logits_BTA, epsilon=0.0, temperature=0.0)
            output[Columns.ACTION_DIST_INPUTS] = greedy_BTA
            self._repeat_actions(output)
        return output

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            output = self._forward(batch)
        # Every output is stored with its step, and the old values are not needed.
        del output[Columns.VF_PREDS]
        # Categorical(logits=log p) is p, so that RLlib's ACTION_LOGP is that of the mixture.
        logits_BTA = output[Columns.ACTION_DIST_INPUTS]
        noise_B1A = None
        epsilon: float | Tensor = self.epsilon
        if self.epsilon_spread:
            epsilon = self._draw_epsilons(output[Columns.STATE_OUT])
        if self.noise_alpha:
            noise_BA = self._draw_noise(output[Columns.STATE_OUT]["noise"])
            output[Columns.STATE_OUT]["noise"] = noise_BA
            noise_B1A = noise_BA[:, None]
        output[Columns.ACTION_DIST_INPUTS] = behaviour_log_probabilities(
            logits_BTA, epsilon, self.temperature, noise_B1A
        )
        if self.burst_exponent:
            self._act_in_bursts(output, logits_BTA, noise_B1A, epsilon)
        if self.sticky:
            self._repeat_actions(output)
        return output

    def _draw_epsilons(self, state: dict[str, Tensor]) -> Tensor:
        """Draw an arm for each episode that has none yet; return the epsilons (B, 1, 1)."""
        arm_B1 = state["arm"]
        drawn_B1 = 1 + torch.multinomial(self.arm_odds_K, len(arm_B1), replacement=True)[:, None]
        state["arm"] = torch.where(arm_B1 > 0, arm_B1, drawn_B1.to(arm_B1.dtype))
        return torch.as_tensor(self.epsilons)[state["arm"].long() - 1][..., None]

    def _draw_noise(self, noise_BA: Tensor) -> Tensor:
        """Draw a distribution of random actions for each episode that has none yet."""
        drawn_BA = Dirichlet(torch.full_like(noise_BA, self.noise_alpha)).sample()
        return torch.where(noise_BA.any(-1, keepdim=True), noise_BA, drawn_BA)

    def _act_in_bursts(
        self,
        output: dict[str, Any],
        logits_BTA: Tensor,
        noise_B1A: Tensor | None,
        epsilon: float | Tensor,
    ) -> None:
        """Choose the actions of one step: a random one is held for n steps, n ~ Zipf.

        At its first step an action has the log-probability of the mixture; while it is held, 0,
        since nothing else can be played.
        """
        burst_B2 = output[Columns.STATE_OUT]["burst"]
        held_B, left_B = burst_B2.long().unbind(-1)
        shape = held_B.shape
        policy_BA = behaviour_log_probabilities(logits_BTA[:, 0], 0.0, self.temperature).exp()
        length_B = 1 + torch.multinomial(self.lengths_N, shape.numel(), replacement=True)
        epsilon_B = epsilon if isinstance(epsilon, float) else epsilon.flatten()
        starts_B = (left_B == 0) & (torch.rand(shape) < epsilon_B)
        action_B = torch.multinomial(policy_BA, 1)[:, 0]
        noise_BA = torch.ones_like(policy_BA) if noise_B1A is None else noise_B1A[:, 0]
        action_B = torch.where(starts_B, torch.multinomial(noise_BA, 1)[:, 0], action_B)
        action_B = torch.where(left_B > 0, held_B, action_B)
        mixture_BA = output[Columns.ACTION_DIST_INPUTS][:, 0]
        log_probability_B = mixture_BA.gather(1, action_B[:, None])[:, 0]
        output[Columns.ACTION_LOGP] = log_probability_B.masked_fill(left_B > 0, 0.0)[:, None]
        output[Columns.ACTIONS] = action_B[:, None]
        left_B = torch.where(starts_B, length_B, left_B).sub(1).clamp_min(0)
        state = torch.stack([action_B, left_B], -1).to(burst_B2.dtype)
        output[Columns.STATE_OUT]["burst"] = state

    def _repeat_actions(self, output: dict[str, Any]) -> None:
        """Replace the chosen action by the previous one with probability `sticky`, in each env.

        The log-probability becomes that with which an action is chosen and not replaced, or
        repeated.
        """
        chosen_BA = output[Columns.ACTION_DIST_INPUTS][:, 0].exp()
        if Columns.ACTIONS in output:
            action_B1 = output[Columns.ACTIONS]
            certain_B1 = output[Columns.ACTION_LOGP] == 0  # held in a burst
            held_BA = one_hot(action_B1[:, 0], chosen_BA.shape[-1]).to(chosen_BA.dtype)
            chosen_BA = torch.where(certain_B1, held_BA, chosen_BA)
        else:
            action_B1 = torch.multinomial(chosen_BA, 1)
        previous_BA = output[Columns.STATE_OUT]["previous"].to(chosen_BA.dtype)
        # The first action of an episode has none before it.
        sticky_B1 = self.sticky * previous_BA.any(-1, keepdim=True)
        repeats_B1 = torch.rand(sticky_B1.shape) < sticky_B1
        action_B1 = torch.where(repeats_B1, previous_BA.argmax(-1, keepdim=True), action_B1)
        probability_BA = (1 - sticky_B1) * chosen_BA + sticky_B1 * previous_BA
        output[Columns.ACTIONS] = action_B1
        output[Columns.ACTION_LOGP] = probability_BA.gather(1, action_B1).log()
        played_BA = one_hot(action_B1[:, 0], chosen_BA.shape[-1])
        output[Columns.STATE_OUT]["previous"] = played_BA.to(previous_BA.dtype)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        # RLlib moves the module to its device after `setup`.
        device = next(self.network.parameters()).device
        with autocast(device, resolve_precision(self.precision, device, training=True)):
            return self._forward_segments(batch)

    def _forward_segments(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute logits and values of segments; no gradient flows back into the burn-in steps."""
        frames_BTHWC, start = batch[Columns.OBS], batch[Columns.STATE_IN]
        state, logits, values = (start["h"], start["c"]), [], []
        for part_BTHWC in frames_BTHWC.tensor_split([self.burn_in], dim=1):
            if part_BTHWC.shape[1]:
                logits_BTA, values_BT, (h_BD, c_BD) = self.network(part_BTHWC, state)
                logits.append(logits_BTA)
                values.append(values_BT)
                state = h_BD.detach(), c_BD.detach()
        return {
            Columns.ACTION_DIST_INPUTS: torch.cat(logits, dim=1),
            Columns.VF_PREDS: torch.cat(values, dim=1),
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """Compute the values (B, T) of a batch of observations."""
        values_BT: Tensor = self._forward(batch)[Columns.VF_PREDS]
        return values_BT
