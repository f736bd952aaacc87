"""Archive of moments of a game, from which play goes on where it is worth most.

After Go-Explore (Ecoffet et al. 2021), with one difference: a cell is chosen by the world model's
uncertainty about it, not by the game's score.

    <folder>/cells.json      grid, counts, scores and paths
    <folder>/arrays.npz      savestates and frames
    <folder>/manifest.json   sha256 of both
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.archive.cells import CellGrid
from envs.games.base import GameState
from envs.utils.artifact_dir import new_artifact, read_artifact
from envs.utils.atomic_io import read_json
from envs.utils.errors import InputError, one_line

FORMAT = "autoexplore-archive-1"


@dataclass
class Cell:
    """A moment of a game and what is known of it."""

    state: GameState
    path: bytes
    """Actions that lead to it from the start of the game, one byte each."""
    start_seed: int
    """Seed of the reset that the path begins with."""
    reward: float = 0.0
    """The game's own reward on the path."""
    score: float = math.nan
    """Uncertainty of the world model about it; NaN before it was scored."""
    chosen: int = 0
    """Number of episodes that began there."""
    seen: int = 1
    """Number of episodes that came by."""
    outdated: bool = False
    """True if the score is that of an earlier world model and is to be renewed."""


@dataclass
class Archive:
    """The cells of one game."""

    game: str
    rom_sha1: str
    grid: CellGrid
    actions: tuple[str, ...] = ()
    """Names of the actions of the paths; empty for the game's own."""
    max_cells: int = 5_000
    sharpness: float = 1.0
    """Exponent of the uncertainty, in standard deviations, in a cell's weight."""
    start_share: float = 0.0
    """Probability to begin at the game's start instead of a cell."""
    reward: str = ""
    """Name of the reward that the scores are of."""
    rounds: int = 0
    """Number of rounds of episodes whose moments are in the archive."""
    cells: dict[bytes, Cell] = field(default_factory=dict)
    generator: np.random.Generator = field(default_factory=np.random.default_rng)

    def weights(self) -> NDArray[np.float64]:
        """Return the weight of each cell: exp(sharpness * z) / sqrt((chosen + 1) (seen + 1)).

        z: deviations of its uncertainty from the mean; 0 for a cell without one.
        """
        scores = np.array([cell.score for cell in self.cells.values()], np.float64)
        known = np.isfinite(scores)
        z = np.zeros(len(scores))
        if known.sum() > 1 and scores[known].std() > 0:
            z[known] = (scores[known] - scores[known].mean()) / scores[known].std()
        visits = [(cell.chosen + 1) * (cell.seen + 1) for cell in self.cells.values()]
        return np.exp(self.sharpness * z.clip(-5, 5)) / np.sqrt(np.array(visits, np.float64))

    def outdate_scores(self, reward: str) -> None:
        """Mark all scores as those of an earlier model; drop them if they are of another reward."""
        for cell in self.cells.values():
            cell.outdated = True
            if self.reward != reward:
                cell.score = math.nan
        self.reward = reward

    def choose(self) -> Cell | None:
        """Draw a cell by its weight and count the choice; None for the game's start.

        An archive without cells begins at the start.
        """
        if not self.cells or (self.start_share and self.generator.random() < self.start_share):
            return None
        weights = self.weights()
        index = self.generator.choice(len(weights), p=weights / weights.sum())
        cell = list(self.cells.values())[index]
        cell.chosen += 1
        return cell

    def add(self, key: bytes, cell: Cell) -> None:
        """Add a moment as a new cell, or to a known one, which gets the shorter path."""
        known = self.cells.get(key)
        if known is None:
            self.cells[key] = cell
            return
        known.seen += 1
        if len(cell.path) < len(known.path):
            known.state, known.path = cell.state, cell.path
            known.start_seed, known.reward = cell.start_seed, cell.reward

    def shrink(self) -> int:
        """Drop the cells of least weight beyond `max_cells`; return their number."""
        excess = len(self.cells) - self.max_cells
        if excess > 0:
            keys = list(self.cells)
            for index in np.argsort(self.weights(), kind="stable")[:excess]:
                del self.cells[keys[index]]
        return max(excess, 0)

    def save(self, path: Path) -> None:
        """Write the archive, completely or not at all.

        Raises: InputError if the disk is full.
        """
        cells = list(self.cells.values())
        record = {
            "rounds": self.rounds,
            "reward": self.reward,
            "grid": vars(self.grid),
            "generator": self.generator.bit_generator.state,
            "cells": [
                {"key": key.hex(), "path": cell.path.hex(), "start_seed": cell.start_seed}
                | {"reward": cell.reward}
                | {"score": None if math.isnan(cell.score) else cell.score}
                | {"chosen": cell.chosen, "seen": cell.seen, "outdated": cell.outdated}
                for key, cell in self.cells.items()
            ],
        }
        arrays: dict[str, Any] = {
            "sizes": np.array([len(cell.state.data) for cell in cells], np.int64),
            "states": np.frombuffer(b"".join(cell.state.data for cell in cells), np.uint8),
            "frames": np.array([cell.state.frame_HWC for cell in cells], np.uint8),
        }
        manifest = {"format": FORMAT, "game": self.game, "rom_sha1": self.rom_sha1}
        if self.actions:
            manifest["actions"] = ", ".join(self.actions)
        try:
            with new_artifact(path, **manifest) as folder:
                np.savez_compressed(folder / "arrays.npz", **arrays)
                (folder / "cells.json").write_text(json.dumps(record))
        except OSError as error:
            raise InputError(f"cannot write the archive {path}: {one_line(error)}") from error

    def load(self, path: Path) -> "Archive":
        """Return this archive with the cells that `save` wrote.

        Raises: InputError for a damaged folder, or the archive of another game or ROM, or with
        other actions.
        """
        manifest = read_artifact(path, "archive", FORMAT)
        own = {"game": self.game, "rom_sha1": self.rom_sha1, "actions": ", ".join(self.actions)}
        for name, value in own.items():
            if (held := manifest.get(name, "")) != value:
                held, value = (text or "(the game's own)" for text in (held, value))
                raise InputError(
                    f"{path} is an archive of {name} {held}, not {value}: give another folder"
                )
        record = read_json(path / "cells.json")
        with np.load(path / "arrays.npz") as arrays:
            ends = arrays["sizes"].cumsum()
            states, frames_NHWC = arrays["states"].tobytes(), arrays["frames"]
        cells = {}
        for entry, end, size, frame_HWC in zip(
            record["cells"], ends, np.diff(ends, prepend=0), frames_NHWC, strict=True
        ):
            score = math.nan if entry["score"] is None else float(entry["score"])
            cells[bytes.fromhex(entry["key"])] = Cell(
                GameState(states[end - size : end], frame_HWC),
                bytes.fromhex(entry["path"]),
                entry["start_seed"],
                entry["reward"],
                score,
                entry["chosen"],
                entry["seen"],
                entry.get("outdated", False),
            )
        generator = np.random.default_rng()
        generator.bit_generator.state = record["generator"]
        return replace(
            self,
            grid=CellGrid(**record["grid"]),
            reward=record.get("reward", ""),
            rounds=record["rounds"],
            cells=cells,
            generator=generator,
        )
