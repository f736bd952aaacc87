"""Checkpoints of RLlib as policies: the actions of their distribution, and what is refused."""

import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.tune.registry import register_env

from envs.collect.worker import EpisodeKey, GameError, play_episode
from envs.episodes.dataset import EpisodeReader
from envs.games.counting import CountingEnv
from envs.utils.errors import InputError
from experiments.__main__ import execute
from exploration.agent.policy import (
    behaviour_log_probabilities,
    load_policy,
    policy_spec,
    save_policy,
)
from exploration.agent.rllib_policy import RLlibPolicy, module_folder, rllib_policy
from tests.exploration.agent.test_policy import SMALL, build_module, trained

FRAMES = Box(0, 255, (64, 64, 3), np.uint8)
SCALED = Box(0.0, 1.0, (64, 64, 3), np.float32)
NETWORK = DefaultModelConfig(
    conv_filters=[[4, 8, 4], [8, 8, 4]], fcnet_hiddens=[16], head_fcnet_hiddens=[16]
)
KEY = EpisodeKey("Counting", "rllib", 0, 0)


class Chooses(TorchRLModule):
    """Module that answers with an action, as that of a DQN: always the last one."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        count = len(batch[Columns.OBS])
        return {Columns.ACTIONS: torch.full((count,), int(self.action_space.n) - 1)}


def save_module(
    folder: Path,
    module_class: type[RLModule] = Chooses,
    observations: gymnasium.Space[Any] = FRAMES,
    actions: gymnasium.Space[Any] = Discrete(5),  # noqa: B008  # never changed
    **options: Any,
) -> RLModule:
    """Save an untrained module and return it."""
    module = RLModuleSpec(module_class, observations, actions, **options).build()
    module.save_to_path(folder)
    return module


def play(folder: Path, epsilon: float = 0.0, temperature: float = 1.0, steps: int = 40) -> Any:
    """Play Counting in this process."""
    spec = rllib_policy(folder, epsilon=epsilon, temperature=temperature)
    return play_episode(CountingEnv(), spec.build(), KEY, steps=steps)


def sampled(logits_TA: torch.Tensor, seed: int, epsilon: float, temperature: float) -> list[int]:
    """Draw an action of the behaviour policy for each step."""
    generator = torch.Generator().manual_seed(seed)
    weights_TA = behaviour_log_probabilities(logits_TA, epsilon, temperature).exp()
    return [int(torch.multinomial(weights_A, 1, generator=generator)) for weights_A in weights_TA]


def scaled_counting(_: Any) -> gymnasium.Env[Any, Any]:
    """Return Counting with frames in [0, 1], as RLlib's own networks need them."""
    return gymnasium.wrappers.TransformObservation(
        CountingEnv(max_steps=20), lambda frame: np.float32(frame) / 255, SCALED
    )


@pytest.mark.slow
def test_collect_plays_what_ppo_has_trained(ray_cluster: None, tmp_path: Path) -> None:
    register_env("scaled-counting", scaled_counting)
    network = DefaultModelConfig(**{**vars(NETWORK), "use_lstm": True, "lstm_cell_size": 16})
    config = (
        PPOConfig()
        .environment("scaled-counting")
        .env_runners(num_env_runners=0)
        .training(train_batch_size=40, minibatch_size=20, num_epochs=1)
        .rl_module(model_config=network)
        .debugging(seed=0, log_level="ERROR")
    )
    algorithm = config.build_algo()
    algorithm.train()

    def sharpen(learner: Any) -> RLModule:
        """Make the policy depend on the frames more than an iteration teaches."""
        module = learner.module["default_policy"]
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(5)
        return module

    (module,) = (result.get() for result in algorithm.learner_group.foreach_learner(sharpen))
    algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.stop()

    command = ["collect", "Counting", "--policy", f"rllib:{tmp_path / 'checkpoint'}"]
    command += ["--episodes", "2", "--steps", "40"]
    for flags in ([], ["--temperature", "0"], ["--temperature", "2", "--epsilon", "0.1"]):
        out = tmp_path / "-".join(["data", *flags])
        assert execute([*command, *flags, "--out", str(out)]) == 0
        epsilon = 0.1 if "--epsilon" in flags else 0.0
        temperature = float(flags[1]) if flags else 1.0
        episodes = list(EpisodeReader(out))
        assert len(episodes) == 2
        for episode in episodes:
            frames_1THWC = torch.from_numpy(episode.frames_THWC[None, :-1]).float() / 255
            state = {name: value[None] for name, value in module.get_initial_state().items()}
            with torch.no_grad():
                output = module.forward_inference(
                    {Columns.OBS: frames_1THWC, Columns.STATE_IN: state}
                )
            logits_TA = output[Columns.ACTION_DIST_INPUTS][0]
            if not temperature:
                assert list(episode.actions) == logits_TA.argmax(-1).tolist()
            numbers = [EpisodeKey("Counting", episode.policy_id, 0, number) for number in (0, 1)]
            (key,) = (key for key in numbers if key.id == episode.session_id)
            expected = sampled(logits_TA, key.policy_seed, epsilon, temperature)
            assert list(episode.actions) == expected
        assert len({action for episode in episodes for action in episode.actions}) > 1


def test_a_module_plays_the_most_likely_action_or_samples(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module: Any = save_module(
        tmp_path,
        DefaultPPOTorchRLModule,
        SCALED,
        model_config=vars(NETWORK),
        catalog_class=PPOCatalog,
    )
    for epsilon, temperature in ((0.0, 0.0), (0.0, 0.05), (0.3, 0.05)):
        episode = play(tmp_path, epsilon, temperature)
        frames_THWC = torch.from_numpy(episode.frames_THWC[:-1]).float() / 255
        with torch.no_grad():
            output = module.forward_inference({Columns.OBS: frames_THWC})
        logits_TA = output[Columns.ACTION_DIST_INPUTS]
        expected = sampled(logits_TA, KEY.policy_seed, epsilon, temperature)
        assert list(episode.actions) == expected
        if not temperature:
            assert expected == logits_TA.argmax(-1).tolist()


def test_a_recurrent_module_of_whole_frames_plays_as_the_agent_does(tmp_path: Path) -> None:
    network, module = trained(SMALL), build_module()
    module.network.load_state_dict(network.state_dict())
    module.save_to_path(tmp_path / "rllib")
    save_policy(tmp_path / "agent", network)
    for epsilon, temperature in ((0.0, 1.0), (0.2, 1.5), (0.0, 0.0)):
        agent = load_policy(tmp_path / "agent", epsilon=epsilon, temperature=temperature)
        expected = play_episode(CountingEnv(), agent, KEY, steps=40)
        first = play(tmp_path / "rllib", epsilon, temperature)
        assert list(first.actions) == list(expected.actions)
    policy = rllib_policy(tmp_path / "rllib").build()
    again = [play_episode(CountingEnv(), policy, KEY, steps=40).actions.tolist() for _ in "ab"]
    assert again[0] == again[1], "reset forgets"


def test_a_module_that_chooses_itself_has_no_temperature(tmp_path: Path) -> None:
    save_module(tmp_path)
    assert set(play(tmp_path).actions) == {4}
    assert set(play(tmp_path, epsilon=1.0).actions) == {0, 1, 2, 3, 4}
    with pytest.raises(InputError, match="gives actions and no distribution"):
        play(tmp_path, temperature=0.0)


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (32, 32, 3), np.uint8),
        Box(0, 255, (64, 64, 1), np.uint8),
        Box(-1.0, 1.0, (64, 64, 3), np.float32),
        Box(0.0, 1.0, (64, 64, 12), np.float32),
        Discrete(3),
    ],
    ids=str,
)
def test_other_observations_are_refused_with_both_spaces(
    tmp_path: Path, space: gymnasium.Space[Any]
) -> None:
    save_module(tmp_path, observations=space)
    with pytest.raises(InputError) as refused:
        play(tmp_path)
    message = str(refused.value)
    assert f"observes {space}, and games give {FRAMES}" in message
    assert "\n" not in message


@pytest.mark.parametrize("space", [Discrete(7), Discrete(5, start=1), Box(0, 1, (5,))], ids=str)
def test_other_actions_are_refused(tmp_path: Path, space: gymnasium.Space[Any]) -> None:
    save_module(tmp_path, actions=space)
    with pytest.raises(GameError) as refused:
        play(tmp_path)
    assert "Counting has the actions Discrete(5) (right, left, " in str(refused.value)
    assert str(refused.value).endswith(str(space))


def test_the_module_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    places = {
        "algorithm": "learner_group/learner/rl_module/default_policy",
        "learner": "rl_module/default_policy",
        "modules": "default_policy",
        "other": "learner_group/learner/rl_module/my_module",
        "module": ".",
    }
    for name, place in places.items():
        save_module(tmp_path / name / place)
        assert module_folder(tmp_path / name) == tmp_path / name / place
    save_module(tmp_path / "other" / "learner_group/learner/rl_module/second")
    with pytest.raises(InputError, match=r"several modules: give one of .*my_module, .*second"):
        module_folder(tmp_path / "other")
    (tmp_path / "old" / "policies").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nowhere", "no such folder"),
        ("old", "one of RLlib's old API stack"),
        ("empty", "no checkpoint of an Algorithm or RLModule"),
    ):
        with pytest.raises(InputError, match=message):
            rllib_policy(tmp_path / name)


def test_a_checkpoint_of_several_modules_by_rllib_is_read(tmp_path: Path) -> None:
    single = RLModuleSpec(Chooses, FRAMES, Discrete(5))
    modules = MultiRLModule(rl_module_specs={"default_policy": single})
    modules.save_to_path(tmp_path)
    assert set(play(tmp_path).actions) == {4}


def test_a_policy_is_named_by_files_and_settings_and_not_by_its_folder(tmp_path: Path) -> None:
    save_module(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    save_module(tmp_path / "c", actions=Discrete(7))
    names = [rllib_policy(tmp_path / name).name for name in "abc"]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("rllib-")
    assert rllib_policy(tmp_path / "a", epsilon=0.1).name != names[0]
    for how in ({"epsilon": 2.0}, {"temperature": -1.0}):
        with pytest.raises(InputError, match=next(iter(how))):
            rllib_policy(tmp_path / "a", **how)


def test_a_module_of_ones_own_needs_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from tests.exploration.agent.test_rllib_policy import Chooses\n"
    (tmp_path / "own_module.py").write_text(f"{source}class Own(Chooses): pass\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import own_module  # type: ignore[import-not-found]

    save_module(tmp_path / "saved", own_module.Own)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "path", list(sys.path))
    del sys.modules["own_module"]
    with pytest.raises(InputError, match="ModuleNotFoundError: No module named 'own_module'"):
        play(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert set(play(tmp_path / "saved").actions) == {4}
    del sys.modules["own_module"]


class Exploit:
    """Object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_only_playing_by_rllib_unpickles(tmp_path: Path) -> None:
    folder, mark = tmp_path / "saved", tmp_path / "mark"
    save_module(folder)
    (folder / "class_and_ctor_args.pkl").write_bytes(pickle.dumps(Exploit(mark)))
    spec = rllib_policy(folder)
    with pytest.raises(InputError, match="no policy here"):
        policy_spec(f"checkpoint:{folder}")
    assert not mark.exists()
    with pytest.raises(InputError, match="cannot be loaded: TypeError"):
        spec.build()
    assert mark.exists()


def test_a_module_that_fails_is_named(tmp_path: Path) -> None:
    save_module(
        tmp_path,
        DefaultPPOTorchRLModule,
        FRAMES,
        model_config=vars(NETWORK),
        catalog_class=PPOCatalog,
    )
    # RLlib's own networks cannot read bytes.
    with pytest.raises(InputError, match=r"policy rllib:.* fails: RuntimeError: Input type"):
        play(tmp_path)
    assert isinstance(rllib_policy(tmp_path).build(), RLlibPolicy)
