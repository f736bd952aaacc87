"""Answers of the participants: a file of each, in which any later change is noticed.

A file holds the answers in the order in which they were given, and `mac`: an HMAC-SHA256, with the
study's key, of the participant, the material and each answer after the one before. Who has no key
cannot change, add, remove or reorder an answer without being noticed, but can delete the whole file
or bring an older copy back.
"""

import hashlib
import hmac
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from envs.utils.atomic_io import read_json, write_json_atomic
from envs.utils.errors import InputError
from experiments.studies.people.material import STUDIES, Material, Sample

RATINGS = {str(number): float(number) for number in range(1, 6)}
"""Choices of the study of quality: 1 for clips that differ, 5 for clips that match."""
PREFERENCES = {"left": 0.0, "same": 0.5, "right": 1.0}
"""Choices of the study of actions: 0 prefers the first model where it is on the left."""


@dataclass(frozen=True)
class Answer:
    """One answer. value: rating 1 to 5, or preference from 0, the first model, to 1, the other."""

    sample: str
    choice: str
    """Word of the page."""
    value: float
    at: str
    """Time in UTC, ISO 8601."""


@dataclass(frozen=True)
class Shown:
    """One sample as a participant sees it. swapped: the second model is on the left."""

    sample: Sample
    swapped: bool

    @property
    def clips(self) -> tuple[str, str]:
        """Files of the clips, top or left first."""
        first, second = self.sample.clips
        return (second, first) if self.swapped else (first, second)

    def value(self, choice: str) -> float:
        """Return the value of a choice. Raises InputError for a word that is none."""
        choices = RATINGS if self.sample.study == "quality" else PREFERENCES
        if choice not in choices:
            raise InputError(f"{choice!r} is no answer: use one of {', '.join(choices)}")
        return 1 - choices[choice] if self.swapped else choices[choice]


def participant_token(key: bytes, participant: int) -> str:
    """Return the secret word in a participant's link."""
    return _mac(key, b"", ["link", participant])[:24]


def participant_order(material: Material, participant: int) -> list[Shown]:
    """Return all samples in the participant's own random order, one study after the other."""
    rng = np.random.default_rng([int(material.settings["seed"]), participant])
    shown: list[Shown] = []
    for study in STUDIES:
        samples = material.of_study(study)
        sides = rng.integers(2, size=len(samples)) if study == "action" else [0] * len(samples)
        order = rng.permutation(len(samples)).tolist()
        shown += [
            Shown(samples[index], bool(side)) for index, side in zip(order, sides, strict=True)
        ]
    return shown


def answers_path(material: Material, participant: int) -> Path:
    """Return the file of a participant."""
    return material.folder / "answers" / f"participant-{participant:03d}.json"


def read_answers(material: Material, participant: int) -> list[Answer]:
    """Return a participant's answers in the order of time; none without a file.

    Raises InputError if the file was edited, or belongs to other material.
    """
    file = answers_path(material, participant)
    if not file.exists():
        return []
    try:
        content = read_json(file)
        answers = [Answer(**answer) for answer in content["answers"]]
        study, mac = str(content["study"]), str(content["mac"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is no file of answers: it was edited or damaged") from error
    expected = chain_mac(material.key, participant, study, answers)
    if not hmac.compare_digest(mac.encode(), expected.encode()):
        raise InputError(f"{file} was edited: its answers do not match its mac")
    if study != material.sha256:
        raise InputError(f"{file} answers other material: the manifest was changed since")
    known = material.by_id()
    for answer in answers:
        if answer.sample not in known:
            raise InputError(f"{file} answers {answer.sample}, which is no sample of the study")
    return answers


def latest(answers: Sequence[Answer]) -> dict[str, Answer]:
    """Return the answer that counts for each sample, the last one."""
    return {answer.sample: answer for answer in answers}


def chain_mac(key: bytes, participant: int, study: str, answers: Sequence[Answer]) -> str:
    """Return the HMAC of a file: of its head, and of each answer with the HMAC before it."""
    mac = _mac(key, b"", ["answers", participant, study])
    for answer in answers:
        mac = _mac(key, mac.encode(), asdict(answer))
    return mac


def _mac(key: bytes, before: bytes, value: Any) -> str:
    message = before + json.dumps(value, sort_keys=True).encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


class AnswerStore:
    """Files of all participants, each read and checked before an answer is added to it."""

    def __init__(self, material: Material, participants: int) -> None:
        self.material = material
        self.participants = {
            participant_token(material.key, number): number for number in range(1, participants + 1)
        }
        """Token -> number of each participant, from 1."""
        self._orders = {
            number: participant_order(material, number) for number in self.participants.values()
        }
        self._lock = threading.Lock()
        for number in self._orders:
            self.answers(number)

    def order(self, participant: int) -> list[Shown]:
        """Return a participant's samples in their order."""
        return self._orders[participant]

    def answers(self, participant: int) -> dict[str, Answer]:
        """Return a participant's answers by sample. Raises InputError for an edited file."""
        return latest(read_answers(self.material, participant))

    def put(self, participant: int, number: int, choice: str) -> None:
        """Add an answer to the sample at this place of the order; it is on the disk on return."""
        shown = self._orders[participant][number]
        value, at = shown.value(choice), datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock:
            answers = read_answers(self.material, participant)
            answers.append(Answer(shown.sample.id, choice, value, at))
            study = self.material.sha256
            content = {
                "participant": participant,
                "study": study,
                "answers": [asdict(answer) for answer in answers],
                "mac": chain_mac(self.material.key, participant, study, answers),
            }
            write_json_atomic(answers_path(self.material, participant), content)
