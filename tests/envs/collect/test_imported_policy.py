"""Policies of one's own by their import path: what they play, and errors in one line."""

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from envs.collect.imported_policy import ImportedPolicy, named_policy
from envs.episodes.dataset import EpisodeReader
from envs.games.counting import CountingEnv, read_step_and_action
from envs.utils.errors import InputError
from experiments.__main__ import execute, parse
from experiments.commands.collect import build_policy
from tests.fixtures.datasets import run, tree

SEEDED = """
import random, sys

class Seeded:
    name = "seeded"
    def __init__(self, *, actions):
        self.actions = actions
    def reset(self, seed):
        self.random = random.Random(seed)
    def act(self, frame):
        assert frame.shape == (64, 64, 3) and frame.dtype == "uint8"
        frame[:] = 77
        return self.random.randrange(self.actions)

class Wrong(Seeded):
    def act(self, frame):
        return self.answer

def make(answer=None, method="act"):
    policy = Wrong(actions=5)
    policy.answer = answer
    return policy

def seven(): return make(7)
def minus(): return make(-1)
def nothing(): return make(None)
def half(): return make(0.5)
def tensor(): return make([0] * 99)
def broken(): return 1 / 0
def no_policy(): return "text"
def needs(actions, level): return make()

number = 3

class Deaf:
    def reset(self, seed): pass

class Fails(Seeded):
    def act(self, frame):
        if self.random.random() < 2:
            raise KeyError("no\\nluck")
class FailsInside(Seeded):
    def act(self, frame):
        return random.sample([], 3)
class FailsAtReset(Seeded):
    def reset(self, seed):
        raise ValueError

class WithoutTorch(Seeded):
    def act(self, frame):
        assert "torch" not in sys.modules
        return super().act(frame)
"""

Write = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module of a name of its own into the current folder -> its name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    name = f"own_{tmp_path.name}".replace("-", "_")

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    sys.modules.pop(name, None)


def play(path: str, steps: int = 3) -> list[int]:
    """Play a few steps of Counting in this process, as a worker does."""
    policy = ImportedPolicy(path, str(Path.cwd()))
    env = CountingEnv()
    policy.begin_game(env)
    policy.reset(0)
    return [policy.act(env.reset()[0]) for _ in range(steps)]


def test_collect_plays_a_class_by_its_import_path(
    ray_cluster: None, tmp_path: Path, write_module: Write
) -> None:
    path = f"{write_module(SEEDED)}:WithoutTorch"
    command = ["collect", "Counting", "--policy", path, "--episodes", "3", "--steps", "40"]
    assert execute([*command, "--out", str(tmp_path / "one"), "--workers", "1"]) == 0
    played = list(EpisodeReader(tmp_path / "one"))
    assert [item.policy_id for item in played] == [path] * 3
    assert len({tuple(item.actions) for item in played}) == 3
    assert {action for item in played for action in item.actions} == set(range(5))
    for item in played:
        # The policy writes into its frames, and not into the recorded ones.
        shown = [read_step_and_action(frame) for frame in item.frames_THWC]
        assert shown == list(enumerate([-1, *item.actions]))
    run(["Counting"], tmp_path / "two", policy=path, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    # The episodes are there: nothing is played again.
    again = run(["Counting"], tmp_path / "two", policy=path)
    assert (again.episodes, again.played_episodes) == (3, 0)


def test_an_action_is_a_whole_number_of_any_type(write_module: Write) -> None:
    module = write_module(SEEDED + "\nimport numpy\ndef two(): return make(numpy.uint8(2))\n")
    assert play(f"{module}:two") == [2, 2, 2]


def test_a_policy_is_made_anew_for_another_number_of_actions(write_module: Write) -> None:
    policy = ImportedPolicy(f"{write_module(SEEDED)}:Seeded", str(Path.cwd()))
    for count in (5, 7):
        env = CountingEnv()
        env.action_names = tuple(map(str, range(count)))
        policy.begin_game(env)
        policy.reset(0)
        frame = env.reset()[0]
        assert {policy.act(frame) for _ in range(200)} == set(range(count))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at_all:Policy", "there is no module nowhere in .* or on PYTHONPATH"),
        ("MODULE.inner:Policy", r"there is no module own_\w+.inner in "),
        ("MODULE:Missing", r"own_\w+.py has no Missing"),
        ("MODULE:number", "number is neither a class nor a function"),
        ("MODULE:Deaf", r"Deaf has no method act: a policy has reset\(seed\) and act\(frame\)"),
        ("MODULE:needs", "needs needs level"),
    ],
)
def test_wrong_import_paths_are_refused_before_anything_starts(
    write_module: Write, name: str, message: str
) -> None:
    path = name.replace("MODULE", write_module(SEEDED))
    with pytest.raises(InputError, match=message) as refused:
        named_policy(path)
    assert path in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_installed", r"No module named 'not_installed' \(.*own_\w+.py, line 1\)"),
        ("\nx = (", r"SyntaxError: .* \(.*own_\w+.py, line 2\)"),
        ("\n\nraise OSError('no\\ndisk')", r"OSError: no disk \(.*own_\w+.py, line 3\)"),
    ],
)
def test_modules_that_fail_are_refused_with_the_place(
    write_module: Write, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=f"cannot be imported: .*{message}") as refused:
        named_policy(f"{write_module(text)}:Policy")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seven", r"seeded \(.*:seven\): act returned 7 in Counting: return a .* from 0 to 4"),
        ("minus", "act returned -1 in Counting"),
        ("nothing", "act returned None in Counting"),
        ("half", "act returned 0.5 in Counting"),
        ("tensor", "act returned a list in Counting"),
        ("broken", r"construction failed in Counting: ZeroDivisionError: division by zero \(.*, l"),
        ("no_policy", "str has no method act"),
        ("Fails", r"act failed in Counting: KeyError: 'no\\nluck' \(.*/own_\w+.py, line 41\)"),
        ("FailsInside", r"act failed in Counting: ValueError: .* \(.*/own_\w+.py, line 44\)"),
        ("FailsAtReset", r"reset failed in Counting: ValueError \(.*/own_\w+.py, line 47\)"),
    ],
)
def test_mistakes_while_playing_name_policy_game_and_place(
    write_module: Write, name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        play(f"{write_module(SEEDED)}:{name}")
    assert f":{name}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_mistake_in_a_worker_stops_the_command_with_one_line(
    ray_cluster: None, tmp_path: Path, write_module: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{write_module(SEEDED)}:Fails"
    command = f"collect Counting --policy {path} --steps 5 --out {tmp_path / 'data'}"
    assert execute(shlex.split(command)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}): act failed in Counting: KeyError" in line


def test_names_of_other_policies_are_not_modules(write_module: Write) -> None:
    (Path.cwd() / "sticky.py").write_text("half = None")
    with pytest.raises(InputError, match="give a probability to repeat"):
        named_policy("sticky:half")
    for name in ("dirichet:0.3", "walk"):
        with pytest.raises(InputError, match=r"path of a class, e\.g\. my_package\.module:Policy"):
            named_policy(name)


def test_an_archive_takes_an_import_path(write_module: Write) -> None:
    path = f"{write_module(SEEDED)}:Seeded"
    _, args = parse(["collect", "Counting", "--out", "data", "--policy", f"archive:{path}"])
    kind, _, name = args.policy.partition(":")
    spec = build_policy(name, args)
    assert (kind, spec.name) == ("archive", path)
    policy = spec.build()
    policy.begin_game(CountingEnv())  # type: ignore[attr-defined]
    policy.reset(0)
    assert policy.act(np.zeros((64, 64, 3), np.uint8)) in range(5)
