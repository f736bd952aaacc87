"""Validation in training: means over clips, whatever their batches, read ahead by threads."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worldmodel.training.conftest import CONFIG
from worldmodel.data.batch import Batch
from worldmodel.data.clip_dataset import ClipDataset
from worldmodel.loading import load_tokenizer
from worldmodel.training.config import train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.objectives import TokenizerObjective
from worldmodel.training.setup import build_trainer
from worldmodel.training.train import TrainingRun


def test_validation_is_the_mean_over_clips_however_they_are_batched(
    data: str, tokenizer_run: Path, tmp_path: Path
) -> None:
    clips, held_out = (
        ClipDataset([data], tmp_path, length=6),
        ClipDataset([data], tmp_path, length=6, split="val"),
    )
    tokenizer = load_tokenizer(tokenizer_run)
    figures = []
    for size in (1, 3, 7):
        settings = train_preset("tokenizer", "debug", batch_size=size, validation_clips=10)
        job = TrainingRun("tokenizer", CONFIG, settings, (data,), tmp_path / f"run{size}", tmp_path)
        trainer = build_trainer(
            job, TokenizerObjective(tokenizer), clips, held_out, Worker(torch.device("cpu"))
        )
        figures.append(trainer.validate(held_out)["validation/psnr"])
    frames = held_out.batch(held_out.evenly_spaced(10)).frames_BTHWC.movedim(-1, 2) / 255
    with torch.no_grad():
        made = tokenizer.eval()(frames).frames.clamp(0, 1)
    expected = -10 * (made - frames).square().mean((-3, -2, -1)).log10().mean()
    assert figures == pytest.approx([expected.item()] * 3, abs=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
def test_validation_reads_the_next_batch_while_it_computes_and_to_the_same_bits(
    threads: int, data: str, tokenizer_run: Path, tmp_path: Path
) -> None:
    clips, held_out = (
        ClipDataset([data], tmp_path, length=6),
        ClipDataset([data], tmp_path, length=6, split="val"),
    )

    def validate(threads: int, objective: type[TokenizerObjective]) -> dict[str, float]:
        settings = train_preset(
            "tokenizer", "debug", batch_size=3, validation_clips=10, loader_threads=threads
        )
        out = tmp_path / f"threads-{threads}"
        job = TrainingRun("tokenizer", CONFIG, settings, (data,), out, tmp_path)
        worker = Worker(torch.device("cpu"))
        model = objective(load_tokenizer(tokenizer_run))
        return build_trainer(job, model, clips, held_out, worker).validate(held_out)

    alone = validate(0, TokenizerObjective)
    ids = held_out.evenly_spaced(10)
    started = {int(ids[at]): threading.Event() for at in range(0, 10, 3)}
    later = list(started.values())[1:]
    read = held_out.batch

    def batch(window_ids: np.ndarray) -> Batch:
        started[int(window_ids[0])].set()
        return read(window_ids)

    class Waiting(TokenizerObjective):
        """Objective of a batch that ends when the next one is being read."""

        def forward(self, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
            if later:
                assert later.pop(0).wait(20), "nothing reads the next batch"
            return super().forward(batch, progress)

    held_out.batch = batch  # type: ignore[method-assign]
    assert validate(threads, Waiting) == alone
    assert not later
