"""Labels of games by annotators: their words and files, agreement, and merging.

The file of one annotator is `labels-<name>.csv` with the columns of `catalog.csv`, one row per
game. An empty cell is not labelled yet; the word `unknown` means that the annotator could not tell.
"""

import csv
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from envs.catalog import LABELS_FILE
from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError

UNKNOWN = "unknown"


def _words(text: str) -> tuple[str, ...]:
    return (*text.split(), UNKNOWN)


VOCABULARY: dict[str, tuple[str, ...]] = {
    "view": ("side", "third person", "top", "first person", "several", UNKNOWN),
    "axis": _words("free horizontal vertical fixed tube"),
    "motion": _words(
        "platformer space_shooter fight shooter action sport maze race grid pong simulation "
        "pinball flying_platformer tetris other"
    ),
    "right": _words("right rotate aim accelerate up use none"),
    "left": _words("left rotate aim brake down use none"),
    "up": _words("up climb jump look aim enter accelerate fly block shoot use special none"),
    "down": _words("crouch down climb brake drop special block aim jump use none"),
    "jump": _words(
        "jump shoot special kick throw punch strike drop use select accelerate fly rotate dash "
        "brake block none"
    ),
    "secondary": _words(
        "shoot strike punch throw kick jump dash use special whip accelerate drop rotate block "
        "brake fly none"
    ),
    "transition": _words("yes no"),
    "scrolling": _words("yes no"),
}
"""Allowed words of each label column, the most frequent first."""

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
class LabelConflict:
    """A cell that annotators labelled differently. words: by annotator. merged: the chosen word."""

    game: str
    column: str
    words: dict[str, str]
    merged: str


@dataclass(frozen=True)
class Agreement:
    """Agreement of two annotators in one column.

    games: number that both labelled. raw: share of equal words in [0, 1], NaN without games in
    common. kappa: Cohen's kappa in [-1, 1], NaN if it is undefined.
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


def load_labels(path: Path) -> Annotations:
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
            where = f"{path}, line {reader.line_num}"
            row = _checked_row(cells, where)
            if row["game"] in rows:
                raise InputError(f"{where}: {row['game']} occurs twice: delete one row")
            rows[row["game"]] = row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a row of CSV: {error}") from None
    return Annotations(path.stem.removeprefix("labels-"), rows)


def _checked_row(cells: list[str], where: str) -> Row:
    """Return the cells as a row. Raises InputError for an invalid one."""
    if len(cells) != len(COLUMNS):
        raise InputError(f"{where}: {len(cells)} cells, expected {len(COLUMNS)}")
    row = dict(zip(COLUMNS, cells, strict=True))
    if row["game"] not in titles():
        raise InputError(
            f"{where}: no game is called {row['game']!r}: see `autoexplore catalog` for all names"
        )
    for column in (*LABELLED, "source"):
        if reason := fault(column, row[column]):
            raise InputError(f"{where} ({row['game']}): {reason}")
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
    loaded = [load_labels(file) for file in files]
    owners: dict[str, Path] = {}
    for file, item in zip(files, loaded, strict=True):
        if item.annotator in owners:
            raise InputError(
                f"{owners[item.annotator]} and {file} are both of annotator {item.annotator!r}: "
                "rename one of the files"
            )
        owners[item.annotator] = file
    return loaded


def merge(annotators: Sequence[Annotations]) -> tuple[dict[str, Row], list[LabelConflict]]:
    """Merge the labels of several annotators; return the table and every cell in which they differ.

    A cell gets the word of most annotators; among equally many, the word of highest summed
    confidence; with equal confidence `unknown`. `unknown` and empty cells are no votes. A row's
    confidence is the lowest that was given (0 if none was) and its source the weakest, so that
    neither claims more than the least confident annotator. Games are in alphabetical order.
    """
    table: dict[str, Row] = {}
    conflicts = []
    for game in sorted({game for item in annotators for game in item.rows}):
        rows = {item.annotator: item.rows[game] for item in annotators if game in item.rows}
        confidences = {name: float(row["confidence"] or 0) for name, row in rows.items()}
        merged = table[game] = new_row(game)
        for column in VOCABULARY:
            words = {name: row[column] for name, row in rows.items() if row[column]}
            merged[column] = _majority(words, confidences)
            if len(set(words.values())) > 1:
                conflicts.append(LabelConflict(game, column, words, merged[column]))
        given = [confidences[name] for name, row in rows.items() if row["confidence"]]
        sources = (row["source"] or SOURCES[0] for row in rows.values())
        merged["confidence"] = f"{min(given, default=0.0):.2f}"
        merged["source"] = min(sources, key=SOURCES.index)
    return table, conflicts


def _majority(words: dict[str, str], confidences: dict[str, float]) -> str:
    """Return the word of a cell from the words and confidences of the annotators."""
    votes: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for name, word in words.items():
        if word != UNKNOWN:
            votes[word] += 1
            weights[word] += round(confidences[name] * 1e6)  # integers have no rounding errors
    ranked = sorted(((count, weights[word], word) for word, count in votes.items()), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]):
        return UNKNOWN
    return ranked[0][2]


def pairwise_agreement(annotators: Sequence[Annotations]) -> list[Agreement]:
    """Return raw agreement and Cohen's kappa of every pair of annotators in every column.

    A game counts in a column if both labelled it there; `unknown` is a word like any other.
    """
    agreements = []
    for one, other in itertools.combinations(annotators, 2):
        common = [game for game in one.rows if game in other.rows]
        for column in VOCABULARY:
            pairs = [(one.rows[game][column], other.rows[game][column]) for game in common]
            pairs = [pair for pair in pairs if all(pair)]
            raw = sum(a == b for a, b in pairs) / len(pairs) if pairs else math.nan
            kappa = cohen_kappa([a for a, _ in pairs], [b for _, b in pairs])
            names = (one.annotator, other.annotator)
            agreements.append(Agreement(names, column, len(pairs), raw, kappa))
    return agreements


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """Return Cohen's kappa of two annotators' words for the same items.

    (p_o - p_e) / (1 - p_e), with p_o the share of equal words and p_e the share expected from the
    frequencies of each annotator's words: 1 is full agreement, 0 agreement by chance. NaN if it is
    undefined: nothing was labelled, or both used the same one word, so that p_e is 1.
    """
    if len(a) != len(b):
        raise InputError(f"kappa needs equally many labels of both, not {len(a)} and {len(b)}")
    if len({*a, *b}) < 2:
        return math.nan
    counts_a, counts_b, items = Counter(a), Counter(b), len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / items
    expected = sum(counts_a[word] * counts_b[word] for word in counts_a) / items**2
    return (observed - expected) / (1 - expected)
