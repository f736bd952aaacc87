"""Flags of the user studies. Loads no torch, so that wrong flags are reported at once."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import subcommand

from envs.utils.errors import InputError
from experiments.arguments import CompiledModelArgs, check_at_least, check_data, check_model
from experiments.configuration import Flat
from experiments.studies.mid_air import MOST_MOTION

TRUTH = "truth"
"""Name of recorded clips, where models have theirs."""


@dataclass(frozen=True, kw_only=True)
class PeopleMakeArgs(CompiledModelArgs):
    """Make the clips of both studies, and a manifest with the sha256 of each file.

    Quality (E.1): each model's prediction and, to establish the scale, the recording itself, beside
    the recording. Action (E.2): predictions of two models after one frame in mid-air, with left,
    jump or right held. Run it again to continue: finished clips are kept.
    """

    models: tuple[str, ...]
    """Two or more world models as NAME=PATH, e.g. random=RUN/model explored=RUN/model. Preference
    is that of each later one over the first."""
    data: tuple[Path, ...]
    """Episode folders that the models were not trained on."""
    out: Path
    """Folder of the study."""
    games: tuple[str, ...] = ()
    """Games of the study of quality, of which the paper has two. Default: all of the data."""
    samples: int = 20
    """Samples of each model, and of the recording itself, of each game. 0 omits this study."""
    context: int = 2
    """Number of given frames in the study of quality; that of actions has one."""
    frames: int = 16
    """Frames of a clip, given ones included."""
    action_games: tuple[str, ...] = ()
    """Games of the study of actions, of which the paper has one. Default: those of --games."""
    starts: int = 10
    """Mid-air starts of each game; 10 with three actions make the paper's 60 clips of two models.
    0 omits this study."""
    most_motion: float = MOST_MOTION
    """Largest share of the picture that may change in a step of a jump that a start is taken from,
    from 0 to 1."""
    fps: float = 8.0
    """Frames a second that the page shows."""
    sampling_steps: int = 25
    """MaskGIT steps per chunk of frames."""
    temperature: float = 1.0
    """Sampling temperature."""
    seed: int = 0
    """Random seed of windows, starts, sampling and order."""
    threads: int | None = None
    """Torch threads. Default: one per core."""

    def check_paths(self) -> None:
        """Raise InputError for wrong numbers, missing folders, or models that are the same."""
        check_at_least(0, samples=self.samples, starts=self.starts, temperature=self.temperature)
        check_at_least(1, context=self.context, sampling_steps=self.sampling_steps)
        check_at_least(self.context + 1, frames=self.frames)
        check_at_least(0.1, fps=self.fps)
        if not self.samples and not self.starts:
            raise InputError("--samples 0 and --starts 0 leave no study: give one of them more")
        for path in self.model_paths().values():
            check_model(path)
        check_data(self.data)

    def model_paths(self) -> dict[str, Path]:
        """Return the folder of each model. Raises InputError for names or folders given twice."""
        paths: dict[str, Path] = {}
        for text in self.models:
            name, _, path = text.partition("=")
            if not re.fullmatch(r"[\w.]+", name) or not path or name == TRUTH or name in paths:
                raise InputError(
                    f"--models {text}: give NAME=PATH, with a name of its own and not {TRUTH}"
                )
            paths[name] = Path(path)
        if len(paths) < 2:
            raise InputError(f"--models {' '.join(self.models)}: give two or more")
        owners = {folder.resolve(): name for name, folder in paths.items()}
        for name, folder in paths.items():
            if (other := owners[folder.resolve()]) != name:
                raise InputError(f"--models: {name} and {other} are the same folder {folder}")
        return paths


@dataclass(frozen=True, kw_only=True)
class PeopleServeArgs:
    """Serve the page, with a link for each participant, until Ctrl+C.

    An answer is on the disk before the page goes on. The links stay the same when the page is
    served again with the same --host and --port.
    """

    out: Path
    """Folder that `study people make` wrote; the answers are saved in it."""
    participants: int = 19
    """Number of links."""
    host: str = "127.0.0.1"
    """Address or name of this machine that the page is served at. Default: this machine alone."""
    port: int = 8600
    """Port, 1 to 65535; 0 selects a free one."""

    def check_paths(self) -> None:
        """Raise InputError for wrong numbers or an address that no link can name."""
        if not 1 <= self.participants <= 999:
            raise InputError(f"--participants {self.participants}: give 1 to 999")
        if not 0 <= self.port < 65536:
            raise InputError(f"--port {self.port} is no port: use 1 to 65535, or 0 for a free one")
        if not self.host or self.host == "0.0.0.0" or ":" in self.host:
            raise InputError(
                f"--host {self.host}: give the IPv4 address or name that participants open"
            )


@dataclass(frozen=True, kw_only=True)
class PeopleScoreArgs:
    """Score the answers: means with 95 % intervals, preference, agreement of the participants.

    Writes people.json, the same as Markdown, and people.png into --out. Answers or clips that were
    changed afterwards are refused.
    """

    out: Path
    """Folder of the study."""

    def check_paths(self) -> None:
        """Do nothing: the study's own files are checked when they are read."""


@dataclass(frozen=True)
class PeopleArgs:
    """User studies (App. E): people rate predictions and compare actions of two or more models."""

    which: Flat[
        Annotated[PeopleMakeArgs, subcommand("make")]
        | Annotated[PeopleServeArgs, subcommand("serve")]
        | Annotated[PeopleScoreArgs, subcommand("score")]
    ]
