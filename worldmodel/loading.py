"""Loading trained components from a run, a checkpoint or a saved world model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.utils.artifact_dir import copy_weights
from envs.utils.errors import InputError
from worldmodel.checkpoint import Checkpoint, open_checkpoint
from worldmodel.config import WorldModelConfig
from worldmodel.devices import resolve_device
from worldmodel.models.compilation import optimize_loaded
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieRedux, GenieReduxG, load_world_model
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, upscaler_config
from worldmodel.models.weights import encoder_sha256

Part = tuple[dict[str, Tensor], WorldModelConfig, str | None]
"""Weights of a component, its configuration, and the hash of the tokenizer of its tokens."""


def load_component(module: nn.Module, component: str, path: Path | str) -> None:
    """Load the weights of a tokenizer, lam or dynamics into a module."""
    _set_weights(module, _read_component(Path(path), component), path)


def load_tokenizer(
    path: Path | str, device: torch.device | str = "cpu", *, compile: bool | None = None
) -> Tokenizer:
    """Load a trained tokenizer in eval mode; `compile` is that of `optimize_loaded`.

    Raises InputError if there is none, or it is damaged or of another version.
    """
    return _load(Tokenizer, "tokenizer", path, device, compile)


def load_lam(
    path: Path | str, device: torch.device | str = "cpu", *, compile: bool | None = None
) -> LatentActionModel:
    """Load a latent action model, also a jointly trained one; see `load_tokenizer`."""
    return _load(LatentActionModel, "lam", path, device, compile)


def load_dynamics(path: Path | str, device: torch.device | str = "cpu") -> Dynamics:
    """Load a dynamics model; see `load_tokenizer`."""
    return _load(Dynamics, "dynamics", path, device, None)


def load_upscaler(path: Path | str, device: torch.device | str = "cpu") -> Upscaler:
    """Load an upscaler in eval mode from a run or a checkpoint; see `load_tokenizer`."""
    checkpoint = open_checkpoint(path)
    _require_component(checkpoint, "upscaler")
    upscaler = Upscaler(upscaler_config(checkpoint.state["recipe"]["upscaler"]))
    copy_weights(upscaler, checkpoint.exported(), checkpoint.path)
    return upscaler.to(resolve_device(device)).eval()


def build_world_model(
    tokenizer: Path | str, dynamics: Path | str, lam: Path | str | None = None
) -> GenieReduxG | GenieRedux:
    """Build a world model from runs or checkpoints of its parts: a GenieRedux if there is a `lam`.

    Raises InputError if one cannot be loaded or they do not belong together.
    """
    if lam is not None:
        return GenieRedux(load_tokenizer(tokenizer), load_lam(lam), load_dynamics(dynamics))
    return GenieReduxG(load_tokenizer(tokenizer), load_dynamics(dynamics))


def _load(
    kind: Any,
    component: str,
    path: Path | str,
    device: torch.device | str,
    compile: bool | None,
) -> Any:
    part = _read_component(Path(path), component)
    module = kind(part[1])
    _set_weights(module, part, path)
    device = resolve_device(device)
    optimize_loaded(module, device, compile=compile)
    return module.to(device).eval()


def _set_weights(module: nn.Module, part: Part, source: Path | str) -> None:
    weights, _, tokenizer_sha256 = part
    copy_weights(module, weights, source)
    module.tokenizer_sha256 = tokenizer_sha256  # type: ignore[assignment]


def _read_component(path: Path, component: str) -> Part:
    if (path / f"{component}.safetensors").exists():
        model = load_world_model(path)
        return getattr(model, component).state_dict(), model.cfg, encoder_sha256(model.tokenizer)
    checkpoint = open_checkpoint(path)
    config = WorldModelConfig.from_dict(checkpoint.state["config"])
    if checkpoint.state.get("joint_lam") and component in ("lam", "dynamics"):
        weights = _joint_part(checkpoint.exported(), component, config)
    else:
        _require_component(checkpoint, component)
        weights = checkpoint.exported()
    return weights, config, checkpoint.state.get("tokenizer_sha256")


def _require_component(checkpoint: Checkpoint, component: str) -> None:
    if checkpoint.component != component:
        raise InputError(
            f"{checkpoint.path} holds a {checkpoint.component}, not a {component}: "
            "give another path"
        )


def _joint_part(
    weights: dict[str, Tensor], component: str, config: WorldModelConfig
) -> dict[str, Tensor]:
    """Return the weights of one model of a joint run.

    The hash of the LAM, which changed up to the last step, is set in the dynamics here.
    """

    def select(part: str) -> dict[str, Tensor]:
        prefix = f"{part}."
        items = weights.items()
        return {name.removeprefix(prefix): w for name, w in items if name.startswith(prefix)}

    selected = select(component)
    if component == "dynamics":
        lam = LatentActionModel(config)
        copy_weights(lam, select("lam"), "lam")
        lam_sha256 = bytearray.fromhex(encoder_sha256(lam))
        selected["lam_hash"] = torch.frombuffer(lam_sha256, dtype=torch.uint8)
    return selected
