"""Exploring while things break: the service is overloaded, hangs, dies, answers nonsense; a game
hangs."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError

from exploration.algorithm import AutoExploreConfig
from exploration.reward.scorers import LocalScorer, ScoringError, ServeScorer

SMALL = {
    "updates_per_epoch": 1,
    "batch_size": 2,
    "seq_len": 4,
    "channels": (4, 4, 4, 4),
    "lstm_dim": 8,
}
QUEUED = 4


@pytest.fixture(scope="module")
def app(ray_cluster: None, tiny_world: Path) -> Any:
    from worldmodel import serve

    name = serve.run(tiny_world, app_name="faulty", num_cpus=0.5, max_queued_requests=QUEUED)
    yield name
    serve.stop(name)


@pytest.fixture
def figure(record_property: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """Tells a measured figure, and keeps it in the report that `--junitxml` writes."""

    def tell(name: str, value: float) -> None:
        record_property(name, value)
        with capsys.disabled():
            print(f"\n  {name}: {value:.3g}")

    return tell


def windows(count: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    frames_B5HWC = generator.integers(0, 256, (count, 5, 64, 64, 3), dtype=np.uint8)
    return frames_B5HWC, generator.integers(0, 5, (count, 4))


def resident_bytes(pid: int) -> int:
    line = next(
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return 1024 * int(line.split()[1])


def train_once(games: list[str], scorer: Any, **settings: Any) -> tuple[Any, Any]:
    """Run one epoch of the real algorithm here -> its result, and the steps in its replay."""
    config = AutoExploreConfig().explore_settings(games=games, scorer=scorer, max_steps=100)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    algorithm = (
        config.training(steps_per_epoch=12, **SMALL, **settings)
        .debugging(log_level="ERROR")
        .build_algo()
    )
    try:
        return algorithm.train(), len(algorithm.replay)
    finally:
        algorithm.stop()


def test_ten_times_what_it_can_queue_is_refused_and_takes_no_memory(app: str, figure: Any) -> None:
    """A burst of ten times what the replica and the caller's queue hold: answers or
    BackPressureError, nothing else."""
    from ray import serve as ray_serve
    from ray.serve.exceptions import BackPressureError

    from worldmodel import serve
    from worldmodel.serve import ONGOING

    handle, (frames, actions) = ray_serve.get_app_handle(app), windows(8)

    def burst(times: int) -> list[str]:
        sent = [handle.entropies.remote(frames, actions) for _ in range(times * (ONGOING + QUEUED))]
        ends = []
        for response in sent:
            try:
                response.result(timeout_s=60)
                ends.append("answered")
            except BackPressureError:
                ends.append("refused")
        return ends

    (replica,) = serve.describe(app)
    burst(10)  # warms up what is allocated once
    before = resident_bytes(replica["pid"]), resident_bytes(os.getpid())
    ends = [end for _ in range(3) for end in burst(10)]
    growth = [
        resident_bytes(pid) / size - 1
        for pid, size in zip((replica["pid"], os.getpid()), before, strict=True)
    ]
    figure("growth of the replica's memory under overload", growth[0])
    figure("share answered under overload", ends.count("answered") / len(ends))
    assert ends.count("answered") >= ONGOING
    assert ends.count("refused") > len(ends) / 2
    assert max(growth) < 0.1, growth
    # A scorer waits its turn, and gets everything.
    many, some = ServeScorer(app, windows=1), windows(60)
    np.testing.assert_array_equal(
        many.entropies(*some).shape, ServeScorer(app).entropies(*some).shape
    )


def test_a_service_that_hangs_costs_fragments_and_is_asked_again(app: str, figure: Any) -> None:
    """SIGSTOP to the replica: what it does not answer in time is dropped and counted; afterwards
    all is well."""
    from worldmodel import serve

    (replica,) = serve.describe(app)
    os.kill(replica["pid"], signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(ScoringError, match="no answer"):
            ServeScorer(app, timeout_s=1.0).entropies(*windows(2))
        figure(
            "seconds until a late answer is given up, two time-outs of 1 s",
            time.monotonic() - started,
        )
        assert time.monotonic() - started < 10
        waker = threading.Timer(6.0, os.kill, (replica["pid"], signal.SIGCONT))
        waker.start()
        result, steps = train_once(["Counting"], Late(app))
    finally:
        os.kill(replica["pid"], signal.SIGCONT)
    dropped = result["env_runners"]["games"]["Counting"]["dropped"]
    figure("fragments dropped", dropped)
    assert dropped >= 1
    assert steps >= 12


class Late:
    """Makes the scorer of a runner that waits for a second only."""

    def __init__(self, app: str) -> None:
        self.app = app

    def __call__(self) -> ServeScorer:
        return ServeScorer(self.app, timeout_s=1.0)


def test_answers_that_are_not_numbers_are_refused(
    ray_cluster: None, tiny_world: Path, tmp_path: Path
) -> None:
    """A model whose weights are NaN, behind the real service and in the process."""
    from worldmodel import GenieReduxG, serve

    model = GenieReduxG.load(tiny_world)
    with torch.no_grad():
        for parameter in model.dynamics.head.parameters():
            parameter.fill_(float("nan"))
    model.save(tmp_path / "nan")
    broken = serve.run(tmp_path / "nan", app_name="broken", num_cpus=0.25)
    try:
        for scorer in (ServeScorer(broken), LocalScorer(tmp_path / "nan")):
            with pytest.raises(ScoringError, match="not finite"):
                scorer.entropies(*windows(2))
    finally:
        serve.stop(broken)


def test_requests_survive_a_killed_replica(app: str, figure: Any) -> None:
    """SIGKILL while four clients ask: with one retry at least 95 % are answered, and it is whole
    within 45 s."""
    from worldmodel import serve

    (replica,) = serve.describe(app)
    ends: list[bool] = []
    stop = threading.Event()

    def ask() -> None:
        scorer, some = ServeScorer(app), windows(4)
        while not stop.is_set():
            try:
                scorer.entropies(*some)
                ends.append(True)
            except ScoringError:
                ends.append(False)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        wait_for(lambda: len(ends) >= 20)
        os.kill(replica["pid"], signal.SIGKILL)
        killed, asked = time.monotonic(), len(ends)
        wait_for(lambda: len(ends) >= asked + 20, 90)
        healthy = time.monotonic() - killed
    finally:
        stop.set()
        for client in clients:
            client.join()
    figure("share of requests answered across a killed replica", sum(ends) / len(ends))
    figure("seconds until it answers again", healthy)
    assert sum(ends) >= 0.95 * len(ends)
    assert healthy <= 45
    assert serve.describe(app)[0]["pid"] != replica["pid"]


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_hung_game_is_replaced(ray_cluster: None, figure: Any) -> None:
    """SIGSTOP to a game's process: after the time-out all of the runner's games are opened again,
    and it plays on."""
    config = AutoExploreConfig().explore_settings(games=["Counting"], max_steps=100)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    config.training(steps_per_epoch=10, step_timeout_s=2.0, **SMALL)
    algorithm: Any = config.debugging(log_level="ERROR").build_algo()
    try:
        algorithm.train()
        hung = algorithm.env_runner.env.unwrapped.processes[0]
        os.kill(hung.pid, signal.SIGSTOP)
        started = time.monotonic()
        algorithm.train()
        figure("seconds an epoch took with a hung game, time-out 2 s", time.monotonic() - started)
        assert len(algorithm.replay) == 40
        assert not Path(f"/proc/{hung.pid}").exists(), "the hung process still runs"
        assert hung.pid not in [
            process.pid for process in algorithm.env_runner.env.unwrapped.processes
        ]
    finally:
        algorithm.stop()


def test_a_killed_learner_is_an_error_that_explore_can_name(ray_cluster: None) -> None:
    """SIGKILL to the one learner's process: the next epoch raises what `explore` turns into one
    line with --resume."""
    config = AutoExploreConfig().explore_settings(games=["Counting"], max_steps=100)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2).learners(num_learners=1)
    algorithm: Any = (
        config.training(steps_per_epoch=10, **SMALL).debugging(log_level="ERROR").build_algo()
    )
    try:
        algorithm.train()
        (learner,) = [
            answer.get()
            for answer in algorithm.learner_group.foreach_learner(lambda _: os.getpid())
        ]
        assert learner != os.getpid()
        os.kill(learner, signal.SIGKILL)
        with pytest.raises(RayActorError):
            algorithm.train()
    finally:
        algorithm.stop()
