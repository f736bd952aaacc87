"""The reward service: the numbers of the in-process scorer, live weights, a killed replica, late
answers."""

import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.__main__ import execute
from experiments.commands import serve as serve_command
from experiments.commands.serve import PROBE_WINDOWS, short, windows_per_second
from exploration.reward.scorers import LocalScorer, ScoringError, ServeScorer
from tests.fixtures.explorers import random_clip, small_explorer
from worldmodel.config import WINDOW
from worldmodel.serve import ServeConfig, newest_weights

WINDOWS = 40


def entropies(scorer, clip):
    """Return the token entropies of a clip."""
    return scorer.submit(*clip)().tokens_BN


@pytest.fixture(scope="module")
def app(ray_cluster, tiny_world):
    from worldmodel import serve

    yield serve.deploy(tiny_world, ServeConfig(app_name="reward-under-test", num_cpus=0.5))
    serve.shutdown("reward-under-test")


def test_the_app_starts_from_a_config_file(ray_cluster, tiny_world):
    from ray import serve as ray_serve

    from worldmodel import serve

    with pytest.raises(InputError, match="no world model here"):
        serve.application({"model": str(tiny_world.parent)})
    app = serve.application({"model": str(tiny_world), "app_name": "from-file", "num_cpus": 0.5})
    ray_serve.run(app, name="from-file", route_prefix=None)
    clip = random_clip(WINDOWS)
    assert np.array_equal(
        entropies(ServeScorer("from-file"), clip), entropies(LocalScorer(tiny_world), clip)
    )
    serve.shutdown("from-file")


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
    clip = random_clip(WINDOWS)
    local = LocalScorer(tiny_world).submit(*clip)()
    assert local.tokens_BN.dtype == np.float32
    assert local.tokens_BN.min() >= 0
    assert local.tokens_BN.max() <= 1
    # One request, and several requests that end in the middle of a batch.
    for size in (256, 7):
        served = ServeScorer(app, windows=size).submit(*clip, 0.25)()
        np.testing.assert_allclose(served.tokens_BN, local.tokens_BN, atol=1e-5)
        np.testing.assert_allclose(served.rewards_B, local.rewards_B, atol=1e-5)


def test_requests_that_meet_in_a_batch_get_their_own_answers(app, tiny_world):
    from worldmodel import serve

    clips = [random_clip(6, seed) for seed in range(6)]
    answers = [ServeScorer(app).submit(*clip) for clip in clips]
    local = LocalScorer(tiny_world)
    for clip, receive in zip(clips, answers, strict=True):
        np.testing.assert_allclose(receive().tokens_BN, entropies(local, clip), atol=1e-5)
    (replica,) = serve.describe(app)
    assert replica["weights"] == str(tiny_world)
    assert replica["waiting"] == 0
    assert replica["windows"] >= 36
    assert 0 < replica["batch_windows"] <= 256
    assert 0 < replica["latency_ms"]["p50"] <= replica["latency_ms"]["p99"]


def test_a_request_that_cannot_be_scored_is_refused_alone(app, tiny_world):
    frames_THWC, actions_T = random_clip(4)
    good = ServeScorer(app).submit(frames_THWC, actions_T)
    for clip in (
        (frames_THWC[:, :32], actions_T),
        (frames_THWC.astype(np.float32), actions_T),
        (frames_THWC, actions_T + 9),
        (frames_THWC, actions_T[:-1]),
    ):
        with pytest.raises(InputError, match="clip to score") as caught:
            ServeScorer(app).submit(*clip)()
        assert "\n" not in str(caught.value)
    local = LocalScorer(tiny_world)
    np.testing.assert_allclose(
        good().tokens_BN, entropies(local, (frames_THWC, actions_T)), atol=1e-5
    )
    with pytest.raises(InputError, match="256"):
        ServeScorer(app, windows=257)


def test_weights_are_updated_while_it_answers(app, tiny_world, other_world):
    from worldmodel import serve

    clip = random_clip(WINDOWS)
    old, new = (entropies(LocalScorer(path), clip) for path in (tiny_world, other_world))
    assert not np.allclose(old, new, atol=1e-3)
    answers, stop = [], threading.Event()

    def ask():
        scorer = ServeScorer(app, retries=0)
        while not stop.is_set():
            answers.append(entropies(scorer, clip))

    client = threading.Thread(target=ask)
    client.start()
    try:
        while not answers:
            time.sleep(0.01)
        started = time.monotonic()
        assert serve.update_weights(app, other_world) == 1
        assert time.monotonic() - started < 5
        answered = len(answers)
        while len(answers) < answered + 3:
            time.sleep(0.01)
    finally:
        stop.set()
        client.join()
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
            serve.update_weights(app, path)
    np.testing.assert_allclose(entropies(ServeScorer(app), clip), new, atol=1e-5)
    serve.update_weights(app, tiny_world)


class Answer:
    """Stand-in for a response of the service."""

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
    scorer = ServeScorer("missing-app")
    answers: list[Answer] = []

    def remote(frames_THWC, actions_T):
        answers.append(Answer(bad))
        return answers[-1]

    scorer._handle = SimpleNamespace(entropies=SimpleNamespace(remote=remote))
    with pytest.raises(ScoringError):
        scorer.submit(*random_clip(2))()
    if isinstance(bad, TimeoutError):
        assert len(answers) == 2, "one retry"
        assert all(answer.cancelled for answer in answers)
    else:
        assert len(answers) == 1, "no retry of a wrong answer"


def test_no_app_is_an_error_not_a_reward(app):
    with pytest.raises(ScoringError, match="missing-app"):
        ServeScorer("missing-app").submit(*random_clip(2))()


@pytest.mark.slow
def test_training_goes_on_when_the_replica_is_killed(app, other_world, tiny_world):
    """Requests are repeated to a replica that starts with the newest weights."""
    from worldmodel import serve

    scorer = partial(ServeScorer, app, windows=64)
    algorithm = small_explorer(scorer=scorer, max_steps=300, steps_per_epoch=200).build_algo()
    serve.update_weights(app, other_world)
    (replica,) = serve.describe(app)
    # In the middle of the scoring: the first answers may have come, the last have not.
    killer = threading.Thread(target=_kill_when_busy, args=(replica["pid"],))
    killer.start()
    try:
        result = algorithm.train()
        stretches = algorithm.replay.fragments
    finally:
        killer.join()
        algorithm.stop()
    assert result["env_runners"]["games"]["Counting"]["dropped"] == 0
    assert sum(map(len, stretches)) == 400
    (now,) = serve.describe(app)
    assert now["pid"] != replica["pid"]
    local = LocalScorer(other_world)
    for stretch in stretches:
        expected = local.submit(stretch.frames_THWC, stretch.actions_T)().rewards_B
        np.testing.assert_allclose(stretch.rewards_T[3:], expected, atol=1e-5)
    serve.update_weights(app, tiny_world)


def _kill_when_busy(pid: int) -> None:
    """SIGKILL a process once it has used the CPU for 0.3 s."""

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

    busy = ticks()
    while ticks() < busy + 0.3 * os.sysconf("SC_CLK_TCK"):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_replicas_follow_the_queue(ray_cluster, tiny_world, monkeypatch):
    """One replica, two while requests queue, then one again; no answer is wrong."""
    from worldmodel import serve

    monkeypatch.setattr(serve, "UPSCALE_DELAY_S", 0.5)
    monkeypatch.setattr(serve, "DOWNSCALE_DELAY_S", 2.0)
    config = ServeConfig(app_name="growing", max_replicas=2, num_cpus=0.25)
    app = serve.deploy(tiny_world, config)
    clip = random_clip(64)
    expected = entropies(LocalScorer(tiny_world), clip)
    enough, wrong, answered = threading.Event(), [], []

    def ask():
        scorer = ServeScorer(app)
        while not enough.is_set():
            answer = entropies(scorer, clip)
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
        # Three times the requests that autoscaling allows a replica.
        clients = [threading.Thread(target=ask) for _ in range(12)]
        for client in clients:
            client.start()
        try:
            wait_for_replicas(2)
            before = [replica["windows"] for replica in serve.describe(app)]
            end = time.monotonic() + 60
            while not all(replica["windows"] > min(before) for replica in serve.describe(app)):
                assert time.monotonic() < end, "the second replica answers nothing"
                time.sleep(0.2)
        finally:
            enough.set()
            for client in clients:
                client.join()
        wait_for_replicas(1)
    finally:
        serve.shutdown(app)
    assert answered
    assert not wrong


@pytest.mark.slow
def test_the_command_prints_the_statistics_of_the_service(ray_cluster, tiny_world):
    with console.capture() as printed:
        assert execute(["serve", str(tiny_world), "--name", "printed", "--duration", "2"]) == 0
    started, ends, statistics = printed.get().splitlines()
    assert re.fullmatch(
        r"printed: 1 replica started; [\d,.]+ windows a second from one client", started
    )
    assert ends == "it ends in 2 s"
    # One window twice, then four times as many until an answer takes a second, or 64.
    figures = r"1 replica: [\d,.]+ windows/s, 0 waiting, \d+ a batch, 0 batches failed"
    assert re.fullmatch(
        figures + r"; latency [\d,]+ / [\d,]+ / [\d,]+ ms \(50, 95, 99 %\)", statistics
    )
    with pytest.raises(InputError, match="printed"):
        newest_weights("printed")


class SlowScorer:
    """Scorer that takes a fixed time for each window and counts them."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.windows = seconds, []

    def submit(self, frames, actions):
        self.windows.append(len(frames) - WINDOW + 1)
        return lambda: time.sleep(self.seconds * self.windows[-1])


@pytest.mark.parametrize(("seconds", "largest"), [(0.1, 1), (0.01, 16), (0.0, PROBE_WINDOWS)])
def test_the_speed_of_a_slow_model_is_measured_with_few_windows(monkeypatch, seconds, largest):
    """The paper's model needs minutes for 64 windows on a CPU, longer than a client waits."""
    monkeypatch.setattr(serve_command, "PROBE_SECONDS", 0.1)
    scorer = SlowScorer(seconds)
    rate = windows_per_second(scorer)
    assert scorer.windows[0] == 1
    assert scorer.windows[-1] == max(scorer.windows) == largest
    if seconds:
        assert 0.2 / seconds < rate <= 1 / seconds


def test_slow_rates_keep_two_digits():
    assert [short(rate) for rate in (0.1234, 3.21, 12.6, 4321.0)] == ["0.12", "3.2", "13", "4,321"]


def test_bad_model_folder_is_one_line(ray_cluster, tmp_path):
    from worldmodel import serve

    with pytest.raises(InputError, match="no world model"):
        serve.deploy(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 0}, "replicas = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"max_queued_requests": 0}, "max_queued_requests = 0"),
        ({"replicas": 2, "max_replicas": 1}, "max_replicas = 1"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ServeConfig(**settings)
