"""Compiled sub-blocks: whole graphs, few of them, and the results of plain ones."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from worldmodel.config import SamplingConfig, WorldModelConfig, preset
from worldmodel.loading import load_dynamics, load_tokenizer
from worldmodel.models import compilation
from worldmodel.models.compilation import compile_sub_blocks, optimize_model
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.genie import GenieReduxG, load_world_model
from worldmodel.models.latent_action import LatentActionModel
from worldmodel.models.tokenizer import Tokenizer
from worldmodel.models.transformer import STTransformer, TransformerSubBlock
from worldmodel.training.config import TrainConfig
from worldmodel.uncertainty import window_entropies

DEBUG = preset("debug")


class CountingBackend:
    """Compiler that runs each graph as it is, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend() -> Iterator[CountingBackend]:
    torch._dynamo.reset()
    counters.clear()
    yield CountingBackend()
    assert not counters["graph_break"], "sub-blocks compile whole"
    torch._dynamo.reset()


def plain_and_compiled(model: Any, backend: CountingBackend) -> tuple[Any, Any]:
    """Return a model whose output depends on all weights, and its compiled copy."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    compiled = copy.deepcopy(model)
    compile_sub_blocks(compiled, backend)
    return model, compiled


def with_objective(objective: str) -> WorldModelConfig:
    """Return the configuration with three blocks and an objective of the dynamics."""
    dynamics = dataclasses.replace(DEBUG.dynamics, blocks=3, objective=objective)
    return dataclasses.replace(DEBUG, dynamics=dynamics)


def loss_of(model: Any, step: int) -> Tensor:
    """Compute the loss of a random batch of the step, with clips of the same length."""
    torch.manual_seed(step)
    if isinstance(model, Dynamics):
        tokens, actions = torch.randint(64, (2, 5, 8, 8)), torch.randint(5, (2, 4))
        return model.loss(tokens, actions)["loss"]
    return model(torch.rand(2, 5, 3, 64, 64)).losses["loss"]


@pytest.mark.parametrize(
    ("component", "graphs"),
    [
        pytest.param("masked", 2, marks=pytest.mark.slow),
        pytest.param("masked_frames", 2, marks=pytest.mark.slow),
        ("clean_past", 2),
        ("tokenizer", 2),
        pytest.param("lam", 4, marks=pytest.mark.slow),
    ],
)
def test_training_compiles_each_kind_of_sub_block_once(
    component: str, graphs: int, backend: CountingBackend
) -> None:
    """The decoder of a latent action model sees a frame less than its encoder."""
    kinds: dict[str, Any] = {"tokenizer": Tokenizer, "lam": LatentActionModel}
    if component in kinds:
        model = kinds[component](DEBUG)
        model.quantizer.learns = False
    else:
        model = Dynamics(with_objective(component))
        model.set_codebook(torch.randn(64, 8))
    plain, compiled = plain_and_compiled(model, backend)
    for step in range(4):  # clean_past draws the lengths of its chunks
        losses = [loss_of(model, step) for model in (plain, compiled)]
        torch.testing.assert_close(losses[1], losses[0])
        for loss in losses:
            loss.backward()
    assert backend.graphs == graphs
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None
        else:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-3)

    # Recomputation in the backward pass runs the same graphs.
    for module in compiled.modules():
        if isinstance(module, STTransformer):
            module.activation_checkpointing = True
    loss_of(compiled, 0).backward()
    assert backend.graphs == graphs


def test_a_graph_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = TransformerSubBlock.forward

    def breaking(*inputs: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(*inputs)

    monkeypatch.setattr(TransformerSubBlock, "forward", breaking)
    model = Tokenizer(DEBUG)
    compile_sub_blocks(model, CountingBackend())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        model.encode(torch.rand(1, 2, 3, DEBUG.size, DEBUG.size))
    torch._dynamo.reset()


def test_validation_between_steps_compiles_no_step_again(backend: CountingBackend) -> None:
    model = Dynamics(with_objective("masked"))
    model.set_codebook(torch.randn(64, 8))
    _, compiled = plain_and_compiled(model, backend)
    graphs = []
    for step in range(3):
        loss_of(compiled, step).backward()
        with torch.no_grad():
            loss_of(compiled, step)
        graphs.append(backend.graphs)
    assert graphs == [4, 4, 4]


@pytest.mark.slow
def test_generation_compiles_four_graphs_for_one_film_and_for_several(
    backend: CountingBackend,
) -> None:
    """The cache grows to the window and slides. A chunk of a single frame needs two more."""
    model = GenieReduxG(Tokenizer(DEBUG), Dynamics(DEBUG)).eval()
    plain, compiled = plain_and_compiled(model, backend)
    sampling, graphs = SamplingConfig(steps=2, mode="autoregressive"), []
    for batch, frames in ((1, 12), (1, 20), (2, 12), (2, 12), (3, 20), (5, 16), (3, 9)):
        given = torch.rand(batch, 2, 3, 64, 64)
        actions = torch.randint(5, (batch, frames - 1))
        tokens = [
            model.generate_tokens(given, actions, sampling, torch.Generator().manual_seed(1))
            for model in (plain, compiled)
        ]
        assert torch.equal(*tokens)
        graphs.append(backend.graphs)
    assert graphs == [4, 4, 8, 8, 8, 8, 10]


@pytest.mark.slow
def test_the_reward_query_compiles_four_graphs_for_all_batches(backend: CountingBackend) -> None:
    model = GenieReduxG(Tokenizer(DEBUG), Dynamics(DEBUG)).eval()
    plain, compiled = plain_and_compiled(model, backend)
    noise, graphs = np.random.default_rng(0), []
    for count in (8, 3, 3):
        frames = noise.integers(256, size=(count, 2, 64, 64, 3), dtype=np.uint8)
        actions = noise.integers(5, size=(count, 4))
        scores = [window_entropies(model, frames, actions) for model in (plain, compiled)]
        np.testing.assert_allclose(*scores, atol=1e-5)
        graphs.append(backend.graphs)
    assert graphs == [4, 4, 4]


def test_a_copy_of_a_compiled_model_uses_its_own_weights(backend: CountingBackend) -> None:
    model, compiled = plain_and_compiled(STTransformer(16, 2, 8, 1), backend)
    x, bias = torch.randn(1, 3, 2, 2, 16), torch.randn(2, 4, 4)
    copied = copy.deepcopy(compiled)
    for parameter in compiled.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(copied(x, bias)[0], model(x, bias)[0])


@pytest.mark.parametrize(
    ("settings", "compiles"),
    [({}, None), ({"compile": True}, True), ({"eager": True}, False),
     ({"deterministic": True}, False), ({"deterministic": True, "compile": True}, True)],
)  # fmt: skip
def test_settings_decide_or_leave_it_to_the_device(
    settings: dict[str, bool], compiles: bool | None
) -> None:
    assert TrainConfig(**settings).compiles is compiles  # type: ignore[arg-type]


def test_models_are_compiled_by_default_where_there_is_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    def compiled(compile: bool | None, kind: str = "cuda") -> bool:
        stack = STTransformer(16, 2, 8, 1)
        optimize_model(stack, torch.device(kind), compile=compile)
        return "forward" in vars(stack.blocks[0]["spatial"])  # type: ignore[index]

    assert [compiled(choice) for choice in (None, True, False)] == [True, True, False]
    assert not compiled(None, "mps")
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    assert not compiled(None)


def test_loaded_models_are_compiled_where_models_are(
    monkeypatch: pytest.MonkeyPatch, tiny_world: Path
) -> None:
    monkeypatch.setattr(compilation, "_can_compile", lambda device: device.type == "meta")

    def compiled(model: nn.Module) -> bool:
        blocks = [module for module in model.modules() if isinstance(module, TransformerSubBlock)]
        forwards = {getattr(vars(block).get("forward"), "func", None) for block in blocks}
        assert len(forwards) == 1
        return forwards == {compilation._run_compiled}

    loaders: tuple[Any, ...] = (load_world_model, load_tokenizer, load_dynamics)
    for load in loaders:
        assert compiled(load(tiny_world, "meta"))
        assert not compiled(load(tiny_world, "cpu"))
    assert not compiled(load_world_model(tiny_world, "meta", compile=False))
    assert not compiled(load_tokenizer(tiny_world, "meta", compile=False))


def test_a_compiled_model_is_pickled_and_runs_plainly_on_a_cpu() -> None:
    stack, x, bias = STTransformer(16, 2, 8, 1), torch.randn(1, 3, 2, 2, 16), torch.randn(2, 4, 4)
    expected = stack(x, bias)[0]
    compile_sub_blocks(stack)
    again = pickle.loads(pickle.dumps(stack))
    torch.testing.assert_close(again(x, bias)[0], expected)
