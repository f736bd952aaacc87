"""Operations of a training step and of a sampling pass that wait for a GPU: few, and counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fixtures.datasets import record
from worldmodel.config import preset
from worldmodel.data.batch import Batch
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieReduxG
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.training import setup
from worldmodel.training.config import train_preset
from worldmodel.training.distributed import Worker
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.setup import build_objective, build_trainer, open_data

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the plain passes, and `one_hot` without the checks that it has on CPUs alone."""
    monkeypatch.setattr(setup, "optimize_model", lambda model, device, compile: None)

    def one_hot(ids: torch.Tensor, classes: int) -> torch.Tensor:
        return (ids[..., None] == torch.arange(classes)).long()

    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)


class Waits(TorchDispatchMode):
    """Names of the operations whose result decides a shape or goes to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero"):
            self.names.append(name)
        elif name in ("index", "index_put", "index_put_"):
            kinds = [index.dtype for index in args[1] if index is not None]
            self.names += ["nonzero"] * kinds.count(torch.bool)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """Count the operations, and the calls of `tolist`, which are none."""
    with Waits() as mode, pytest.MonkeyPatch.context() as patch:
        tolist = torch.Tensor.tolist

        def counted(tensor: torch.Tensor) -> Any:
            mode.names.append("tolist")
            return tolist(tensor)

        patch.setattr(torch.Tensor, "tolist", counted)
        yield mode.names


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("waits") / "data", episodes=3, steps=14)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waits") / "model"
    config = preset("debug")
    GenieReduxG(Tokenizer(config), Dynamics(config)).save(folder)
    return folder


CHECK = ["tolist"]
"""The one check of a step: loss and gradient are finite, on all ranks, and the run goes on."""
DEAD = ["nonzero"]
"""Search for dead codes."""
PREDICTED = ["tolist", "nonzero"]
"""Lengths of the chunks, and choice of the masked tokens."""


@pytest.mark.parametrize(
    ("component", "options", "recipe", "expected"),
    [
        ("tokenizer", {}, {}, [*DEAD, *CHECK]),
        ("lam", {}, {}, [*DEAD, *CHECK]),
        ("lam", {}, {"label_fraction": 0.5}, CHECK),
        ("dynamics", {}, {}, [*PREDICTED, *CHECK]),
        ("dynamics", {}, {"token_cache": False}, [*PREDICTED, *CHECK]),
        ("dynamics", {"joint_lam": True}, {}, [*DEAD, *PREDICTED, *CHECK]),
    ],
)
def test_a_training_step_waits_for_the_device_only_where_it_must(
    component: str,
    options: dict[str, Any],
    recipe: dict[str, Any],
    expected: list[str],
    data: str,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    if component == "dynamics":
        options = {"tokenizer": tokenizer, **options}
    settings = train_preset(component, "debug", ema=0.5, loader_threads=0, **recipe)
    run = TrainingRun(component, preset("debug"), settings, [data], tmp_path, **options).resolve()
    objective, worker = build_objective(run, CPU), Worker(CPU)
    trainer = build_trainer(run, objective, *open_data(run, objective, worker), worker)
    trainer.train_step(next(trainer.loader))  # creates the optimizer's state
    trainer.step += 1
    batch: Batch = next(trainer.loader)
    objective.check(batch)
    # The batch is then still on the CPU.
    with pytest.MonkeyPatch.context() as patch, waits() as names:
        patch.setattr(objective, "check", lambda batch: None)
        trainer.train_step(batch)
    trainer.loader.close()
    assert names == expected


@pytest.mark.parametrize("steps", [1, 4])
def test_sampling_waits_for_the_device_once(steps: int) -> None:
    """After all passes, to refuse predictions that are not finite."""
    config = preset("debug")
    model = GenieReduxG(Tokenizer(config), Dynamics(config)).eval()
    frames, actions = torch.rand(2, 2, 3, 64, 64), torch.randint(5, (2, 3))
    with torch.no_grad():
        encoded = model.encode_actions(actions)
        cache = model.prefill(model.tokenizer.encode(frames), encoded[:, :2])
        with waits() as names:
            model.sample_frames(cache, encoded[:, 2:], steps=steps, temperature=1.0)
    assert names == ["_local_scalar_dense"]


@pytest.mark.parametrize(("steps", "passes"), [(1, []), (4, ["_local_scalar_dense"])])
def test_the_reward_query_waits_for_its_checks(steps: int, passes: list[str]) -> None:
    config = preset("debug")
    model = GenieReduxG(Tokenizer(config), Dynamics(config)).eval()
    frames, actions = torch.rand(2, 5, 3, 64, 64), torch.randint(5, (2, 4))
    with waits() as names:
        model.future_token_entropy(frames[:, :2], actions, steps=steps)
    assert names == ["tolist", "tolist", *passes]
