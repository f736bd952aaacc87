"""Tokenizer and dynamics: formulas, causality, alignment of actions and frames, objectives.

Frames and tokens are random: except where a test trains, the results do not depend on training.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel import Dynamics, Tokenizer, WorldModelConfig, preset
from worldmodel.models.frame_order import CleanNoisyLayout, FrameOrder
from worldmodel.models.position_encoding import PEG, PositionBias
from worldmodel.models.transformer import STTransformer

DEBUG = preset("debug")


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def random_dynamics(cfg: WorldModelConfig = DEBUG, seed: int = 0) -> Dynamics:
    """Return a dynamics model whose outputs depend on all inputs; new weights are too small."""
    torch.manual_seed(seed)
    dynamics = Dynamics(cfg).eval()
    dynamics.set_codebook(
        F.normalize(torch.randn(cfg.tokenizer.codes, cfg.tokenizer.code_dim), dim=-1)
    )
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return dynamics


def random_tokens(cfg: WorldModelConfig, batch: int, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        cfg.tokenizer.codes, (batch, frames, cfg.grid, cfg.grid), generator=generator
    )


def random_actions(batch: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(5, (batch, count), generator=torch.Generator().manual_seed(seed))


# Sizes


def test_paper_has_the_papers_sizes() -> None:
    with torch.device("meta"):
        tokenizer, dynamics = Tokenizer(preset("paper")), Dynamics(preset("paper"))
    assert count(tokenizer) == 101_563_208  # 101.6 M
    assert count(dynamics) == 80_355_336
    assert count(tokenizer.bias) == 268_296


def test_config_survives_plain_data() -> None:
    for name in ("debug", "cpu", "gpu", "paper"):
        assert WorldModelConfig.from_dict(preset(name).to_dict()) == preset(name)
        assert "action_names" not in preset(name).to_dict(), "only where they were chosen"
    chosen = replace(preset("debug"), actions=2, action_names=("right", "jump+right"))
    assert WorldModelConfig.from_dict(chosen.to_dict()) == chosen
    with pytest.raises(InputError, match="2 names for 5 actions"):
        replace(chosen, actions=5)
    plain = preset("debug").to_dict()
    plain["tokenizer"]["colour"] = 1
    with pytest.raises(InputError, match=r"tokenizer\.colour is unknown"):
        WorldModelConfig.from_dict(plain)
    with pytest.raises(InputError, match="choose gradient or ema"):
        replace(DEBUG, tokenizer=replace(DEBUG.tokenizer, codebook="magic"))
    with pytest.raises(InputError, match="debug, cpu, gpu, paper"):
        preset("huge")


# Formulas


@pytest.mark.parametrize("past", [0, 1, 2])
def test_position_generator_is_a_causal_convolution(past: int) -> None:
    torch.manual_seed(0)
    peg = PEG(6).double()
    x = torch.randn(2, 5, 4, 4, 6, dtype=torch.double, requires_grad=True)
    volume = F.pad(x.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
    expected = F.conv3d(volume, peg.weight, groups=6).permute(0, 2, 3, 4, 1)
    if past:
        tail = F.pad(x[:, :past], (0, 0, 0, 0, 0, 0, 2 - past, 0))
        torch.testing.assert_close(
            peg(x[:, past:], FrameOrder.consecutive(5 - past, past), tail), expected[:, past:]
        )
        return
    output = peg(x, FrameOrder.consecutive(5), None)
    torch.testing.assert_close(output, expected)
    pull = torch.randn_like(output)
    for one, other in zip(
        torch.autograd.grad(output, (x, peg.weight), pull),
        torch.autograd.grad(expected, (x, peg.weight), pull),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_position_generator_is_the_same_for_consecutive_frames_that_are_named(frames: int) -> None:
    peg = PEG(6).double()
    x = torch.randn(2, frames, 4, 4, 6, dtype=torch.double, requires_grad=True)
    consecutive = FrameOrder.consecutive(frames)
    own = torch.arange(frames)
    named = replace(consecutive, previous_2F=torch.stack([own - 2, own - 1]).clamp_min(-1))
    outputs = [peg(x, order) for order in (consecutive, named)]
    torch.testing.assert_close(*outputs)
    pull = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(output, (x, peg.weight), pull) for output in outputs]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_position_bias_is_the_mlp_at_each_offset() -> None:
    bias = PositionBias(4, 8, 3)
    output = bias()
    assert bias.offsets.shape == (49, 2)
    for i in range(16):
        for j in range(16):
            offset = torch.tensor([i // 4 - j // 4, i % 4 - j % 4]).float()
            expected = bias.layers(offset.sign() * (1 + offset.abs()).log())
            torch.testing.assert_close(output[:, i, j], expected)


def test_alibi_and_mask_of_a_clip() -> None:
    slopes = 2.0 ** -torch.arange(1, 9)
    bias = FrameOrder.consecutive(3, cached=2).alibi_bias(slopes)
    assert bias.shape == (8, 3, 5)
    assert bias[0, 0].tolist() == [-1.0, -0.5, 0.0, -torch.inf, -torch.inf]
    assert bias[7, 2].tolist() == [-4 / 256, -3 / 256, -2 / 256, -1 / 256, 0.0]


# Causality


@pytest.mark.parametrize("temporal_first", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_transformer_sees_no_later_frame(temporal_first: bool, precision: torch.dtype) -> None:
    torch.manual_seed(1)
    stack = STTransformer(32, 2, 16, 2, temporal_first=temporal_first)
    x, bias = torch.randn(2, 6, 4, 4, 32), torch.randn(2, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        whole, _ = stack(x, bias)
        for t in range(1, 6):
            changed = x.clone()
            changed[:, t] = torch.randn(2, 4, 4, 32)
            output, _ = stack(changed, bias)
            assert torch.equal(output[:, :t], whole[:, :t])
            assert not torch.isclose(output[:, t:], whole[:, t:]).all()


def test_no_part_of_the_model_sees_a_later_frame() -> None:
    torch.manual_seed(2)
    tokenizer, dynamics = Tokenizer(DEBUG).eval(), random_dynamics()
    frames, tokens = torch.rand(2, 6, 3, 64, 64), random_tokens(DEBUG, 2, 6)
    actions = random_actions(2, 5)
    later = frames.clone()
    later[:, 3] = torch.rand(2, 3, 64, 64)
    other = tokens.clone()
    other[:, 3] = random_tokens(DEBUG, 2, 1, seed=1)[:, 0]
    with torch.no_grad():
        pairs = (
            (tokenizer.encode_features(frames)[0], tokenizer.encode_features(later)[0]),
            (tokenizer.decode(tokens), tokenizer.decode(other)),
            (dynamics(tokens, actions), dynamics(other, actions)),
        )
    for one, two in pairs:
        assert torch.equal(one[:, :3], two[:, :3])
        for t in (3, 4, 5):
            assert not torch.equal(one[:, t], two[:, t])


# Actions


def test_an_action_changes_the_next_frame_and_no_earlier_one() -> None:
    dynamics, tokens = random_dynamics(), random_tokens(DEBUG, 1, 5)
    actions = torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad():
        whole = dynamics(tokens, actions)
        for t in range(4):
            changed = actions.clone()
            changed[0, t] = 3
            output = dynamics(tokens, changed)
            assert torch.equal(output[:, : t + 1], whole[:, : t + 1])
            assert not torch.equal(output[:, t + 1], whole[:, t + 1])


def test_dynamics_learns_which_action_led_to_a_frame() -> None:
    """All tokens of a frame show the action before it: a shift by one could not be learnt."""
    torch.manual_seed(0)
    cfg = replace(DEBUG, tokenizer=replace(DEBUG.tokenizer, patch=16))
    dynamics = Dynamics(cfg)
    dynamics.set_codebook(F.normalize(torch.randn(64, 8), dim=-1))
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=1e-2)
    for _ in range(60):
        actions = torch.randint(5, (4, 5))
        shown = F.pad(actions + 1, (1, 0))[:, :, None, None].expand(4, 6, 4, 4)
        dynamics.loss(shown, actions)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    actions = random_actions(4, 5, seed=9)
    blind = torch.full((4, 6, 4, 4), cfg.mask_id)
    blind[:, 0] = 0
    output = dynamics(blind, actions).argmax(-1)
    assert (output[:, 1:] == (actions + 1)[:, :, None, None]).float().mean() > 0.95


# Cache


def random_stack(cfg: tuple[int, int, int, int], seed: int = 0) -> STTransformer:
    torch.manual_seed(seed)
    stack = STTransformer(*cfg, action_width=5).eval()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return stack


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [((32, 2, 16, 2), (1, 2, 5)), ((64, 4, 16, 3), (3, 4, 9)), ((24, 3, 8, 1), (2,))],
)
def test_frames_after_a_cache_equal_those_of_the_whole_clip(
    shape: tuple[int, int, int, int], cuts: tuple[int, ...]
) -> None:
    stack = random_stack(shape)
    x, bias = torch.randn(2, 11, 4, 4, shape[0]), torch.randn(shape[1], 16, 16)
    condition = torch.randn(2, 11, 5)
    with torch.no_grad():
        whole, _ = stack(x, bias, actions_BFA=condition)
        cache, parts = None, []
        for start, end in pairwise((0, *cuts, 11)):
            part, cache = stack(
                x[:, start:end], bias, actions_BFA=condition[:, start:end], cache=cache
            )
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("starts", [[1, 2, 3, 4, 5], [1, 3, 5], [1], [1, 2, 5]])
def test_training_with_a_clean_past_computes_what_sampling_computes(starts: list[int]) -> None:
    """Compare the logits of masked frames in training with those of chunks after a cache."""
    cfg = replace(DEBUG, tokenizer=replace(DEBUG.tokenizer, temporal=False))
    dynamics, tokens, actions = random_dynamics(cfg), random_tokens(cfg, 2, 6), random_actions(2, 5)
    masked = tokens[:, 1:].masked_fill(torch.rand(2, 5, cfg.grid, cfg.grid) < 0.6, cfg.mask_id)
    encoded = dynamics.encode_actions(actions)
    layout = CleanNoisyLayout.of(starts, 6, tokens.device)
    with torch.no_grad():
        both, _ = dynamics.forward_with_cache(
            torch.cat([tokens[:, :-1], masked], 1),
            encoded[:, layout.frame_idx_F],
            None,
            layout.order,
        )
        trained, done, cache = dynamics.head(both[:, 5:]), 0, None
        for start, end in pairwise([*starts, 6]):
            _, cache = dynamics.forward_with_cache(
                tokens[:, done:start], encoded[:, done:start], cache
            )
            done = start
            sampled, _ = dynamics.forward_with_cache(
                masked[:, start - 1 : end - 1], encoded[:, start:end], cache
            )
            torch.testing.assert_close(
                trained[:, start - 1 : end - 1], dynamics.head(sampled), atol=1e-4, rtol=1e-4
            )


def test_long_clips_are_tokenised_through_a_window() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(DEBUG).eval()
    frames = torch.rand(1, 2 * DEBUG.frames + 3, 3, 64, 64)
    with torch.no_grad():
        tokens = tokenizer.encode(frames)
        assert tokens.shape == (1, frames.shape[1], DEBUG.grid, DEBUG.grid)
        assert torch.equal(tokens[:, :4], tokenizer.encode(frames[:, :4]))
        assert tokenizer.decode(tokens).shape == frames.shape


# Objectives


@pytest.mark.parametrize("objective", ["masked", "masked_frames", "clean_past"])
def test_objectives_train_only_later_frames_and_follow_the_generator(objective: str) -> None:
    cfg = replace(DEBUG, dynamics=replace(DEBUG.dynamics, objective=objective))
    dynamics, tokens, actions = random_dynamics(cfg), random_tokens(cfg, 2, 5), random_actions(2, 4)
    one, two, other = (
        dynamics.loss(tokens, actions, generator=torch.Generator().manual_seed(seed))["loss"].item()
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_masked_frames_draws_a_mask_ratio_for_each_frame() -> None:
    spread = {}
    for objective in ("masked", "masked_frames"):
        cfg = replace(DEBUG, dynamics=replace(DEBUG.dynamics, objective=objective))
        tokens, actions = random_tokens(cfg, 64, 5), random_actions(64, 4)
        generator = torch.Generator().manual_seed(0)
        _, _, mask = random_dynamics(cfg)._masked_pass(tokens, actions, generator)
        shares_BT = mask.flatten(2).float().mean(-1)
        spread[objective] = shares_BT.std(1).mean().item()
        assert shares_BT.mean().item() == pytest.approx(2 / torch.pi, abs=0.06)
    # With one ratio for a clip its frames differ by chance only; separate ratios spread as
    # cos(pi/2 u), by 0.31.
    assert spread["masked"] < 0.08
    assert spread["masked_frames"] > 0.2


def test_masks_follow_the_cosine_schedule_and_chunks_cover_all_later_frames() -> None:
    cfg = replace(DEBUG, dynamics=replace(DEBUG.dynamics, chunk_lengths=(1, 2, 0), all_masked=0.3))
    dynamics, generator = Dynamics(cfg), torch.Generator().manual_seed(0)
    later, lengths, shares = random_tokens(cfg, 8, 6), set(), []
    for _ in range(200):
        mask, starts = dynamics.sample_chunks(later, generator)
        assert starts[0] == 1
        assert starts == sorted(set(starts))
        lengths |= {end - start for start, end in pairwise([*starts, 7])}
        assert mask.shape == later.shape
        shares += (
            mask[:, : (starts[1] if len(starts) > 1 else 7) - 1].flatten(1).float().mean(1).tolist()
        )
    assert {1, 2, 6} <= lengths
    assert min(shares) > 0
    # The mean of cos(pi/2 u) is 2/pi; 0.3 of the chunks are masked altogether.
    assert sum(shares) / len(shares) == pytest.approx(0.3 + 0.7 * 2 / torch.pi, abs=0.02)
    assert sum(share == 1 for share in shares) / len(shares) > 0.25


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t, d: t.encode(torch.rand(1, 2, 3, 32, 64)),
            r"expected shape \(B, T, 3, 64, 64\), got \(1, 2, 3, 32, 64\)",
        ),
        (lambda t, d: t.encode(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)), "got torch.uint8"),
        (
            lambda t, d: t(torch.full((1, 2, 3, 64, 64), 200.0)),
            r"expected values in \[0, 1\], got 200 to 200",
        ),
        (lambda t, d: t(torch.full((1, 2, 3, 64, 64), torch.nan)), r"expected values in \[0, 1\]"),
        (
            lambda t, d: t.decode(torch.full((1, 2, 8, 8), 64)),
            r"expected integers in \[0, 63\], got 64 to 64",
        ),
        (
            lambda t, d: d(torch.zeros(1, 3, 8, 8).long(), torch.zeros(1, 3).long()),
            r"expected shape \(1, 2\), got \(1, 3\)",
        ),
        (
            lambda t, d: d(torch.zeros(1, 2, 8, 8).long(), torch.tensor([[5]])),
            r"actions: expected integers in \[0, 4\], got 5",
        ),
        (
            lambda t, d: d(torch.zeros(1, 2, 8, 8), torch.tensor([[1]])),
            r"tokens: expected integers in \[0, 64\]",
        ),
        (
            lambda t, d: d.loss(torch.zeros(1, 1, 8, 8).long(), torch.zeros(1, 0).long()),
            "2 frames or more",
        ),
        (
            lambda t, d: Dynamics(DEBUG).loss(torch.zeros(1, 2, 8, 8).long(), torch.tensor([[1]])),
            "no codebook",
        ),
        (lambda t, d: d.set_codebook(torch.zeros(3, 3)), r"expected shape \(64, 8\), got \(3, 3\)"),
    ],
)
def test_bad_input_is_named(call: Callable[[Tokenizer, Dynamics], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(Tokenizer(DEBUG), random_dynamics())
