"""Captured passes: the films and rewards of plain ones, to the bit, and few graphs.

A CUDA graph repeats operations on fixed addresses without running any Python. Here, without a GPU,
a recording of the operations does the same.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from worldmodel import WorldModelEnv
from worldmodel.config import preset
from worldmodel.models import captured_passes
from worldmodel.models.captured_passes import map_tensors, tensors_of
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieReduxG
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.uncertainty import window_entropies

DEBUG = preset("debug")


class Recording(TorchDispatchMode):
    """Operations of a pass, which can be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero"), "a graph does not wait for results"
        assert "rand" not in name, "noise would be the same in each replay"
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, list(args), list((kwargs or {}).items()), made))
        return made

    def repeat(self, outputs: Any) -> None:
        """Run the operations again on what the inputs hold now, and overwrite the outputs."""
        renewed: dict[int, Tensor] = {}

        def renew(tree: Any) -> Any:
            return map_tensors(tree, lambda tensor: renewed.get(id(tensor), tensor))

        for func, args, kwargs, made in self.calls:
            fresh = func(*renew(args), **dict(renew(kwargs)))
            for old, new in zip(tensors_of(made), tensors_of(fresh), strict=True):
                renewed[id(old)] = new
        for output in tensors_of(outputs):
            output.copy_(renewed[id(output)])


def record(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record a pass in place of `CudaCapture`."""
    with Recording() as recording:
        outputs = run()
    for output in tensors_of(outputs):
        output.fill_(0)  # a capture computes nothing

    def replay() -> None:
        with torch.autocast("cpu", enabled=False):  # the recorded operations are those it chose
            recording.repeat(outputs)

    return replay, outputs


@pytest.fixture(params=["fp32", "bf16"])
def pair(request: pytest.FixtureRequest) -> tuple[GenieReduxG, GenieReduxG]:
    """A model whose output depends on all weights, and a copy that captures its passes."""
    torch.manual_seed(0)
    model = GenieReduxG(Tokenizer(DEBUG), Dynamics(DEBUG)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.precision = request.param
    captured = copy.deepcopy(model)
    captured.passes.start(record)
    return model, captured


def generated(model: GenieReduxG, films: int, frames: int, steps: int = 3) -> Tensor:
    """Generate films after two frames that depend on their number alone."""
    noise = torch.Generator().manual_seed(films)
    given = torch.rand(films, 2, 3, 64, 64, generator=noise)
    actions = torch.randint(5, (films, frames - 1), generator=noise)
    return model.generate(given, actions, steps=steps, mode="autoregressive", generator=noise)


def test_films_are_the_same_and_graphs_few(pair: tuple[GenieReduxG, GenieReduxG]) -> None:
    """The cache grows to the window and slides."""
    plain, captured = pair
    graphs = []
    for films, frames in ((1, 12), (1, 12), (1, 14), (2, 6), (2, 6), (1, 12)):
        assert torch.equal(generated(captured, films, frames), generated(plain, films, frames))
        graphs.append(len(captured.passes))
    # With caches of 2, 4 and 6 frames: three sampling passes, which come three times in a row, and
    # three that extend the cache; another that begins it, one that encodes and one that decodes.
    assert graphs == [4, 9, 9, 11, 15, 15]


def test_rewards_are_the_same(pair: tuple[GenieReduxG, GenieReduxG]) -> None:
    plain, captured = pair
    noise = np.random.default_rng(0)
    graphs = []
    for count in (3, 3, 2, 2):
        frames = noise.integers(256, size=(count, 2, 64, 64, 3), dtype=np.uint8)
        actions = noise.integers(5, size=(count, 4))
        for steps in (1, 2):
            scores = [window_entropies(model, frames, actions, steps=steps) for model in pair]
            np.testing.assert_array_equal(*scores)
        graphs.append(len(captured.passes))
    assert len(plain.passes) == 0
    # It encodes, fills the cache, and predicts: the newest frame alone, or all in two steps.
    assert graphs == [3, 4, 7, 8]


def test_play_is_the_same(pair: tuple[GenieReduxG, GenieReduxG]) -> None:
    start = np.random.default_rng(0).integers(256, size=(3, 2, 64, 64, 3), dtype=np.uint8)
    episodes = []
    for model in pair:
        env = WorldModelEnv(model, start, steps=2, temperature=1.0)
        frames = [env.reset(seed=0)[0], *(env.step(np.int64(move % 5))[0] for move in range(12))]
        episodes.append(np.stack(frames))
    np.testing.assert_array_equal(*episodes)


def test_replays_read_new_weights(pair: tuple[GenieReduxG, GenieReduxG]) -> None:
    for _ in range(2):
        generated(pair[1], 1, 6)
    for model in pair:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.dynamics.parameters():
                nn.init.normal_(parameter, std=0.2)
    assert torch.equal(generated(pair[1], 1, 6), generated(pair[0], 1, 6))


def test_copies_and_moved_models_have_no_graphs(pair: tuple[GenieReduxG, GenieReduxG]) -> None:
    captured = pair[1]
    for _ in range(2):
        generated(captured, 1, 4)
    assert len(captured.passes)
    again = pickle.loads(pickle.dumps(captured))
    for model in (copy.deepcopy(captured), again, captured.to("cpu")):
        generated(model, 1, 4)
        generated(model, 1, 4)
        assert len(model.passes) == 0
    assert len(pair[0].use_cuda_graphs().passes) == 0, "on a CPU there are none"


def test_large_and_many_shapes_are_bounded(
    pair: tuple[GenieReduxG, GenieReduxG], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, captured = pair
    monkeypatch.setattr(captured_passes, "MAX_CAPTURED", 3)
    for _ in range(2):
        assert torch.equal(generated(captured, 1, 12), generated(plain, 1, 12))
    assert 0 < len(captured.passes) <= 3
    captured.passes.stop()
    captured.passes.start(record)
    monkeypatch.setattr(captured_passes, "MAX_INPUT_BYTES", 0)
    assert torch.equal(generated(captured, 1, 6), generated(plain, 1, 6))
    assert len(captured.passes) == 0
