"""Statistics of codebook use on static and moving patches."""

import torch
from torch import Tensor


def static_token_fraction(tokens_BThw: Tensor, frames_BTCHW: Tensor) -> dict[str, float]:
    """Return the shares `static` and `moving` of `static_token_stats` for tokens of frames."""
    codes = int(tokens_BThw.max()) + 1
    stats = static_token_stats(count_codes(tokens_BThw, frames_BTCHW, codes))
    return {name: stats[name] for name in ("static", "moving")}


def moving_patches(frames_BTCHW: Tensor, grid: int) -> Tensor:
    """Mark patches that differ from the previous frame, bool (B, T - 1, grid, grid)."""
    patch = frames_BTCHW.shape[-1] // grid
    changed = (frames_BTCHW[:, 1:] != frames_BTCHW[:, :-1]).any(2)
    return changed.unflatten(-1, (grid, patch)).unflatten(-3, (grid, patch)).any(-1).any(-2)


def count_codes(tokens_BThw: Tensor, frames_BTCHW: Tensor, codes: int) -> Tensor:
    """Count each code after frame 0 on static (row 0) and moving patches (row 1), int64 (2, K).

    Counts of several batches add up, see `static_token_stats`.
    """
    moving, later = moving_patches(frames_BTCHW, tokens_BThw.shape[-1]), tokens_BThw[:, 1:]
    return torch.stack([torch.bincount(later[mask], minlength=codes) for mask in (~moving, moving)])


def static_token_stats(counts_2K: Tensor) -> dict[str, float]:
    """Compute to which extent the most frequent code means "nothing changed" (Sec. 5).

    `static`, `moving`: its share of the tokens on static and on moving patches, NaN without any;
    `codes_used`: share of all codes; `perplexity` of their frequencies.
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
