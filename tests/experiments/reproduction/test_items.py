"""Times in the list of `reproduce`: what was measured, and what is predicted for other machines."""

import itertools
import json
import re
from pathlib import Path

import pytest

from envs import catalog
from experiments.__main__ import execute
from experiments.reproduction.items import ITEMS, Item, find_item, predicted_minutes
from scripts.predict_reproduction import HARDWARE, predict_all, predicted

MADE = [item for item in ITEMS if item.is_made_here]


def test_every_item_was_measured_at_debug() -> None:
    for item in MADE:
        assert item.minutes.get("debug", 0) > 0 or item.state == "needs", item.name


def test_the_file_predicts_every_item_with_stages() -> None:
    names = {item.name for item in MADE if item.kind != "settings"}
    assert set(predicted_minutes()) == set(HARDWARE)
    for preset, values in predicted_minutes().items():
        assert values["hardware"] == HARDWARE[preset]
        assert set(values["minutes"]) == names


@pytest.mark.parametrize(
    ("name", "preset"), [("table5", "gpu"), ("figure22", "gpu"), ("figure23", "paper")]
)
def test_the_file_holds_what_a_dry_run_predicts(name: str, preset: str) -> None:
    """If this fails, run `python -m scripts.predict_reproduction`."""
    assert predicted_minutes()[preset]["minutes"][name] == predicted(find_item(name), preset)


@pytest.mark.slow
def test_the_whole_file_is_up_to_date() -> None:
    """If this fails, run `python -m scripts.predict_reproduction`."""
    assert predicted_minutes() == predict_all()


@pytest.mark.parametrize("item", [item for item in ITEMS if item.command], ids=lambda i: i.name)
def test_the_command_of_an_item_exists(item: Item, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = item.command.split()
    assert program == "autoexplore"
    flags = [word for word in words if word.startswith("--")]
    command = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    with pytest.raises(SystemExit, match="0"):
        execute([*command, "--help"])
    shown = capsys.readouterr().out
    assert f"usage: autoexplore {command[0]}" in shown
    for word in [*command[1:], *flags]:
        assert word == item.name or re.search(rf"{word}\b", shown), word


def test_table_1_counts_the_labelled_games_of_the_catalogue(tmp_path: Path) -> None:
    assert execute(["reproduce", "table1", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "table1.json").read_text())["rows"]
    assert [row["environments"] for row in rows] == [1, 57, 1003, None, 974, 1006]
    games = catalog.table()
    known = games[["view", "axis", "motion"]].ne("unknown").all(axis=1)
    assert rows[-1]["behaviour_labels"] == known.sum() > 900
    assert 0 < rows[-1]["control_labels"] < rows[-1]["behaviour_labels"]
    assert (
        "| RetroAct | environments | 974 | yes | yes | yes | yes |"
        in (tmp_path / "table1.md").read_text()
    )


def test_the_list_tells_predicted_from_measured_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["reproduce", "--list", "--json"]) == 0
    items = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    table = items["table5"]
    assert set(table["minutes"]) <= {"debug", "cpu"}
    assert {name: value["hardware"] for name, value in table["predicted_training"].items()} == {
        "gpu": "rtx4090",
        "paper": "h100",
    }
    assert items["table7"]["predicted_training"] == items["figure20"]["predicted_training"] == {}
    assert execute(["reproduce", "--list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "preset gpu on one rtx4090, preset paper on one h100" in printed
    assert "It was not measured." in printed
