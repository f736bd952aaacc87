"""Playing one episode, and the Ray actor that plays many. This module is all that a playing process loads: no torch."""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

import envs
from envs.controls import ACTIONS
from envs.errors import InputError
from envs.places import place
from envs.recording import Episode
from envs.shards import Shard, write_shard


@dataclass(frozen=True)
class Session:
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


class Policy(Protocol):
    """Anything that plays."""

    def reset(self, seed: int) -> None:
        """Begin an episode; what follows depends on the seed and the frames alone."""

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """The action for the newest frame."""


class RandomPolicy:
    """Uniform over the game's actions, one a step (the paper's random agent)."""

    actions = len(ACTIONS)

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """The next action, whatever the frame shows."""
        return int(self._generator.integers(self.actions))


class StickyPolicy:
    """Repeats its last action with probability `stickiness`, else draws one uniformly: walks further than chance."""

    actions = len(ACTIONS)

    def __init__(self, stickiness: float) -> None:
        self._stickiness = stickiness

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._action: int | None = None

    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """The next action, whatever the frame shows."""
        if self._action is None or self._generator.random() >= self._stickiness:
            self._action = int(self._generator.integers(self.actions))
        return self._action


EXPERT_EPSILON = 0.15
"""Share of random actions that test sets of expert play have (appendix A.2)."""
AGENTS = ("checkpoint", "expert")
"""Policies whose name ends in a folder: checkpoint:FOLDER and expert:FOLDER."""


def absolute_policy(name: str) -> str:
    """Return the name with an agent's folder made absolute, as an actor finds it that runs in another folder."""
    kind, _, folder = name.partition(":")
    return f"{kind}:{Path(folder).resolve()}" if kind in AGENTS else name


def load_policy(name: str, *, epsilon: float, temperature: float) -> Policy:
    """The policy of a name that `policy_id` took. Only one with a folder loads torch."""
    kind, _, what = name.partition(":")
    if kind == "random":
        return RandomPolicy()
    if kind == "sticky":
        return StickyPolicy(float(what))
    from exploration.policy import load_policy as load_agent

    return load_agent(what, epsilon=epsilon, temperature=temperature)


def policy_id(name: str, *, epsilon: float, temperature: float) -> str:
    """The policy's name inside a session: for an agent it depends on its weights, not on where they lie.

    random: uniform over the actions, one a step (the paper's). sticky:P: repeats an action with probability P.
    checkpoint:FOLDER and expert:FOLDER: an agent, with `epsilon` and `temperature`. Raises InputError for another one,
    a P outside [0, 1) or a folder that is not there.
    """
    kind, _, what = name.partition(":")
    if name == "random":
        return "random"
    if kind == "sticky":
        return f"sticky{_stickiness(what):g}"
    folder = Path(what)
    if kind not in AGENTS or not what:
        raise InputError(
            f"policy {name!r} is not known: give random, sticky:P, or checkpoint:FOLDER or expert:FOLDER of an agent"
        )
    if not folder.is_dir():
        raise InputError(f"policy {name!r}: there is no folder {folder}")
    digest = hashlib.sha256()
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return f"{kind}-{digest.hexdigest()[:12]}-epsilon{epsilon:g}-temperature{temperature:g}"


def _stickiness(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise InputError(f"policy 'sticky:{text}': give the probability to repeat, 0 or more and below 1")
    return value


def play_episode(env: gymnasium.Env[Any, Any], policy: Policy, session: Session, *, steps: int) -> Episode:
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
class Played:
    """What an actor reports of one episode."""

    shard: Shard
    cpu_seconds: float
    """Of its whole process, while it played, compressed and wrote."""


class Player:
    """The Ray actor: takes a session, plays it, writes its shard, reports it.

    Holds one emulator and swaps it between games.
    """

    def __init__(self, root: str, policy: str, epsilon: float, temperature: float, steps: int) -> None:
        self._root, self._steps = place(root), steps
        # Not loaded here: an error in an actor's constructor looks like its death, not like the mistake it is.
        self._policy: Policy | None = None
        self._load = partial(load_policy, policy, epsilon=epsilon, temperature=temperature)
        self._env: gymnasium.Env[Any, Any] | None = None
        self._game = ""

    def process(self) -> int:
        """Its process id."""
        return os.getpid()

    def play(self, session: Session) -> Played:
        """Play one session. Its shard is on disk, whole, when this returns.

        Raises GameError where the game cannot be opened, and InputError where the policy or the folder cannot be used.
        """
        started = time.process_time()
        self._policy = self._policy or self._load()
        if self._game != session.game:
            self._swap(session.game)
        assert self._env is not None
        episode = play_episode(self._env, self._policy, session, steps=self._steps)
        shard = write_shard(self._root, [episode.encode()], session.id)
        return Played(shard, time.process_time() - started)

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
