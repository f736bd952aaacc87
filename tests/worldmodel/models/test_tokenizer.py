"""Tokenizer and quantiser: independence of clips, frozen tokens, use of the codes."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel import Tokenizer, preset
from worldmodel.evaluation.codebook_stats import static_token_fraction
from worldmodel.models.vector_quantizer import VectorQuantizer

DEBUG = preset("debug")


# Tokenizer


def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(DEBUG).eval()
    frames = torch.rand(3, 4, 3, 64, 64)
    with torch.no_grad():
        together = tokenizer.encode_features(frames)[0]
        alone = tokenizer.encode_features(frames[1:2])[0]
        torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)
        tokens = tokenizer.encode(frames)
        torch.testing.assert_close(
            tokenizer.decode(tokens)[1:2], tokenizer.decode(tokens[1:2]), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_decoder_only_training_leaves_tokens_bit_identical(codebook: str) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(replace(DEBUG, tokenizer=replace(DEBUG.tokenizer, codebook=codebook)))
    frames = torch.rand(2, 4, 3, 64, 64)
    tokens, features = tokenizer.encode(frames), tokenizer.encode_features(frames)[0]
    frozen = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    tokenizer.freeze_encoder()
    optimizer = torch.optim.AdamW(tokenizer.decoder_parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for step in range(5):
        tokenizer.train().set_progress(step / 5)
        output = tokenizer(frames)
        output.losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.losses["reconstruction"].item())
    assert losses[-1] < losses[0]
    assert torch.equal(tokenizer.encode(frames), tokens)
    assert torch.equal(tokenizer.encode_features(frames)[0], features)
    trained = {id(parameter) for parameter in tokenizer.decoder_parameters()}
    names = {
        name for name, parameter in tokenizer.named_parameters() if id(parameter) in trained
    } | {"quantizer.progress"}
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, frozen[name]) == (name not in names), name


def test_changed_pixels_weigh_more() -> None:
    tokenizer = Tokenizer(
        replace(DEBUG, tokenizer=replace(DEBUG.tokenizer, changed_pixel_weight=4.0))
    )
    frames = torch.zeros(1, 2, 3, 64, 64)
    frames[:, 1, :, :32] = 1.0
    output = tokenizer(frames)
    weights = torch.ones(1, 2, 1, 64, 64)
    weights[:, 1, :, :32] = 4.0
    expected = ((output.frames - frames).square() * weights).mean() / weights.mean()
    assert output.losses["reconstruction"].item() == pytest.approx(expected.item())
    assert output.losses["reconstruction"].item() != pytest.approx(
        F.mse_loss(output.frames, frames).item(), rel=1e-3
    )


# Quantiser


def clusters(codes: int, width: int, seed: int = 0) -> Callable[[int], Tensor]:
    """Return a function that draws features around random centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(codes, width, generator=generator), dim=-1)

    def draw(amount: int) -> Tensor:
        picked = centres[torch.randint(codes, (amount,), generator=generator)]
        return picked + 0.02 * torch.randn(amount, width, generator=generator)

    return draw


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_dead_codes_are_reseeded_and_used(codebook: str) -> None:
    draw = clusters(12, 8)
    for reseed_below, few in ((0.0, True), (0.2, False)):
        torch.manual_seed(0)
        cfg = dataclasses.replace(
            DEBUG.tokenizer,
            codes=16,
            code_dim=8,
            codebook=codebook,
            ema_decay=0.9,
            reseed_below=reseed_below,
        )
        quantizer = VectorQuantizer(cfg)
        quantizer.rows.data.copy_(
            F.normalize(torch.ones(16, 8) + 0.001 * torch.randn(16, 8), dim=-1)
        )
        if codebook == "ema":
            quantizer.sums_KD.copy_(quantizer.rows / 16)
        for step in range(120):
            quantizer.progress.fill_(step / 120)
            quantizer(draw(64))
            quantizer.reseed_dead_codes()
        used = len(quantizer.ids(draw(256)).unique())
        assert used < 10 if few else used >= 12


def test_well_represented_features_get_no_more_codes() -> None:
    """Noise below reseed_error must not give the background a second code: tokens would flicker."""
    torch.manual_seed(0)
    cfg = dataclasses.replace(
        DEBUG.tokenizer, codes=16, code_dim=8, ema_decay=0.9, reseed_below=0.2, reseed_error=0.05
    )
    quantizer, draw = VectorQuantizer(cfg), clusters(3, 8)
    for step in range(120):
        quantizer.progress.fill_(step / 120)
        quantizer(draw(64))
    assert len(quantizer.ids(draw(512)).unique()) == 3


def test_quantiser_learns_the_same_from_the_same_random_state() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        quantizer = VectorQuantizer(DEBUG.tokenizer)
        draw = clusters(8, 8)
        for _ in range(20):
            quantizer(draw(32))
        states.append(quantizer.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_quantiser_is_cosine_straight_through_and_late(codebook: str) -> None:
    torch.manual_seed(0)
    cfg = dataclasses.replace(DEBUG.tokenizer, codebook=codebook, quantizer_start=0.5)
    quantizer = VectorQuantizer(cfg)
    x = torch.randn(40, 8, requires_grad=True)
    quantised, _, _ = quantizer(x)
    torch.testing.assert_close(quantised, F.normalize(x, dim=-1))  # not yet
    quantizer.progress.fill_(0.5)
    quantised, ids, losses = quantizer(x)
    torch.testing.assert_close(quantised.norm(dim=-1), torch.ones(40))
    assert torch.equal(ids, quantizer.ids(7 * x))
    assert ("codebook" in losses) == (codebook == "gradient")
    pull = torch.randn(40, 8)
    through = torch.autograd.grad(quantised, x, pull)[0]
    torch.testing.assert_close(through, torch.autograd.grad(F.normalize(x, dim=-1), x, pull)[0])


def test_static_token_fraction_separates_still_and_moving_patches() -> None:
    frames = torch.zeros(1, 2, 3, 8, 8)
    frames[0, 1, :, 0, 0] = 1.0
    tokens = torch.tensor([[[[1, 1], [1, 1]], [[5, 7], [7, 2]]]])
    assert static_token_fraction(tokens, frames) == {"static": pytest.approx(2 / 3), "moving": 0.0}


def test_ids_and_position_bias_are_computed_in_full_precision() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(preset("debug")).eval()
    features = torch.randn(500, tokenizer.cfg.tokenizer.code_dim)
    ids, bias = tokenizer.quantizer.ids(features), tokenizer.bias()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.quantizer.ids(features), ids)
        assert torch.equal(tokenizer.bias(), bias)
