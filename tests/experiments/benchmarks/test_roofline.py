"""The roofline: FLOPs and bytes of recorded steps, predictions from them, and the command."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from envs.utils.errors import InputError
from experiments.benchmarks.common import Args
from experiments.benchmarks.fusion import compiled_kernels, eager_kernels
from experiments.benchmarks.kernels import (
    Kernel,
    Operation,
    fake_tensors,
)
from experiments.benchmarks.roofline import (
    BANDWIDTHS,
    KERNEL,
    LAUNCH,
    WAYS,
    Work,
    predict_time,
    reward_work,
    training_work,
)
from experiments.commands.benchmark import run
from worldmodel import preset
from worldmodel.config import WorldModelConfig
from worldmodel.models.frame_order import FrameOrder
from worldmodel.models.transformer import SpatialBlock
from worldmodel.training.config import train_preset
from worldmodel.training.flops import cost_of
from worldmodel.training.throughput import PEAKS


def total_bytes(kernels: list[Kernel]) -> float:
    return sum(kernel.bytes for kernel in kernels)


@pytest.fixture(scope="module")
def config() -> WorldModelConfig:
    debug = preset("debug")
    still = dataclasses.replace(debug.tokenizer, reseed_below=0.0)
    return dataclasses.replace(debug, tokenizer=still)


@pytest.mark.parametrize("component", ["tokenizer", "dynamics"])
def test_the_flops_of_a_step_are_those_that_are_counted_for_training(
    component: str, config: WorldModelConfig
) -> None:
    ((_, operations),) = training_work(component, config, "debug").parts
    counted = cost_of(component, config, train_preset(component, "debug")).flops * 2
    # The backward pass of fused attention computes the products of queries and keys again.
    again = sum(o.flops / 5 for o in operations if o.kind == "attention" and o.backward)
    eager, compiled = eager_kernels(operations), compiled_kernels(operations)
    assert sum(k.flops for k in eager) - again == pytest.approx(counted, rel=0.02)
    assert sum(k.flops for k in compiled) == sum(k.flops for k in eager)
    assert total_bytes(compiled) < 0.7 * total_bytes(eager)
    assert len(compiled) < 0.7 * len(eager)


def test_an_operation_moves_what_it_reads_and_writes_and_a_view_nothing() -> None:
    with fake_tensors() as recorder:
        x, row = torch.rand(4, 8), torch.rand(8)

        def compute() -> None:
            x.T.reshape(2, 16)  # a copy in another order
            x.view(8, 4)
            x.add_(row.expand(4, 8))

        copy, addition = recorder.record(compute)
    assert copy.kernel() == Kernel("casts and copies", 0.0, 2 * 32 * 4, half=False)
    assert addition.kernel().bytes == (32 + 8 + 32) * 4  # the row is read once


def test_a_compiled_chain_reads_its_inputs_and_writes_its_results() -> None:
    def operation(name: str, reads: list[int], write: int, kind: str = "elementwise") -> Operation:
        parts = {(number, 0, 25): 100 for number in reads}
        return Operation(name, kind, 0.0, True, parts, {(write, 0, 25): 100}, 0, False)

    chain = [
        operation("mm", [0], 1, "matrix products"),
        operation("mul", [1, 2], 3),
        operation("gelu", [3], 4),
        operation("mm", [4], 5, "matrix products"),
    ]
    product, fused, last = compiled_kernels(chain)
    assert (product.bytes, last.bytes) == (200, 200)
    assert fused == Kernel("fused elementwise", 0.0, 300)  # 1 and 2, and 4 but not 3


def test_a_compiled_backward_pass_computes_elementwise_results_again() -> None:
    def step(in_fp32: bool) -> list[Operation]:
        with fake_tensors() as recorder:
            block = SpatialBlock(32, 2, 16)
            recorder.watch(block)
            x = torch.rand(2, 3, 4, 4, 32, requires_grad=True)
            bias, order = torch.zeros(2, 16, 16), FrameOrder.consecutive(3)

            def compute() -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=not in_fp32):
                    recorder.run_backward(block(x, bias, order)[0].sum())

            return recorder.record(compute)

    operations = step(in_fp32=False)
    in_block = [o for o in operations if o.call == 0]
    assert any(o.backward for o in in_block)
    assert any(not o.backward for o in in_block)
    stored = [dataclasses.replace(o, backward=False) for o in operations]
    assert total_bytes(compiled_kernels(operations)) < total_bytes(compiled_kernels(stored))
    assert total_bytes(eager_kernels(operations)) < total_bytes(eager_kernels(step(in_fp32=True)))


def test_the_slowest_of_flops_bytes_and_launches_counts() -> None:
    def seconds(work: Work, way: str = "CUDA graphs", products: float = 1.0) -> float:
        return predict_time(work.kernels(way), "h100", WAYS[way].launch, products).seconds

    with fake_tensors() as recorder:
        a, x = torch.rand(8192, 8192, dtype=torch.bfloat16), torch.rand(1_000_000_000)
        product = recorder.record(lambda: a @ a)
        addition = recorder.record(lambda: x + x)
        small = recorder.record(lambda: a[:1, :1] + 1)
    products = Work(((1.0, product),))
    assert seconds(products) == pytest.approx(2 * 8192**3 / PEAKS["h100"][0])
    assert seconds(products, products=0.5) == pytest.approx(2 * seconds(products))
    additions = Work(((1.0, addition),))
    assert seconds(additions) == pytest.approx(8e9 / BANDWIDTHS["h100"])
    many = Work(((100.0, small),))
    assert seconds(many) == pytest.approx(100 * KERNEL)
    assert seconds(many, "eager") == pytest.approx(100 * LAUNCH)
    eager = many.kernels("eager")
    assert predict_time(eager, "h100", LAUNCH).most_time() == "launching kernels"
    assert predict_time(eager, "h100", 0.0).most_time() == "elementwise 100%"


def test_every_card_with_a_peak_has_a_bandwidth() -> None:
    assert BANDWIDTHS.keys() == PEAKS.keys()


def test_a_reward_query_has_no_backward_pass(config: WorldModelConfig) -> None:
    ((_, operations),) = reward_work(config).parts
    assert operations
    assert not any(operation.backward for operation in operations)


@pytest.mark.slow
def test_the_command_predicts_every_card(tmp_path: Path) -> None:
    run(Args(only=("roofline",), preset="debug", hardware=("l4", "h100"), out=tmp_path))
    rows = {row["name"]: row for row in json.loads((tmp_path / "benchmark.json").read_text())}
    assert {row["unit"] for row in rows.values()} == {"TFLOP/s", "frames/s", "windows/s"}
    assert all(row["rate"] > 0 for row in rows.values())
    assert 0 < rows["dynamics, debug, l4, compiled"]["ratio"] < 1
    for name in ("generation, 1 at a time", "generation, 256 at a time", "reward"):
        eager, compiled, graphs = (
            rows[f"{name}, debug, h100, {way}"]["rate"]
            for way in ("eager", "compiled", "CUDA graphs")
        )
        assert eager < compiled < graphs
        assert rows[f"{name}, debug, l4, CUDA graphs"]["rate"] < graphs


def test_an_unknown_card_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"^--hardware h300: choose among a100, .*$"):
        run(Args(only=("roofline",), hardware=("h300",)))
