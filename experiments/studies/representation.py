"""Meaning of the codes: replace all but background tokens by their nearest or farthest code (Fig.
5).

If near codes look alike, the first leaves a recognisable picture and the second destroys it. If the
most common code of later frames means "no change", it is common on static patches and rare on
moving ones (Section 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.utils.images import png
from envs.utils.progress import console
from experiments.reports.images import code_colours, film_strip, token_map
from experiments.studies.common import ModelArgs, open_model, windows_of, write_result
from worldmodel import Tokenizer
from worldmodel.data.batch import to_float_frames
from worldmodel.evaluation.codebook_stats import count_codes, static_token_stats
from worldmodel.metrics import psnr, ssim

KINDS = ("reconstruction", "nearest", "farthest")
SHOWN = 2
"""Windows drawn of each game."""


@dataclass(frozen=True, kw_only=True)
class Args(ModelArgs):
    """Write representation.json and representation-GAME.png to --out.

    Rows of a picture: ground truth, reconstruction, nearest codes, farthest codes, tokens as
    colours.
    """

    length: int = 4
    """Frames in a window."""
    stride: int = 20
    """Frames between the starts of two windows."""


def run(args: Args) -> None:
    """Replace codes, decode, compare with the ground truth."""
    model = open_model(args)
    tokenizer = model.tokenizer
    games: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    for game, pixels_BTHWC in _clips(args, model).items():
        games[game], made, tokens = study(tokenizer, to_float_frames(pixels_BTHWC))
        pictures[game] = draw(
            tokenizer, pixels_BTHWC[:SHOWN], {name: of[:SHOWN] for name, of in made.items()}, tokens
        )
    write_result(args, "representation", {"games": games}, pictures)
    for game, of in games.items():
        psnr = ", ".join(f"{name} {of['psnr'][name]:.1f} dB" for name in KINDS)
        background = of["background"]
        console.print(
            f"{game}: {psnr}; code {of['background_code']} is "
            f"{background['static']:.0%} of static patches, "
            f"{background['moving']:.0%} of moving ones"
        )


def _clips(args: Args, model: Any) -> dict[str, Tensor]:
    """Return the windows of each game, uint8 BTHWC."""
    found: dict[str, list[Tensor]] = {}
    for windows in windows_of(args, model, args.length, args.stride):
        found.setdefault(windows.game, []).append(windows.frames_BTHWC)
    return {game: torch.cat(parts) for game, parts in found.items()}


def study(
    tokenizer: Tokenizer, frames_BTCHW: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Return results as JSON data, decoded frames of each kind, and tokens, of one game."""
    with torch.inference_mode():
        tokens = torch.cat([tokenizer.encode(part) for part in frames_BTCHW.split(4)])
        counts = count_codes(tokens, frames_BTCHW, tokenizer.cfg.tokenizer.codes)
        background = int(counts.sum(0).argmax())
        swapped = replaced(tokens, tokenizer.codebook, background)
        made = {
            name: torch.cat([tokenizer.decode(part) for part in of.split(4)])
            for name, of in {"reconstruction": tokens, **swapped}.items()
        }
    figures = {
        "windows": len(tokens),
        "psnr": {name: psnr(of, frames_BTCHW) for name, of in made.items()},
        "ssim": {name: ssim(of, frames_BTCHW) for name, of in made.items()},
        "background_code": background,
        "background": static_token_stats(counts),
        "replaced": (tokens != background).float().mean().item(),
    }
    return figures, made, tokens


def replaced(tokens_BThw: Tensor, codebook_KD: Tensor, background: int) -> dict[str, Tensor]:
    """Return tokens with all but `background` replaced by the nearest and by the farthest code."""
    likeness_KK = codebook_KD @ codebook_KD.T
    farthest = likeness_KK.argmin(1)
    nearest_code = likeness_KK.fill_diagonal_(-torch.inf).argmax(1)
    stays = tokens_BThw == background
    return {
        name: torch.where(stays, tokens_BThw, table[tokens_BThw])
        for name, table in (("nearest", nearest_code), ("farthest", farthest))
    }


def draw(
    tokenizer: Tokenizer, pixels_BTHWC: Tensor, made: Mapping[str, Tensor], tokens_BThw: Tensor
) -> bytes:
    """Return a PNG of windows side by side; rows as `Args` says."""
    colours = code_colours(tokenizer.codebook.detach().float().numpy())
    rows = [pixels_BTHWC.flatten(0, 1).numpy()]
    for name in KINDS:
        rows.append((made[name].flatten(0, 1) * 255).round().byte().movedim(1, -1).numpy())
    shown = tokens_BThw[: len(pixels_BTHWC)].flatten(0, 1).numpy()
    rows.append(token_map(shown, colours, pixels_BTHWC.shape[2]))
    return png(film_strip(rows, scale=2))
