"""Material of the user studies: samples, clips and the manifest that vouches for them.

<out>/plan.json       models, settings and samples, written first
<out>/clips/*.png     a clip each, its frames side by side
<out>/key             secret of links and answers, readable by its owner only
<out>/manifest.json   the plan and the sha256 of every clip, written last
<out>/answers/        a file of each participant
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from envs.utils.atomic_io import file_sha256, read_json, write_atomic
from envs.utils.errors import InputError

FORMAT = "autoexplore-people-1"
KEY_BYTES = 32
PLAN, KEY, PEOPLE_MANIFEST = "plan.json", "key", "manifest.json"

Study = Literal["quality", "action"]
STUDIES: tuple[Study, ...] = ("quality", "action")
"""The studies of appendices E.1 and E.2, in the order of the page."""


@dataclass(frozen=True)
class Sample:
    """Two clips that a participant sees at once: the recording and a comparison, or two models."""

    id: str
    study: Study
    game: str
    session: str
    start: int
    """Index of the first given frame of the episode, from 0."""
    action: str
    """Action that is held in both clips; empty in the study of quality."""
    seed: int
    """Random seed of the sampling."""
    models: tuple[str, str]
    """Name of each clip's model; `truth` for a recording."""
    clips: tuple[str, str]
    """File of each clip, relative to the folder of the study."""


@dataclass(frozen=True)
class Material:
    """Checked material of a study. sha256: that of the manifest, which answers refer to."""

    folder: Path
    settings: Mapping[str, Any]
    models: tuple[str, ...]
    samples: tuple[Sample, ...]
    key: bytes
    sha256: str

    def of_study(self, study: Study) -> list[Sample]:
        """Return the samples of one study."""
        return [sample for sample in self.samples if sample.study == study]

    def by_id(self) -> dict[str, Sample]:
        """Return the samples by their ids."""
        return {sample.id: sample for sample in self.samples}


def plan_json(
    settings: Mapping[str, Any], models: Mapping[str, Any], samples: tuple[Sample, ...]
) -> dict[str, Any]:
    """Return the content of plan.json."""
    plan = {
        "format": FORMAT,
        "settings": settings,
        "models": models,
        "samples": [asdict(sample) for sample in samples],
    }
    return dict(json.loads(json.dumps(plan, default=str)))


def load_material(folder: Path) -> Material:
    """Read and check the material of a study.

    Raises InputError if it is incomplete, or a file differs from its sha256.
    """
    file = folder / PEOPLE_MANIFEST
    if not file.exists():
        raise InputError(
            f"{folder} holds no complete study: make it with `autoexplore study people make`"
        )
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{file}: not a study of this version: expected format {FORMAT!r}")
    for name, expected in manifest["files"].items():
        clip = folder / name
        if not clip.is_file() or file_sha256(clip) != expected:
            problem = "was changed" if clip.is_file() else "is missing"
            raise InputError(f"{clip} {problem} since the study was made: make it again elsewhere")
    samples = tuple(
        Sample(**{**sample, "models": tuple(sample["models"]), "clips": tuple(sample["clips"])})
        for sample in manifest["samples"]
    )
    return Material(
        folder,
        manifest["settings"],
        tuple(manifest["models"]),
        samples,
        load_key(folder),
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def make_key(folder: Path) -> None:
    """Write the secret of a study, unless it has one."""
    file = folder / KEY
    if not file.exists():
        write_atomic(file, secrets.token_hex(KEY_BYTES).encode())
        file.chmod(0o600)


def load_key(folder: Path) -> bytes:
    """Return the secret of a study. Raises InputError if it is missing or damaged."""
    file = folder / KEY
    try:
        key = bytes.fromhex(file.read_text())
    except (OSError, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(f"{file} is missing or damaged: the answers cannot be checked without it")
    return key
