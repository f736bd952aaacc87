"""Exploration from an archive of savestates, chosen by the world model's uncertainty.

Beyond the paper: play does not begin at the game's start, but at moments that the model knows
little of. Rounds of episodes alternate with scoring, so that the result does not depend on the
number of workers and an interrupted collection goes on with its next round.

    <out>/archive/<game>/   see `envs.archive.archive`
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs import BUILTIN, action_names, catalog, chosen_actions, has_levels
from envs.archive.archive import Archive
from envs.archive.cells import CellGrid, fit_grid
from envs.collect.archive_worker import ArchiveResult, ArchiveTask, ArchiveWorker, Moment
from envs.collect.collector import playable
from envs.collect.policies import PolicySpec, builtin_policy
from envs.collect.worker import EpisodeKey
from envs.collect.worker_pool import CollectSummary, WorkerPool, WorkerSpec, default_timeout
from envs.episodes.dataset import EpisodeReader, EpisodeWriter
from envs.games.base import EnvOptions
from envs.utils.errors import InputError, one_line
from envs.utils.progress import Bar, console, progress
from envs.utils.ray_session import ray_session
from envs.utils.storage import is_remote
from exploration.reward.factory import WITHOUT_MODEL, RewardConfig, model_actions
from exploration.reward.scorers import ScoringError
from exploration.reward.token_entropy import TOP_FRACTION
from worldmodel.uncertainty import Windows

GRID_FRAMES = 1_000
"""Largest number of frames to which the grid of cells is fitted, evenly spaced."""
LEVELS_START_SHARE = 0.5
"""Share of the episodes that begin in a new level, in games that have levels."""


@dataclass(frozen=True)
class ArchiveConfig:
    """Play from an archive. The defaults are for a few thousand steps of a game."""

    episodes: int = 64
    """Number of episodes of each game."""
    steps: int = 100
    """Maximum length of an episode in steps."""
    round_episodes: int = 8
    """Episodes between two updates of the archive, which workers play in parallel."""
    policy: PolicySpec = field(default_factory=lambda: builtin_policy("dirichlet:0.3"))
    """Policy that plays on from a cell."""
    max_cells: int = 5_000
    """Largest number of cells of a game."""
    sharpness: float = 1.0
    """Exponent of a cell's uncertainty, in standard deviations, in its weight; 0 leaves counts."""
    start_share: float | None = None
    """Share of the episodes that begin at the game's start. Default: half in a game in which each
    of them is another level, otherwise none."""
    precision: str = "auto"
    """Precision of the world model: bf16 (autocast), fp32, or auto: bf16 on NVIDIA GPUs since
    Ampere, else fp32."""

    def __post_init__(self) -> None:
        if min(self.episodes, self.steps, self.round_episodes, self.max_cells) < 1:
            raise InputError(
                f"episodes {self.episodes}, steps {self.steps}, round_episodes "
                f"{self.round_episodes} and max_cells {self.max_cells} must be 1 or more"
            )
        if self.sharpness < 0:
            raise InputError(f"sharpness {self.sharpness}: must be 0 or more")
        if self.start_share is not None and not 0 <= self.start_share <= 1:
            raise InputError(f"start_share {self.start_share}: must be in [0, 1]")


def play_from_archive(
    games: Sequence[str],
    model: Path | str | None,
    out: Path | str,
    config: ArchiveConfig,
    reward: RewardConfig,
    *,
    previous: Path | str | None = None,
    workers: int = 2,
    seed: int = 0,
    timeout: float | None = None,
    actions: Sequence[str] = (),
    options: EnvOptions = (),
) -> CollectSummary:
    """Collect episodes that begin where `reward` is high, and write them to `out`.

    `reward` scores the cells: token-entropy or another one of `model`; extrinsic, the game's own
    reward so far, as Go-Explore does; count-bonus, visits alone. Existing episodes are not played
    again. `previous` is the folder of an earlier collection, whose archive this one carries on: its
    cells keep their visits, and their scores until they are reached and scored again. `actions`:
    names of other actions than the games' own; an agent or the model brings those that it was
    trained with. `options` are those of `envs.make`. Uses the connected Ray cluster, or a local
    one.

    Raises InputError for invalid settings, and for an archive of another game or ROM, or with other
    actions.
    """
    if is_remote(out):
        raise InputError(f"{out}: an archive needs a local folder: upload the episodes afterwards")
    started = time.monotonic()
    names, skipped = playable(games)
    policy_id = f"archive-{reward.name}-{config.policy.name}"
    chosen = chosen_actions(names, actions or config.policy.actions or model_actions(model))
    scored = reward.name not in WITHOUT_MODEL
    reward.check(model, action_names(names, chosen) if scored else None)
    keys = {
        game: [
            EpisodeKey(game, policy_id, seed, number, chosen, tuple(options))
            for number in range(config.episodes)
        ]
        for game in names
    }
    spec = WorkerSpec(
        ArchiveWorker,
        (str(Path(out).resolve()), config.policy.build, config.steps),
        workers,
        timeout or default_timeout(config.steps),
    )
    with EpisodeWriter(out) as writer, ray_session(cpus=workers):
        writer.check_actions(names, chosen)
        sessions = ((key.game, key.id) for each in keys.values() for key in each)
        recipe = {"steps": config.steps, "round_episodes": config.round_episodes}
        writer.plan(sessions, f"{policy_id} seed {seed}", recipe)
        scorers = reward.open(model, Path(out) / "archive", precision=config.precision, seed=seed)
        with (
            scorers as make_scorer,
            progress("archive", config.episodes * len(names)) as bar,
            WorkerPool(writer, spec, bar) as pool,
        ):
            score = CellScores(make_scorer if scored else None)
            for game in names:
                explorer = _GameExplorer(game, Path(out), config, reward, seed, previous, chosen)
                explorer.play(keys[game], writer, pool, score, bar)
            summary = pool.summary
        held = writer.sessions
    summary.skipped = skipped | summary.skipped
    summary.count(held[key.id] for each in keys.values() for key in each if key.id in held)
    summary.seconds = time.monotonic() - started
    return summary


class CellScores:
    """Scores of moments by a world model; NaN for those that it cannot score."""

    def __init__(self, make_scorer: Callable[[], Any] | None) -> None:
        self._scorer = None if make_scorer is None else make_scorer()
        self._warned = False

    def __call__(self, moments: Sequence[Moment]) -> list[float]:
        """Return the reward of the window that ends in each moment."""
        scores = [float("nan")] * len(moments)
        places = [index for index, moment in enumerate(moments) if moment.window is not None]
        if self._scorer is None or not places:
            return scores
        windows = Windows(
            np.stack([moments[index].window[0] for index in places]),  # type: ignore[index]
            np.stack([moments[index].window[1] for index in places]),  # type: ignore[index]
        )
        try:
            rewards_B = self._score(windows)
        except ScoringError as error:
            # The archive goes on with the scores that it has.
            if not self._warned:
                console.print(f"cells keep their scores, new ones have none: {one_line(error)}")
                self._warned = True
            return scores
        for index, value in zip(places, rewards_B.tolist(), strict=True):
            scores[index] = value
        return scores

    def _score(self, windows: Windows) -> Any:
        assert self._scorer is not None
        if hasattr(self._scorer, "score_windows"):
            return self._scorer.score_windows(windows).rewards_B
        # A service scores clips: each window is a clip of its own, all of them in flight at once.
        pending = [
            self._scorer.submit(frames_5HWC, actions_4, TOP_FRACTION)
            for frames_5HWC, actions_4 in zip(*windows, strict=True)
        ]
        return np.concatenate([receive().rewards_B for receive in pending])


class _GameExplorer:
    """Rounds of one game: choose cells, play on from them, add what was found."""

    def __init__(
        self,
        game: str,
        out: Path,
        config: ArchiveConfig,
        reward: RewardConfig,
        seed: int,
        previous: Path | str | None,
        actions: tuple[str, ...],
    ) -> None:
        self._out, self._config, self._reward = out, config, reward
        self._path = out / "archive" / game
        rom = None if game in BUILTIN else catalog.rom_path(game)
        sha1 = "" if rom is None else hashlib.sha1(rom.read_bytes()).hexdigest()
        generator = np.random.default_rng([seed, *game.encode()])
        start_share = config.start_share
        if start_share is None:
            start_share = LEVELS_START_SHARE if has_levels(game) else 0.0
        self.archive = Archive(
            game,
            sha1,
            CellGrid(),
            actions=actions,
            max_cells=config.max_cells,
            sharpness=config.sharpness,
            start_share=start_share,
            generator=generator,
        )
        self._carried_on = previous is not None
        if self._path.is_dir():
            self.archive = self.archive.load(self._path)
        elif previous is not None:
            earlier = self.archive.load(Path(previous) / "archive" / game)
            self.archive = replace(earlier, rounds=0, generator=generator)
            self.archive.outdate_scores(reward.name)
        self.archive.reward = reward.name

    def play(
        self,
        keys: Sequence[EpisodeKey],
        writer: EpisodeWriter,
        pool: WorkerPool,
        score: CellScores,
        bar: Bar,
    ) -> None:
        """Play the rounds that the archive does not hold yet."""
        size = self._config.round_episodes
        rounds = [keys[first : first + size] for first in range(0, len(keys), size)]
        bar.advance(sum(map(len, rounds[: self.archive.rounds])))
        for number in range(self.archive.rounds, len(rounds)):
            tasks = [
                ArchiveTask(key, self.archive.grid, self.archive.choose()) for key in rounds[number]
            ]
            pool.play(tasks)
            # In the order of the tasks: which worker was faster must not matter.
            results = [pool.results[task.id] for task in tasks if task.id in pool.results]
            moments = [
                moment
                for result in results
                if isinstance(result, ArchiveResult)
                for moment in result.moments
            ]
            if number == 0 and not self._carried_on:
                writer.commit()
                self._fit_grid({task.id for task in tasks})
            self._add(moments, score)
            self.archive.rounds = number + 1
            self.archive.save(self._path)

    def _fit_grid(self, ids: set[str]) -> None:
        """Choose the cells by the frames of the first round."""
        reader = EpisodeReader(self._out)
        episodes = [
            reader[index].frames_THWC
            for index, record in enumerate(reader.records)
            if record.session_id in ids
        ]
        if episodes:
            frames_NHWC = np.concatenate(episodes)
            every = max(1, -(-len(frames_NHWC) // GRID_FRAMES))
            self.archive.grid = fit_grid(frames_NHWC[::every])

    def _add(self, moments: Sequence[Moment], score: CellScores) -> None:
        """Add moments to the archive and score the cells that have no score of this model.

        Where the scorer fails, a cell keeps the score that it has.
        """
        unscored = {}
        for moment in moments:
            key = self.archive.grid.key(moment.cell.state.frame_HWC)
            self.archive.add(key, moment.cell)
            # The newest moment of a cell that has a whole window is scored.
            kept = key in unscored and moment.window is None
            cell = self.archive.cells[key]
            if (cell.outdated or math.isnan(cell.score)) and not kept:
                unscored[key] = moment
        scores = score(list(unscored.values()))
        for (key, moment), value in zip(unscored.items(), scores, strict=True):
            new = moment.cell.reward if self._reward.name == "extrinsic" else value
            if not math.isnan(new):
                cell = self.archive.cells[key]
                cell.score, cell.outdated = new, False
        self.archive.shrink()
