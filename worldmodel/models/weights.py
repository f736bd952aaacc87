"""Hashes of weights, and checks that trained components belong together."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from envs.utils.errors import InputError

if TYPE_CHECKING:
    from worldmodel.models.dynamics import Dynamics
    from worldmodel.models.latent_action import LatentActionModel
    from worldmodel.models.tokenizer import Tokenizer


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash the names, types, shapes and bytes of tensors, sorted by name; hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()


def encoder_sha256(model: "Tokenizer | LatentActionModel") -> str:
    """Hash everything that decides the token ids or the latent actions.

    Training only the decoder does not change it.
    """
    decoder = {id(parameter) for parameter in model.decoder_parameters()}
    weights = {name: value for name, value in model.named_parameters() if id(value) not in decoder}
    config = model.cfg.to_dict()
    settings = json.dumps({name: config[name] for name in ("size", "frames", model.component)})
    settings_hash = hashlib.sha256(settings.encode()).hexdigest()
    codebook = model.codebook.detach()
    if not codebook.is_cpu:  # the last bit of a norm depends on the device
        codebook = nn.functional.normalize(model.quantizer.rows.detach().cpu().float(), dim=-1)
    return tensors_sha256({**weights, f"codebook of {settings_hash}": codebook})


def check_tokenizer(
    tokenizer: "Tokenizer", dynamics: "Dynamics", source: Path | str = "tokenizer"
) -> None:
    """Raise InputError unless the dynamics was trained on this tokenizer's tokens.

    A dynamics that was not loaded from a run knows only the codebook, which must then be equal.
    """
    expected = getattr(dynamics, "tokenizer_sha256", None)
    codes = tokenizer.codebook.detach().cpu()
    same_codes = torch.allclose(dynamics.codebook.cpu(), codes, atol=1e-6)
    got = encoder_sha256(tokenizer) if expected else tensors_sha256({"codebook": codes})
    if same_codes and expected in (None, got):
        return
    expected = expected or tensors_sha256({"codebook": dynamics.codebook})
    raise InputError(
        f"{source}: not the tokenizer that the dynamics was trained with: expected the one with "
        f"sha256 {expected[:16]}, got {got[:16]}"
    )


def check_lam(dynamics: "Dynamics", lam: "LatentActionModel") -> None:
    """Raise InputError unless the dynamics was trained on this model's latent actions.

    A dynamics without a latent action model adopts this one.
    """
    got, expected = encoder_sha256(lam), dynamics.lam_sha256
    if expected is None:
        dynamics.set_lam(got)
    elif expected != got:
        raise InputError(
            f"dynamics was trained on the actions of LAM {expected[:12]}, this one is {got[:12]}: "
            "use the LAM it was trained with"
        )
