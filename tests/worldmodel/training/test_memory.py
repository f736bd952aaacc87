"""Training that needs more memory than there is: its error, and what it advises."""

import dataclasses
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from envs.utils.errors import InputError
from worldmodel.config import preset
from worldmodel.training.config import train_preset
from worldmodel.training.flops import cost_of
from worldmodel.training.memory import explain_out_of_memory, memory_advice, model_bytes
from worldmodel.training.train import TrainingRun, train

TOKENIZER = train_preset("tokenizer", "debug")
SPARE_BYTES = 300_000_000


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process allocate SPARE_BYTES more than it has."""
    status = Path("/proc/self/status").read_text().splitlines()
    size = next(int(line.split()[1]) for line in status if line.startswith("VmSize:"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + SPARE_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_batch_that_does_not_fit_is_one_line(
    data: str, little_memory: None, tmp_path: Path
) -> None:
    settings = dataclasses.replace(TOKENIZER, batch_size=512, loader_threads=0)
    run = TrainingRun("tokenizer", preset("debug"), settings, [data], tmp_path / "run")
    message = r"the cpu ran out of memory: .* GB for the model and .* --grad-accum-steps 2$"
    with pytest.raises(InputError, match=message):
        train(run)


def test_advice_is_the_smallest_change_that_fits() -> None:
    settings = dataclasses.replace(TOKENIZER, batch_size=8)
    cost = cost_of("tokenizer", preset("debug"), settings)
    model = model_bytes(cost, settings, 1)

    def advice(clips: float, **changes: object) -> str:
        changed = dataclasses.replace(settings, **changes)
        return memory_advice(cost, changed, 1, model + (clips + 0.1) * cost.activations)

    assert advice(4) == "--grad-accum-steps 2"
    assert advice(1) == "--grad-accum-steps 8"
    assert advice(8) == "--grad-accum-steps 2", "the prediction was too low"
    assert advice(8, grad_accum_steps=4) == "--grad-accum-steps 8"
    assert advice(0).startswith("--activation-checkpointing")
    assert advice(0, activation_checkpointing=True).startswith("a smaller --batch-size")


def test_other_errors_pass_unchanged() -> None:
    cost = cost_of("tokenizer", preset("debug"), TOKENIZER)
    with (
        pytest.raises(RuntimeError, match="shapes"),
        explain_out_of_memory(cost, TOKENIZER, 1, torch.device("cpu")),
    ):
        raise RuntimeError("shapes")
