"""Episodes that begin at the moments of an archive, for agents that learn."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from envs.archive.archive import Archive
from envs.archive.cells import CellGrid
from envs.controls import custom_actions
from envs.games.random_starts import DrawnStarts, Frame


class ArchiveStarts(DrawnStarts):
    """Env of which a share of the episodes begin at cells of the archive in `folder`.

    Cells are drawn by their weights. Raises InputError for the archive of another game or ROM, or
    with other actions.
    """

    def __init__(self, env: gymnasium.Env[Frame, np.int64], folder: Path, share: float) -> None:
        super().__init__(env)
        game: Any = env.unwrapped
        actions = custom_actions(game.action_names)
        archive = Archive(game.game, game.rom_sha1, CellGrid(), actions).load(folder / game.game)
        weights = archive.weights()
        self._states = [cell.state for cell in archive.cells.values()]
        self._probabilities = weights / weights.sum()
        self._share = share

    def _begin(
        self, start: tuple[Frame, dict[str, Any]], options: dict[str, Any] | None
    ) -> tuple[Frame, dict[str, Any]]:
        if self._generator.random() >= self._share:
            return start
        index = int(self._generator.choice(len(self._states), p=self._probabilities))
        return self.env.reset(options={"state": self._states[index]})
