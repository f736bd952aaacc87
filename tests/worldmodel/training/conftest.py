"""Settings and finished runs that the tests of training share."""

import dataclasses
from pathlib import Path

import pytest

from tests.fixtures.datasets import record
from worldmodel.config import preset
from worldmodel.training.config import train_preset
from worldmodel.training.train import TrainingRun, train

CONFIG = preset("debug")
SHORT = train_preset(
    "tokenizer", "debug", iterations=8, checkpoint_every=4, validate_every=4, log_every=2
)
# As many clips as the run draws: its tokens are stored.
DYNAMICS = dataclasses.replace(SHORT, clip_stride=8)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("train") / "data", episodes=4, steps=40)


@pytest.fixture(scope="session")
def tokenizer_run(data: str) -> Path:
    """A complete run of 8 steps, with checkpoints of steps 4 and 8."""
    out = Path(data).parent / "tokenizer"
    train(TrainingRun("tokenizer", CONFIG, SHORT, [data], out))
    return out


@pytest.fixture(scope="session")
def dynamics_run(data: str, tokenizer_run: Path) -> Path:
    """The same of a dynamics model on stored tokens."""
    out = Path(data).parent / "dynamics"
    train(TrainingRun("dynamics", CONFIG, DYNAMICS, [data], out, tokenizer=tokenizer_run))
    assert list((out.parent / "cache").glob("tokens-*.npy"))
    return out
