"""RetroAct's published label files, in the words of the catalogue.

Two layouts are recognised by their header: `game,tags`, with tags such as "side free platformer",
and `game,RIGHT,LEFT,UP,DOWN,ACTION_JUMP,ACTION_SECONDARY,transition,Background_Changes`.
"""

import csv
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from envs import catalog
from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError

TAGS = ("game", "tags")
CONTROLS = {
    "RIGHT": "right",
    "LEFT": "left",
    "UP": "up",
    "DOWN": "down",
    "ACTION_JUMP": "jump",
    "ACTION_SECONDARY": "secondary",
    "transition": "transition",
    "Background_Changes": "scrolling",
}
FLAGS = ("transition", "scrolling")
PUBLISHED_COUNTS = {
    "view": {"side": 684, "third person": 155, "top": 114, "first person": 19, "several": 2},
    "axis": {"free": 765, "horizontal": 126, "vertical": 68, "fixed": 14, "tube": 1},
    "motion": {
        "platformer": 483,
        "space_shooter": 185,
        "fight": 112,
        "shooter": 71,
        "action": 32,
        "sport": 17,
        "other": 13,
        "maze": 12,
        "race": 10,
        "grid": 10,
        "pong": 8,
        "simulation": 7,
        "pinball": 5,
        "flying_platformer": 5,
        "tetris": 4,
    },
    "console": {
        "Genesis": 334,
        "Nes": 297,
        "Snes": 184,
        "Sms": 89,
        "Atari2600": 40,
        "GameBoy": 29,
        "32x": 1,
    },
}
"""Number of RetroAct's 974 games with each label, as counted in the paper."""
SYNONYMS = {
    **dict.fromkeys(("nothing", "no", "noop", "no-op"), "none"),
    **dict.fromkeys(("", "?"), "unknown"),
    "duck": "crouch",
    "fire": "shoot",
    "fighting": "fight",
    "racing": "race",
    "sports": "sport",
    "multiple": "several",
}
FLAG_VALUES = {
    **dict.fromkeys(("yes", "y", "true", "1", "1.0"), "yes"),
    **dict.fromkeys(("no", "n", "false", "0", "0.0"), "no"),
    **dict.fromkeys(("", "?", "unknown"), "unknown"),
}


@dataclass(frozen=True)
class Difference:
    """A label in which the file differs from the catalogue."""

    line: int
    game: str
    column: str
    theirs: str
    ours: str


@dataclass
class Imported:
    """Labels of a file, in the words of the catalogue. Missing labels are "unknown"."""

    columns: tuple[str, ...]
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Label by game and column."""
    lines: dict[str, int] = field(default_factory=dict)
    """Line of the file by game, from 1."""
    malformed: dict[int, str] = field(default_factory=dict)
    """Reason why a row could not be read, by line; such rows appear nowhere else."""

    def differences(self) -> list[Difference]:
        """Return the labels that both have and that differ, in the order of the file."""
        ours = catalog.table().set_index("game")
        return [
            Difference(self.lines[game], game, column, label, str(ours.at[game, column]))
            for game, labels in self.labels.items()
            for column, label in labels.items()
            if "unknown" not in (label, ours.at[game, column]) and label != ours.at[game, column]
        ]

    def agreement(self) -> dict[str, tuple[int, int]]:
        """Return, by column, the number of equal labels and of labels that both have."""
        ours = catalog.table().set_index("game")
        differing = Counter(item.column for item in self.differences())
        counts = {}
        for column in self.columns:
            compared = sum(
                "unknown" not in (labels[column], ours.at[game, column])
                for game, labels in self.labels.items()
            )
            counts[column] = (compared - differing[column], compared)
        return counts

    def save(self, path: Path) -> None:
        """Write the labels as CSV."""
        import pandas as pd  # the other catalogue commands start without it

        table = pd.DataFrame.from_dict(self.labels, orient="index", columns=list(self.columns))
        write_atomic(path, table.to_csv(index_label="game").encode())


def read(path: Path) -> Imported:
    """Read a file in either layout. Invalid rows are in `malformed`.

    Raises InputError for a file that cannot be read or has another header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = tuple(name.strip() for name in next(reader, []))
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    if header != TAGS and set(header) != {"game", *CONTROLS}:
        wanted = f"{','.join(TAGS)} or game,{','.join(CONTROLS)}"
        raise InputError(
            f"{path}: line 1 is no header of RetroAct ({','.join(header)}): it must be {wanted}"
        )
    imported = Imported(("view", "axis", "motion") if header == TAGS else tuple(CONTROLS.values()))
    for line, cells in rows:
        if not any(cells):
            continue
        try:
            if len(cells) != len(header):
                raise InputError(f"{len(cells)} cells, not {len(header)}")
            values = dict(zip(header, cells, strict=True))
            game = catalog.canonical(values.pop("game"))
            if game in imported.labels:
                raise InputError(f"{game} is on line {imported.lines[game]} already")
            imported.labels[game] = _tags(values["tags"]) if header == TAGS else _controls(values)
            imported.lines[game] = line
        except InputError as error:
            imported.malformed[line] = str(error)
    return imported


def _tags(tags: str) -> dict[str, str]:
    """Return view, axis and genre of a cell, whose words are joined by spaces, "-" or "_"."""
    words = re.findall(r"[^\s_-]+", tags.casefold())
    text = " ".join(SYNONYMS.get(word, word) for word in words)
    view = next((label for label in catalog.VIEWS if text.startswith(f"{label} ")), None)
    if view is None:
        raise InputError(f"tags {tags!r} do not begin with a view: {', '.join(catalog.VIEWS)}")
    axis, _, motion = text.removeprefix(view).strip().partition(" ")
    motion = motion.replace(" ", "_")
    for label, known, what in ((axis, catalog.AXES, "axis"), (motion, catalog.MOTIONS, "genre")):
        if label not in known:
            raise InputError(f"tags {tags!r} have no known {what} ({label!r}): {', '.join(known)}")
    return {"view": view, "axis": axis, "motion": motion}


def _controls(values: dict[str, str]) -> dict[str, str]:
    """Return the labels of a row of controls; words unknown to the catalogue stay as they are."""
    labels = {}
    for name, column in CONTROLS.items():
        word = values[name].casefold()
        if column not in FLAGS:
            labels[column] = SYNONYMS.get(word, word)
        elif word in FLAG_VALUES:
            labels[column] = FLAG_VALUES[word]
        else:
            raise InputError(f"{name} {values[name]!r} is neither yes nor no")
    return labels
