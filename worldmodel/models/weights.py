"""Hashes of weights, loading them strictly, and checks that components belong together."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from envs.utils.errors import InputError

if TYPE_CHECKING:
    from worldmodel.models.dynamics import Dynamics
    from worldmodel.models.latent_action import LatentActionModel
    from worldmodel.models.tokenizer import Tokenizer


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Compute the hex sha256 over names, types, shapes and bytes of tensors, in the order of their
    names.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """Copy weights into a module, all of them or none.

    Raises InputError before anything is copied where a name, shape or type differs: another
    architecture.
    """
    own = module.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        where = "only in the file" if name in weights else "missing in the file"
        raise InputError(
            f"{source}: weights of another architecture: "
            f"{name} is {where}; use its own configuration"
        )
    for name, tensor in own.items():
        here, there = (
            (tuple(tensor.shape), tensor.dtype),
            (tuple(weights[name].shape), weights[name].dtype),
        )
        if here != there:
            raise InputError(
                f"{source}: weights of another architecture: "
                f"{name} is {there[0]}, the model's {here[0]}"
            )
    module.load_state_dict(weights, strict=True)


def encoder_sha256(model: "Tokenizer | LatentActionModel") -> str:
    """Hash everything that decides the token ids of a tokenizer, or the actions of a latent action
    model.

    Training the decoder alone does not change it.
    """
    decoder = {id(parameter) for parameter in model.decoder_parameters()}
    weights = {name: value for name, value in model.named_parameters() if id(value) not in decoder}
    config = model.cfg.to_dict()
    sizes = hashlib.sha256(
        json.dumps({name: config[name] for name in ("size", "frames", model.component)}).encode()
    )
    codebook = model.codebook.detach()
    if not codebook.is_cpu:  # the last bit of a norm is another one there
        codebook = nn.functional.normalize(model.quantizer.rows.detach().cpu().float(), dim=-1)
    return tensors_sha256({**weights, f"codebook of {sizes.hexdigest()}": codebook})


def check_tokenizer(
    tokenizer: "Tokenizer", dynamics: "Dynamics", source: Path | str = "tokenizer"
) -> None:
    """Raise InputError, with both hashes, unless the tokenizer makes the tokens that the dynamics
    was trained on.

    A dynamics model that was not loaded from a run knows only the codes: then these must be the
    same.
    """
    wanted = getattr(dynamics, "tokenizer_sha256", None)
    same_codes = torch.allclose(
        dynamics.codebook.cpu(), tokenizer.codebook.detach().cpu(), atol=1e-6
    )
    got = encoder_sha256(tokenizer) if wanted else tensors_sha256({"codebook": tokenizer.codebook})
    if same_codes and wanted in (None, got):
        return
    wanted = wanted or tensors_sha256({"codebook": dynamics.codebook})
    raise InputError(
        f"{source}: not the tokenizer that the dynamics was trained with: "
        f"expected the one with sha256 {wanted[:16]}, "
        f"got {got[:16]}"
    )


def check_lam(dynamics: "Dynamics", lam: "LatentActionModel") -> None:
    """Raise InputError unless a dynamics on latent actions was trained on this model's; a new one
    takes it over.
    """
    found = encoder_sha256(lam)
    expected = dynamics.lam_sha256
    if expected is None:
        dynamics.set_lam(found)
    elif expected != found:
        raise InputError(
            f"dynamics was trained on the actions of LAM {expected[:12]}, "
            f"this one is {found[:12]}: give that one"
        )
