"""Policies that RLlib has trained, played from the checkpoints of its new API stack.

`RLModule.from_checkpoint` reads these files of a module, and nothing else of an algorithm:

    class_and_ctor_args.pkl              its class, spaces and model config
    module_state.pkl, or .msgpack        weights

They are pickles: loading one runs whatever code it holds. Load only checkpoints that you trust.

Shapes: B = 1 episode, A actions.
"""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from ray import cloudpickle
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE
from ray.rllib.core import DEFAULT_MODULE_ID as DEFAULT
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch.utils import _pytree as pytree

from envs.collect.imported_policy import add_import_folder
from envs.collect.policies import GamePolicy, PolicySpec
from envs.collect.worker import GameError
from envs.games.base import GameEnv
from envs.utils.errors import InputError, one_line
from exploration.agent.config import check_exploration
from exploration.agent.policy import behaviour_log_probabilities, folder_digest

PLACES = (
    f"{COMPONENT_LEARNER_GROUP}/{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}",
    f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}",
    COMPONENT_RL_MODULE,
    ".",
)
"""Folders of the modules in the checkpoint of an algorithm, learner group, learner, or modules."""
CONSTRUCTOR = RLModule.CLASS_AND_CTOR_ARGS_FILE_NAME


def rllib_policy(
    folder: Path | str, *, epsilon: float | None = None, temperature: float = 1.0
) -> PolicySpec:
    """Return the policy of an RLlib checkpoint, for `envs.collect.collect`.

    `folder`: checkpoint of an algorithm with one module or `default_policy`, or of an RLModule.
    Each process that plays unpickles it, which runs the code in it. The policy samples from
    (1 - epsilon) softmax(logits / temperature) + epsilon / A, with an epsilon of 0 by default. Its
    name in episodes depends on the module's files, not on the path.

    Raises: InputError for another folder, and an epsilon or temperature out of range.
    """
    epsilon = 0.0 if epsilon is None else epsilon
    check_exploration(epsilon, temperature)
    module = module_folder(Path(folder)).resolve()
    digest = folder_digest(module)
    load = partial(RLlibPolicy, module, epsilon, temperature, str(Path.cwd()))
    return PolicySpec(f"rllib-{digest}-epsilon{epsilon:g}-temperature{temperature:g}", load)


def module_folder(folder: Path) -> Path:
    """Return the folder of the single RLModule in a checkpoint. Raises: InputError."""
    if not folder.is_dir():
        raise InputError(f"policy rllib:{folder}: there is no such folder")
    for place in PLACES:
        modules = folder / place
        found = sorted(path for path in modules.glob("*") if _is_module(path))
        found = [path for path in found if path.name == DEFAULT] or found
        if len(found) > 1:
            names = ", ".join(str(path) for path in found)
            raise InputError(
                f"policy rllib:{folder}: it holds several modules: give one of {names}"
            )
        if found:
            return found[0]
    if _is_module(folder):
        return folder
    old = " (it is one of RLlib's old API stack)" if (folder / "policies").is_dir() else ""
    raise InputError(
        f"policy rllib:{folder}: no checkpoint of an Algorithm or RLModule of RLlib's new API "
        f"stack{old}: give a folder that `save_to_path` wrote"
    )


def _is_module(folder: Path) -> bool:
    states = folder.glob(f"{RLModule.STATE_FILE_NAME}.*")
    return (folder / CONSTRUCTOR).is_file() and any(states)


class RLlibPolicy(GamePolicy):
    """Policy that plays one episode at a time with an RLModule, on the CPU."""

    def __init__(self, folder: Path, epsilon: float, temperature: float, imports: str) -> None:
        """Load the module. Its class is imported from `imports` or an installed package.

        Raises: InputError if it cannot be loaded, or needs other observations or actions.
        """
        add_import_folder(imports)
        self.title = f"policy rllib:{folder}"
        self.module = _load_module(folder, self.title)
        self.epsilon, self.temperature = epsilon, temperature
        self._generator = torch.Generator()
        self._state: Any = None

    def begin_game(self, game: GameEnv) -> None:
        """Check that the module takes the frames of the game and has its number of actions."""
        expected, given = self.module.observation_space, game.observation_space
        scaled = gymnasium.spaces.Box(0.0, 1.0, given.shape, np.float32)
        self._scaled = _is_scaled(expected, scaled)
        if not self._scaled and expected != given:
            raise InputError(
                f"{self.title} observes {expected}, and games give {given}: train on these frames, "
                f"or on {scaled}, their values / 255"
            )
        actions = self.module.action_space
        if actions != gymnasium.spaces.Discrete(len(game.action_names)):
            raise GameError(
                f"{game.game} has the actions {game.action_space} ({', '.join(game.action_names)}),"
                f" {self.title} {actions}"
            )

    def reset(self, seed: int) -> None:
        """Begin an episode: the module's initial state, and the seed of its actions."""
        self._generator.manual_seed(seed)
        torch.manual_seed(seed)  # of modules that draw themselves
        state = self.module.get_initial_state() if self.module.is_stateful() else {}
        self._state = pytree.tree_map(lambda value: torch.as_tensor(value)[None], state)

    @torch.inference_mode()
    def act(self, frame_HWC: NDArray[np.uint8]) -> int:
        """Choose the action for the newest frame, uint8 (size, size, 3)."""
        observation = torch.from_numpy(np.array(frame_HWC))[None]
        if self._scaled:
            observation = observation.to(torch.float32) / 255
        batch = {Columns.OBS: observation}
        if self.module.is_stateful():  # such modules take (B, T, ...)
            batch = {Columns.OBS: observation[:, None], Columns.STATE_IN: self._state}
        try:
            output = self.module.forward_inference(batch)
        except Exception as error:
            raise InputError(f"{self.title} fails: {_named(error)}") from error
        self._state = output.get(Columns.STATE_OUT)
        return self._sample(output)

    def _sample(self, output: dict[str, Any]) -> int:
        """Return the action of a module's output, as RLlib's env runners do."""
        space: Any = self.module.action_space
        count = int(space.n)
        if Columns.ACTIONS in output:  # of a DQN, for instance
            if self.temperature != 1:
                raise InputError(
                    f"{self.title} gives actions and no distribution: leave --temperature out"
                )
            chosen = int(torch.as_tensor(output[Columns.ACTIONS]).flatten()[0])
            random = torch.rand(1, generator=self._generator) < self.epsilon
            drawn = torch.randint(count, (1,), generator=self._generator)
            return int(drawn) if random else chosen
        kind = self.module.get_inference_action_dist_cls()
        if Columns.ACTION_DIST_INPUTS not in output or not issubclass(kind, TorchCategorical):
            raise InputError(
                f"{self.title} has no categorical distribution of actions: its module gives "
                f"{', '.join(output)} for a {kind.__name__}"
            )
        logits_A = output[Columns.ACTION_DIST_INPUTS].reshape(count).float()
        log_probability_A = behaviour_log_probabilities(logits_A, self.epsilon, self.temperature)
        return int(torch.multinomial(log_probability_A.exp(), 1, generator=self._generator))


def _load_module(folder: Path, title: str) -> TorchRLModule:
    try:
        # RLlib itself only warns of a class that cannot be imported, and builds another one.
        with (folder / CONSTRUCTOR).open("rb") as file:
            kind = cloudpickle.load(file)["class"]
        module = RLModule.from_checkpoint(str(folder))
    except Exception as error:
        raise InputError(f"{title} cannot be loaded: {_named(error)}") from error
    if not isinstance(module, TorchRLModule):
        raise InputError(f"{title} is a {kind.__name__}: only modules of torch can be played")
    return module.eval()


def _is_scaled(space: Any, scaled: gymnasium.spaces.Box) -> bool:
    """Return True for a space of floats in [0, 1] in the shape of frames."""
    return (
        isinstance(space, gymnasium.spaces.Box)
        and space.shape == scaled.shape
        and np.issubdtype(space.dtype, np.floating)
        and bool((space.low == 0).all() and (space.high == 1).all())
    )


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
