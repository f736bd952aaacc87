"""Playing one episode, and the Ray actor that plays many. This module is all that a playing process loads: no torch."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

import envs
from envs.collect.policies import (
    Policy,
    RandomPolicy,
    StickyPolicy,
)
from envs.controls import ACTIONS
from envs.episodes.episode import Episode
from envs.episodes.shards import Shard, write_shard
from envs.utils.errors import InputError
from envs.utils.storage import parse_uri


@dataclass(frozen=True)
class EpisodeKey:
    """What identifies an episode. The same session always gives the same frames."""

    game: str
    policy_id: str
    seed: int
    """Of the whole run."""
    episode: int
    """Number within the game, from 0."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits."""
        return self._digest()[:16]

    @property
    def policy_seed(self) -> int:
        """The seed, below 2^63, of this one episode's policy."""
        return int(self._digest()[16:32], 16) >> 1

    def _digest(self) -> str:
        identity = json.dumps([self.game, self.policy_id, self.seed, self.episode])
        return hashlib.sha256(identity.encode()).hexdigest()


def play_episode(env: gymnasium.Env[Any, Any], policy: Policy, session: EpisodeKey, *, steps: int) -> Episode:
    """Play `session` until the game ends or `steps` steps are done. `env` is one that `envs.make` gave for its game."""
    game: Any = env.unwrapped
    if isinstance(policy, RandomPolicy | StickyPolicy):
        policy.actions = int(game.action_space.n)
    elif getattr(policy, "actions", len(ACTIONS)) != game.action_space.n:
        raise GameError(f"{session.game} has {game.action_space.n} actions, the policy others: play it with 'random'")
    frame_HWC, _ = env.reset(seed=session.policy_seed % 2**32)
    policy.reset(session.policy_seed)
    frames, actions, rewards = [frame_HWC], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = policy.act(frame_HWC)
        frame_HWC, reward, terminated, truncated, _ = env.step(np.int64(action))
        frames.append(frame_HWC)
        actions.append(action)
        rewards.append(reward)
        truncated = truncated or (len(actions) >= steps and not terminated)
    return Episode(
        session_id=session.id,
        game=session.game,
        frames_THWC=np.stack(frames),
        actions=np.array(actions, np.uint8),
        rewards=np.array(rewards, np.float32),
        policy_id=session.policy_id,
        seed=session.seed,
        terminated=terminated,
        truncated=truncated,
        console=game.console,
        rom_sha1=game.rom_sha1,
        retro_version=game.retro_version,
        init_state=game.init_state,
        frame_skip=game.frame_skip,
        buttons=game.action_masks,
        resize=game.resize,
        info={"episode": session.episode, "max_steps": steps},
    )


class GameError(InputError):
    """One game cannot be played; the others can."""


@dataclass(frozen=True)
class EpisodeResult:
    """What an actor reports of one episode."""

    shard: Shard
    cpu_seconds: float
    """Of its whole process, while it played, compressed and wrote."""


class CollectWorker:
    """The Ray actor: takes a session, plays it, writes its shard, reports it.

    Holds one emulator and swaps it between games.
    """

    def __init__(self, root: str, build_policy: Callable[[], Policy], steps: int) -> None:
        self._root, self._steps = parse_uri(root), steps
        # Not built here: an error in an actor's constructor looks like its death, not like the mistake it is.
        self._policy: Policy | None = None
        self._build_policy = build_policy
        self._env: gymnasium.Env[Any, Any] | None = None
        self._game = ""

    def process(self) -> int:
        """Its process id."""
        return os.getpid()

    def play(self, session: EpisodeKey) -> EpisodeResult:
        """Play one session. Its shard is on disk, whole, when this returns.

        Raises GameError where the game cannot be opened, and InputError where the policy or the folder cannot be used.
        """
        started = time.process_time()
        self._policy = self._policy or self._build_policy()
        if self._game != session.game:
            self._swap(session.game)
        assert self._env is not None
        episode = play_episode(self._env, self._policy, session, steps=self._steps)
        shard = write_shard(self._root, [episode.encode()], session.id)
        return EpisodeResult(shard, time.process_time() - started)

    def _swap(self, game: str) -> None:
        """Close the emulator that is open, and open the game's."""
        if self._env is not None:
            self._env.close()
            self._env, self._game = None, ""
        try:
            self._env = envs.make(game)
        except InputError as error:
            raise GameError(str(error)) from error
        self._game = game
