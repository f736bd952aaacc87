"""Labels of games by annotators: their words and files, agreement, and merging.

The file of one annotator is `labels-<name>.csv` with the columns of `catalog.csv`, one row per
game. An empty cell is not labelled yet; the word `unknown` means that the annotator could not tell.
"""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from envs.catalog import LABELS_FILE
from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError

UNKNOWN = "unknown"

# Per column, the most frequent word first. The annotation page offers the same lists.
_RIGHT = ("right", "rotate", "aim", "accelerate", "up", "use", "none", UNKNOWN)
_LEFT = ("left", "rotate", "aim", "brake", "down", "use", "none", UNKNOWN)
_UP = (
    *("up", "climb", "jump", "look", "aim", "enter", "accelerate", "fly", "block", "shoot"),
    *("use", "special", "none", UNKNOWN),
)
_DOWN = (
    *("crouch", "down", "climb", "brake", "drop", "special", "block", "aim", "jump", "use"),
    *("none", UNKNOWN),
)
_JUMP = (
    *("jump", "shoot", "special", "kick", "throw", "punch", "strike", "drop", "use", "select"),
    *("accelerate", "fly", "rotate", "dash", "brake", "block", "none", UNKNOWN),
)
_SECOND = (
    *("shoot", "strike", "punch", "throw", "kick", "jump", "dash", "use", "special", "whip"),
    *("accelerate", "drop", "rotate", "block", "brake", "fly", "none", UNKNOWN),
)
_MOTION = (
    *(
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
    ),
    *("simulation", "pinball", "flying_platformer", "tetris", "other", UNKNOWN),
)

VOCABULARY: dict[str, tuple[str, ...]] = {
    "view": ("side", "third person", "top", "first person", "several", UNKNOWN),
    "axis": ("free", "horizontal", "vertical", "fixed", "tube", UNKNOWN),
    "motion": _MOTION,
    "right": _RIGHT,
    "left": _LEFT,
    "up": _UP,
    "down": _DOWN,
    "jump": _JUMP,
    "secondary": _SECOND,
    "transition": ("yes", "no", UNKNOWN),
    "scrolling": ("yes", "no", UNKNOWN),
}
"""Allowed words of each label column."""

CONFIDENCES = ("0.25", "0.50", "0.75", "1.00")
"""Values that the annotation page offers; a file may hold any number in [0, 1]."""
SOURCES = ("knowledge", "probed", "watched")
"""Sources of a row, the weakest first."""
COLUMNS = ("game", "console", "title", *VOCABULARY, "confidence", "source")
LABELLED = (*VOCABULARY, "confidence")
"""Columns that an annotator fills in."""

Row = dict[str, str]
"""Cells of a row by column, for all of COLUMNS."""


@dataclass(frozen=True)
class Annotations:
    """Labels of one annotator. rows: by game, in the order of the file."""

    annotator: str
    rows: dict[str, Row]


@dataclass(frozen=True)
class Difference:
    """A cell that annotators labelled differently. words: by annotator. merged: the chosen word."""

    game: str
    column: str
    words: dict[str, str]
    merged: str


@dataclass(frozen=True)
class Agreement:
    """Agreement of two annotators in one column.

    games: number that both labelled. raw: share of equal words in [0, 1], NaN without games in
    common. kappa: Cohen's kappa in [-1, 1], NaN where it is undefined.
    """

    annotators: tuple[str, str]
    column: str
    games: int
    raw: float
    kappa: float


@cache
def titles() -> dict[str, tuple[str, str]]:
    """Return console and title of every game in `catalog.csv`."""
    with LABELS_FILE.open(newline="", encoding="utf-8") as file:
        return {row["game"]: (row["console"], row["title"]) for row in csv.DictReader(file)}


def new_row(game: str) -> Row:
    """Return a row without labels. Raises InputError for a game that is not in `catalog.csv`."""
    if game not in titles():
        raise InputError(f"no game is called {game!r}: see `autoexplore catalog` for all names")
    console, title = titles()[game]
    row = dict.fromkeys(COLUMNS, "")
    return row | {"game": game, "console": console, "title": title, "source": "watched"}


def file_of(folder: Path, annotator: str) -> Path:
    """Return the path of an annotator's labels. Raises InputError for an invalid name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", annotator):
        raise InputError(
            f"annotator {annotator!r}: use up to 40 letters, digits, - and _, "
            "beginning with a letter or digit"
        )
    return folder / f"labels-{annotator}.csv"


def complete(row: Row) -> bool:
    """Return True if the row has every label."""
    return all(row[column] for column in LABELLED)


def fault(column: str, value: str) -> str | None:
    """Return the reason why a column does not allow `value`, or None. Empty is always allowed."""
    if not value:
        return None
    if column == "confidence":
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        return None if 0 <= number <= 1 else f"{column} {value!r} is no number from 0 to 1"
    known = SOURCES if column == "source" else VOCABULARY[column]
    return None if value in known else f"{column} {value!r} is not one of {', '.join(known)}"


def load(path: Path) -> Annotations:
    """Load the labels of one annotator, or `catalog.csv`.

    Raises InputError with file and line for wrong columns, rows of another length, unknown games or
    words, and games that occur twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels {path} cannot be read: {error}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[str, Row] = {}
    try:
        if tuple(header := next(reader, [])) != COLUMNS:
            raise InputError(
                f"{path}, line 1: the columns are {','.join(header)!r}, not {','.join(COLUMNS)!r}"
            )
        for cells in reader:
            row = _checked(cells, f"{path}, line {reader.line_num}")
            if row["game"] in rows:
                raise InputError(
                    f"{path}, line {reader.line_num}: {row['game']} stands there twice: "
                    "delete one row"
                )
            rows[row["game"]] = row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a row of CSV: {error}") from None
    return Annotations(path.stem.removeprefix("labels-"), rows)


def _checked(cells: list[str], where: str) -> Row:
    """Return the cells as a valid row. Raises InputError."""
    if len(cells) != len(COLUMNS):
        raise InputError(
            f"{where}: {len(cells)} cells, must be {len(COLUMNS)} as there are columns"
        )
    row = dict(zip(COLUMNS, cells, strict=True))
    if row["game"] not in titles():
        raise InputError(
            f"{where}: no game is called {row['game']!r}: see `autoexplore catalog` for all names"
        )
    for column in (*LABELLED, "source"):
        if wrong := fault(column, row[column]):
            raise InputError(f"{where} ({row['game']}): {wrong}")
    return row


def save(path: Path, rows: dict[str, Row]) -> None:
    """Write rows atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    write_atomic(path, text.getvalue().encode())


def load_all(files: Sequence[Path]) -> list[Annotations]:
    """Load several files. Raises InputError also if two files have the same annotator."""
    loaded = [load(file) for file in files]
    named: dict[str, Path] = {}
    for file, one in zip(files, loaded, strict=True):
        if one.annotator in named:
            raise InputError(
                f"{named[one.annotator]} and {file} are both of annotator {one.annotator!r}: "
                "rename one of the files"
            )
        named[one.annotator] = file
    return loaded


def merge(files: Sequence[Path]) -> tuple[dict[str, Row], list[Difference]]:
    """Merge several annotators' files; return the table and every cell in which they differ.

    A cell gets the word of most annotators; among equally many, the word of highest summed
    confidence; with equal confidence `unknown`. `unknown` and empty cells are no votes. A row's
    confidence is the lowest that was given (0 if none was) and its source the weakest, so that
    neither claims more than the least confident annotator. Games are in alphabetical order.
    """
    everyone = load_all(files)
    table: dict[str, Row] = {}
    differences = []
    for game in sorted({game for one in everyone for game in one.rows}):
        rows = {one.annotator: one.rows[game] for one in everyone if game in one.rows}
        confidences = {name: float(row["confidence"] or 0) for name, row in rows.items()}
        merged = new_row(game)
        for column in VOCABULARY:
            words = {name: row[column] for name, row in rows.items() if row[column]}
            merged[column] = _vote(words, confidences)
            if len(set(words.values())) > 1:
                differences.append(Difference(game, column, words, merged[column]))
        given = [float(row["confidence"]) for row in rows.values() if row["confidence"]]
        merged["confidence"] = f"{min(given, default=0.0):.2f}"
        merged["source"] = min(
            (row["source"] or SOURCES[0] for row in rows.values()), key=SOURCES.index
        )
        table[game] = merged
    return table, differences


def _vote(words: dict[str, str], confidences: dict[str, float]) -> str:
    """Return the word of a cell from the words and confidences of the annotators."""
    votes = Counter(word for word in words.values() if word != UNKNOWN)
    if not votes:
        return UNKNOWN
    weight = {
        word: (
            count,
            round(sum(confidences[name] for name, said in words.items() if said == word), 6),
        )
        for word, count in votes.items()
    }
    best = max(weight.values())
    winners = [word for word, value in weight.items() if value == best]
    return winners[0] if len(winners) == 1 else UNKNOWN


def agreement(everyone: Sequence[Annotations]) -> list[Agreement]:
    """Return raw agreement and Cohen's kappa of every pair of annotators in every column.

    A game counts in a column if both labelled it there; `unknown` is a word like any other.
    """
    found = []
    for one, other in itertools.combinations(everyone, 2):
        common = [game for game in one.rows if game in other.rows]
        for column in VOCABULARY:
            pairs = [(one.rows[game][column], other.rows[game][column]) for game in common]
            pairs = [(first, second) for first, second in pairs if first and second]
            first_words, second_words = (
                [first for first, _ in pairs],
                [second for _, second in pairs],
            )
            raw = (
                sum(first == second for first, second in pairs) / len(pairs)
                if pairs
                else float("nan")
            )
            kappa = cohen_kappa(first_words, second_words)
            found.append(
                Agreement((one.annotator, other.annotator), column, len(pairs), raw, kappa)
            )
    return found


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """Return Cohen's kappa of two annotators' words for the same items.

    (p_o - p_e) / (1 - p_e), with p_o the share of equal words and p_e the share expected from the
    frequencies of each annotator's words: 1 is full agreement, 0 agreement by chance. NaN where it
    is undefined: nothing was labelled, or both used the same one word, so that p_e is 1.
    """
    if len(a) != len(b):
        raise InputError(f"kappa needs equally many labels of both, not {len(a)} and {len(b)}")
    words, codes = np.unique(np.array([*a, *b], dtype=object).astype(str), return_inverse=True)
    if len(words) < 2:
        return float("nan")
    counts = np.zeros((len(words), len(words)))
    np.add.at(counts, (codes[: len(a)], codes[len(a) :]), 1)
    joint = counts / len(a)
    observed = float(np.trace(joint))
    expected = float(joint.sum(1) @ joint.sum(0))
    return (observed - expected) / (1 - expected)
