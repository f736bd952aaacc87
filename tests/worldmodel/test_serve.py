"""The reward service: the numbers of the in-process scorer, live weights, a killed replica, answers
that never come."""

import os
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.__main__ import execute
from exploration.algorithm import AutoExploreConfig
from exploration.reward.scorers import LocalScorer, ScoringError, ServeScorer
from exploration.reward.token_entropy import uncertainty_reward
from worldmodel.serve import newest_weights

WINDOWS = 40


def windows(count: int = WINDOWS, seed: int = 0):
    generator = np.random.default_rng(seed)
    frames_B5HWC = generator.integers(0, 256, (count, 5, 64, 64, 3), dtype=np.uint8)
    return frames_B5HWC, generator.integers(0, 5, (count, 4))


@pytest.fixture(scope="module")
def app(ray_cluster, tiny_world):
    from worldmodel import serve

    name = serve.run(tiny_world, app_name="reward-under-test", num_cpus=0.5)
    yield name
    serve.stop(name)


@pytest.fixture(scope="module")
def other_world(tmp_path_factory):
    """Another model of the same size."""
    import worldmodel

    torch.manual_seed(1)
    config = worldmodel.preset("debug")
    folder = tmp_path_factory.mktemp("world") / "other"
    worldmodel.GenieReduxG(worldmodel.Tokenizer(config), worldmodel.Dynamics(config)).save(folder)
    return folder


def test_serve_and_in_process_give_the_same_numbers(app, tiny_world):
    frames_B5HWC, actions_B4 = windows()
    local = LocalScorer(tiny_world).entropies(frames_B5HWC, actions_B4)
    assert local.dtype == np.float32
    assert local.min() >= 0
    assert local.max() <= 1
    # One request, several requests that end in the middle of a batch, and windows that are views of
    # one film.
    for size in (256, 7):
        served = ServeScorer(app, windows=size).entropies(frames_B5HWC, actions_B4)
        np.testing.assert_allclose(served, local, atol=1e-5)
    film = np.lib.stride_tricks.sliding_window_view(frames_B5HWC[:, 0], 5, axis=0)
    views_B5HWC = np.moveaxis(film, -1, 1)
    served = ServeScorer(app).entropies(views_B5HWC, actions_B4[: len(views_B5HWC)])
    np.testing.assert_allclose(
        served,
        LocalScorer(tiny_world).entropies(views_B5HWC, actions_B4[: len(views_B5HWC)]),
        atol=1e-5,
    )


def test_requests_that_meet_in_a_batch_get_their_own_answers(app, tiny_world):
    from worldmodel import serve

    requests = [windows(6, seed) for seed in range(6)]
    sent = [ServeScorer(app).submit(*request) for request in requests]
    local = LocalScorer(tiny_world)
    for request, answer in zip(requests, sent, strict=True):
        np.testing.assert_allclose(answer(), local.entropies(*request), atol=1e-5)
    (told,) = serve.describe(app)
    assert told["weights"] == str(tiny_world)
    assert told["waiting"] == 0
    assert told["windows"] >= 36
    assert 0 < told["batch_windows"] <= 256
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p99"]


def test_a_request_that_cannot_be_scored_is_refused_alone(app, tiny_world):
    frames_B5HWC, actions_B4 = windows(4)
    good = ServeScorer(app).submit(frames_B5HWC, actions_B4)
    for scorer, frames, actions in (
        (ServeScorer(app), frames_B5HWC[:, :, :32], actions_B4),
        (ServeScorer(app), frames_B5HWC, actions_B4 + 9),
        (ServeScorer(app), frames_B5HWC, actions_B4[:, :3]),
    ):
        with pytest.raises(InputError) as caught:
            scorer.entropies(frames, actions)
        assert "\n" not in str(caught.value)
    np.testing.assert_allclose(
        good(), LocalScorer(tiny_world).entropies(frames_B5HWC, actions_B4), atol=1e-5
    )
    with pytest.raises(InputError, match="256"):
        ServeScorer(app, windows=257)


def test_weights_are_swapped_while_it_answers(app, tiny_world, other_world):
    from worldmodel import serve

    frames_B5HWC, actions_B4 = windows()
    old, new = (
        LocalScorer(path).entropies(frames_B5HWC, actions_B4) for path in (tiny_world, other_world)
    )
    assert not np.allclose(old, new, atol=1e-3)
    answers, stop = [], threading.Event()

    def ask():
        scorer = ServeScorer(app, retries=0)
        while not stop.is_set():
            answers.append(scorer.entropies(frames_B5HWC, actions_B4))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        while not answers:
            time.sleep(0.01)
        started = time.monotonic()
        assert serve.swap(app, other_world) == 1
        assert time.monotonic() - started < 5
        answered = len(answers)
        while len(answers) < answered + 3:
            time.sleep(0.01)
    finally:
        stop.set()
        asking.join()
    kinds = ["old" if np.allclose(answer, old, atol=1e-5) else "new" for answer in answers]
    np.testing.assert_allclose(answers[-1], new, atol=1e-5)
    assert kinds == sorted(kinds, reverse=True), (
        "first old, then new, nothing in between and nothing lost"
    )

    # Weights that cannot be loaded change nothing.
    broken = other_world.parent / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "manifest.json").write_text("{}")
    for path in (broken, other_world / "nowhere"):
        with pytest.raises(InputError, match=path.name):
            serve.swap(app, path)
    np.testing.assert_allclose(ServeScorer(app).entropies(frames_B5HWC, actions_B4), new, atol=1e-5)
    serve.swap(app, tiny_world)


class Answer:
    """Stands in for a response of the service."""

    def __init__(self, value):
        self.value, self.cancelled = value, False

    def result(self, timeout_s):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def cancel(self):
        self.cancelled = True


@pytest.mark.parametrize("bad", [TimeoutError(), np.full((2, 8), np.nan, np.float32)])
def test_late_and_broken_answers_become_errors_not_rewards(bad):
    scorer = ServeScorer("nobody")
    given: list[Answer] = []

    def remote(frames_B5HWC, actions_B4):
        given.append(Answer(bad))
        return given[-1]

    scorer._handle = SimpleNamespace(entropies=SimpleNamespace(remote=remote))
    with pytest.raises(ScoringError):
        scorer.entropies(*windows(2))
    if isinstance(bad, TimeoutError):
        assert len(given) == 2, "asked twice"
        assert all(answer.cancelled for answer in given), "what is late is called off"
    else:
        assert len(given) == 1, "an answer that is wrong would be wrong again"


def test_no_app_is_an_error_not_a_reward(app):
    with pytest.raises(ScoringError, match="nobody"):
        ServeScorer("nobody").entropies(*windows(2))


class Served:
    """Makes the scorer of a runner."""

    def __init__(self, app):
        self.app = app

    def __call__(self):
        return ServeScorer(self.app, windows=64)


def test_training_goes_on_when_the_replica_is_killed(app, other_world, tiny_world):
    """Its requests are asked again, of a replica that starts with the newest weights; every reward
    is the true one."""
    from worldmodel import serve

    config = AutoExploreConfig().explore_settings(
        games=["Counting"], scorer=Served(app), max_steps=300
    )
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    config.training(
        steps_per_epoch=200,
        updates_per_epoch=1,
        batch_size=2,
        seq_len=4,
        channels=(4, 4, 4, 4),
        lstm_dim=8,
    )
    algorithm = config.debugging(log_level="ERROR").build_algo()
    serve.swap(app, other_world)
    (replica,) = serve.describe(app)
    # In the middle of the scoring: the first answers may have come, the last have not.
    killer = threading.Thread(target=_kill_when_busy, args=(replica["pid"],))
    killer.start()
    try:
        result = algorithm.train()
        stretches = list(algorithm.replay._stretches)
    finally:
        killer.join()
        algorithm.stop()
    assert result["env_runners"]["games"]["Counting"]["dropped"] == 0
    assert sum(map(len, stretches)) == 400
    (now,) = serve.describe(app)
    assert now["pid"] != replica["pid"]
    local = LocalScorer(other_world)
    for stretch in stretches:
        frames = np.lib.stride_tricks.sliding_window_view(stretch.frames_THWC, 5, axis=0)
        actions = np.lib.stride_tricks.sliding_window_view(stretch.actions_T, 4)
        expected = uncertainty_reward(local.entropies(np.moveaxis(frames, -1, 1), actions))
        np.testing.assert_allclose(stretch.rewards_T[3:], expected, atol=1e-5)
    serve.swap(app, tiny_world)


def _kill_when_busy(pid: int) -> None:
    """SIGKILL a process as soon as it has worked for a moment."""

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

    busy = ticks()
    while ticks() < busy + 0.3 * os.sysconf("SC_CLK_TCK"):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)


def test_replicas_follow_the_queue(ray_cluster, tiny_world, monkeypatch):
    """One replica while nobody asks, two while several askers wait, one again afterwards; every
    answer is true."""
    from worldmodel import serve

    monkeypatch.setattr(serve, "UPSCALE_DELAY_S", 0.5)
    monkeypatch.setattr(serve, "DOWNSCALE_DELAY_S", 2.0)
    app = serve.run(tiny_world, app_name="growing", max_replicas=2, num_cpus=0.25)
    asked = windows(64)
    expected = LocalScorer(tiny_world).entropies(*asked)
    enough, wrong, answered = threading.Event(), [], []

    def ask():
        scorer = ServeScorer(app)
        while not enough.is_set():
            answer = scorer.entropies(*asked)
            answered.append(len(answer))
            if not np.allclose(answer, expected, atol=1e-5):
                wrong.append(answer)

    def wait_for_replicas(count):
        end = time.monotonic() + 120
        while len(serve.describe(app)) != count:
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.2)

    try:
        wait_for_replicas(1)
        # Three times what one replica is meant to hold.
        askers = [threading.Thread(target=ask) for _ in range(12)]
        for asker in askers:
            asker.start()
        try:
            wait_for_replicas(2)
            before = [told["windows"] for told in serve.describe(app)]
            end = time.monotonic() + 60
            while not all(told["windows"] > min(before) for told in serve.describe(app)):
                assert time.monotonic() < end, "the second replica answers nothing"
                time.sleep(0.2)
        finally:
            enough.set()
            for asker in askers:
                asker.join()
        wait_for_replicas(1)
    finally:
        serve.stop(app)
    assert answered
    assert not wrong


def test_the_command_says_what_the_service_does(ray_cluster, tiny_world):
    with console.capture() as printed:
        assert execute(["serve", str(tiny_world), "--name", "told", "--duration", "2"]) == 0
    started, ends, told = printed.get().splitlines()
    assert re.fullmatch(
        r"told: 1 replica started; [\d,]+ windows a second from one client", started
    )
    assert ends == "it ends in 2 s"
    # One window, then 64.
    figures = r"1 replica: [\d,]+ windows/s, 0 waiting, 3[23] a batch, 0 batches failed"
    assert re.fullmatch(figures + r"; latency [\d,]+ / [\d,]+ / [\d,]+ ms \(50, 95, 99 %\)", told)
    with pytest.raises(InputError, match="told"):
        newest_weights("told")


def test_bad_model_folder_is_one_line(ray_cluster, tmp_path):
    from worldmodel import serve

    with pytest.raises(InputError, match="no world model"):
        serve.run(tmp_path)
