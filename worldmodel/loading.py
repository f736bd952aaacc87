"""Load trained components from a run, a checkpoint or a saved world model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.utils.errors import InputError
from worldmodel.checkpoint import open_checkpoint
from worldmodel.config import WorldModelConfig
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieReduxG, load_world_model
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.upscaler import Upscaler, upscaler_config
from worldmodel.models.weights import encoder_sha256, load_weights


def load_component(module: nn.Module, component: str, path: Path | str) -> None:
    """Load the weights of a tokenizer, lam or dynamics from a run, a checkpoint or a saved world
    model.
    """
    weights, _, tokenizer = _component(Path(path), component)
    load_weights(module, weights, path)
    _note_tokenizer(module, tokenizer)


def load_tokenizer(path: Path | str, device: torch.device | str = "cpu") -> Tokenizer:
    """Load a trained tokenizer, in eval mode, from a run, a checkpoint or a saved world model.

    Raise InputError where there is none, it is damaged, or it belongs to another version.
    """

    return _load(Tokenizer, "tokenizer", path, device)


def load_lam(path: Path | str, device: torch.device | str = "cpu") -> LatentActionModel:
    """Load a latent action model, also one that was trained jointly; see `load_tokenizer`."""

    return _load(LatentActionModel, "lam", path, device)


def load_dynamics(path: Path | str, device: torch.device | str = "cpu") -> Dynamics:
    """Load a dynamics model; see `load_tokenizer`."""

    return _load(Dynamics, "dynamics", path, device)


def load_upscaler(path: Path | str, device: torch.device | str = "cpu") -> Upscaler:
    """Load an upscaler, in eval mode, from a run's newest checkpoint or one checkpoint.

    Raise InputError where there is none, or a file is missing, changed or of another architecture.
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
    """Build a world model from the runs or checkpoints of a tokenizer and a dynamics on real
    actions.

    Raise InputError as `load_tokenizer`, and where the two do not belong together.
    """

    return GenieReduxG(load_tokenizer(tokenizer), load_dynamics(dynamics))


def _load(kind: Any, component: str, path: Path | str, device: torch.device | str) -> Any:
    weights, config, tokenizer = _component(Path(path), component)
    module = kind(config)
    load_weights(module, weights, path)
    _note_tokenizer(module, tokenizer)
    if torch.device(device).type == "cpu":
        use_cpu_kernels(module)
    return module.to(device).eval()


def _component(
    path: Path, component: str
) -> tuple[dict[str, Tensor], WorldModelConfig, str | None]:
    """Read a component's verified weights, its configuration, and the hash of its tokenizer."""

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
    """Return the weights of one part of a joint run. The dynamics learns the hash of its LAM here,
    since that changed up to the last step.
    """

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
    """Attach the hash of the tokenizer that made a component's tokens; it is not part of the
    weights.
    """
    module.tokenizer_sha256 = sha256  # type: ignore[assignment]
