"""Load trained components from a run, a checkpoint or a saved world model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.utils.errors import InputError
from worldmodel.checkpoint import open_checkpoint
from worldmodel.config import WorldModelConfig
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieReduxG, load_world_model
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, upscaler_config
from worldmodel.models.weights import encoder_sha256, load_weights


def load_component(module: nn.Module, component: str, path: Path | str) -> None:
    """Give a tokenizer, lam or dynamics module the weights in a run's folder, a checkpoint or a saved world model."""
    weights, _, tokenizer = _component(Path(path), component)
    load_weights(module, weights, path)
    _note_tokenizer(module, tokenizer)


def load_tokenizer(path: Path | str, device: torch.device | str = "cpu") -> Tokenizer:
    """The trained tokenizer, in eval mode, from a run's folder, a checkpoint or a saved world model.

    Raises InputError where there is none, it is damaged, or it belongs to another version.
    """

    return _load(Tokenizer, "tokenizer", path, device)


def load_lam(path: Path | str, device: torch.device | str = "cpu") -> LatentActionModel:
    """As `load_tokenizer`, for the latent action model; also one that was trained with a dynamics model."""

    return _load(LatentActionModel, "lam", path, device)


def load_dynamics(path: Path | str, device: torch.device | str = "cpu") -> Dynamics:
    """As `load_tokenizer`, for the dynamics model."""

    return _load(Dynamics, "dynamics", path, device)


def load_upscaler(path: Path | str, device: torch.device | str = "cpu") -> Upscaler:
    """The upscaler of a training run's folder, its newest checkpoint, or of one checkpoint, in evaluation mode.

    Raises InputError where there is none, or a file is missing, changed or of another architecture.
    """
    found = open_checkpoint(path)
    if found.component != "upscaler":
        raise InputError(
            f"{found.path} holds a {found.component}, not an upscaler: give another path"
        )
    upscaler = Upscaler(upscaler_config(found.state["recipe"]["upscaler"]))
    load_weights(upscaler, found.exported(), found.path)
    return upscaler.to(device).eval()


def build_world_model(tokenizer: Path | str, dynamics: Path | str) -> GenieReduxG:
    """The world model of a tokenizer and a dynamics model on real actions, each a run's folder or a checkpoint.

    Raises InputError as `load_tokenizer`, and where the two do not belong together.
    """

    return GenieReduxG(load_tokenizer(tokenizer), load_dynamics(dynamics))


def _load(kind: Any, component: str, path: Path | str, device: torch.device | str) -> Any:
    weights, config, tokenizer = _component(Path(path), component)
    module = kind(config)
    load_weights(module, weights, path)
    _note_tokenizer(module, tokenizer)
    return module.to(device).eval()


def _component(
    path: Path, component: str
) -> tuple[dict[str, Tensor], WorldModelConfig, str | None]:
    """A component's weights and configuration, hashes checked, and the hash of the tokenizer that it was trained on."""

    if (path / f"{component}.safetensors").exists():
        model = load_world_model(path)
        return getattr(model, component).state_dict(), model.cfg, encoder_sha256(model.tokenizer)
    found = open_checkpoint(path)
    config = WorldModelConfig.from_dict(found.state["config"])
    if found.state.get("joint_lam") and component in ("lam", "dynamics"):
        return (
            _joint_part(found.exported(), component, config),
            config,
            found.state.get("tokenizer_sha256"),
        )
    if found.component != component:
        raise InputError(
            f"{found.path} holds a {found.component}, not a {component}: give another path"
        )
    return found.exported(), config, found.state.get("tokenizer_sha256")


def _joint_part(
    weights: dict[str, Tensor], component: str, config: WorldModelConfig
) -> dict[str, Tensor]:
    """The weights of one part of a joint run. Its LAM changed to the last step: the dynamics learns the hash here."""

    parts = {
        part: {
            name.removeprefix(f"{part}."): value
            for name, value in weights.items()
            if name.startswith(f"{part}.")
        }
        for part in ("lam", "dynamics")
    }
    if component == "dynamics":
        lam = LatentActionModel(config)
        load_weights(lam, parts["lam"], "lam")
        parts["dynamics"]["lam_hash"] = torch.tensor(
            list(bytes.fromhex(encoder_sha256(lam))), dtype=torch.uint8
        )
    return parts[component]


def _note_tokenizer(module: nn.Module, sha256: str | None) -> None:
    """Let a loaded component remember which tokenizer made its tokens; kept beside the weights, not among them."""
    module.tokenizer_sha256 = sha256  # type: ignore[assignment]
