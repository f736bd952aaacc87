"""Scores of the user studies: ratings of each model, preference, agreement."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from envs.utils.atomic_io import write_atomic, write_json_atomic
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.studies.common import estimate_json
from experiments.studies.people.agreement import krippendorff_alpha, mean_correlation
from experiments.studies.people.answers import Answer, latest, read_answers
from experiments.studies.people.arguments import PeopleScoreArgs
from experiments.studies.people.material import STUDIES, Material, Sample, Study, load_material
from experiments.studies.people.score_tables import people_markdown, plot_people

NAME = "people"


@dataclass(frozen=True)
class Judgement:
    """One answer that counts. value: rating 1 to 5, or preference for the second model, 0 to 1."""

    participant: int
    sample: Sample
    value: float


def run(args: PeopleScoreArgs) -> None:
    """Check all files, then write the results and print the tables."""
    material = load_material(args.out)
    result = score_people(material, read_all_answers(material))
    write_json_atomic(args.out / f"{NAME}.json", result)
    write_atomic(args.out / f"{NAME}.md", people_markdown(result).encode())
    write_atomic(args.out / f"{NAME}.png", plot_people(result))
    console.print(people_markdown(result))
    console.print(f"written to {args.out}: {NAME}.json, {NAME}.md, {NAME}.png")


def read_all_answers(material: Material) -> dict[int, dict[str, Answer]]:
    """Return the answers that count of each participant, by sample.

    Raises InputError if there are none, or a file was edited.
    """
    answers = {}
    for file in sorted((material.folder / "answers").glob("participant-*.json")):
        number = file.stem.removeprefix("participant-")
        if not number.isdecimal():
            raise InputError(f"{file} is no file of answers: remove it")
        answers[int(number)] = latest(read_answers(material, int(number)))
    if not any(answers.values()):
        raise InputError(
            f"{material.folder} holds no answers: `autoexplore study people serve` collects them"
        )
    return answers


def score_people(material: Material, answers: Mapping[int, Mapping[str, Answer]]) -> dict[str, Any]:
    """Return all results as JSON data.

    {"participants": {number: answers}, "samples", "models": names,
     "quality": {model: {"overall": MEAN, "games": {game: MEAN}, "difference": MEAN or null}},
     "action": {model: {"overall", "games", "actions": {action: MEAN}}}, "agreement": {study: ...}}
    MEAN = {"mean", "low", "high", "answers"}; its interval is over participants. "difference" is to
    the first model in the same windows; "action" is the preference over the first model.
    """
    known = material.by_id()
    judgements = [
        Judgement(number, known[name], answer.value)
        for number, given in answers.items()
        for name, answer in given.items()
    ]
    by_study = {study: [j for j in judgements if j.sample.study == study] for study in STUDIES}
    return {
        "participants": {str(number): len(given) for number, given in answers.items()},
        "samples": {study: len(material.of_study(study)) for study in STUDIES},
        "models": list(material.models),
        "quality": _quality(by_study["quality"], material.models[0]),
        "action": _action(by_study["action"]),
        "agreement": {study: _agreement(by_study[study], study) for study in STUDIES},
    }


def _quality(judgements: Sequence[Judgement], first: str) -> dict[str, Any]:
    """Return the ratings of each model and of the recording."""
    return {
        model: {
            "overall": _mean(own),
            "games": _means_by(own, lambda j: j.sample.game),
            "difference": None if model == first else _mean(_differences(judgements, model, first)),
        }
        for model, own in _grouped(judgements, lambda j: j.sample.models[1]).items()
    }


def _action(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return the preference for each later model over the first."""
    return {
        model: {
            "overall": _mean(own),
            "games": _means_by(own, lambda j: j.sample.game),
            "actions": _means_by(own, lambda j: j.sample.action),
        }
        for model, own in _grouped(judgements, lambda j: j.sample.models[1]).items()
    }


def _differences(judgements: Sequence[Judgement], model: str, first: str) -> list[Judgement]:
    """Return each participant's rating of a model minus that of the first in the same window."""

    def place(judgement: Judgement) -> tuple[int, str, int]:
        return judgement.participant, judgement.sample.session, judgement.sample.start

    base = {place(j): j.value for j in judgements if j.sample.models[1] == first}
    return [
        Judgement(j.participant, j.sample, j.value - base[place(j)])
        for j in judgements
        if j.sample.models[1] == model and place(j) in base
    ]


def _grouped(
    judgements: Iterable[Judgement], key: Callable[[Judgement], str]
) -> dict[str, list[Judgement]]:
    """Return the judgements by key, in the order of the keys' names."""
    groups: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        groups.setdefault(key(judgement), []).append(judgement)
    return {name: groups[name] for name in sorted(groups)}


def _means_by(
    judgements: Iterable[Judgement], key: Callable[[Judgement], str]
) -> dict[str, dict[str, Any]]:
    return {name: _mean(own) for name, own in _grouped(judgements, key).items()}


def _mean(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return the mean and its 95 % interval over participants, null where it is not defined."""
    if not judgements:
        return {"mean": None, "low": None, "high": None, "answers": 0}
    values = torch.tensor([j.value for j in judgements], dtype=torch.float64)
    groups = torch.tensor([j.participant for j in judgements])
    return {**estimate_json(values, groups), "answers": len(judgements)}


def _agreement(judgements: Sequence[Judgement], study: Study) -> dict[str, float | None]:
    """Return the agreement of the participants in one study, null where it is not defined."""
    by_sample: dict[str, dict[int, float]] = {}
    for judgement in judgements:
        by_sample.setdefault(judgement.sample.id, {})[judgement.participant] = judgement.value
    found = {
        "alpha": krippendorff_alpha(by_sample, "ordinal"),
        "correlation": mean_correlation(by_sample),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
