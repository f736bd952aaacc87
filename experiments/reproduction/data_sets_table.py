"""Table 1: RetroAct and other data sets of the paper, beside the catalogue of games here."""

from typing import Any

from envs import catalog
from experiments.reports.page import Table

UNKNOWN = "unknown"
COLUMNS = {
    "type": "type",
    "environments": "environments",
    "diverse": "diverse behaviours",
    "open": "open",
    "behaviour_labels": "behaviour labels",
    "control_labels": "control labels",
}
"""Column of a row -> its head."""
PAPER = {
    "CoinRun": ("environments", 1, False, True, False, False),
    "ALE": ("environments", 57, True, True, False, False),
    "Stable Retro": ("environments", 1003, True, True, False, False),
    "Platformers (Genie)": ("videos", None, True, False, False, False),
    "RetroAct": ("environments", 974, True, True, True, True),
}
"""Data set -> its row in the paper."""


def data_sets_rows() -> list[dict[str, Any]]:
    """Return the paper's rows, and that of the catalogue with the number of its labelled games."""
    rows: list[dict[str, Any]] = [
        {"data_set": name, **dict(zip(COLUMNS, row, strict=True))} for name, row in PAPER.items()
    ]
    games = catalog.table()
    ours = {
        "data_set": "catalogue of this project",
        "type": "environments",
        "environments": len(games),
        "diverse": games["motion"].nunique() > 1,
        "open": True,
        "behaviour_labels": _labelled(games, "view", "axis", "motion"),
        "control_labels": _labelled(games, *catalog.CONTROLS),
        "installed_roms": int(games["playable"].sum()),
    }
    return [*rows, ours]


def _labelled(games: Any, *columns: str) -> int:
    """Return the number of games that have all these labels."""
    return int((games[list(columns)] != UNKNOWN).all(axis=1).sum())


def data_sets_table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    words = {True: "yes", False: "no", None: "unknown"}

    def text(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return words[value]
        return f"{value:,}" if isinstance(value, int) else value

    cells = [[text(row[key]) for key in ("data_set", *COLUMNS)] for row in rows]
    return Table(["data set", *COLUMNS.values()], cells)
