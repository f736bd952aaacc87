"""Arms, tests and settings of the study of exploration."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from worldmodel.config import Precision

ARMS = (
    "random",
    "random-longer",
    "sticky",
    "zipf",
    "dirichlet",
    "hold",
    "agent",
    "archive-entropy",
    "archive-disagreement",
    "archive-count",
    "agent-archive",
)
"""Explorers of the study; the first is the baseline of every difference.

random-longer plays as many steps as the agent in its training and its play together."""
UNTRAINED = {
    "random": "random",
    "sticky": "sticky:0.9",
    "zipf": "zipf:2",
    "dirichlet": "dirichlet:0.3",
}
ARCHIVES = {
    "archive-entropy": "token-entropy",
    "archive-disagreement": "disagreement",
    "archive-count": "count-bonus",
}
TESTS = ("near", "far", "left", "right", "deep")
"""near: random play; far: another seed of the random policy family; left, right: that button with
15 % random ones; deep: Go-Explore on the game's own score, of which the share of windows that is
least like the base data is scored, as in the pipeline's test set."""
CONTROL_TESTS = ("far", "deep")
"""Tests of which the tables show delta-PSNR, and whose Frechet distance is measured."""
FAR = 3.0
"""Distance in grey levels from the base data at which a window counts as unlike all of it."""
EPISODE_STEPS = 400
"""Length of the episodes that begin at the start of a game; those from an archive have 100."""
DATA = ("new", "half")
"""Data of a fine-tuning: the arm's alone, or the base data besides."""
AGENTS = {"agent": "explore", "agent-archive": "explore-archive"}
"""Arms that are played by a trained agent, and the stage that trains it."""
HALVES = ("decoder", "dynamics")
"""Parts of a world model that fine-tuning changes."""


@dataclass(frozen=True)
class StudyCell:
    """A game and a seed of the study, with its settings."""

    out: Path
    game: str
    seed: int
    preset: Literal["debug", "cpu", "gpu", "paper"]
    arms: tuple[str, ...]
    data: tuple[str, ...]
    factorial: tuple[str, ...]
    """Arms of which decoder and dynamics model are scored apart, each with the other part of the
    random arm."""
    steps: int
    """Emulator steps of each arm."""
    base_steps: int
    test_episodes: int
    limit: int
    training: dict[str, dict[str, Any]]
    """Changes to the training of tokenizer, dynamics, decoder_finetune and dynamics_finetune."""
    explore: dict[str, Any]
    """Changes to the explorer."""
    threads: int = 0
    precision: Precision = "auto"
    """Precision of training, rewards and scores; with auto that of the preset and of the device."""

    @property
    def root(self) -> Path:
        """Folder of the cell."""
        return self.out / self.game / f"seed-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that cells must share to be compared, as JSON has them."""
        own = asdict(self)
        for name in ("out", "game", "seed", "threads"):
            del own[name]
        if self.precision == "auto":  # as in studies that had no such setting
            del own["precision"]
        return dict(json.loads(json.dumps(own)))

    @property
    def chosen_precision(self) -> list[str]:
        """Precision as a setting of stages, which those of older studies lack with auto."""
        return [] if self.precision == "auto" else [self.precision]

    @property
    def finetuned(self) -> list[tuple[str, str]]:
        """Rows of the study below that of the base model: arm, or arm and part, and its data."""
        names = [*self.arms, *(f"{arm}-{half}" for arm in self.factorial for half in HALVES)]
        return [(name, data) for name in names for data in self.data]

    def part_seed(self, part: str) -> int:
        """Return the seed of a part, so that no two parts play the same episodes."""
        parts = ("base", *ARMS, *TESTS, "explore", "pilot")
        return 1_000 * self.seed + 10 * parts.index(part)
