"""Labels of annotators: words and files, agreement, and merging."""

import math
from pathlib import Path

import pytest

from envs.catalog import LABELS_FILE
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.catalog_tools import agree, labels
from experiments.catalog_tools.labels import COLUMNS, UNKNOWN, VOCABULARY, Row

GENESIS, ATARI = "Airstriker-Genesis", "Kangaroo-Atari2600"


def row(game: str, confidence: str = "0.75", **words: str) -> Row:
    """A whole row: `unknown` where nothing else is said."""
    return (
        labels.new_row(game)
        | dict.fromkeys(VOCABULARY, UNKNOWN)
        | {"confidence": confidence}
        | words
    )


def written(folder: Path, name: str, *rows: Row) -> Path:
    path = labels.file_of(folder, name)
    labels.save(path, {one["game"]: one for one in rows})
    return path


# Files


def test_the_catalogue_itself_has_only_known_words() -> None:
    loaded = labels.load_labels(LABELS_FILE)
    assert len(loaded.rows) == len(labels.titles())
    assert list(loaded.rows[GENESIS]) == list(COLUMNS)


def test_rows_come_back_as_saved_and_a_half_labelled_one_is_not_complete(tmp_path: Path) -> None:
    rows = row(GENESIS, view="top"), labels.new_row(ATARI) | {"motion": "platformer"}
    loaded = labels.load_labels(written(tmp_path, "ada", *rows))
    assert loaded.annotator == "ada"
    assert list(loaded.rows.values()) == list(rows)
    assert [labels.complete(one) for one in rows] == [True, False]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("game,console", "game,machine", "line 1: the columns"),
        (",watched\n", "\n", "line 2: 15 cells"),
        (",top,", ",above,", "view 'above' is not one of side, third person"),
        (",0.75,", ",1.75,", "confidence '1.75'"),
        (",0.75,", ",nan,", "confidence 'nan'"),
        (",watched", ",dreamt", "source 'dreamt'"),
        (GENESIS, "Airstrike-Genesis", "no game is called 'Airstrike-Genesis'"),
        (",top,", ',"top,', "line 2: not a row of CSV"),
    ],
)
def test_a_malformed_row_is_reported_with_its_position(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path, "ada", row(GENESIS, view="top"))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError) as raised:
        labels.load_labels(path)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)


def test_a_game_twice_a_file_of_bytes_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "ada", row(GENESIS))
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(InputError, match=r"line 3: Airstriker-Genesis occurs twice"):
        labels.load_labels(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        labels.load_labels(path)
    with pytest.raises(InputError, match="cannot be read"):
        labels.load_labels(tmp_path / "labels-missing.csv")
    with pytest.raises(InputError, match=r"annotator '\.\./ada'"):
        labels.file_of(tmp_path, "../ada")


# Several annotators


def test_kappa_of_a_hand_computed_example() -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no:
    # p_o = 35/50 = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.4.
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert labels.cohen_kappa(a, b) == pytest.approx(0.4)
    assert labels.cohen_kappa(a, a) == pytest.approx(1)
    # Three words: p_o = 2/4; p_e = (2*1 + 1*2 + 1*1)/16 = 5/16; kappa = (8 - 5)/(16 - 5).
    assert labels.cohen_kappa(list("aabc"), list("abbc")) == pytest.approx(
        (0.75 - 5 / 16) / (11 / 16)
    )
    assert labels.cohen_kappa(["a", "a"], ["b", "b"]) == pytest.approx(0)  # p_o = p_e = 0
    assert labels.cohen_kappa(["a", "b"], ["b", "a"]) == pytest.approx(-1)


def test_kappa_is_nan_where_it_is_undefined() -> None:
    assert math.isnan(labels.cohen_kappa(["yes"] * 3, ["yes"] * 3))
    assert math.isnan(labels.cohen_kappa([], []))
    with pytest.raises(InputError, match="not 1 and 2"):
        labels.cohen_kappa(["yes"], ["yes", "no"])


def test_merging_takes_the_majority_then_the_surer_then_nobody(tmp_path: Path) -> None:
    files = [
        written(
            tmp_path,
            "ada",
            row(GENESIS, "0.50", view="top", axis="free", motion="shooter", up="up"),
        ),
        written(
            tmp_path,
            "ben",
            row(GENESIS, "0.75", view="top", axis="fixed", motion="action", up=UNKNOWN),
        ),
        written(
            tmp_path,
            "cy",
            row(GENESIS, "1.00", view="side", up=""),
            row(ATARI, "0.25", motion="platformer"),
        ),
    ]
    table, differences = labels.merge(labels.load_all(files))
    assert list(table) == [GENESIS, ATARI]
    merged = table[GENESIS]
    assert merged["view"] == "top"  # two against the surest one
    assert merged["axis"] == "fixed"  # one against one: the surer
    assert merged["up"] == "up"  # who cannot say does not vote
    assert merged["down"] == UNKNOWN
    assert merged["confidence"] == "0.50"
    assert table[ATARI]["motion"] == "platformer"
    assert [(one.game, one.column) for one in differences] == [
        (GENESIS, column) for column in ("view", "axis", "motion", "up")
    ]
    assert differences[0].words == {"ada": "top", "ben": "top", "cy": "side"}
    labels.save(tmp_path / "merged.csv", table)
    assert labels.load_labels(tmp_path / "merged.csv").rows == table

    equally_sure = [
        written(tmp_path, "dee", row(ATARI, view="side")),
        written(tmp_path, "eve", row(ATARI, view="top")),
    ]
    assert labels.merge(labels.load_all(equally_sure))[0][ATARI]["view"] == UNKNOWN


def test_agreement_counts_what_both_labelled(tmp_path: Path) -> None:
    ada = written(
        tmp_path,
        "ada",
        row(GENESIS, view="top"),
        row(ATARI, view="side", axis=""),
        row("Pong-Atari2600"),
    )
    ben = written(tmp_path, "ben", row(GENESIS, view="top"), row(ATARI, view="top", axis="free"))
    found = {one.column: one for one in labels.pairwise_agreement(labels.load_all([ada, ben]))}
    assert set(found) == set(VOCABULARY)
    assert (found["view"].games, found["view"].raw, found["view"].kappa) == (2, 0.5, 0.0)
    assert (found["axis"].games, found["axis"].raw) == (1, 1.0)
    assert math.isnan(found["axis"].kappa)


def test_agree_prints_kappa_and_differences_and_writes_the_merged_table(tmp_path: Path) -> None:
    ada = written(tmp_path, "ada", row(GENESIS, view="top"), row(ATARI, "1.00", view="side"))
    ben = written(tmp_path, "ben", row(GENESIS, view="top"), row(ATARI, view="top"))
    with console.capture() as printed:
        agree.run(agree.Args(files=(ada, ben), out=tmp_path / "merged.csv"))
    lines = [line.split() for line in printed.get().splitlines()]
    assert ["ada", "/", "ben", "view", "2", "50.0%", "0.00"] in lines
    assert ["ada", "/", "ben", "motion", "2", "100.0%", "one", "word"] in lines
    assert [ATARI, "view", "ada:", "side,", "ben:", "top", "side"] in lines
    assert labels.load_labels(tmp_path / "merged.csv").rows[ATARI]["view"] == "side"
    with pytest.raises(InputError, match="one of the annotators' files"):
        agree.run(agree.Args(files=(ada, ben), out=ada))
    with pytest.raises(InputError, match="two or more"):
        agree.run(agree.Args(files=(ada,)))
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match="both of annotator 'ada'"):
        agree.run(agree.Args(files=(ada, written(tmp_path / "again", "ada", row(GENESIS)))))
