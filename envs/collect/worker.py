"""The Ray actor that plays episodes. Its process loads this module and the policy's: no torch."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import envs
from envs.collect.policies import GamePolicy, Policy
from envs.controls import ACTIONS
from envs.episodes.episode import Episode
from envs.episodes.shards import Shard, write_shard
from envs.games.base import EnvOptions, GameState
from envs.utils.errors import InputError
from envs.utils.storage import parse_uri


class GameError(InputError):
    """An error that concerns a single game; the others can still be played."""


@dataclass(frozen=True)
class EpisodeKey:
    """Identity of an episode: equal keys give equal frames."""

    game: str
    policy_id: str
    seed: int
    """Seed of the whole run."""
    episode: int
    """Number of the episode within its game, from 0."""
    actions: tuple[str, ...] = ()
    """Names of the actions; empty for the game's own."""
    options: EnvOptions = ()
    """Options of `envs.make`."""

    @property
    def id(self) -> str:
        """Session id of the episode, 16 hexadecimal digits."""
        return self._digest()[:16]

    @property
    def policy_seed(self) -> int:
        """Seed of the policy in this episode, below 2^63."""
        return int(self._digest()[16:32], 16) >> 1

    @property
    def start_seed(self) -> int:
        """Seed of the reset of the episode, below 2^32."""
        return self.policy_seed % 2**32

    def _digest(self) -> str:
        identity: list[Any] = [self.game, self.policy_id, self.seed, self.episode, *self.actions]
        identity += [dict(self.options)] if self.options else []
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def play_episode(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    key: EpisodeKey,
    *,
    steps: int,
    start: GameState | None = None,
    on_step: Callable[[list[NDArray[np.uint8]], list[int], list[float]], None] | None = None,
    info: dict[str, Any] | None = None,
) -> Episode:
    """Play the episode `key` in the env of its game until that ends, at most `steps` steps.

    `start`: moment to begin at, instead of the game's start. `on_step` is called after each step
    that did not end the game, with all frames, actions and rewards so far. `info` is stored in the
    episode.

    Raises: GameError for a policy with other actions than the game.
    """
    game: Any = env.unwrapped
    if isinstance(policy, GamePolicy):
        policy.begin_game(game)
    elif (learnt := getattr(policy, "action_names", ACTIONS)) != game.action_names:
        raise GameError(
            f"{key.game} has the actions {', '.join(game.action_names)}, the policy "
            f"{', '.join(learnt)}: play it with a policy that was trained on it, or with 'random'"
        )
    chosen: dict[str, Any] = {"actions": list(key.actions)} if key.actions else {}
    chosen |= {"options": dict(key.options)} if key.options else {}
    options = {} if start is None else {"state": start}
    frame_HWC, _ = env.reset(seed=key.start_seed, options=options)
    policy.reset(key.policy_seed)
    frames, actions, rewards = [frame_HWC], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = policy.act(frame_HWC)
        frame_HWC, reward, terminated, truncated, _ = env.step(np.int64(action))
        frames.append(frame_HWC)
        actions.append(action)
        rewards.append(float(reward))
        if on_step is not None and not terminated:
            on_step(frames, actions, rewards)
        truncated = truncated or (len(actions) >= steps and not terminated)
    return Episode(
        session_id=key.id,
        game=key.game,
        frames_THWC=game.hide_aids(np.stack(frames)),
        actions=np.array(actions, np.uint8),
        rewards=np.array(rewards, np.float32),
        policy_id=key.policy_id,
        seed=key.seed,
        terminated=terminated,
        truncated=truncated,
        console=game.console,
        rom_sha1=game.rom_sha1,
        retro_version=game.retro_version,
        init_state=game.init_state,
        frame_skip=game.frame_skip,
        buttons=game.action_masks,
        resize=game.resize,
        info={"episode": key.episode, "max_steps": steps, **chosen, **(info or {})},
    )


@dataclass(frozen=True)
class EpisodeResult:
    """Report of a worker about one episode."""

    shard: Shard
    cpu_seconds: float
    """CPU time of the worker's process for playing, compressing and writing."""


class GameWorker:
    """Base of the Ray actors that play: it holds one emulator, replaced for another game."""

    def __init__(self) -> None:
        self._env: gymnasium.Env[Any, Any] | None = None
        self._opened: tuple[Any, ...] = ()

    def process(self) -> int:
        """Return the process id."""
        return os.getpid()

    def _open(self, game: str, **options: Any) -> gymnasium.Env[Any, Any]:
        """Return `envs.make(game, **options)`, the same env as before if nothing differs.

        Raises: GameError if the game cannot be opened.
        """
        if self._env is None or self._opened != (game, options):
            if self._env is not None:
                self._env.close()
                self._env = None
            try:
                self._env = envs.make(game, **options)
            except InputError as error:
                raise GameError(str(error)) from error
            self._opened = (game, options)
        return self._env


class CollectWorker(GameWorker):
    """Ray actor that plays episodes and writes their shards."""

    def __init__(self, root: str, build_policy: Callable[[], Policy], steps: int) -> None:
        super().__init__()
        self._root, self._steps = parse_uri(root), steps
        # Built on first use: Ray reports an error in an actor's constructor as the actor's death.
        self._policy: Policy | None = None
        self._build_policy = build_policy

    def play(self, key: EpisodeKey) -> EpisodeResult:
        """Play one episode. Its shard is completely on disk when this returns.

        Raises: GameError if the game cannot be opened, InputError for a bad policy or folder.
        """
        started = time.process_time()
        self._policy = self._policy or self._build_policy()
        env = self._open(key.game, actions=key.actions, **dict(key.options))
        episode = play_episode(env, self._policy, key, steps=self._steps)
        shard = write_shard(self._root, [episode.encode()], key.id)
        return EpisodeResult(shard, time.process_time() - started)
