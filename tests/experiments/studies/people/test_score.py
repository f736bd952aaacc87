"""Scores of answers whose numbers are known, agreement, and files that were edited."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.studies.people.agreement import krippendorff_alpha, mean_correlation
from experiments.studies.people.answers import (
    AnswerStore,
    Shown,
    answers_path,
    participant_order,
    participant_token,
    read_answers,
)
from experiments.studies.people.material import load_material
from tests.experiments.studies.people.conftest import COUNTS

RATING = {"truth": 5, "random": 2, "explored": 4}


def answer_all(study: Path, participants: int, choose: Callable[[int, Shown], str]) -> AnswerStore:
    """Let each participant answer every sample with the word that `choose` returns."""
    store = AnswerStore(load_material(study), participants)
    for participant in store.participants.values():
        for number, shown in enumerate(store.order(participant)):
            store.put(participant, number, choose(participant, shown))
    return store


def honest(participant: int, shown: Shown) -> str:
    """Prefer the explored model; the second participant rates one lower."""
    if shown.sample.study == "quality":
        return str(RATING[shown.sample.models[1]] - (participant == 2))
    if participant == 2 and shown.sample.action == "jump":
        return "same"
    return "left" if shown.swapped else "right"


def figures(study: Path) -> dict[str, Any]:
    return dict(json.loads((study / "people.json").read_text()))


def test_scores_of_known_answers(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer_all(study, 2, honest)
    assert execute(["study", "people", "score", "--out", str(study)]) == 0
    found = figures(study)
    assert found["participants"] == {"1": sum(COUNTS.values()), "2": sum(COUNTS.values())}
    quality = found["quality"]
    means = {name: row["overall"]["mean"] for name, row in quality.items()}
    assert means == {"truth": 4.5, "random": 1.5, "explored": 3.5}
    assert {name: row["overall"]["answers"] for name, row in quality.items()} == dict.fromkeys(
        RATING, 8
    )
    # Two participants whose means differ by 1: Student's t with one degree of freedom.
    half = stats.t.ppf(0.975, 1) * np.std([4, 3], ddof=1) / math.sqrt(2)
    overall = quality["explored"]["overall"]
    assert (overall["low"], overall["high"]) == pytest.approx((3.5 - half, 3.5 + half))
    assert {game: value["mean"] for game, value in quality["random"]["games"].items()} == {
        "Corridor": 1.5,
        "Counting": 1.5,
    }
    # Each rated both models alike but for 2: there is no doubt about the difference.
    assert quality["explored"]["difference"] == {"mean": 2, "low": 2, "high": 2, "answers": 8}
    assert quality["random"]["difference"] is None

    action = found["action"]["explored"]
    assert action["overall"]["mean"] == pytest.approx((6 * 1 + 4 * 1 + 2 * 0.5) / 12)
    assert {name: value["mean"] for name, value in action["actions"].items()} == {
        "left": 1,
        "jump": 0.75,
        "right": 1,
    }
    assert found["agreement"]["quality"]["correlation"] == pytest.approx(1)
    assert 0 < found["agreement"]["quality"]["alpha"] < 1

    shown = (study / "people.md").read_text()
    assert "| explored | 8 | 3.50 (-2.85 to 9.85) |" in shown
    assert re.search(r"\| explored \| 12 \| 0\.92 ", shown)
    assert shown.strip() in capsys.readouterr().out
    assert Image.open(study / "people.png").size[0] > 500


def test_the_last_answer_counts_and_some_may_be_missing(study: Path) -> None:
    store = AnswerStore(load_material(study), 3)
    for choice in ("1", "5", "3"):
        store.put(3, 0, choice)
    assert execute(["study", "people", "score", "--out", str(study)]) == 0
    found = figures(study)
    assert found["participants"] == {"3": 1}
    (row,) = found["quality"].values()
    assert (row["overall"]["mean"], row["overall"]["low"], row["overall"]["answers"]) == (
        3,
        None,
        1,
    )
    assert found["action"] == {}
    assert found["agreement"]["quality"] == {"alpha": None, "correlation": None}
    with pytest.raises(InputError, match="'6' is no answer"):
        store.put(3, 0, "6")
    with pytest.raises(InputError, match="'left' is no answer"):
        store.put(3, 0, "left")


def test_orders_are_random_but_stay_the_same_and_both_sides_are_used(made_study: Path) -> None:
    material = load_material(made_study)
    orders = [participant_order(material, number) for number in range(1, 30)]
    for order in orders:
        assert [shown.sample.study for shown in order] == ["quality"] * COUNTS["quality"] + [
            "action"
        ] * COUNTS["action"]
        assert len({shown.sample.id for shown in order}) == len(order)
        assert not any(shown.swapped for shown in order if shown.sample.study == "quality")
    assert orders == [participant_order(material, number) for number in range(1, 30)]
    assert len({tuple(shown.sample.id for shown in order) for order in orders}) == len(orders)
    sides = [shown.swapped for order in orders for shown in order if shown.sample.action]
    assert 0.35 < np.mean(sides) < 0.65
    tokens = {participant_token(material.key, number) for number in range(1, 1000)}
    assert len(tokens) == 999


def test_edited_answers_are_noticed(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = answer_all(study, 2, honest)
    material = store.material
    file = answers_path(material, 2)
    content = json.loads(file.read_text())

    def change_value(content: dict[str, Any]) -> None:
        content["answers"][3]["value"] = 5.0

    def drop_last(content: dict[str, Any]) -> None:
        content["answers"].pop()

    def swap(content: dict[str, Any]) -> None:
        content["answers"][:2] = content["answers"][1::-1]

    def repeat(content: dict[str, Any]) -> None:
        content["answers"].append(content["answers"][0])

    def new_study(content: dict[str, Any]) -> None:
        content["study"] = "0" * 64

    for edit in (change_value, drop_last, swap, repeat, new_study):
        edited = json.loads(json.dumps(content))
        edit(edited)
        file.write_text(json.dumps(edited))
        assert execute(["study", "people", "score", "--out", str(study)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{file} was edited" in line, edit
        with pytest.raises(InputError, match="was edited"):
            store.put(2, 0, "1")  # and nothing is written over it
    for damage in ("{", "[]", "{}"):
        file.write_text(damage)
        with pytest.raises(InputError, match=re.escape(str(file))):
            read_answers(material, 2)

    # The file of another participant is no stand-in for one's own.
    file.write_bytes(answers_path(material, 1).read_bytes())
    with pytest.raises(InputError, match="was edited"):
        read_answers(material, 2)
    file.write_text(json.dumps(content))
    assert len(read_answers(material, 2)) == sum(COUNTS.values())


def test_answers_to_other_material_are_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["study", "people", "score", "--out", str(study)]) == 2
    assert "holds no answers" in capsys.readouterr().err
    answer_all(study, 1, honest)
    manifest = study / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"fps": 8.0', '"fps": 9.0'))
    assert execute(["study", "people", "score", "--out", str(study)]) == 2
    assert "answers other material" in capsys.readouterr().err
    other = study / "answers" / "participant-x.json"
    other.write_text("{}")
    assert execute(["study", "people", "score", "--out", str(study)]) == 2
    assert "participant-" in capsys.readouterr().err


def judgements(rows: list[str]) -> dict[str, dict[int, float]]:
    """Return sample -> participant -> value of one line of values a participant."""
    table = [row.split() for row in rows]
    return {
        str(sample): {
            number: float(row[sample]) for number, row in enumerate(table) if row[sample] != "."
        }
        for sample in range(len(table[0]))
    }


def test_alpha_of_krippendorffs_own_example() -> None:
    """Data and results of *Computing Krippendorff's Alpha-Reliability* (2011), part C."""
    table = judgements(
        [
            "1 2 3 3 2 1 4 1 2 . . .",
            "1 2 3 3 2 2 4 1 2 5 . 3",
            ". 3 3 3 2 3 4 2 2 5 1 .",
            "1 2 3 3 2 4 4 1 2 5 1 .",
        ]
    )
    assert krippendorff_alpha(table, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(table, "interval") == pytest.approx(0.849, abs=5e-4)


def test_agreement_at_its_ends() -> None:
    same = judgements(["1 3 5", "1 3 5", "1 3 5"])
    assert krippendorff_alpha(same, "ordinal") == 1
    assert mean_correlation(same) == pytest.approx(1)
    opposite = judgements(["1 3 5", "5 3 1"])
    assert krippendorff_alpha(opposite, "interval") < 0
    assert mean_correlation(opposite) == pytest.approx(-1)
    for undefined in (judgements(["1 2 3"]), judgements(["4 4", "4 4"]), {}):
        assert math.isnan(krippendorff_alpha(undefined, "ordinal"))
        assert math.isnan(mean_correlation(undefined))
    generator = np.random.default_rng(0)
    noise = {
        str(sample): {p: float(generator.integers(1, 6)) for p in range(10)}
        for sample in range(300)
    }
    assert abs(krippendorff_alpha(noise, "ordinal")) < 0.03  # its standard error is 0.009
