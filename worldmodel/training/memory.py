"""Memory of training: its prediction, and the error of a run that needs more than there is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from envs.utils.errors import InputError
from worldmodel.training.config import TrainConfig
from worldmodel.training.flops import TrainCost

STEP_BYTES = 16
"""Bytes of a trained parameter: weight, gradient and AdamW's two moments, all fp32."""


def model_bytes(cost: TrainCost, recipe: TrainConfig, cards: int) -> float:
    """Return the bytes on one card of weights, gradients, moments and copies of the weights."""
    trained = (STEP_BYTES + (4 if recipe.ema else 0)) * cost.trained
    total = trained + 4 * (cost.parameters - cost.trained)
    low_precision = 2 * cost.parameters if recipe.precision == "bf16" else 0
    return total / (cards if recipe.parallelism == "fsdp" else 1) + low_precision


def activation_bytes(cost: TrainCost, recipe: TrainConfig, cards: int) -> float:
    """Return the approximate bytes on one card that a microbatch keeps for its backward pass."""
    return cost.activations * recipe.batch_size / cards / recipe.grad_accum_steps


def needed_bytes(cost: TrainCost, recipe: TrainConfig, cards: int) -> float:
    """Return the approximate bytes of model and activations on one card."""
    return model_bytes(cost, recipe, cards) + activation_bytes(cost, recipe, cards)


def memory_advice(cost: TrainCost, recipe: TrainConfig, cards: int, memory: float) -> str:
    """Return the flags with which a run would fit into the bytes of a card."""
    free = memory - model_bytes(cost, recipe, cards)
    share = recipe.batch_size // cards
    divisors = [parts for parts in range(1, share + 1) if share % parts == 0]
    fitting = (parts for parts in divisors if cost.activations * share / parts < free)
    # A run that did not fit must be cut into more parts than it was, whatever is predicted.
    parts = next((parts for parts in fitting if parts > recipe.grad_accum_steps), None)
    if parts is not None:
        return f"--grad-accum-steps {parts}"
    if not recipe.activation_checkpointing:
        return "--activation-checkpointing, or more cards with --parallelism fsdp"
    return "a smaller --batch-size, or more cards with --parallelism fsdp"


@contextmanager
def explain_out_of_memory(
    cost: TrainCost, recipe: TrainConfig, cards: int, device: torch.device
) -> Iterator[None]:
    """Turn a failed allocation into an InputError with the predicted need and what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        model = model_bytes(cost, recipe, cards)
        activations = activation_bytes(cost, recipe, cards)
        memory, there = needed_bytes(cost, recipe, cards), "it has"
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            there = f"its {memory / 1e9:,.0f} GB"
        raise InputError(
            f"the {device.type} ran out of memory: training needs about {model / 1e9:,.1f} GB for "
            f"the model and {activations / 1e9:,.1f} GB for activations, more than {there}: "
            f"try {memory_advice(cost, recipe, cards, memory)}"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Return True if numpy or torch could not allocate memory, on a GPU or on the CPU."""
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or "can't allocate memory" in str(error)
