"""The agent's network, its behaviour policy, and its folder on disk."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from safetensors.torch import load_file, save_file

from envs.controls import ACTIONS
from envs.utils.errors import InputError
from exploration.agent.config import PolicyConfig
from exploration.agent.policy import (
    CnnLstm,
    behaviour_log_probabilities,
    load_policy,
    save_policy,
)
from exploration.agent.rl_module import AgentModule
from exploration.algorithm import AutoExploreConfig
from exploration.rollout.vector_env import spaces

SMALL = PolicyConfig(channels=(4, 4, 8, 8), lstm_dim=16)
MODEL_CONFIG = {
    "channels": SMALL.channels,
    "lstm_dim": SMALL.lstm_dim,
    "feature_norm": SMALL.feature_norm,
    "precision": "fp32",
    "burn_in": 0,
    "burst_exponent": 0.0,
    "noise_alpha": 0.0,
    "epsilon_spread": 0.0,
    "sticky": 0.0,
}


def build_module(**settings: Any) -> AgentModule:
    observation, action = spaces()
    spec = RLModuleSpec(
        module_class=AgentModule,
        observation_space=observation,
        action_space=action,
        model_config=MODEL_CONFIG | settings,
    )
    return spec.build()


def trained(config: PolicyConfig, seed: int = 0) -> CnnLstm:
    """A network whose heads are not zero."""
    torch.manual_seed(seed)
    network = CnnLstm(config)
    for head in (network.policy, network.value):
        torch.nn.init.normal_(head.weight, std=2.0)
    return network


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8, generator=generator)


def test_paper_size():
    network = CnnLstm(PolicyConfig())
    assert network.config.features == 1024
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_218_470  # 3.22 M
    kinds = [type(layer).__name__ for layer in network.convolutions]
    assert kinds == ["Conv2d", "MaxPool2d", "ReLU"] * 4
    assert [layer.out_channels for layer in network.convolutions[::3]] == [32, 32, 64, 64]
    shapes = {(layer.kernel_size, layer.stride) for layer in network.convolutions[::3]}
    assert shapes == {((3, 3), (1, 1))}
    config = AutoExploreConfig()
    observation, action = spaces()
    spec = config.get_default_rl_module_spec()
    spec.observation_space, spec.action_space = observation, action
    module = spec.build()
    assert sum(parameter.numel() for parameter in module.parameters()) == 3_218_470
    assert module.is_stateful()


def test_feature_norm_keeps_equal_shifts_of_all_weights_from_closing_the_gates() -> None:
    """The features are all positive: adding to every weight of the LSTM, as many updates with Adam
    do, moves its gates far, and it answers every frame alike."""
    frames = torch.randint(0, 256, (1, 12, 64, 64, 3), dtype=torch.uint8)
    frames[:, ::2] //= 4
    spreads = {}
    for feature_norm in (False, True):
        torch.manual_seed(0)
        network = CnnLstm(PolicyConfig(channels=(16, 16, 32, 32), feature_norm=feature_norm))
        with torch.no_grad():
            network.lstm.weight_ih_l0 -= 0.3
            features = network.convolutions(frames[0].permute(0, 3, 1, 2) / 127.5 - 1).flatten(1)
            assert features.min() >= 0
            state = network.start_state(1)
            network.policy.weight.normal_()
            logits_BTA, _, _ = network(frames, state)
        spreads[feature_norm] = float(logits_BTA.std(1).mean())
    assert spreads[True] > 3 * spreads[False]


def test_the_untrained_agent_is_uniform():
    network = CnnLstm(SMALL)
    logits_BTA, values_BT, _ = network(frames(2, 3), network.start_state(2))
    assert torch.equal(logits_BTA, torch.zeros(2, 3, 5))
    assert torch.equal(values_BT, torch.zeros(2, 3))


def test_single_steps_equal_the_whole_sequence():
    network = trained(SMALL).eval()
    frames_BTHWC = frames(2, 6)
    logits_BTA, values_BT, last = network(frames_BTHWC, network.start_state(2))
    state = network.start_state(2)
    for t in range(6):
        logits, values, state = network(frames_BTHWC[:, t : t + 1], state)
        torch.testing.assert_close(logits[:, 0], logits_BTA[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values[:, 0], values_BT[:, t], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state[0], last[0], atol=1e-5, rtol=1e-4)
    # Every pixel level counts: a buffer that kept 0 or 1 only could not tell these apart.
    assert not torch.allclose(
        network(frames_BTHWC // 2, network.start_state(2))[0], logits_BTA, atol=1e-3
    )


def test_behaviour_is_the_mixture_with_epsilon_and_temperature():
    logits = torch.tensor([2.0, 0.0, -1.0, 0.5, 0.0])
    for epsilon, temperature in ((0.0, 1.0), (0.1, 1.0), (0.3, 2.0), (1.0, 1.0)):
        expected = (1 - epsilon) * np.exp(logits.numpy() / temperature)
        expected = expected / np.exp(logits.numpy() / temperature).sum() + epsilon / 5
        got = behaviour_log_probabilities(logits, epsilon, temperature).exp().numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        np.testing.assert_allclose(got.sum(), 1, rtol=1e-5)
    assert behaviour_log_probabilities(logits, 0.0, 0.0).exp().tolist() == [1, 0, 0, 0, 0]


def test_module_explores_by_the_mixture_and_evaluates_without():
    module = build_module()
    module.network.load_state_dict(trained(SMALL).state_dict())
    state = {name: value[None].repeat(3, 1) for name, value in module.get_initial_state().items()}
    batch = {Columns.OBS: frames(3, 1), Columns.STATE_IN: state}
    logits = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    module.set_exploration(0.2, 1.5)
    output = module.forward_exploration(batch)
    torch.testing.assert_close(
        output[Columns.ACTION_DIST_INPUTS],
        behaviour_log_probabilities(logits, 0.2, 1.5),
        atol=1e-5,
        rtol=1e-4,
    )
    assert set(output[Columns.STATE_OUT]) == {"h", "c"}
    torch.testing.assert_close(
        module.compute_values(batch), module.forward_train(batch)[Columns.VF_PREDS]
    )
    for epsilon, temperature in ((1.1, 1.0), (-0.1, 1.0), (0.1, -1.0), (0.1, float("inf"))):
        with pytest.raises(InputError):
            module.set_exploration(epsilon, temperature)


def test_bursts_hold_random_actions_for_zipf_steps():
    module = build_module(burst_exponent=2.0)
    module.set_exploration(1.0, 1.0)
    torch.manual_seed(0)
    envs, steps = 64, 40
    start = module.get_initial_state()
    state = {name: value[None].repeat(envs, 1) for name, value in start.items()}
    actions, log_probabilities = [], []
    for _ in range(steps):
        batch = {Columns.OBS: frames(envs, 1), Columns.STATE_IN: state}
        output = module.forward_exploration(batch)
        state = output[Columns.STATE_OUT]
        actions.append(output[Columns.ACTIONS])
        log_probabilities.append(output[Columns.ACTION_LOGP])
    actions_BT, held_BT = torch.cat(actions, 1), torch.cat(log_probabilities, 1) == 0
    assert not held_BT[:, 0].any()
    assert (actions_BT[:, 1:] == actions_BT[:, :-1])[held_BT[:, 1:]].all()
    drawn = torch.cat(log_probabilities, 1)[~held_BT].double()
    torch.testing.assert_close(drawn, torch.full_like(drawn, math.log(1 / 5)))
    # Of the bursts that begin, 1 / zeta(2) = 61 % have one step: the next is drawn again.
    single = 1 - held_BT[:, 1:][~held_BT[:, :-1]].float().mean()
    assert abs(single - 0.61) < 0.06
    assert set(actions_BT.flatten().tolist()) == set(range(5))
    evaluated = module.forward_inference(batch)[Columns.STATE_OUT]
    assert set(evaluated) == {"h", "c", "burst"}, "the keys of the initial state"


def test_each_episode_has_its_own_distribution_of_random_actions():
    module = build_module(noise_alpha=0.3)
    module.set_exploration(0.5, 1.0)
    torch.manual_seed(0)
    start = module.get_initial_state()
    state = {name: value[None].repeat(400, 1) for name, value in start.items()}
    batch = {Columns.OBS: frames(400, 1), Columns.STATE_IN: state}
    first = module.forward_exploration(batch)
    noise_BA = first[Columns.STATE_OUT]["noise"]
    torch.testing.assert_close(noise_BA.sum(1), torch.ones(400))
    # Of Dirichlet(0.3) over five actions a probability has variance 0.2 * 0.8 / 2.5.
    assert abs(noise_BA.var(0).mean() - 0.064) < 0.01
    # The untrained policy is uniform.
    expected = (0.5 / 5 + 0.5 * noise_BA).log()
    torch.testing.assert_close(first[Columns.ACTION_DIST_INPUTS][:, 0], expected)
    again = module.forward_exploration(batch | {Columns.STATE_IN: first[Columns.STATE_OUT]})
    assert torch.equal(again[Columns.STATE_OUT]["noise"], noise_BA), "it stays for the episode"


def test_saved_agent_plays_the_same(tmp_path):
    network = trained(SMALL)
    save_policy(tmp_path / "agent", network, {"epoch": 3})
    assert sorted(file.name for file in (tmp_path / "agent").iterdir()) == [
        "config.json",
        "module.safetensors",
    ]
    frames_THWC = frames(40).numpy()

    def play(seed: int, **how: float) -> list[int]:
        agent = load_policy(tmp_path / "agent", **how)
        agent.reset(seed)
        return [agent.act(frame) for frame in frames_THWC]

    logits, _, _ = network(frames(1, 40), network.start_state(1))
    assert play(0, temperature=0.0) == logits[0].argmax(-1).tolist()
    assert play(1) == play(1)
    assert play(1) != play(2)
    assert len(set(play(3, epsilon=1.0))) == len(ACTIONS)
    agent = load_policy(tmp_path / "agent")
    agent.reset(1)
    first = [agent.act(frame) for frame in frames_THWC]
    agent.reset(1)
    assert [agent.act(frame) for frame in frames_THWC] == first == play(1), "reset forgets"


def test_other_agents_are_refused(tmp_path):
    good = save_policy(tmp_path / "good", trained(SMALL))
    with pytest.raises(InputError, match="no policy here"):
        load_policy(tmp_path / "nowhere")
    for epsilon, temperature in ((2.0, 1.0), (0.0, -1.0)):
        with pytest.raises(InputError):
            load_policy(good, epsilon=epsilon, temperature=temperature)
    network = CnnLstm(PolicyConfig(actions=("left", "right"), channels=(4, 4, 4, 4), lstm_dim=8))
    two = save_policy(tmp_path / "two", network)
    assert load_policy(two).action_names == ("left", "right")

    config = json.loads((good / "config.json").read_text())
    for change, message in (
        ({"network": config["network"] | {"actions": ["up", "down"]}}, "another architecture"),
        ({"format": "something-else"}, "version"),
        ({"network": config["network"] | {"lstm_dim": 8}}, "another architecture"),
        ({"network": config["network"] | {"channels": [4, 4, 8]}}, "another architecture"),
        ({"network": config["network"] | {"colour": 1}}, "architecture"),
        ({"network": None}, "architecture"),
    ):
        (good / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            load_policy(good)
    (good / "config.json").write_text(json.dumps(config)[:-5])
    with pytest.raises(InputError, match="not JSON"):
        load_policy(good)
    (good / "config.json").write_text(json.dumps(config))

    weights = load_file(good / "module.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if name != "value.bias"},
        good / "module.safetensors",
    )
    with pytest.raises(InputError, match=r"value\.bias"):
        load_policy(good)
    (good / "module.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match="damaged"):
        load_policy(good)


@pytest.mark.parametrize(
    "wrong", [{"actions": ("up",)}, {"channels": ()}, {"lstm_dim": 0}, {"channels": (4,) * 7}]
)
def test_impossible_architectures_are_refused(wrong):
    with pytest.raises(InputError):
        PolicyConfig(**wrong)


def test_heads_stay_in_full_precision_under_autocast():
    network = trained(SMALL)
    with torch.no_grad():
        network.value.bias.fill_(40.0)
        network.value.weight.div_(20)
        seen = frames(2, 6)
        _, exact, _ = network(seen, network.start_state(2))
        with torch.autocast("cpu", torch.bfloat16):
            logits, values, _ = network(seen, network.start_state(2))
    assert logits.dtype == values.dtype == torch.float32
    # In bf16 a value near 40 is a multiple of 0.25; only the hidden state may be rounded here.
    assert (values - exact).abs().max() < 0.02
    assert len(set(values.flatten().tolist())) > 6


def test_no_gradient_flows_into_the_burn_in_steps():
    whole, cut = (build_module(burn_in=steps) for steps in (0, 4))
    for module in (whole, cut):
        module.network.load_state_dict(trained(SMALL).state_dict())
    seen = frames(2, 9)
    h, c = whole.network.start_state(2)
    batch = {Columns.OBS: seen, Columns.STATE_IN: {"h": h, "c": c}}
    outputs = [module.forward_train(batch) for module in (whole, cut)]
    for name, value in outputs[0].items():
        torch.testing.assert_close(outputs[1][name], value)
    outputs[1][Columns.VF_PREDS][:, 4:].sum().backward()
    gradient = cut.network.lstm.weight_ih_l0.grad
    with torch.no_grad():
        _, _, state = whole.network(seen[:, :4], (h, c))
    whole.network(seen[:, 4:], state)[1].sum().backward()
    torch.testing.assert_close(gradient, whole.network.lstm.weight_ih_l0.grad)
