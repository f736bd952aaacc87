"""The agent's network, its folder on disk, and the policy that plays with it.

Needs torch, but not RLlib, so that processes that collect episodes stay small.

    <policy>/module.safetensors   weights
    <policy>/config.json          architecture with the actions, and the origin of the weights

Shapes: B sequences, T steps, H x W pixels, C colours, A actions, D units of the LSTM.
"""

import dataclasses
import hashlib
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envs.collect.policies import PolicySpec, builtin_policy
from envs.controls import custom_actions
from envs.utils.artifact_dir import copy_weights, read_tensors
from envs.utils.atomic_io import new_folder, read_json, write_json_atomic
from envs.utils.errors import InputError
from exploration.agent.config import PolicyConfig, check_exploration

FORMAT = "autoexplore-policy-2"
EXPERT_EPSILON = 0.15
"""Probability of a random action in the expert play of a test set (App. A.2)."""
State = tuple[Tensor, Tensor]
"""LSTM state (h_BD, c_BD)."""


class CnnLstm(nn.Module):
    """Network of App. A.3: 4 x [conv 3x3, max-pool 2, ReLU] -> LSTM -> policy and value heads."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for channels_in, channels_out in pairwise((3, *config.channels)):
            conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
            layers += [conv, nn.MaxPool2d(2), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.lstm = nn.LSTM(config.features, config.lstm_dim, batch_first=True)
        self.policy = nn.Linear(config.lstm_dim, len(config.actions))
        self.value = nn.Linear(config.lstm_dim, 1)
        # The untrained policy is uniform, and its values are 0.
        for head in (self.policy, self.value):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, frames_BTHWC: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Compute (logits_BTA, values_BT, next state) of frames uint8 in [0, 255]."""
        batch, steps = frames_BTHWC.shape[:2]
        # HWC permuted to CHW is torch's channels-last layout: nothing is copied before the scaling.
        pixels = frames_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
        features_BTF = self.convolutions(pixels).reshape(batch, steps, -1)
        if self.config.feature_norm:
            features_BTF = nn.functional.layer_norm(features_BTF, features_BTF.shape[-1:])
        hidden_BTD, (h_1BD, c_1BD) = self.lstm(
            features_BTF, (state[0][None].contiguous(), state[1][None].contiguous())
        )
        # Under autocast the heads stay in fp32: a value of 40 in bf16 has steps of 0.25, several
        # times the spread of a step's reward.
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            hidden_BTD = hidden_BTD.float()
            logits_BTA, values_BT = self.policy(hidden_BTD), self.value(hidden_BTD).squeeze(-1)
        return logits_BTA, values_BT, (h_1BD[0], c_1BD[0])

    def start_state(self, batch: int) -> State:
        """Return the state at the start of an episode: zeros."""
        zeros_BD = torch.zeros(batch, self.config.lstm_dim, device=self.value.weight.device)
        return zeros_BD, zeros_BD.clone()


def behaviour_log_probabilities(
    logits: Tensor, epsilon: float | Tensor, temperature: float, noise: Tensor | None = None
) -> Tensor:
    """Compute log((1 - epsilon) softmax(logits / temperature) + epsilon noise), all of (..., A).

    `epsilon` is one number, or (..., 1). `noise` is a distribution over the actions, by default
    uniform.
    Epsilon is part of the distribution, not a separate draw, so that the stored log-probability of
    an action is exact (App. A.3: epsilon-greedy, temperature 1). Temperature 0 is the most likely
    action.
    """
    if temperature > 0:
        probabilities = torch.softmax(logits / temperature, dim=-1)
    else:
        probabilities = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    random_share = epsilon / logits.shape[-1] if noise is None else epsilon * noise
    return torch.log((1 - epsilon) * probabilities + random_share)


class Agent:
    """Policy that plays one episode at a time with a trained network, on the CPU."""

    def __init__(self, network: CnnLstm, epsilon: float, temperature: float) -> None:
        check_exploration(epsilon, temperature)
        self.network, self.action_names = network.eval(), network.config.actions
        self.epsilon, self.temperature = epsilon, temperature
        self._state = network.start_state(1)
        self._generator = torch.Generator()

    def reset(self, seed: int) -> None:
        """Begin an episode: clear the LSTM state and seed the sampling of actions."""
        self._state = self.network.start_state(1)
        self._generator.manual_seed(seed)

    @torch.inference_mode()
    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Choose the action for the newest frame, uint8 (size, size, 3)."""
        frames_BTHWC = torch.from_numpy(np.ascontiguousarray(frame_HWC))[None, None]
        logits_BTA, _, self._state = self.network(frames_BTHWC, self._state)
        log_probabilities = behaviour_log_probabilities(
            logits_BTA[0, 0], self.epsilon, self.temperature
        )
        return int(torch.multinomial(log_probabilities.exp(), 1, generator=self._generator))


def save_policy(path: Path | str, network: CnnLstm, about: dict[str, Any] | None = None) -> Path:
    """Write a policy folder, completely or not at all.

    `about` holds JSON values to store with the weights.
    """
    with new_folder(Path(path)) as folder:
        write_policy(folder, network.config, network.state_dict(), about)
    return Path(path)


def write_policy(
    folder: Path,
    config: PolicyConfig,
    weights: dict[str, Tensor],
    about: dict[str, Any] | None = None,
) -> None:
    """Write the two files of a policy into an existing folder."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "module.safetensors")
    network = dataclasses.asdict(config)
    record = {"format": FORMAT, "network": network, "about": about or {}}
    write_json_atomic(folder / "config.json", record)


def read_policy_config(path: Path) -> PolicyConfig:
    """Return the architecture of a policy folder.

    Raises InputError for another folder or another version.
    """
    try:
        record = read_json(path / "config.json")
    except OSError as error:
        raise InputError(
            f"{path}: no policy here ({error.filename} is missing): give a folder of `explore`"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a policy of this version: give a folder that `explore` wrote"
        )
    try:
        fields = dict(record["network"])
        lists = {name: tuple(fields[name]) for name in ("actions", "channels")}
        return PolicyConfig(**{**fields, **lists})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}/config.json: invalid architecture ({error})") from error


def load_network(path: Path | str) -> CnnLstm:
    """Load the network of a policy folder.

    Raises InputError for another folder, another version, or weights of another architecture.
    """
    path = Path(path)
    network = CnnLstm(read_policy_config(path))
    copy_weights(network, read_tensors(path / "module.safetensors", load_file), path)
    return network


def load_policy(path: Path | str, epsilon: float = 0.0, temperature: float = 1.0) -> Agent:
    """Load the agent of a policy folder to play games: `reset(seed)`, then `act(frame)` for every
    frame.

    Acts by (1 - epsilon) softmax(logits / temperature) + epsilon / A. Raises InputError for a
    folder that is no policy or one of another architecture, and for an epsilon or temperature out
    of range.
    """
    return Agent(load_network(path), epsilon, temperature)


def policy_spec(name: str, *, epsilon: float | None = None, temperature: float = 1.0) -> PolicySpec:
    """Return the policy of `envs.collect.collect` that has this name.

    Untrained policies are those of `builtin_policy`. `checkpoint:FOLDER` and `expert:FOLDER`
    are agents that act with `epsilon` (by default 0, and 0.15 for an expert) and `temperature`;
    their name in episodes depends on the weights, not on the path. Raises InputError for an unknown
    name or a missing folder.
    """
    kind, _, path = name.partition(":")
    if kind not in ("checkpoint", "expert"):
        return builtin_policy(name)
    folder = Path(path)
    if not path or not folder.is_dir():
        raise InputError(
            f"policy {name!r}: there is no folder {path!r}: "
            "give one that `autoexplore explore` wrote"
        )
    if epsilon is None:
        epsilon = EXPERT_EPSILON if kind == "expert" else 0.0
    digest = folder_digest(folder)
    policy_id = f"{kind}-{digest}-epsilon{epsilon:g}-temperature{temperature:g}"
    # Absolute: a worker process may run in another folder.
    load = partial(load_policy, folder.resolve(), epsilon=epsilon, temperature=temperature)
    return PolicySpec(policy_id, load, custom_actions(read_policy_config(folder).actions))


def folder_digest(folder: Path) -> str:
    """Return the first 12 hexadecimal digits of a SHA-256 of the names and contents of files."""
    digest = hashlib.sha256()
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
