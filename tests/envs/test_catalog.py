"""The catalogue: labels of every game, filters, fixed subsets, comparison with RetroAct's files."""

from collections import Counter
from pathlib import Path

import pytest

from envs import catalog
from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.catalog_tools import retroact

TABLE = catalog.table()
PLATFORMERS = TABLE[TABLE["motion"] == "platformer"]


def test_every_game_is_labelled_with_the_words_of_the_vocabulary() -> None:
    assert len(TABLE) == 1_006
    assert (TABLE["motion"] != "unknown").sum() >= 974
    assert set(TABLE["view"]) <= {*catalog.VIEWS, "unknown"}
    assert set(TABLE["axis"]) <= {*catalog.AXES, "unknown"}
    assert set(TABLE["motion"]) <= {*catalog.MOTIONS, "unknown"}
    assert TABLE["confidence"].between(0, 1).all()
    assert set(TABLE["source"]) <= {"knowledge", "probed", "watched"}
    assert len(PLATFORMERS) >= 450


def test_filters_combine() -> None:
    found = catalog.games(
        console=("Nes", "Snes"), motion="platformer", up=("climb", "none"), down="crouch"
    )
    rows = TABLE.set_index("game").loc[found]
    assert 0 < len(found) < len(PLATFORMERS)
    assert set(rows["console"]) == {"Nes", "Snes"}
    assert set(rows["up"]) == {"climb", "none"}
    assert set(rows["down"]) == {"crouch"}
    assert (
        catalog.games(
            console=("Nes", "Snes"),
            motion="platformer",
            up=("climb", "none"),
            down="crouch",
            limit=3,
        )
        == (found[:3])
    )
    sure = catalog.games(motion="platformer", min_confidence=0.9)
    assert set(sure) < set(catalog.games(motion="platformer"))
    assert set(catalog.games(subset="platformers-50", console="Genesis")) <= set(
        catalog.read_subset("platformers-50")
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"up": "sing"}, "no game has up 'sing'"),
        ({"motion": ("platformer", "opera")}, "no game has motion 'opera'"),
        ({"subset": "platformers-51"}, "no subset is called 'platformers-51'"),
        ({"min_confidence": 2.0}, "must be in"),
        ({"limit": -1}, "0 or more"),
    ],
)
def test_filters_refuse_what_no_game_has(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        catalog.games(**wanted)  # type: ignore[arg-type]


def test_subsets_are_what_they_say() -> None:
    many, few = catalog.read_subset("platformers-200"), catalog.read_subset("platformers-50")
    assert len(set(many)) == 200
    assert len(set(few)) == 50
    names = set(PLATFORMERS["game"])
    assert set(many) <= names
    assert set(few) <= names
    controls = TABLE.set_index("game").loc[few, list(catalog.CONTROLS[:5])]
    assert len(controls.drop_duplicates()) == 1
    assert "unknown" not in set(controls.iloc[0])
    assert catalog.expand(["Pong-Atari2600", "platformers-50", few[0]]) == ["Pong-Atari2600", *few]


def test_counts_add_up_and_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.commands.catalog import label_counts

    counts = label_counts(TABLE)
    assert dict(counts["motion"]) == Counter(TABLE["motion"])
    assert counts["up"].sum() == len(PLATFORMERS)
    picture = tmp_path / "labels.png"
    assert execute(["catalog", "--counts", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"platformer {len(PLATFORMERS)} (483)" in " ".join(capsys.readouterr().out.split())


def test_labels_of_retroact_are_compared_row_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = TABLE.set_index("game").loc["SonicTheHedgehog-Genesis"]
    file = tmp_path / "tags.csv"
    file.write_text(
        "game,tags\n"
        f"SonicTheHedgehog-Genesis-v0,{ours['view']} {ours['axis']} {ours['motion']}\n"
        "Kangaroo-Atari2600,third-person free space shooter\n"
        "NoSuchGame-Nes,side free platformer\n"
        "Pong-Atari2600,side free opera\n"
        "1942-Nes\n"
    )
    found = retroact.read(file)
    assert found.labels["Kangaroo-Atari2600"] == {
        "view": "third person",
        "axis": "free",
        "motion": "space_shooter",
    }
    assert sorted(found.malformed) == [4, 5, 6]
    assert "no game is called" in found.malformed[4]
    assert "no known genre ('opera')" in found.malformed[5]
    assert "1 cells, not 2" in found.malformed[6]
    differing = {(item.line, item.game, item.column) for item in found.differences()}
    assert differing == {(3, "Kangaroo-Atari2600", "view"), (3, "Kangaroo-Atari2600", "motion")}
    assert found.agreement() == {"view": (1, 2), "axis": (2, 2), "motion": (1, 2)}
    assert execute(["catalog", "import", str(file), "--out", str(tmp_path / "ours.csv")]) == 2
    captured = capsys.readouterr()
    assert captured.err.strip().endswith(
        "3 rows could not be read (lines 4, 5, 6), all others were"
    )
    assert (
        (tmp_path / "ours.csv")
        .read_text()
        .startswith("game,view,axis,motion\nSonicTheHedgehog-Genesis,")
    )


def test_controls_of_retroact_are_compared(tmp_path: Path) -> None:
    header = "game,RIGHT,LEFT,UP,DOWN,ACTION_JUMP,ACTION_SECONDARY,transition,Background_Changes"
    file = tmp_path / "controls.csv"
    file.write_text(
        f"{header}\nSonicTheHedgehog-Genesis,right,left,nothing,duck,jump,,0,True\nPong-Atari2600,a,b,c,d,e,f,maybe,1\n"
    )
    found = retroact.read(file)
    labels = found.labels["SonicTheHedgehog-Genesis"]
    assert labels["up"] == "none"
    assert labels["down"] == "crouch"
    assert labels["secondary"] == "unknown"
    assert (labels["transition"], labels["scrolling"]) == ("no", "yes")
    assert "transition 'maybe' is neither yes nor no" in found.malformed[3]
    assert all(item.column != "secondary" for item in found.differences())


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,label\nx,y\n")
    with pytest.raises(InputError, match="line 1 is no header of RetroAct"):
        retroact.read(tmp_path / "a.csv")
    with pytest.raises(InputError, match="cannot be read"):
        retroact.read(tmp_path / "none.csv")


LABEL_WORDS = {
    "view": {"side", "third person", "top", "first person", "several", "unknown"},
    "axis": {"free", "horizontal", "vertical", "fixed", "tube", "unknown"},
    "motion": {
        "platformer",
        "space_shooter",
        "fight",
        "shooter",
        "action",
        "sport",
        "maze",
        "race",
        "grid",
        "pong",
        "simulation",
        "pinball",
        "flying_platformer",
        "tetris",
        "other",
        "unknown",
    },
    "transition": {"yes", "no", "unknown"},
    "scrolling": {"yes", "no", "unknown"},
}


def test_catalogue_lists_every_integration() -> None:
    table = catalog.table()
    assert len(table) == table["game"].nunique() == 1006
    assert list(table.columns[:3]) == ["game", "console", "playable"]
    assert "Airstriker-Genesis" in catalog.games(playable=True)
    assert catalog.has_rom("Airstriker-Genesis-v0")
    assert not catalog.has_rom("SonicTheHedgehog-Genesis")
    assert catalog.games(console="Genesis", playable=True) == ["Airstriker-Genesis"]
    assert len(catalog.games(console="Nes", limit=7)) == 7
    with pytest.raises(InputError, match=r"known are .*Genesis"):
        catalog.games(console="Playstation")


def test_every_game_is_labelled_in_the_vocabulary() -> None:
    table = catalog.table()
    assert list(table["game"]) == list(catalog.integrations())
    assert not table.isna().any().any()
    for column, words in LABEL_WORDS.items():
        assert set(table[column]) <= words, column
    assert table["confidence"].between(0, 1).all()
    assert (table.loc[table["motion"] == "unknown", "confidence"] == 0).all()
    assert (table["motion"] != "unknown").sum() >= 974


def test_games_answers_combinations_of_labels() -> None:
    side_platformers = catalog.games(console="Nes", view="side", motion="platformer")
    assert {"SuperMarioBros-Nes", "AdventureIslandII-Nes"} <= set(side_platformers)
    assert "1942-Nes" not in side_platformers
    assert catalog.games(motion="pong", playable=True) == ["Breakout-Atari2600", "Pong-Atari2600"]
    with pytest.raises(InputError, match="no game has motion 'dancing'"):
        catalog.games(motion="dancing")
