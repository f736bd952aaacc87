"""The benchmark of group gpu, on the CPU and at the smallest size."""

from pathlib import Path

from experiments.benchmarks.accelerator import measure_accelerator
from experiments.benchmarks.common import Args


def test_training_generation_and_reward_have_a_rate(tmp_path: Path) -> None:
    args = Args(device="cpu", preset="debug", repeats=1)
    rows = {row.name: row for row in measure_accelerator(args, tmp_path)}
    assert rows["tokenizer, debug, fp32"].rate > 0
    assert 0 < rows["dynamics, debug, fp32"].ratio < 2
    assert {row.unit for row in rows.values()} == {"TFLOP/s", "GB", "frames/s", "windows/s"}
    assert rows["generation, 1 at a time"].rate > 0
    assert rows["reward, 4 at a time"].rate > 0
