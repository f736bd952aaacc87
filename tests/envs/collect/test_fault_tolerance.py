"""Collection under faults: killed and hung workers, failing games, a full disk, lost nodes."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import envs.collect
from envs.collect.worker import CollectWorker, EpisodeKey, GameError
from envs.episodes.dataset import EpisodeReader
from envs.utils.errors import InputError
from tests.fixtures.datasets import run, tree
from tests.fixtures.processes import wait_for

pytestmark = pytest.mark.slow

# Actors cannot import a test file: its classes are pickled by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

GAME = "Airstriker-Genesis"
ATARI = "Kangaroo-Atari2600"


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of a run without faults."""
    folder = tmp_path_factory.mktemp("collect") / "undisturbed"
    run([GAME], folder, episodes=6, steps=200)
    return folder


def test_a_killed_worker_is_replaced_and_its_episode_played_again(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Send SIGKILL to two actors while they play; the data set stays the same."""
    done = threading.Event()
    killed: list[int] = []

    def killer() -> None:
        while len(killed) < 2 and not done.wait(0.2):
            if workers := [
                pid for pid in descendants(os.getpid()) if is_worker(pid) and pid not in killed
            ]:
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        summary = run([GAME], tmp_path, episodes=6, steps=200)
    finally:
        done.set()
        thread.join()
    assert len(killed) == 2
    assert (summary.episodes, summary.skipped) == (6, {})
    assert tree(tmp_path) == tree(undisturbed)


def test_a_hung_worker_is_killed_and_its_episode_played_again(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Send SIGSTOP to an actor while it plays: it does not even answer a request to end."""
    done = threading.Event()
    stopped: list[int] = []

    def stopper() -> None:
        while not stopped and not done.wait(0.05):
            for process in descendants(os.getpid()):
                if not stopped and is_worker(process, ".play"):
                    stopped.append(process)
                    os.kill(process, signal.SIGSTOP)

    thread = threading.Thread(target=stopper)
    thread.start()
    try:
        summary = run([GAME], tmp_path, episodes=6, steps=200, timeout=8.0)
    finally:
        done.set()
        thread.join()
    assert (len(stopped), summary.episodes, summary.skipped) == (1, 6, {})
    assert tree(tmp_path) == tree(undisturbed)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{stopped[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{stopped[0]}").exists(), "the hung process still runs"


def test_a_game_that_always_hangs_is_skipped(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class HangingWorker(CollectWorker):
        def play(self, key: EpisodeKey) -> Any:
            while key.game == GAME:
                time.sleep(1)
            return super().play(key)

    monkeypatch.setattr(envs.collect.collector, "CollectWorker", HangingWorker)
    summary = run([GAME, "Counting"], tmp_path, episodes=2, timeout=1.5)
    assert summary.skipped == {GAME: "its worker hung for 1.5 s 3 times in episode 0"}
    assert [record.game for record in EpisodeReader(tmp_path).records] == ["Counting"] * 2


def test_a_game_that_breaks_is_skipped(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs.collect.collector, "CollectWorker", _DyingWorker)
    summary = run([ATARI, GAME, "Counting"], tmp_path, workers=1)
    assert summary.skipped == {
        ATARI: "its worker died 3 times in episode 0",
        GAME: "this core is broken",
    }
    assert (summary.episodes, set(EpisodeReader(tmp_path).games)) == (3, {"Counting"})
    with pytest.raises(
        InputError, match="no episode could be played: Kangaroo-Atari2600: its worker died 3 times"
    ):
        run([ATARI], tmp_path / "only", workers=1)


class _DyingWorker(CollectWorker):
    """Crashes on one game, as a broken emulator core does, and cannot open another."""

    def play(self, key: EpisodeKey) -> Any:
        if key.game == ATARI:
            os.kill(os.getpid(), signal.SIGKILL)
        if key.game == GAME:
            raise GameError("this core is broken")
        return super().play(key)


DRIVER = """
import sys
from envs.collect import collect
if __name__ == "__main__":
    collect(["Airstriker-Genesis"], sys.argv[1], episodes=6, steps=200, workers=2, progress=False)
"""


def test_a_killed_run_is_completed_by_the_next(undisturbed: Path, tmp_path: Path) -> None:
    """Send SIGKILL to the driver: only unfinished episodes are played again, none is doubled."""
    folder = tmp_path / "set"
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
    try:
        wait_for(
            lambda: len(list(folder.glob("env=*/part-*.parquet"))) >= 1 or driver.poll() is not None
        )
        workers = [pid for pid in descendants(driver.pid) if is_worker(pid)]
    finally:
        driver.kill()
        driver.wait()
    assert workers, "killed while playing"
    wait_for(lambda: not any(is_worker(pid) for pid in workers))
    whole = len(list(folder.glob("env=*/part-*.parquet")))
    assert 1 <= whole < 6
    summary = run([GAME], folder, episodes=6, steps=200)
    assert (summary.episodes, summary.played_episodes) == (6, 6 - whole)
    reader = EpisodeReader(folder)
    assert len(set(reader.session_ids)) == len(reader) == 6
    assert tree(folder) == tree(undisturbed)


FULL = """
import resource, signal, sys
from envs.collect.policies import RandomPolicy
from envs.collect.worker import EpisodeKey, play_episode
from envs.episodes import EpisodeWriter
import envs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
env = envs.make("Counting")
with EpisodeWriter(sys.argv[1]) as writer:
    for number, steps in enumerate((10, 20, 3000)):
        key = EpisodeKey("Counting", "random", 0, number)
        if key.id not in writer.sessions:
            writer.add(play_episode(env, RandomPolicy(), key, steps=steps))
"""


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Limit the size of files to 16 kB: the third episode does not fit."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    ended = subprocess.run([*command, "16000"], capture_output=True, text=True, check=False)
    assert (
        "InputError: cannot write to" in ended.stderr or "InputError: cannot write " in ended.stderr
    )
    assert ended.stderr.strip().splitlines()[-1].endswith("File too large")
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(list(tmp_path.rglob("*.parquet"))) == 2
    subprocess.run(
        [*command, str(resource.RLIM_INFINITY if resource.RLIM_INFINITY > 0 else 2**40)], check=True
    )
    assert sorted(EpisodeReader(tmp_path).num_frames(index) for index in range(3)) == [11, 21, 3001]


NODES = """
import sys, threading, time
from envs.utils.ray_session import prepare_ray_environment
prepare_ray_environment(local=True)
import ray
from ray.cluster_utils import Cluster
from envs.collect import collect
head = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args=head)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
done = []
def work():
    options = {"episodes": 12, "steps": 300, "workers": 3, "progress": False}
    done.append(collect(["Airstriker-Genesis"], sys.argv[1], **options))
thread = threading.Thread(target=work)
thread.start()
node = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
def playing():
    return int(ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0))
end = time.monotonic() + 60
while playing() < 3:
    assert time.monotonic() < end and thread.is_alive(), "the workers never joined"
    time.sleep(0.1)
cluster.remove_node(node, allow_graceful=False)
thread.join()
print("episodes", done[0].episodes, done[0].skipped)
ray.shutdown()
cluster.shutdown()
"""


def test_workers_join_with_a_node_and_go_with_it(tmp_path: Path) -> None:
    """A second node joins a cluster while one worker plays, and dies."""
    ended = subprocess.run(
        [sys.executable, "-c", NODES, str(tmp_path)], capture_output=True, text=True, timeout=150
    )
    assert "episodes 12 {}" in ended.stdout, ended.stderr[-2000:]
    assert len(EpisodeReader(tmp_path)) == 12


def descendants(root: int) -> Iterator[int]:
    """Yield all processes below `root`."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int(
                    (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                )
            except (OSError, IndexError):
                continue  # it ended meanwhile
    pids = {root}
    while new := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= new
    yield from sorted(pids - {root})


def is_worker(pid: int, doing: str = "") -> bool:
    """Return True for an actor that plays; `doing` names the method it has to run."""
    try:
        return f"ray::CollectWorker{doing}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
