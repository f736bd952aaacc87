"""Statistics of codebook use on static and moving patches."""

import torch
from torch import Tensor


def static_token_fraction(tokens_BThw: Tensor, frames_BTCHW: Tensor) -> dict[str, float]:
    """Measure how far the commonest code of later frames stands for "nothing changed" (Sec. 5).

    Share of the tokens after frame 0 that are the commonest code, on patches whose pixels equal the
    frame before (`static`) and on the others (`moving`); NaN where there are none. The commonest
    code is that of the given tokens.
    """
    later = tokens_BThw[:, 1:]
    moving = moving_patches(frames_BTCHW, tokens_BThw.shape[-1])
    background = later == later.flatten().mode().values
    return {
        "static": background[~moving].float().mean().item(),
        "moving": background[moving].float().mean().item(),
    }


def moving_patches(frames_BTCHW: Tensor, grid: int) -> Tensor:
    """Mark patches that differ from the same patch of the frame before, bool (B, T - 1, grid,
    grid).
    """
    patch = frames_BTCHW.shape[-1] // grid
    changed = (frames_BTCHW[:, 1:] != frames_BTCHW[:, :-1]).any(2)
    return changed.unflatten(-1, (grid, patch)).unflatten(-3, (grid, patch)).any(-1).any(-2)


def count_codes(tokens_BThw: Tensor, frames_BTCHW: Tensor, codes: int) -> Tensor:
    """Count each code of later frames on static (row 0) and moving patches (row 1), int64 (2,
    codes).

    Counts of parts of a set add up, see `static_token_stats`.
    """
    moving, later = moving_patches(frames_BTCHW, tokens_BThw.shape[-1]), tokens_BThw[:, 1:]
    return torch.stack(
        [torch.bincount(later[where], minlength=codes) for where in (~moving, moving)]
    )


def static_token_stats(counts_2K: Tensor) -> dict[str, float]:
    """Compute `static_token_fraction` from `count_codes`, the share of codes used and their
    perplexity.
    """
    total = counts_2K.sum(0)
    shares = counts_2K[:, total.argmax()] / counts_2K.sum(1)
    used = total[total > 0] / total.sum()
    return {
        "static": shares[0].item(),
        "moving": shares[1].item(),
        "codes_used": len(used) / len(total),
        "perplexity": (-(used * used.log()).sum()).exp().item(),
    }
