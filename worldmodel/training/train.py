"""Training of one component of the world model through Ray Train.

    config, data, runs = preset("cpu"), ["data"], Path("runs")
    recipe = train_preset("tokenizer", "cpu")
    tokenizer = train(TrainingRun("tokenizer", config, recipe, data, runs / "tokenizer"))
    recipe = train_preset("dynamics", "cpu")
    train(TrainingRun("dynamics", config, recipe, data, runs / "dynamics", tokenizer=tokenizer))

A run's folder holds config.json, metrics.jsonl, tensorboard/ and checkpoints/. The training loop is
in `worldmodel.training.trainer`.
"""

from pathlib import Path

from envs.utils.errors import InputError
from envs.utils.progress import console
from worldmodel import checkpoint
from worldmodel.training.config import TrainConfig, train_preset
from worldmodel.training.ray_train import fit_here, fit_on_workers
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.trainer import NonFiniteLoss

__all__ = ["NonFiniteLoss", "TrainConfig", "TrainingRun", "train", "train_preset"]


def train(run: TrainingRun, *, workers: int = 0, resume: bool = False) -> Path:
    """Train a component on the train split of its data and return the newest checkpoint.

    `workers` is the number of Ray Train workers; 0 trains in this process without starting Ray.
    `resume` continues the run in `run.out`, bit for bit on CPUs and with `deterministic`, and
    leaves a complete run unchanged.

    Raises: InputError for inconsistent settings and unusable inputs, NonFiniteLoss if training
    diverges, KeyboardInterrupt after Ctrl+C once a checkpoint is saved.
    """
    run.check_inputs()
    run = run.resolve()
    parts = max(workers, 1) * run.recipe.grad_accum_steps
    if run.recipe.batch_size % parts:
        raise InputError(
            f"a batch of {run.recipe.batch_size} cannot be split over {max(workers, 1)} workers in "
            f"{run.recipe.grad_accum_steps} microbatches each: use a multiple of {parts}"
        )
    if (run.out / "config.json").exists():
        if not resume:
            raise InputError(
                f"{run.out} already holds a run: give another --out, or --resume to continue it"
            )
        run.check_resumable()

    newest = checkpoint.newest_checkpoint(run.out)
    if newest is None or checkpoint.open_checkpoint(newest).step < run.recipe.iterations:
        complete = fit_on_workers(run, workers) if workers else fit_here(run)
        newest = checkpoint.open_checkpoint(run.out).path
        if not complete:
            line = (
                f"stopped; {newest.name} of {run.recipe.iterations} is saved in {run.out}: "
                "continue with --resume"
            )
            console.print(line, soft_wrap=True)
            raise KeyboardInterrupt
    return newest
