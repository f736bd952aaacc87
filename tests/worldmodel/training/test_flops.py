"""Predicted cost of training against that of real steps, and the output of --dry-run."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from envs.utils.errors import InputError
from experiments.__main__ import execute
from worldmodel.config import WorldModelConfig, preset
from worldmodel.models.cpu_kernels import use_cpu_kernels
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.transformer import STTransformer
from worldmodel.training.config import train_preset
from worldmodel.training.flops import cost_of, count_parameters, encoding_flops
from worldmodel.training.throughput import hardware, measured_peak, named_card

aten = torch.ops.aten
CONFIG = preset("debug")
SETTINGS = train_preset("tokenizer", "debug", clip_length=6)


def masked(objective: str) -> WorldModelConfig:
    return dataclasses.replace(
        CONFIG, dynamics=dataclasses.replace(CONFIG.dynamics, objective=objective)
    )


def flops_of(run: Callable[[], object]) -> float:
    """Count FLOPs with torch, except for the backward pass of convolutions.

    Torch counts that of a depthwise convolution as if it were a full one.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    backward = 2 * counts[aten.convolution] if aten.convolution_backward in counts else 0
    return (
        sum(count for name, count in counts.items() if name != aten.convolution_backward) + backward
    )


@pytest.mark.parametrize("decoder_only", [False, True])
def test_flops_of_a_tokenizer_step_are_those_that_torch_counts(decoder_only: bool) -> None:
    tokenizer = Tokenizer(CONFIG)
    use_cpu_kernels(tokenizer)  # torch does not count the FLOPs of its fused attention
    if decoder_only:
        tokenizer.freeze_encoder()
    frames = torch.rand(2, 6, 3, 64, 64)
    tokenizer(frames)  # the first pass re-seeds codes
    counted = flops_of(lambda: tokenizer(frames).losses["loss"].backward())
    cost = cost_of("tokenizer", CONFIG, SETTINGS, decoder_only=decoder_only)
    assert 2 * cost.flops == pytest.approx(counted, rel=0.03)
    assert cost.trained == sum(p.numel() for p in tokenizer.parameters() if p.requires_grad)
    assert cost.parameters == sum(p.numel() for p in tokenizer.parameters())
    assert flops_of(lambda: tokenizer.encode(frames)) == pytest.approx(
        2 * encoding_flops(CONFIG, 6), rel=0.03
    )


@pytest.mark.parametrize("objective", ["masked", "clean_past"])
def test_flops_of_a_dynamics_step_are_those_that_torch_counts(objective: str) -> None:
    config = masked(objective)
    dynamics = Dynamics(config)
    dynamics.set_codebook(F.normalize(torch.randn(64, 8), dim=-1))
    tokens, actions = torch.randint(64, (4, 6, 8, 8)), torch.randint(5, (4, 5))
    counted = flops_of(lambda: dynamics.loss(tokens, actions)["loss"].backward())
    cost, encoding = (
        cost_of("dynamics", config, SETTINGS, cached=cached) for cached in (True, False)
    )
    assert 4 * cost.flops == pytest.approx(counted, rel=0.03)
    assert encoding.flops - cost.flops == encoding_flops(config, 6)
    assert cost.tokens == 6 * 64


def test_activations_are_about_what_torch_keeps() -> None:
    kept: dict[int, int] = {}
    for half in (False, True):
        stack = STTransformer(64, 4, 16, 2)
        use_cpu_kernels(stack)
        weights = {parameter.untyped_storage().data_ptr() for parameter in stack.parameters()}
        kept.clear()
        alive = []

        def note(tensor: torch.Tensor, weights=weights, alive=alive) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
            stack(torch.rand(4, 6, 8, 8, 64, requires_grad=True), torch.zeros(4, 64, 64))
        precision = "bf16" if half else "fp32"
        config = dataclasses.replace(
            CONFIG,
            tokenizer=dataclasses.replace(
                CONFIG.tokenizer, dim=64, heads=4, head_dim=16, encoder_blocks=1, decoder_blocks=1
            ),
        )
        cost = cost_of("tokenizer", config, dataclasses.replace(SETTINGS, precision=precision))
        assert 4 * cost.activations == pytest.approx(sum(kept.values()), rel=0.15)


def test_parameters_of_the_paper_are_counted_without_memory() -> None:
    assert count_parameters(Tokenizer, preset("paper")) == pytest.approx(101.6e6, rel=0.001)
    assert count_parameters(Dynamics, preset("paper")) == pytest.approx(80e6, rel=0.01)


@pytest.mark.parametrize(
    ("driver", "card"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(driver: str, card: str | None) -> None:
    assert named_card(driver) == card


def test_hardware_comes_from_the_table_or_is_measured() -> None:
    eight = hardware("A100x8")
    assert (eight.cards, eight.peak) == (8, 312e12)
    assert hardware("l4").cards == 1
    assert measured_peak(torch.device("cpu"), "fp32", repeats=1) > 1e8
    for name in ("a100x0", "abacus", "x8", "a100x"):
        with pytest.raises(InputError, match=f"--hardware {name}: choose here or one of"):
            hardware(name)


def test_dry_run_predicts_the_published_run_and_says_what_does_not_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tokenizer: 72k steps of 112 clips on eight A100 at 40 % utilisation take 5.8 hours."""
    command = ["train", "tokenizer", "--preset", "paper", "--dry-run", "--hardware"]
    assert execute([*command, "a100x8"]) == 0
    printed = capsys.readouterr().out
    for words in ("101.6 M", "72,000 of 112 clips", "2.596 TFLOP", "5.8 h", "8 x 312 TFLOP/s"):
        assert words in printed, printed
    assert "does not fit" not in printed
    assert execute([*command, "l4"]) == 0
    assert "--grad-accum-steps 14" in capsys.readouterr().out
    assert execute([*command, "abacus"]) == 2


def test_cost_of_the_paper_is_what_the_arithmetic_of_its_layers_gives() -> None:
    """Forward: tokenizer 0.87 TFLOP, encoding 0.43, dynamics 0.65 without its conditioning."""
    config = preset("paper")
    costs = [
        cost_of(component, config, train_preset(component, "paper"))
        for component in ("tokenizer", "dynamics")
    ]
    assert costs[0].flops / 3 == pytest.approx(0.87e12, rel=0.01)
    assert encoding_flops(config, 16) == pytest.approx(0.43e12, rel=0.01)
    assert costs[1].flops / 3 == pytest.approx(0.65e12 + 12 * 2 * 512**2 * 4096, rel=0.01)


def test_dry_run_counts_the_objective_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*more: str) -> str:
        assert execute(["train", "dynamics", "--dry-run", "--hardware", "a100x8", *more]) == 0
        return capsys.readouterr().out

    assert shown("--model.dynamics.objective", "clean_past") == shown()  # the preset's
    assert "5.746 GFLOP" in shown()
    assert "3.737 GFLOP" in shown("--model.dynamics.objective", "masked"), (
        "no clean frames before the masked ones"
    )
    assert "GFLOP" in shown("--joint-lam")
    assert shown("--joint-lam") != shown()
