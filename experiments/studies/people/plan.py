"""Choice of the samples: windows of the study of quality, mid-air starts of that of actions."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.random import Generator

from envs import catalog
from envs.episodes.dataset import EpisodeReader
from envs.episodes.episode import Episode
from envs.utils.errors import InputError
from experiments.studies.mid_air import SINCE, jump_actions, mid_air_frames
from experiments.studies.people.arguments import TRUTH, PeopleMakeArgs
from experiments.studies.people.material import Sample, Study

ACTIONS_SHOWN = ("left", "jump", "right")
JUMPING = ("jump", "fly", "unknown")
"""Labels of the jump button with which a character may be in mid-air."""

Place = tuple[str, int]
"""Session and first frame of a window."""


class HeldOutEpisodes:
    """Episodes of several folders, found by session."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._readers = [EpisodeReader(folder) for folder in folders]
        self._places = {
            session: (reader, index)
            for reader in self._readers
            for index, session in enumerate(reader.session_ids)
        }
        self.manifests = [reader.manifest_hash for reader in self._readers]
        self.sessions: dict[str, list[str]] = {}
        """Sessions of each game, in the order of the folders."""
        for session, (reader, index) in self._places.items():
            self.sessions.setdefault(reader.games[index], []).append(session)
        self.action_names: dict[str, tuple[str, ...]] = {}
        for reader in self._readers:
            self.action_names = {**reader.action_names(), **self.action_names}

    def num_frames(self, session: str) -> int:
        """Return the number of frames of an episode."""
        reader, index = self._places[session]
        return reader.num_frames(index)

    def episode(self, session: str) -> Episode:
        """Return an episode with decoded frames."""
        reader, index = self._places[session]
        return reader[index]

    def choose(self, flag: str, games: Sequence[str]) -> list[str]:
        """Return the games of a flag. Raises InputError for one without episodes."""
        for game in games:
            if game not in self.sessions:
                raise InputError(f"--{flag} {game}: the data hold {', '.join(self.sessions)}")
        return list(dict.fromkeys(games)) or list(self.sessions)


def plan_samples(args: PeopleMakeArgs, data: HeldOutEpisodes) -> tuple[Sample, ...]:
    """Return the samples of both studies. Raises InputError for too few windows or starts."""
    games = data.choose("games", args.games)
    action_games = data.choose("action-games", args.action_games or games)
    names = tuple(args.model_paths())
    samples: list[Sample] = []
    for game in games if args.samples else ():
        rng = _generator(args.seed, "quality", game)
        for number, place in enumerate(_windows(data, game, args.samples, args.frames, rng)):
            for name in (TRUTH, *names):
                samples.append(_sample(args, "quality", game, number, place, (TRUTH, name)))
    for game in action_games if args.starts else ():
        rng = _generator(args.seed, "action", game)
        for number, place in enumerate(_mid_air_places(args, data, game, rng)):
            for action in ACTIONS_SHOWN:
                for name in names[1:]:
                    pair = (names[0], name)
                    samples.append(_sample(args, "action", game, number, place, pair, action))
    return tuple(samples)


def _sample(
    args: PeopleMakeArgs,
    study: Study,
    game: str,
    number: int,
    place: Place,
    models: tuple[str, str],
    action: str = "",
) -> Sample:
    """Return a sample. Samples of one place share the seed, and clips if model and action agree."""
    stem = "-".join(part for part in (study, game, f"{number:03d}", action) if part)
    first, second = (f"clips/{stem}-{model}.png" for model in models)
    digest = hashlib.sha256(f"{args.seed} {study} {game} {number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    return Sample(f"{stem}-{models[1]}", study, game, *place, action, seed, models, (first, second))


def _generator(seed: int, study: Study, game: str) -> Generator:
    """Return random numbers that depend on no other game."""
    return np.random.default_rng([seed, *f"{study} {game}".encode()])


def _windows(
    data: HeldOutEpisodes, game: str, count: int, frames: int, rng: Generator
) -> list[Place]:
    """Return random windows of a game that do not overlap."""
    windows = [
        (session, start)
        for session in data.sessions[game]
        for start in range(0, data.num_frames(session) - frames + 1, frames)
    ]
    if len(windows) < count:
        raise InputError(
            f"the episodes of {game} have {len(windows)} windows of {frames} frames, not {count}: "
            "give more --data or fewer --samples"
        )
    chosen = rng.choice(len(windows), count, replace=False)
    return [windows[index] for index in sorted(chosen.tolist())]


def _jump_function(game: str) -> str:
    """Return the catalogue's label of a game's jump button, `unknown` for other games."""
    labels = catalog.table().set_index("game")["jump"]
    return str(labels.get(game, "unknown"))


def _mid_air_places(
    args: PeopleMakeArgs, data: HeldOutEpisodes, game: str, rng: Generator
) -> list[Place]:
    """Return mid-air starts of a game, of as many episodes as there are."""
    names = data.action_names[game]
    if (function := _jump_function(game)) not in JUMPING:
        raise InputError(
            f"the jump button of {game} means {function} in the catalogue, so that it has no "
            "mid-air starts: choose --action-games, or --starts 0"
        )
    if missing := [action for action in ACTIONS_SHOWN if action not in names]:
        raise InputError(
            f"{game} has no action {missing[0]}, only {', '.join(names)}: "
            "choose --action-games, or --starts 0"
        )
    chosen: list[Place] = []
    others: list[Place] = []
    for session in rng.permutation(data.sessions[game]).tolist():
        episode = data.episode(session)
        found = mid_air_frames(
            episode.actions,
            jump_actions(names),
            episode.frames_THWC,
            most_motion=args.most_motion,
        ).tolist()
        # Neighbours are frames of one jump, of which the first is enough.
        apart = [t for before, t in pairwise([-SINCE[1], *found]) if t - before > 1]
        places = [(session, start) for start in rng.permutation(apart).tolist()]
        chosen += places[:1]
        others += places[1:]
        if len(chosen) == args.starts:
            return chosen
    missed = args.starts - len(chosen)
    if len(others) < missed:
        found_count = len(chosen) + len(others)
        raise InputError(
            f"the episodes of {game} have {found_count or 'no'} mid-air starts, not {args.starts}: "
            "give more --data, fewer --starts, other --action-games or more --most-motion"
        )
    return chosen + [others[index] for index in rng.permutation(len(others))[:missed].tolist()]
