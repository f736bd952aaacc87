"""MaskGIT: random masks for training, and sampling of masked tokens.

Shapes: B clips, M tokens of the part being generated, K codes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from envs.utils.errors import InputError
from worldmodel.devices import float64


def num_masked(step: int, steps: int, tokens: Tensor) -> Tensor:
    """Return the number of tokens still masked after step 1..steps.

    It is floor(cos(pi/2 * step/steps) * tokens).
    """
    share = math.cos(math.pi / 2 * step / steps) if step < steps else 0.0
    return (share * float64(tokens)).floor().long().to(tokens.device)


def mask_ratios(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Draw mask ratios in (0, 1] for training: cos(pi/2 * u), u uniform in [0, 1)."""
    return torch.cos(math.pi / 2 * torch.rand(shape, generator=generator, device=device))


def random_mask(ratios: Tensor, tokens: int, generator: torch.Generator | None) -> Tensor:
    """Mask a share of the tokens, at least one, at random. ratios (...) -> bool (..., tokens)."""
    noise = torch.rand(*ratios.shape, tokens, generator=generator, device=ratios.device)
    count = (ratios * tokens).ceil().clamp(1, tokens).long()
    threshold = noise.sort(-1).values.gather(-1, count[..., None] - 1)
    return noise <= threshold


def sample(
    predict_logits: Callable[[Tensor], Tensor],
    start_BM: Tensor,
    mask_id: int,
    *,
    steps: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    on_step: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Sample the tokens that are `mask_id` in `steps` passes, int64 (B, M) -> (B, M).

    Each pass predicts all tokens with `predict_logits(tokens_BM) -> (B, M, K)` and draws a
    candidate for each masked token with Gumbel noise, which anneals from `temperature` to 0. The
    most confident candidates are kept for good; `num_masked` tokens stay masked. The last pass,
    which is the only one for steps = 1, takes the likeliest code. `on_step` is called with logits
    and tokens after each pass.
    """
    tokens = start_BM.clone()
    finite = torch.ones((), dtype=torch.bool, device=tokens.device)
    unknown = tokens == mask_id
    masked_B = unknown.sum(-1)
    for step in range(1, steps + 1):
        # Draw a candidate for every token.
        logits = predict_logits(tokens).float()
        noise = temperature * (1 - step / steps)
        noisy_logits = logits + noise * gumbel(logits, generator) if noise else logits
        candidates = noisy_logits.argmax(-1)

        # Rank the candidates by their log-probability, with noise too. Known tokens rank highest,
        # so that they are never masked again.
        confidence = logits.gather(-1, candidates[..., None]).squeeze(-1) - logits.logsumexp(-1)
        finite &= confidence.isfinite().all()
        if noise:
            confidence = confidence + noise * gumbel(confidence, generator)
        rank = confidence.masked_fill(~unknown, torch.inf).argsort(-1).argsort(-1)

        # Keep the most confident candidates and mask the rest again.
        filled = torch.where(unknown, candidates, tokens)
        unknown = rank < num_masked(step, steps, masked_B)[:, None]
        tokens = filled.masked_fill(unknown, mask_id)
        if on_step is not None:
            on_step(logits, tokens)
    if not finite:
        raise InputError(
            "the world model predicts NaN or infinity: its weights are damaged, or its training "
            "diverged; use an earlier checkpoint"
        )
    return tokens


def gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard Gumbel noise of a tensor's shape."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device).clamp(1e-20, 1 - 1e-7)
    return -(-uniform.log()).log()
