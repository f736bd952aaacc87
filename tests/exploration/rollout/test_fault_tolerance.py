"""Exploring with failures: an overloaded, hung, dead or wrong reward service, and a hung game."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError

from exploration.reward.scorers import LocalScorer, ScoringError, ServeScorer
from tests.fixtures.explorers import random_clip, small_explorer
from tests.fixtures.processes import wait_for

pytestmark = pytest.mark.slow

QUEUED = 4


@pytest.fixture(scope="module")
def app(ray_cluster: None, tiny_world: Path) -> Any:
    from worldmodel import serve

    config = serve.ServeConfig(app_name="faulty", num_cpus=0.5, max_queued_requests=QUEUED)
    yield serve.deploy(tiny_world, config)
    serve.shutdown("faulty")


@pytest.fixture
def figure(record_property: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """Print a measured figure and store it in the report of `--junitxml`."""

    def show(name: str, value: float) -> None:
        record_property(name, float(value))
        with capsys.disabled():
            print(f"\n  {name}: {value:.3g}")

    return show


def resident_bytes(pid: int) -> int:
    line = next(
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return 1024 * int(line.split()[1])


def train_once(scorer: Any) -> tuple[Any, int]:
    """Run one epoch of the real algorithm; return its result and the steps in its replay buffer."""
    algorithm = small_explorer(scorer=scorer, steps_per_epoch=12).build_algo()
    try:
        return algorithm.train(), len(algorithm.replay)
    finally:
        algorithm.stop()


def test_ten_times_what_it_can_queue_is_refused_and_takes_no_memory(app: str, figure: Any) -> None:
    """Each request of a burst of ten times the queues is answered or gets BackPressureError."""
    from ray import serve as ray_serve
    from ray.serve.exceptions import BackPressureError

    from worldmodel import serve
    from worldmodel.serve import ONGOING

    handle, (frames, actions) = ray_serve.get_app_handle(app), random_clip(8)

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
    # A scorer repeats refused requests until it has all rewards.
    clip = random_clip(60)
    scored = [scorer.submit(*clip)() for scorer in (ServeScorer(app, windows=1), ServeScorer(app))]
    assert scored[0].rewards_B.shape == scored[1].rewards_B.shape == (60,)


def test_a_service_that_hangs_costs_fragments_and_is_asked_again(app: str, figure: Any) -> None:
    """SIGSTOP to the replica: late fragments are dropped and counted, later ones are scored."""
    from worldmodel import serve

    (replica,) = serve.describe(app)
    os.kill(replica["pid"], signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(ScoringError, match="no answer"):
            ServeScorer(app, timeout_s=1.0).submit(*random_clip(2))()
        figure(
            "seconds until a late answer is given up, two time-outs of 1 s",
            time.monotonic() - started,
        )
        assert time.monotonic() - started < 10
        waker = threading.Timer(6.0, os.kill, (replica["pid"], signal.SIGCONT))
        waker.start()
        result, steps = train_once(partial(ServeScorer, app, timeout_s=1.0))
    finally:
        os.kill(replica["pid"], signal.SIGCONT)
    dropped = result["env_runners"]["games"]["Counting"]["dropped"]
    figure("fragments dropped", dropped)
    assert dropped >= 1
    assert steps >= 12


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
    config = serve.ServeConfig(app_name="broken", num_cpus=0.25)
    broken = serve.deploy(tmp_path / "nan", config)
    try:
        for scorer in (ServeScorer(broken), LocalScorer(tmp_path / "nan")):
            with pytest.raises(ScoringError, match="not finite"):
                scorer.submit(*random_clip(2))()
    finally:
        serve.shutdown(broken)


def test_requests_survive_a_killed_replica(app: str, figure: Any) -> None:
    """SIGKILL with four clients: one retry gets 95 % answers, and the app recovers."""
    from worldmodel import serve

    (replica,) = serve.describe(app)
    ends: list[bool] = []
    stop = threading.Event()

    def ask() -> None:
        scorer, clip = ServeScorer(app), random_clip(4)
        while not stop.is_set():
            try:
                scorer.submit(*clip)()
                ends.append(True)
            except ScoringError:
                ends.append(False)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        wait_for(lambda: len(ends) >= 20)
        os.kill(replica["pid"], signal.SIGKILL)
        killed, before = time.monotonic(), len(ends)
        wait_for(lambda: len(ends) >= before + 20, 120)
        healthy = time.monotonic() - killed
    finally:
        stop.set()
        for client in clients:
            client.join()
    figure("share of requests answered across a killed replica", sum(ends) / len(ends))
    figure("seconds until it answers again", healthy)
    assert sum(ends) >= 0.95 * len(ends)
    assert serve.describe(app)[0]["pid"] != replica["pid"]


def test_a_hung_game_is_replaced(ray_cluster: None, figure: Any) -> None:
    """SIGSTOP to a game process: after the time-out the runner reopens its games and goes on."""
    algorithm: Any = small_explorer(steps_per_epoch=10, step_timeout_s=2.0).build_algo()
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
    """SIGKILL to the only learner: the next epoch raises what `explore` reports in one line."""
    algorithm: Any = small_explorer(steps_per_epoch=10).learners(num_learners=1).build_algo()
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
