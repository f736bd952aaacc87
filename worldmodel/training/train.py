"""Training of one component of the world model through Ray Train.

    recipe = train_preset("tokenizer", "cpu")
    train("tokenizer", config=preset("cpu"), recipe=recipe, data=["data"], out="runs/tokenizer")
    train("dynamics", ..., tokenizer="runs/tokenizer", out="runs/dynamics")
    train("dynamics", ..., tokenizer="runs/tokenizer", joint_lam=True, out="runs/genie")

The run's folder holds config.json, metrics.jsonl, tensorboard/ and checkpoints/. The loop is in
`worldmodel.training.trainer`.
"""

from collections.abc import Sequence
from pathlib import Path

from envs.utils.errors import InputError
from envs.utils.progress import console
from envs.utils.storage import is_remote
from worldmodel import checkpoint
from worldmodel.config import WorldModelConfig
from worldmodel.training.config import TrainConfig, train_preset
from worldmodel.training.ray_train import fit_here, fit_on_workers
from worldmodel.training.run_spec import TrainingRun
from worldmodel.training.trainer import NonFiniteLoss

__all__ = ["NonFiniteLoss", "TrainConfig", "train", "train_preset"]


def train(
    component: str,
    *,
    config: WorldModelConfig,
    recipe: TrainConfig,
    data: Sequence[str | Path],
    out: str | Path,
    workers: int = 0,
    resume: bool = False,
    init: str | Path | None = None,
    tokenizer: str | Path | None = None,
    lam: str | Path | None = None,
    joint_lam: bool = False,
    decoder_only: bool = False,
    pairs: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Train a component on the train split of `data`; return the newest checkpoint.

    `workers`: Ray Train workers, on the Ray that is there or on a local one; 0 trains in this
    process without starting Ray. `init`: weights to start from. `tokenizer`: for dynamics, the
    trained tokenizer that is frozen. `lam`: for dynamics on latent actions, the latent action model
    that reads them, frozen too. All are a run's folder, a checkpoint, or a saved world model.
    `joint_lam`: train the latent action model with the dynamics, that in `lam` or `init`, or a new
    one where neither is given. `decoder_only`: a tokenizer's decoder alone is trained, token ids
    stay the same. `cache_dir` holds local copies of episodes and tokens, shared by runs
    (default: `cache` next to `out`). `resume` continues the run in `out` bit for bit; a run that is
    complete already is left as it is.

    Raise InputError for settings that do not fit together, data or weights that cannot be used,
    and a folder that holds another run; NonFiniteLoss where training breaks down; KeyboardInterrupt
    after Ctrl+C, a checkpoint saved.
    """
    out, recipe = Path(out).absolute(), recipe.on_this_machine()
    run = TrainingRun(
        component=component,
        config=config.with_latent_actions() if lam is not None or joint_lam else config,
        recipe=recipe,
        data=tuple(
            str(folder if is_remote(folder) else Path(folder).absolute()) for folder in data
        ),
        out=out,
        cache_dir=Path(cache_dir or out.parent / "cache").absolute(),
        init=None if init is None else Path(init).absolute(),
        tokenizer=None if tokenizer is None else Path(tokenizer).absolute(),
        lam=None if lam is None else Path(lam).absolute(),
        joint_lam=joint_lam,
        decoder_only=decoder_only,
        pairs=None if pairs is None else str(pairs if is_remote(pairs) else Path(pairs).absolute()),
    )
    run.check_inputs(config.actions)
    if recipe.batch_size % max(workers, 1):
        raise InputError(
            f"a batch of {recipe.batch_size} cannot be split over {workers} workers: use a multiple"
        )
    if (out / "config.json").exists():
        if not resume:
            raise InputError(
                f"{out} already holds a run: give another --out, or --resume to continue it"
            )
        run.check_resumable()

    newest = checkpoint.newest_checkpoint(out)
    if newest is None or checkpoint.open_checkpoint(newest).step < recipe.iterations:
        finished = fit_on_workers(run, workers) if workers else fit_here(run)
        newest = checkpoint.open_checkpoint(out).path
        if not finished:
            line = (
                f"stopped; {newest.name} of {recipe.iterations} is saved in {out}: go on with "
                "--resume"
            )
            console.print(line, soft_wrap=True)
            raise KeyboardInterrupt
    return newest
