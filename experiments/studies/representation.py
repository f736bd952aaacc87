"""What the codes stand for: every token but the background one replaced by its nearest or farthest code (fig. 5).

If near codes look alike, the first leaves a picture that can be read and the second destroys it; if the commonest code
of later frames stands for "nothing changed here", it is common on static patches and rare on moving ones (section 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.studies.common import ModelArgs, open_model, settings_of, windows_of, write_result

if TYPE_CHECKING:
    from torch import Tensor

    from worldmodel import Tokenizer


KINDS = ("reconstruction", "nearest", "farthest")
SHOWN = 2
"""Windows drawn of each game."""


@dataclass(frozen=True, kw_only=True)
class Args(ModelArgs):
    """Writes representation.json and representation-GAME.png to --out.

    Rows of a picture: what happened, its reconstruction, with nearest codes, with farthest codes, tokens as colours.
    """

    length: int = 4
    """Frames in a window."""
    stride: int = 20
    """Frames between the starts of two windows."""


def run(args: Args) -> None:
    """Replace, decode, compare."""
    from envs.utils.progress import console
    from worldmodel.data.batch import to_float_frames

    model = open_model(args)
    tokenizer = model.tokenizer
    games: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    for game, pixels_BTHWC in _clips(args, model).items():
        games[game], made, tokens = study(tokenizer, to_float_frames(pixels_BTHWC))
        pictures[game] = draw(tokenizer, pixels_BTHWC[:SHOWN], {name: of[:SHOWN] for name, of in made.items()}, tokens)
    write_result(args.out, "representation", {"settings": settings_of(args), "games": games}, pictures)
    for game, of in games.items():
        psnr = ", ".join(f"{name} {of['psnr'][name]:.1f} dB" for name in KINDS)
        background = of["background"]
        console.print(
            f"{game}: {psnr}; code {of['background_code']} is {background['static']:.0%} of static patches, "
            f"{background['moving']:.0%} of moving ones"
        )


def _clips(args: Args, model: Any) -> "dict[str, Tensor]":
    """The windows of each game, uint8 BTHWC."""
    import torch

    found: dict[str, list[Tensor]] = {}
    for windows in windows_of(args, model, args.length, args.stride):
        found.setdefault(windows.game, []).append(windows.frames_BTHWC)
    return {game: torch.cat(parts) for game, parts in found.items()}


def study(tokenizer: "Tokenizer", frames_BTCHW: "Tensor") -> "tuple[dict[str, Any], dict[str, Tensor], Tensor]":
    """(figures as JSON data, decoded frames of each kind, tokens) of windows of one game."""
    import torch

    from worldmodel.evaluation.codebook_stats import count_codes, static_token_stats
    from worldmodel.metrics import psnr, ssim

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


def replaced(tokens_BThw: "Tensor", codebook_KD: "Tensor", background: int) -> "dict[str, Tensor]":
    """Tokens with every one but `background` replaced by its nearest other and by its farthest code."""
    import torch

    likeness_KK = codebook_KD @ codebook_KD.T
    farthest = likeness_KK.argmin(1)
    nearest_code = likeness_KK.fill_diagonal_(-torch.inf).argmax(1)
    stays = tokens_BThw == background
    return {
        name: torch.where(stays, tokens_BThw, table[tokens_BThw])
        for name, table in (("nearest", nearest_code), ("farthest", farthest))
    }


def draw(tokenizer: "Tokenizer", pixels_BTHWC: "Tensor", made: "Mapping[str, Tensor]", tokens_BThw: "Tensor") -> bytes:
    """Windows beside each other; rows as `Args` says. PNG."""
    from envs.utils.images import png
    from experiments.reports.images import code_colours, film_strip, token_map

    colours = code_colours(tokenizer.codebook.detach().float().numpy())
    rows = [pixels_BTHWC.flatten(0, 1).numpy()]
    for name in KINDS:
        rows.append((made[name].flatten(0, 1) * 255).round().byte().movedim(1, -1).numpy())
    shown = tokens_BThw[: len(pixels_BTHWC)].flatten(0, 1).numpy()
    rows.append(token_map(shown, colours, pixels_BTHWC.shape[2]))
    return png(film_strip(rows, scale=2))
