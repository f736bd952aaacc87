"""Meaning of the codes: replace all but background tokens by their nearest or farthest code.

If near codes look alike, the first leaves a recognisable picture and the second destroys it
(Fig. 5). If the most frequent code of later frames means "no change", it is frequent on static
patches and rare on moving ones (Sec. 5).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from envs.utils.images import png
from envs.utils.progress import console
from experiments.reports.images import code_colours, film_strip, token_map
from experiments.studies.arguments import RepresentationArgs
from experiments.studies.common import map_windows, open_study_model, write_result
from worldmodel import Tokenizer
from worldmodel.data.batch import to_float_frames
from worldmodel.evaluation.codebook_stats import count_codes, static_token_stats
from worldmodel.metrics import psnr, ssim

KINDS = ("reconstruction", "nearest", "farthest")
SHOWN = 2
"""Windows drawn of each game."""


def run(args: RepresentationArgs) -> None:
    """Replace codes, decode, and compare with the ground truth."""
    model = open_study_model(args)
    clips = map_windows(lambda w: w.frames_BTHWC, args, model, args.length, args.stride)
    games: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    for game, parts in clips.items():
        pixels_BTHWC = torch.cat(parts)
        games[game], decoded, tokens = study_codes(model.tokenizer, to_float_frames(pixels_BTHWC))
        pictures[game] = draw_codes(model.tokenizer, pixels_BTHWC, decoded, tokens)
    write_result(args, "representation", {"games": games}, pictures)
    for game, result in games.items():
        quality = ", ".join(f"{name} {result['psnr'][name]:.1f} dB" for name in KINDS)
        background = result["background"]
        console.print(
            f"{game}: {quality}; code {result['background_code']} is "
            f"{background['static']:.0%} of static patches, "
            f"{background['moving']:.0%} of moving ones"
        )


def study_codes(
    tokenizer: Tokenizer, frames_BTCHW: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Return the results of one game as JSON data, decoded frames of each kind, and tokens."""
    with torch.inference_mode():
        tokens = torch.cat([tokenizer.encode(part) for part in frames_BTCHW.split(4)])
        counts = count_codes(tokens, frames_BTCHW, tokenizer.cfg.tokenizer.codes)
        background = int(counts.sum(0).argmax())
        kinds = {"reconstruction": tokens, **replace_codes(tokens, tokenizer.codebook, background)}
        decoded = {
            name: torch.cat([tokenizer.decode(part) for part in replaced.split(4)])
            for name, replaced in kinds.items()
        }
    results = {
        "windows": len(tokens),
        "psnr": {name: psnr(frames, frames_BTCHW) for name, frames in decoded.items()},
        "ssim": {name: ssim(frames, frames_BTCHW) for name, frames in decoded.items()},
        "background_code": background,
        "background": static_token_stats(counts),
        "replaced": (tokens != background).float().mean().item(),
    }
    return results, decoded, tokens


def replace_codes(tokens_BThw: Tensor, codebook_KD: Tensor, background: int) -> dict[str, Tensor]:
    """Return tokens with all but `background` replaced by the nearest and by the farthest code."""
    similarity_KK = codebook_KD @ codebook_KD.T
    farthest = similarity_KK.argmin(1)
    nearest = similarity_KK.fill_diagonal_(-torch.inf).argmax(1)
    return {
        name: torch.where(tokens_BThw == background, tokens_BThw, table_K[tokens_BThw])
        for name, table_K in (("nearest", nearest), ("farthest", farthest))
    }


def draw_codes(
    tokenizer: Tokenizer, pixels_BTHWC: Tensor, decoded: Mapping[str, Tensor], tokens_BThw: Tensor
) -> bytes:
    """Return a PNG of the first SHOWN windows side by side; `RepresentationArgs` names the rows."""
    rows = [pixels_BTHWC[:SHOWN].flatten(0, 1).cpu().numpy()]
    for name in KINDS:
        frames = decoded[name][:SHOWN].flatten(0, 1)
        rows.append((frames * 255).round().byte().movedim(1, -1).cpu().numpy())
    colours = code_colours(tokenizer.codebook.detach().float().cpu().numpy())
    tokens = tokens_BThw[:SHOWN].flatten(0, 1).cpu().numpy()
    rows.append(token_map(tokens, colours, pixels_BTHWC.shape[2]))
    return png(film_strip(rows, scale=2))
