"""MaskGIT sampling, generation with a KV cache, the reward query, saving and loading."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel import Dynamics, GenieReduxG, Tokenizer, WorldModelConfig, preset
from worldmodel.config import SamplingConfig
from worldmodel.models import world_model
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.maskgit import random_mask, sample
from worldmodel.models.world_model import normalised_entropy
from worldmodel.uncertainty import window_entropies

DEBUG = preset("debug")


def build(cfg: WorldModelConfig = DEBUG, seed: int = 0) -> GenieReduxG:
    """Return a model whose predictions depend on all of its inputs."""
    torch.manual_seed(seed)
    tokenizer, dynamics = Tokenizer(cfg), Dynamics(cfg)
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return GenieReduxG(tokenizer, dynamics).eval()


def clips(batch: int, frames: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(batch, frames, 3, 64, 64, generator=generator)
    return pixels, torch.randint(5, (batch, frames - 1), generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The sampler


@pytest.mark.parametrize("steps", [1, 2, 8, 25])
def test_each_pass_keeps_the_share_of_the_schedule_for_good(steps: int) -> None:
    tokens, codes, passes = 100, 7, []
    start = torch.full((3, tokens), codes)
    noise = seeded(1)
    output = sample(
        lambda now: torch.randn(3, tokens, codes, generator=noise),
        start,
        codes,
        steps=steps,
        generator=seeded(2),
        on_step=lambda logits, now: passes.append(now.clone()),
    )
    assert len(passes) == steps
    for step, now in enumerate(passes, 1):
        masked = math.floor(math.cos(math.pi / 2 * step / steps) * tokens) if step < steps else 0
        assert (now == codes).sum(1).tolist() == [masked] * 3
    for before, after in pairwise(passes):
        kept = before != codes
        assert torch.equal(before[kept], after[kept])
    assert torch.equal(passes[-1], output)
    assert (output < codes).all()


def test_the_most_confident_are_kept_and_the_last_pass_is_argmax() -> None:
    logits = torch.randn(1, 40, 6, generator=seeded(3)) * 3
    passes: list[Tensor] = []
    start = torch.full((1, 40), 6)
    output = sample(
        lambda now: logits,
        start,
        6,
        steps=4,
        temperature=0.0,
        on_step=lambda _, now: passes.append(now),
    )
    assert torch.equal(output, logits.argmax(-1))
    confidence = logits.log_softmax(-1).max(-1).values[0]
    kept = passes[0][0] != 6
    assert confidence[kept].min() >= confidence[~kept].max()
    noisy = sample(lambda now: logits, start, 6, steps=1, temperature=5.0, generator=seeded())
    assert torch.equal(noisy, output)


def test_known_tokens_of_a_partly_masked_start_stay() -> None:
    start = torch.tensor([[1, 9, 2, 9, 9, 9], [9, 0, 0, 0, 0, 3]])
    for steps in (1, 2, 5):
        output = sample(lambda now: torch.randn(2, 6, 9), start, 9, steps=steps)
        assert torch.equal(output[start != 9], start[start != 9])
        assert (output != 9).all()


def test_random_masks_have_the_given_share() -> None:
    mask = random_mask(torch.tensor([0.001, 0.25, 0.5, 1.0]), 64, seeded())
    assert mask.sum(-1).tolist() == [1, 16, 32, 64]


# Generation


def test_later_passes_depend_on_tokens_of_earlier_ones() -> None:
    model, (frames, actions) = build(), clips(2, 4)
    tokens = model.tokenizer.encode(frames[:, :2])
    conditions = model.dynamics.encode_actions(actions)
    with torch.no_grad():
        cache = model.prefill(tokens, conditions[:, :2], None)
        passes: list[Tensor] = []
        model.sample_frames(
            cache,
            conditions[:, 2:],
            steps=4,
            temperature=1.0,
            generator=seeded(),
            on_step=lambda logits, now: passes.append(logits),
        )
    for before, after in pairwise(passes):
        assert not torch.allclose(before, after)


@pytest.mark.parametrize("mode", ["one_pass", "autoregressive"])
@pytest.mark.parametrize("steps", [1, 3])
def test_generation_with_the_cache_equals_plain_recomputation(mode: str, steps: int) -> None:
    """Generate with `forward` on all frames in each pass and without a cache."""
    model, (frames, actions) = build(), clips(2, 7)
    together = 5 if mode == "one_pass" else 2
    tokens, noise = model.tokenizer.encode(frames[:, :2]), seeded(4)
    with torch.no_grad():
        while tokens.shape[1] < 7:
            given = tokens.shape[1]
            ahead = min(together, 7 - given)
            blank = torch.full((2, ahead, *tokens.shape[2:]), DEBUG.mask_id)

            def logits_of(now: Tensor, tokens: Tensor = tokens, blank: Tensor = blank) -> Tensor:
                whole = torch.cat([tokens, now.view_as(blank)], 1)
                logits = model.dynamics(whole, actions[:, : whole.shape[1] - 1])
                return logits[:, tokens.shape[1] :].flatten(1, 3)

            start = blank.flatten(1)
            chunk = sample(logits_of, start, DEBUG.mask_id, steps=steps, generator=noise)
            tokens = torch.cat([tokens, chunk.view_as(blank)], 1)
    sampling = SamplingConfig(steps, mode=mode)
    sampled = model.generate_tokens(frames[:, :2], actions, sampling, seeded(4))
    assert torch.equal(sampled, tokens)
    generated = model.generate(frames[:, :2], actions, steps=steps, mode=mode, generator=seeded(4))
    torch.testing.assert_close(generated, model.tokenizer.decode(tokens)[:, 2:])


@pytest.mark.parametrize(
    ("patch", "dim", "blocks", "given", "ahead"),
    [(8, 32, 2, 1, 7), (8, 64, 3, 6, 2), (16, 32, 1, 7, 1), (4, 32, 1, 2, 3)],
)
def test_logits_with_the_cache_are_those_of_recomputation(
    patch: int, dim: int, blocks: int, given: int, ahead: int
) -> None:
    """Prefill at once and frame by frame, at several sizes and lengths."""
    dynamics = replace(DEBUG.dynamics, dim=dim, blocks=blocks)
    cfg = replace(DEBUG, tokenizer=replace(DEBUG.tokenizer, patch=patch), dynamics=dynamics)
    model, (frames, actions) = build(cfg), clips(1, given + ahead)
    tokens = model.tokenizer.encode(frames)
    tokens[:, given:, ::2] = cfg.mask_id
    conditions = model.dynamics.encode_actions(actions)
    with torch.no_grad():
        expected = model.dynamics(tokens, actions)[:, given:]
        at_once = model.prefill(tokens[:, :given], conditions[:, :given], None)
        stepwise = None
        for t in range(given):
            stepwise = model.prefill(tokens[:, t : t + 1], conditions[:, t : t + 1], stepwise)
        for cache in (at_once, stepwise):
            hidden, _ = model.dynamics.forward_with_cache(
                tokens[:, given:], conditions[:, given:], cache
            )
            torch.testing.assert_close(model.dynamics.head(hidden), expected, atol=1e-4, rtol=0)


def test_generation_follows_its_seed() -> None:
    model, (frames, actions) = build(), clips(1, 6)
    one, two, other = (
        model.generate(frames[:, :2], actions, steps=4, generator=seeded(s)) for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == (1, 4, 3, 64, 64)
    assert one.min() >= 0
    assert one.max() <= 1


@pytest.mark.parametrize("mode", ["one_pass", "autoregressive"])
@pytest.mark.parametrize("given", [1, 2, 20])
def test_generation_continues_beyond_the_window(mode: str, given: int) -> None:
    model, (frames, _) = build(), clips(1, given)
    actions = torch.randint(5, (1, given + 29), generator=seeded())
    output = model.generate(frames, actions, steps=1, mode=mode)
    assert output.shape == (1, 30, 3, 64, 64)
    shorter = model.generate(frames, actions[:, : given + 9], steps=1, mode=mode)
    if mode == "autoregressive":
        torch.testing.assert_close(output[:, :10], shorter)


# The reward query


@pytest.mark.parametrize("context", [1, 2, 4])
def test_entropy_of_one_pass_equals_the_plain_calculation(context: int) -> None:
    model, (frames, actions) = build(), clips(3, 5)
    tokens = model.tokenizer.encode(frames)
    tokens[:, context:] = DEBUG.mask_id
    with torch.no_grad():
        p = model.dynamics(tokens, actions)[:, -1].double().softmax(-1)
    expected = -(p * p.log()).sum(-1).flatten(1) / math.log(DEBUG.tokenizer.codes)
    output = model.token_entropy(frames, actions, context=context)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    # Frames after the context are not used and need not be given.
    other = frames.clone()
    other[:, context:] = 0
    assert torch.equal(model.token_entropy(other, actions, context=context), output)
    assert torch.equal(model.future_token_entropy(frames[:, :context], actions), output)
    with pytest.raises(InputError, match="given frames <= actions"):
        model.future_token_entropy(frames, actions)


def test_the_query_returns_the_hidden_states_behind_the_entropies() -> None:
    model, (frames, actions) = build(), clips(3, 5)
    hidden = model.query_hidden(frames[:, :2], actions)
    assert hidden.shape == (3, DEBUG.grid**2, DEBUG.dynamics.dim)
    assert not hidden.requires_grad
    entropy = normalised_entropy(model.dynamics.head(hidden))
    assert torch.equal(entropy, model.token_entropy(frames, actions))


def test_entropy_is_in_range_batched_and_refined() -> None:
    model, (frames, actions) = build(), clips(35, 5)
    once, thrice = (model.token_entropy(frames, actions, steps=steps) for steps in (1, 3))
    assert once.shape == thrice.shape == (35, 64)
    assert once.dtype == torch.float32
    for output in (once, thrice):
        assert output.min() >= 0
        assert output.max() <= 1
    assert not torch.allclose(once, thrice)
    torch.testing.assert_close(
        model.token_entropy(frames[33:], actions[33:]), once[33:], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_one_number_decides_how_many_windows_a_pass_takes(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (frames, actions) = build(), clips(10, 5)
    sizes: list[int] = []
    prefill = model.prefill
    monkeypatch.setattr(
        model, "prefill", lambda tokens, *rest: sizes.append(len(tokens)) or prefill(tokens, *rest)
    )
    windows = (frames * 255).byte().movedim(2, -1).numpy(), actions.numpy()
    for batch, expected in ((0, [4, 4, 2]), (3, [3, 3, 3, 1]), (64, [10])):
        sizes.clear()
        window_entropies(model, *windows, steps=steps, batch=batch)
        model.token_entropy(frames, actions, steps=steps, batch=batch)
        assert sizes == 2 * expected
    monkeypatch.setattr(type(model), "query_batch", world_model.QUERY_BATCH_GPU)
    sizes.clear()
    window_entropies(model, *(np.repeat(part, 20, axis=0) for part in windows))
    assert sizes == [128, 72]


def test_entropy_is_one_for_a_flat_and_zero_for_a_certain_prediction() -> None:
    certain = torch.full((2, 9), -1e4)
    certain[:, 3] = 1e4
    assert normalised_entropy(torch.zeros(2, 9)).tolist() == pytest.approx([1.0, 1.0])
    assert normalised_entropy(certain).tolist() == [0.0, 0.0]


# Saving


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model, (frames, actions) = build(), clips(1, 5)
    use_cpu_kernels(model)  # as loading does
    model.save(tmp_path / "model")
    loaded = GenieReduxG.load(tmp_path / "model")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "dynamics.safetensors",
        "manifest.json",
        "tokenizer.safetensors",
    ]
    assert torch.equal(loaded.token_entropy(frames, actions), model.token_entropy(frames, actions))
    output = [
        m.generate(frames[:, :2], actions, steps=2, generator=seeded()) for m in (model, loaded)
    ]
    assert torch.equal(*output)
    assert not loaded.training


def test_loading_refuses_damaged_files_and_other_architectures(tmp_path: Path) -> None:
    path = tmp_path / "model"
    build().save(path)
    manifest = json.loads((path / "manifest.json").read_text())

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            GenieReduxG.load(path)

    for change in ({"dim": 48}, {"blocks": 3}):
        other = json.loads(json.dumps(manifest))
        other["config"]["dynamics"] |= change
        (path / "manifest.json").write_text(json.dumps(other))
        refused("weights of another architecture")
    for plain, message in (
        ({}, "not a saved model of this version"),
        ({**manifest, "config": None}, "configuration: expected an object for the model"),
        ({**manifest, "model": "Other"}, "holds a Other, not a GenieReduxG"),
    ):
        (path / "manifest.json").write_text(json.dumps(plain))
        refused(message)
    (path / "manifest.json").write_text(json.dumps(manifest))
    weights = bytearray((path / "tokenizer.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "tokenizer.safetensors").write_bytes(weights)
    refused("differs from its sha256")
    (path / "tokenizer.safetensors").unlink()
    refused("is missing")
    with pytest.raises(InputError, match="holds no saved model"):
        GenieReduxG.load(tmp_path / "nothing")


def test_another_tokenizer_than_that_of_training_is_refused() -> None:
    torch.manual_seed(0)
    one, other, dynamics = Tokenizer(DEBUG), Tokenizer(DEBUG), Dynamics(DEBUG)
    dynamics.set_codebook(one.codebook)
    GenieReduxG(one, dynamics)
    with pytest.raises(
        InputError, match="not the tokenizer that the dynamics was trained with: expected"
    ):
        GenieReduxG(other, dynamics)
    wider = Tokenizer(replace(DEBUG, tokenizer=replace(DEBUG.tokenizer, dim=64)))
    with pytest.raises(InputError, match="different configurations"):
        GenieReduxG(wider, dynamics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions_BA": torch.zeros(1, 1).long()}, "2 frames are given"),
        ({"actions_BA": torch.full((1, 4), 7)}, r"expected integers in \[0, 4\], got 7 to 7"),
        ({"actions_BA": torch.zeros(2, 4).long()}, r"expected shape \(1, 4\), got \(2, 4\)"),
        ({"actions_BA": torch.zeros(1, 4)}, r"expected integers in \[0, 4\], got torch.float32"),
        ({"frames_BPCHW": torch.zeros(1, 2, 3, 64, 64).byte()}, "got torch.uint8"),
        (
            {"frames_BPCHW": torch.zeros(1, 2, 3, 64, 32)},
            r"expected shape \(B, T, 3, 64, 64\), got \(1, 2, 3, 64, 32\)",
        ),
        (
            {"frames_BPCHW": torch.full((1, 2, 3, 64, 64), 255.0)},
            r"expected values in \[0, 1\], got 255 to 255",
        ),
        (
            {"frames_BPCHW": torch.full((1, 2, 3, 64, 64), torch.nan)},
            r"expected values in \[0, 1\], got nan",
        ),
        ({"mode": "diffusion"}, "one_pass or autoregressive"),
        ({"steps": 0}, "1 pass or more"),
        ({"temperature": -1.0}, "expected 0 or more"),
    ],
)
def test_bad_input_of_generate_is_named(changes: dict[str, object], message: str) -> None:
    arguments = {
        "frames_BPCHW": torch.zeros(1, 2, 3, 64, 64),
        "actions_BA": torch.zeros(1, 4).long(),
        **changes,
    }
    with pytest.raises(InputError, match=message):
        build().generate(**arguments)  # type: ignore[arg-type]


def test_bad_input_of_the_reward_query_is_named() -> None:
    model, (frames, actions) = build(), clips(1, 5)
    with pytest.raises(InputError, match="1 <= given frames <= actions < 8, got 5 and 4"):
        model.token_entropy(frames, actions, context=5)
    with pytest.raises(InputError, match=r"expected shape \(1, 4\), got \(1, 3\)"):
        model.token_entropy(frames, actions[:, 1:])
    long, more = clips(1, 9)
    with pytest.raises(InputError, match="got 2 and 8"):
        model.token_entropy(long, more)


def test_a_mask_has_no_code_and_codes_reach_the_input() -> None:
    """Token input skip: the projected code vector is added, except for the mask."""
    dynamics = build().dynamics
    assert dynamics.code_proj is not None
    tokens = torch.arange(64).view(1, 1, 8, 8)
    with torch.no_grad():
        output = dynamics.embed(tokens).flatten(0, 3)
        expected = dynamics.embedding.weight[:64] + F.linear(
            dynamics.codebook, dynamics.code_proj.weight
        )
        torch.testing.assert_close(output, expected)
        masked = dynamics.embed(torch.full((1, 1, 1, 1), 64)).flatten()
    torch.testing.assert_close(masked, dynamics.embedding.weight[64])


def test_a_model_with_damaged_weights_generates_nothing() -> None:
    model, frames, actions = build(), torch.rand(2, 2, 3, 64, 64), torch.zeros(2, 4).long()
    torch.nn.init.constant_(model.dynamics.head.weight, math.nan)
    with pytest.raises(InputError, match="predicts NaN or infinity"):
        model.generate(frames, actions, steps=2)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_integers_of_any_type_are_actions_and_tokens(dtype: torch.dtype) -> None:
    model, frames = build(), torch.rand(2, 2, 3, 64, 64)
    actions = torch.randint(5, (2, 4))
    wanted = model.generate(frames, actions, steps=1)
    assert torch.equal(model.generate(frames, actions.to(dtype), steps=1), wanted)
    tokens = model.tokenizer.encode(frames) % 200
    assert torch.equal(model.tokenizer.decode(tokens.to(dtype)), model.tokenizer.decode(tokens))
    logits = model.dynamics(tokens, actions[:, :1])
    assert torch.equal(model.dynamics(tokens.to(dtype), actions[:, :1].to(dtype)), logits)


def test_a_model_in_half_precision_generates_and_is_uncertain() -> None:
    model, frames, actions = build(), torch.rand(2, 2, 3, 64, 64), torch.zeros(2, 4).long()
    entropy = model.token_entropy(torch.cat([frames, frames[:, :1]], 1), actions[:, :2])
    half = model.bfloat16()
    assert half.generate(frames, actions, steps=2).dtype == torch.float32
    found = half.token_entropy(torch.cat([frames, frames[:, :1]], 1), actions[:, :2])
    torch.testing.assert_close(found, entropy, atol=0.05, rtol=0)
