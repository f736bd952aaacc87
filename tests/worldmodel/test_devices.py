"""Device and precision: what auto stands for, and models whose passes run under autocast."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.utils.errors import InputError
from experiments.__main__ import execute
from worldmodel import load_world_model
from worldmodel.devices import (
    autocast,
    cast_for_inference,
    product_format,
    resolve_device,
    resolve_precision,
)
from worldmodel.env import Rollout

CPU = torch.device("cpu")
HERE = "cuda" if torch.cuda.is_available() else "cpu"


def test_auto_is_a_gpu_or_the_cpu() -> None:
    assert resolve_device().type == HERE
    assert resolve_device("cpu") == CPU


@pytest.mark.skipif(HERE == "cuda", reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"device cuda: torch is built without CUDA|finds no GPU"):
        resolve_device("cuda")
    with pytest.raises(InputError, match="device mps: this is no Mac"):
        resolve_device("mps")
    argv = ["evaluate", str(tiny_world), "--data", str(tmp_path), "--device", "cuda"]
    assert execute(argv) == 2
    assert "use another device, or auto" in capsys.readouterr().err


@pytest.fixture
def tf32_flags() -> Iterator[tuple[Any, Any]]:
    """The switches of TF32 for products and convolutions, both off and restored afterwards."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield backends
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.parametrize("name", ["cuda", "cpu"])
def test_tf32_is_turned_on_with_an_nvidia_gpu_alone(
    name: str, tf32_flags: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(name) == torch.device(name)
    assert [backend.allow_tf32 for backend in tf32_flags] == [name == "cuda"] * 2


def test_format_of_products_follows_precision_switches_and_card(
    tf32_flags: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, capability = torch.device("cuda"), [8, 0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: tuple(capability))
    assert product_format(gpu, "fp32") == "fp32"
    for backend in tf32_flags:
        backend.allow_tf32 = True
        assert product_format(gpu, "fp32") == "tf32"
        assert product_format(CPU, "fp32") == "fp32"
        backend.allow_tf32 = False
    tf32_flags[0].allow_tf32 = True
    assert product_format(gpu, "bf16") == product_format(CPU, "bf16") == "bf16"
    capability[0] = 7  # Turing has no TF32
    assert product_format(gpu, "fp32") == "fp32"


def test_only_passes_under_autocast_without_gradients_sum_in_bf16() -> None:
    x = torch.rand(3)
    with autocast(CPU, "bf16"):
        assert cast_for_inference(x) is x  # training
        with torch.no_grad():
            assert cast_for_inference(x).dtype == torch.bfloat16
    with torch.no_grad(), autocast(CPU, "fp32"):
        assert cast_for_inference(x) is x
        assert cast_for_inference(x.to("meta")).device.type == "meta"


def test_the_residual_stream_is_bf16_in_the_reward_query_and_fp32_in_training(
    tiny_world: Path,
) -> None:
    model = load_world_model(tiny_world, "cpu", "bf16")
    sub_block = model.dynamics.stack.blocks[0]["spatial"]
    seen = []
    sub_block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    size = model.cfg.size
    model.token_entropy(torch.rand(1, 5, 3, size, size), torch.zeros(1, 4, dtype=torch.int64))
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    tokens = torch.zeros(1, 2, model.cfg.grid, model.cfg.grid, dtype=torch.int64)
    with autocast(CPU, "bf16"):
        model.dynamics(tokens, torch.zeros(1, 1, dtype=torch.int64))
    assert set(seen) == {torch.float32}


def test_precision_of_a_name() -> None:
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) == "fp32"
    with pytest.raises(InputError, match="precision 'fp8': choose one of auto, bf16, fp32"):
        resolve_precision("fp8", CPU)


def test_a_model_in_bf16_runs_under_autocast(tiny_world: Path) -> None:
    full, half = (load_world_model(tiny_world, "cpu", name) for name in ("fp32", "bf16"))
    assert (full.precision, half.precision) == ("fp32", "bf16")
    size = full.cfg.size
    frames, actions = torch.rand(2, 5, 3, size, size), torch.zeros(2, 4, dtype=torch.int64)
    exact, rounded = (model.token_entropy(frames, actions) for model in (full, half))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)
    made = half.generate(frames[:, :2], actions, steps=2, temperature=0.0, mode="autoregressive")
    assert made.shape == (2, 3, 3, size, size)
    rollout = Rollout(half, frames[:, :2], actions[:, :1], steps=2)
    assert rollout.step(actions[:, 1]).dtype == torch.float32
    assert half.for_game(None).precision == "bf16"
