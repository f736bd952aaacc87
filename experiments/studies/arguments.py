"""Flags of the studies. Loads no torch, so that wrong flags are reported at once."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.arguments import (
    CompiledModelArgs,
    PrecisionArgs,
    Preset,
    RayArgs,
    check_data,
    check_model,
)
from worldmodel.config import GenerationMode

DEFAULT_VARIANTS = ("base", "token_input", "tdce", "masked", "masked_frames", "clean_past")


@dataclass(frozen=True, kw_only=True)
class ModelArgs(CompiledModelArgs):
    """The flags of every study of one model."""

    model: tyro.conf.Positional[Path]
    """World model: the `model` folder of `train dynamics`, `export` or `pipeline`."""
    data: tuple[Path, ...]
    """Episode folders that the model was not trained on."""
    out: Path
    """Folder of the results and pictures."""
    limit: int = 16
    """Maximum number of windows per game, evenly spread."""
    seed: int = 0
    """Random seed of the sampling."""
    threads: int | None = None
    """Torch threads. Default: one per core."""

    def check_paths(self) -> None:
        """Raise InputError for a missing model or episode folder."""
        check_model(self.model)
        check_data(self.data)


@dataclass(frozen=True, kw_only=True)
class AblationArgs(RayArgs, PrecisionArgs):
    """Ablation of the method: train variants x seeds on one budget, evaluate, compare (Table 4).

    Writes ablation.json, ablation.md and ablation.png to --out, again after each cell. Run it again
    to continue: finished cells are kept, interrupted ones resumed. You may add seeds and variants.
    """

    data: tuple[Path, ...]
    """Episode folders to train on."""
    out: Path
    """Folder of the study."""
    test_data: tuple[Path, ...] = ()
    """Episode folders to evaluate on. Default: the validation split of --data."""
    preset: Preset = "cpu"
    """Size of the model and of its training."""
    variants: tuple[str, ...] = DEFAULT_VARIANTS
    """Rows of the table. Differences are relative to the first. An unknown name lists all."""
    variants_file: Path | None = None
    """JSON file of more variants: {"name": {"label": "...", "dynamics": {field: value}, "recipe":
    {field: value}}}."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds, each for one tokenizer and all variants on it."""
    iterations: int | None = None
    """Optimizer steps of each dynamics run. Default: the preset's."""
    cpu_seconds: float | None = None
    """CPU-seconds of each dynamics run on one thread, instead of --iterations. A step of each
    variant is timed first."""
    tokenizer_iterations: int | None = None
    """Optimizer steps of each tokenizer run. Default: the preset's."""
    tokenizer_seconds: float | None = None
    """CPU-seconds of each tokenizer run, instead of --tokenizer-iterations."""
    modes: tuple[GenerationMode, ...] = ("one_pass", "autoregressive")
    """Sampling modes of the evaluation."""
    sampling_steps: int = 25
    """MaskGIT steps."""
    horizon: int = 10
    """Number of predicted frames, after 2 given ones."""
    stride: int = 20
    """Frames between the starts of two windows."""
    limit: int | None = 24
    """Maximum number of windows per game; `None` for all."""
    parallel: int = 1
    """Number of cells in parallel, each in its own process with one torch thread; 1 runs them in
    this process."""

    def check_paths(self) -> None:
        """Raise InputError for a missing episode folder."""
        check_data([*self.data, *self.test_data])


@dataclass(frozen=True, kw_only=True)
class ExplorationArgs(RayArgs, PrecisionArgs):
    """Value of exploration: explorers x games x seeds on one budget, fine-tune, compare (Table 5).

    Writes exploration.json and exploration.md to --out, again after each game and seed. Run it
    again to continue. You may add seeds and arms: name the old ones too.
    """

    games: tyro.conf.Positional[tuple[str, ...]]
    """Games with depth, e.g. PrivateEye-Atari2600 CoinRun."""
    out: Path
    """Folder of the study."""
    arms: tuple[str, ...] = ("random", "dirichlet", "hold", "agent", "archive-entropy")
    """Explorers. An unknown name lists all."""
    data: tuple[str, ...] = ("new", "half")
    """Data of the fine-tuning: new, the explorer's alone; half, the base data besides."""
    factorial: tuple[str, ...] = ()
    """Arms of which the decoder and the dynamics model are measured apart too, each with the other
    one of the random arm."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds, each for a base model and all arms on it."""
    preset: Preset = "cpu"
    """Size of the models and of the explorer."""
    steps: int = 6_400
    """Emulator steps of each arm, up to one episode more. Those in which an agent was trained come
    on top."""
    base_steps: int = 6_400
    """Emulator steps of random play that the base model is trained on."""
    base_tokenizer_iterations: int | None = None
    """Optimizer steps of the base tokenizer. Default: the preset's."""
    base_dynamics_iterations: int | None = None
    """Optimizer steps of the base dynamics model. Default: the preset's."""
    decoder_iterations: int = 400
    """Optimizer steps of fine-tuning the decoder."""
    dynamics_iterations: int = 1_000
    """Optimizer steps of fine-tuning the dynamics model."""
    explore_epochs: int | None = None
    """Epochs of the agent. Default: the preset's."""
    test_episodes: int = 16
    """Episodes of each test set."""
    limit: int = 48
    """Maximum number of windows of a test set."""
    parallel: int = 1
    """Number of games and seeds in parallel, each in its own process with one torch thread."""
    results: tuple[Path, ...] = ()
    """exploration.json of the same study run elsewhere with other games or seeds, which join the
    tables."""

    def check_paths(self) -> None:
        """Do nothing: the study reads no data."""


@dataclass(frozen=True, kw_only=True)
class RepresentationArgs(ModelArgs):
    """Meaning of the codes: replace all but background tokens by their nearest or farthest code.

    If near codes look alike, the first leaves a recognisable picture and the second destroys it
    (Fig. 5). Writes representation.json and representation-GAME.png to --out. The rows of a
    picture: ground truth, reconstruction, nearest codes, farthest codes, tokens as colours.
    """

    length: int = 4
    """Frames in a window."""
    stride: int = 20
    """Frames between the starts of two windows."""


@dataclass(frozen=True, kw_only=True)
class UncertaintyArgs(ModelArgs):
    """Calibration of the uncertainty: maps of idle and moving scenes (Fig. 6), reliability.

    Prints the calibration error (ECE) and how well the uncertainty tells apart (AUC): patches that
    move and static ones, or static ones of one colour; scenes with much motion and with little;
    screens unlike the training data and others. Writes uncertainty.json, uncertainty.png and
    uncertainty-GAME.png to --out.
    """

    reference_data: tuple[Path, ...] = ()
    """Episode folders that the model was trained on. With them the study also tells screens that
    are like theirs from others, and measures the disagreement of heads that are trained on them."""
    limit: int = 64
    """Maximum number of windows per game, evenly spread."""
    stride: int = 5
    """Frames between the starts of two windows."""


@dataclass(frozen=True, kw_only=True)
class HorizonArgs(ModelArgs):
    """Quality and controllability over time: PSNR, SSIM and delta-PSNR of each frame (App. F.2).

    Writes horizon.json and horizon.png to --out.
    """

    horizon: int = 30
    """Number of predicted frames. The model's window slides if they exceed it."""
    context: int = 2
    """Number of given frames."""
    stride: int = 40
    """Frames between the starts of two windows."""
    modes: tuple[GenerationMode, ...] = ("one_pass", "autoregressive")
    """Sampling modes."""
    sampling_steps: int = 25
    """MaskGIT steps."""


@dataclass(frozen=True, kw_only=True)
class StepsArgs(ModelArgs):
    """Prediction quality over the number of sampling steps, and over the time they take.

    Writes steps.json and steps.png to --out.
    """

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 25, 50)
    """Numbers of MaskGIT steps to compare."""
    modes: tuple[GenerationMode, ...] = ("one_pass", "autoregressive")
    """Sampling modes."""
    horizon: int = 10
    """Number of predicted frames, after 2 given ones."""
    stride: int = 20
    """Frames between the starts of two windows."""
    temperature: float = 1.0
    """Sampling temperature; 0 for no noise."""
    repeats: int = 3
    """Number of timings; the shortest counts."""
