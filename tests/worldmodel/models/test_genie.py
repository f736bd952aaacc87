"""Sampling, generation with a past, the reward query, and saving: what MaskGIT promises, and what
loading refuses.
"""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from envs.utils.errors import InputError
from worldmodel import Dynamics, GenieReduxG, Tokenizer, WorldModelConfig, preset
from worldmodel.config import SamplingConfig
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.maskgit import random_mask, sample
from worldmodel.models.world_model import normalised_entropy

DEBUG = preset("debug")


def build(cfg: WorldModelConfig = DEBUG, seed: int = 0) -> GenieReduxG:
    """A model whose predictions depend on everything that it is given."""
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
def test_each_pass_keeps_the_schedules_share_and_what_is_kept_never_changes(steps: int) -> None:
    tokens, codes, seen = 100, 7, []
    start = torch.full((3, tokens), codes)
    noise = seeded(1)
    made = sample(
        lambda now: torch.randn(3, tokens, codes, generator=noise),
        start,
        codes,
        steps=steps,
        generator=seeded(2),
        on_step=lambda logits, now: seen.append(now.clone()),
    )
    assert len(seen) == steps
    for step, now in enumerate(seen, 1):
        masked = math.floor(math.cos(math.pi / 2 * step / steps) * tokens) if step < steps else 0
        assert (now == codes).sum(1).tolist() == [masked] * 3
    for before, after in pairwise(seen):
        kept = before != codes
        assert torch.equal(before[kept], after[kept])
    assert torch.equal(seen[-1], made)
    assert (made < codes).all()


def test_the_most_confident_are_kept_and_the_last_pass_is_argmax() -> None:
    logits = torch.randn(1, 40, 6, generator=seeded(3)) * 3
    seen: list[Tensor] = []
    start = torch.full((1, 40), 6)
    made = sample(
        lambda now: logits,
        start,
        6,
        steps=4,
        temperature=0.0,
        on_step=lambda _, now: seen.append(now),
    )
    assert torch.equal(made, logits.argmax(-1))
    confidence = logits.log_softmax(-1).max(-1).values[0]
    kept = seen[0][0] != 6
    assert confidence[kept].min() >= confidence[~kept].max()
    noisy = sample(lambda now: logits, start, 6, steps=1, temperature=5.0, generator=seeded())
    assert torch.equal(noisy, made)


def test_known_tokens_of_a_partly_masked_start_stay() -> None:
    start = torch.tensor([[1, 9, 2, 9, 9, 9], [9, 0, 0, 0, 0, 3]])
    for steps in (1, 2, 5):
        made = sample(lambda now: torch.randn(2, 6, 9), start, 9, steps=steps)
        assert torch.equal(made[start != 9], start[start != 9])
        assert (made != 9).all()


def test_random_masks_have_the_asked_share() -> None:
    mask = random_mask(torch.tensor([0.001, 0.25, 0.5, 1.0]), 64, seeded())
    assert mask.sum(-1).tolist() == [1, 16, 32, 64]


# Generation


def test_later_passes_refine_what_earlier_ones_began() -> None:
    """A frame's own tokens are an input, so that a second pass predicts from what the first one
    kept.
    """
    model, (frames, actions) = build(), clips(2, 4)
    tokens = model.tokenizer.encode(frames[:, :2])
    conditions = model.dynamics.encode_actions(actions)
    with torch.no_grad():
        past = model.prefill(tokens, conditions[:, :2], None)
        seen: list[Tensor] = []
        model.sample_frames(
            past,
            conditions[:, 2:],
            steps=4,
            temperature=1.0,
            generator=seeded(),
            on_step=lambda logits, now: seen.append(logits),
        )
    for before, after in pairwise(seen):
        assert not torch.allclose(before, after)


@pytest.mark.parametrize("mode", ["one_pass", "autoregressive"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_past_gives_what_plain_recomputation_gives(mode: str, steps: int) -> None:
    """Generation again, from `forward` on all frames at each pass and nothing kept."""
    model, (frames, actions) = build(), clips(2, 7)
    together = 5 if mode == "one_pass" else 2
    tokens, noise = model.tokenizer.encode(frames[:, :2]), seeded(4)
    with torch.no_grad():
        while tokens.shape[1] < 7:
            given = tokens.shape[1]
            ahead = min(together, 7 - given)
            blank = torch.full((2, ahead, *tokens.shape[2:]), DEBUG.mask_id)

            def logits_of(
                now: Tensor, tokens: Tensor = tokens, ahead: int = ahead, given: int = given
            ) -> Tensor:
                whole = torch.cat([tokens, now.view(2, ahead, *tokens.shape[2:])], 1)
                return model.dynamics(whole, actions[:, : given + ahead - 1])[:, given:].flatten(
                    1, 3
                )

            made = sample(logits_of, blank.flatten(1), DEBUG.mask_id, steps=steps, generator=noise)
            tokens = torch.cat([tokens, made.view_as(blank)], 1)
    sampling = SamplingConfig(steps, mode=mode)
    sampled = model.generate_tokens(frames[:, :2], actions, sampling, seeded(4))
    assert torch.equal(sampled, tokens)
    pictures = model.generate(frames[:, :2], actions, steps=steps, mode=mode, generator=seeded(4))
    torch.testing.assert_close(pictures, model.tokenizer.decode(tokens)[:, 2:])


@pytest.mark.parametrize(
    ("patch", "dim", "blocks", "given", "ahead"),
    [(8, 32, 2, 1, 7), (8, 64, 3, 6, 2), (16, 32, 1, 7, 1), (4, 32, 1, 2, 3)],
)
def test_logits_with_the_past_are_those_of_recomputation(
    patch: int, dim: int, blocks: int, given: int, ahead: int
) -> None:
    """At several sizes and lengths, the past taken in at once and frame by frame."""
    dynamics = replace(DEBUG.dynamics, dim=dim, blocks=blocks)
    cfg = replace(DEBUG, tokenizer=replace(DEBUG.tokenizer, patch=patch), dynamics=dynamics)
    model, (frames, actions) = build(cfg), clips(1, given + ahead)
    tokens = model.tokenizer.encode(frames)
    tokens[:, given:, ::2] = cfg.mask_id
    conditions = model.dynamics.encode_actions(actions)
    with torch.no_grad():
        wanted = model.dynamics(tokens, actions)[:, given:]
        at_once = model.prefill(tokens[:, :given], conditions[:, :given], None)
        one_by_one = None
        for t in range(given):
            one_by_one = model.prefill(tokens[:, t : t + 1], conditions[:, t : t + 1], one_by_one)
        for past in (at_once, one_by_one):
            hidden, _ = model.dynamics.forward_with_cache(
                tokens[:, given:], conditions[:, given:], past
            )
            torch.testing.assert_close(model.dynamics.head(hidden), wanted, atol=1e-4, rtol=0)


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
def test_generation_goes_on_past_the_window(mode: str, given: int) -> None:
    model, (frames, _) = build(), clips(1, given)
    actions = torch.randint(5, (1, given + 29), generator=seeded())
    made = model.generate(frames, actions, steps=1, mode=mode)
    assert made.shape == (1, 30, 3, 64, 64)
    shorter = model.generate(frames, actions[:, : given + 9], steps=1, mode=mode)
    if mode == "autoregressive":
        torch.testing.assert_close(made[:, :10], shorter)


# The reward query


@pytest.mark.parametrize("context", [1, 2, 4])
def test_entropy_of_one_pass_equals_the_plain_calculation(context: int) -> None:
    model, (frames, actions) = build(), clips(3, 5)
    tokens = model.tokenizer.encode(frames)
    tokens[:, context:] = DEBUG.mask_id
    with torch.no_grad():
        p = model.dynamics(tokens, actions)[:, -1].double().softmax(-1)
    wanted = -(p * p.log()).sum(-1).flatten(1) / math.log(DEBUG.tokenizer.codes)
    made = model.token_entropy(frames, actions, context=context)
    torch.testing.assert_close(made.double(), wanted, atol=1e-5, rtol=1e-5)
    # Frames after the context are not looked at, and need not be given.
    other = frames.clone()
    other[:, context:] = 0
    assert torch.equal(model.token_entropy(other, actions, context=context), made)
    assert torch.equal(model.future_token_entropy(frames[:, :context], actions), made)
    with pytest.raises(InputError, match="given frames <= actions"):
        model.future_token_entropy(frames, actions)


def test_the_query_gives_the_hidden_states_that_entropies_are_read_from() -> None:
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
    for made in (once, thrice):
        assert made.min() >= 0
        assert made.max() <= 1
    assert not torch.allclose(once, thrice)
    torch.testing.assert_close(
        model.token_entropy(frames[33:], actions[33:]), once[33:], atol=1e-5, rtol=1e-5
    )


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
    made = [
        m.generate(frames[:, :2], actions, steps=2, generator=seeded()) for m in (model, loaded)
    ]
    assert torch.equal(*made)
    assert not loaded.training


def test_loading_refuses_what_is_damaged_or_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "model"
    build().save(path)
    manifest = json.loads((path / "manifest.json").read_text())

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            GenieReduxG.load(path)

    other = json.loads(json.dumps(manifest))
    other["config"]["dynamics"]["dim"] = 48
    (path / "manifest.json").write_text(json.dumps(other))
    refused("weights of another architecture")
    other = json.loads(json.dumps(manifest))
    other["config"]["dynamics"]["blocks"] = 3
    (path / "manifest.json").write_text(json.dumps(other))
    refused("weights of another architecture")
    (path / "manifest.json").write_text("{}")
    refused("not a saved model of this version")
    (path / "manifest.json").write_text(json.dumps(manifest))
    weights = bytearray((path / "tokenizer.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "tokenizer.safetensors").write_bytes(weights)
    refused("differs from its sha256")
    (path / "tokenizer.safetensors").unlink()
    refused("is missing")
    with pytest.raises(InputError, match="holds no saved model"):
        GenieReduxG.load(tmp_path / "nothing")


def test_a_tokenizer_that_the_dynamics_was_not_trained_with_is_refused() -> None:
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
    with pytest.raises(InputError, match="1 <= context < frames <= 8, got 5 and 5"):
        model.token_entropy(frames, actions, context=5)
    with pytest.raises(InputError, match=r"expected shape \(1, 4\), got \(1, 3\)"):
        model.token_entropy(frames, actions[:, 1:])
    long, more = clips(1, 9)
    with pytest.raises(InputError, match="got 2 and 9"):
        model.token_entropy(long, more)


def test_a_mask_has_no_code_and_codes_reach_the_input() -> None:
    """Token input skip: the projection of the code's vector is added, and zero where masked."""
    dynamics = build().dynamics
    assert dynamics.code_proj is not None
    tokens = torch.arange(64).view(1, 1, 8, 8)
    with torch.no_grad():
        made = dynamics.embed(tokens).flatten(0, 3)
        wanted = dynamics.embedding.weight[:64] + F.linear(
            dynamics.codebook, dynamics.code_proj.weight
        )
        torch.testing.assert_close(made, wanted)
        masked = dynamics.embed(torch.full((1, 1, 1, 1), 64)).flatten()
    torch.testing.assert_close(masked, dynamics.embedding.weight[64])
