"""Episodes that begin at the moments of an archive, for agents that learn."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.archive.archive import Archive
from envs.archive.cells import CellGrid

Frame = NDArray[np.uint8]


class ArchiveStarts(gymnasium.Wrapper[Frame, np.int64, Frame, np.int64]):
    """Env of which a share of the episodes begin at cells of the archive in `folder`.

    Cells are drawn by their weights. Raises InputError for the archive of another game or ROM.
    """

    def __init__(self, env: gymnasium.Env[Frame, np.int64], folder: Path, share: float) -> None:
        super().__init__(env)
        game: Any = env.unwrapped
        archive = Archive(game.game, game.rom_sha1, CellGrid()).load(folder / game.game)
        weights = archive.weights()
        self._states = [cell.state for cell in archive.cells.values()]
        self._probabilities = weights / weights.sum()
        self._share = share
        # The env's own generator may be part of a state.
        self._generator = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Reset the env at its start or at a cell. `seed` also seeds the choice."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        start = self.env.reset(seed=seed, options=options)
        if self._generator.random() >= self._share:
            return start
        index = int(self._generator.choice(len(self._states), p=self._probabilities))
        return self.env.reset(options={"state": self._states[index]})
