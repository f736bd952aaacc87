"""Settings that change while an agent learns, by `tune set` and in a population."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from envs.utils.errors import InputError
from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute, parse
from exploration import explore
from exploration.agent.checkpoint import complete_checkpoints, load_checkpoint
from exploration.agent.policy import CnnLstm, load_policy
from exploration.config import explore_preset
from exploration.mutable_settings import CHANGES, check_changes, read_requests, settings_in_effect
from exploration.reward.scorers import LocalScorer
from tests.fixtures.explorers import small_explorer

NEW = {"lr": 0.003, "entropy_coeff": 0.05, "epsilon": 0.7, "temperature": 1.7, "top_fraction": 0.5}


def test_settings_and_weights_reach_every_process_without_a_rebuild(ray_cluster, tiny_world):
    config = small_explorer(
        scorer=partial(LocalScorer, tiny_world), max_steps=30, runners=1, envs=1, steps_per_epoch=8
    )
    config.evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=0,
        evaluation_duration=8,
        evaluation_config={"explore": False, "top_fraction": 0.25, "steps_per_epoch": 8},
    )
    algorithm = config.build_algo()

    def runner_is():
        return algorithm.env_runner_group.foreach_env_runner(
            lambda runner: (os.getpid(), id(runner.module)), local_env_runner=False
        )

    try:
        algorithm.train()
        before, held, learner = runner_is(), algorithm.config, id(algorithm.learner_group._learner)
        assert algorithm.reset_config({**held.to_dict(), "lstm_dim": 16}) is False
        assert settings_in_effect(algorithm)["lr"] == held.lr
        algorithm.config = {}  # as Tune leaves it
        assert algorithm.reset_config({**held.to_dict(), **NEW}) is True
        algorithm.train()
        assert settings_in_effect(algorithm) == pytest.approx(NEW), "after an update"
        assert algorithm.config is held
        assert (runner_is(), id(algorithm.learner_group._learner)) == (before, learner)
        assert algorithm.eval_env_runner.config.top_fraction == 0.25
        assert algorithm.eval_env_runner.config.lr == NEW["lr"]

        other = CnnLstm(algorithm.network().config)
        torch.nn.init.constant_(other.policy.bias, 3.0)
        algorithm.set_network(other)
        for name, tensor in algorithm.network().state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
        runners = algorithm.env_runner_group
        biases = runners.foreach_env_runner(
            lambda runner: runner.module.network.policy.bias.tolist(), local_env_runner=False
        )
        assert biases == [[3.0] * 5]
    finally:
        algorithm.stop()


def interrupt_after_the_first_epoch(run: Path) -> None:
    deadline = time.monotonic() + 120
    while not (run / "rows.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_population_copies_and_perturbs_its_best_also_after_ctrl_c(
    ray_cluster, tiny_world, tmp_path, capsys
):
    out = tmp_path / "tune"
    argv = f"tune Counting --model {tiny_world} --out {out} --preset debug --trials 2".split()
    argv += ["--epochs", "3", "--perturbation-interval", "1", "--reward-backend", "serve"]
    argv += ["--runners", "0", "--envs-per-runner", "2"]
    person = threading.Thread(target=interrupt_after_the_first_epoch, args=(out,))
    person.start()
    assert execute(argv) == 130
    person.join()
    assert "--resume" in capsys.readouterr().err
    assert not (out / "tune.json").exists()
    assert execute([*argv, "--resume"]) == 0
    summary = json.loads((out / "tune.json").read_text())
    assert [trial["epochs"] for trial in summary["trials"].values()] == [[1, 2, 3]] * 2
    copied = [change for change in summary["changes"] if change["copied"]]
    assert copied
    for change in copied:
        assert change["trial"] != change["copied"]
        assert change["settings"], "a copy is perturbed"
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len({row["pid"] for row in rows}) <= 4, "two actors before Ctrl+C and two after it"
    for row in rows:
        assert 0 < row["evaluation_return"] <= 10
        for name, (low, high) in (("lr", (1e-5, 3e-3)), ("top_fraction", (0.05, 1.0))):
            assert low <= row["settings"][name] <= high
    load_policy(out / "best")
    assert "Copied from" in (out / "report/index.html").read_text()
    assert "Report:" in capsys.readouterr().out
    assert execute([*argv, "--resume"]) == 0, "finished: only the report is drawn again"
    assert execute(argv) == 2
    assert "already holds a run" in capsys.readouterr().err


def set_after_the_first_epoch(run: Path, codes: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not read_metrics(run) and time.monotonic() < deadline:
        time.sleep(0.02)
    codes.append(execute(["tune", "set", str(run), "entropy_coeff=0.002", "epsilon=0.5"]))


def test_a_run_takes_a_change_and_keeps_it(ray_cluster, tiny_world, tmp_path, capsys):
    out, codes = tmp_path / "run", []
    config = explore_preset("debug", runners=0, envs_per_runner=1, epochs=12)
    parse(["tune", "set", str(out), "lr=1"])  # loads the commands, so that the change comes in time
    person = threading.Thread(target=set_after_the_first_epoch, args=(out, codes))
    person.start()
    explore(["Counting"], tiny_world, out, config=config)
    person.join()
    assert codes == [0]
    (change,) = json.loads((out / "history.json").read_text())
    assert change["set"] == {"entropy_coeff": 0.002, "epsilon": 0.5}
    seen = [(row["settings/entropy_coeff"], row["explore/epsilon"]) for row in read_metrics(out)]
    at = change["epoch"] - 1
    assert at >= 1
    assert {entropy for entropy, _ in seen[:at]} == {0.001}
    assert set(seen[at:]) == {(0.002, 0.5)}
    events = b"".join(file.read_bytes() for file in (out / "tensorboard").iterdir())
    assert b"entropy_coeff=0.002" in events
    _, _, about = load_checkpoint(complete_checkpoints(out)[-1])
    assert about["settings"] == change["set"]

    explore(["Counting"], tiny_world, out, config=replace(config, epochs=13), resume=True)
    assert read_metrics(out)[-1]["settings/entropy_coeff"] == 0.002
    assert len(json.loads((out / "history.json").read_text())) == 1, "applied once"
    before = (out / CHANGES).read_text()
    for words, message in (
        ([str(out), "lr=0.001"], "finished"),
        ([str(tmp_path), "lr=0.001"], "no exploration run"),
        ([str(out), "gamma=0.9"], "'gamma' cannot be changed"),
        ([str(out), "epsilon=2"], "epsilon=2: must be a number from 0 to 1"),
        ([str(out), "lr"], "name=value"),
        ([str(out)], "tune set needs"),
    ):
        assert execute(["tune", "set", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert (out / CHANGES).read_text() == before


def test_a_damaged_request_sets_nothing(tmp_path):
    (tmp_path / CHANGES).write_text(
        '{"time": 1, "set": {"lr": 0.5}}\nnonsense\n{"time": 2, "set": {"lr": 9}}\n{"ti'
    )
    requests = read_requests(tmp_path, after=0)
    assert [request["set"] for request in requests] == [{"lr": 0.5}, {}, {}]
    assert read_requests(tmp_path, after=2) == requests[2:]
    with pytest.raises(InputError, match="lr=nan"):
        check_changes({"lr": "nan"})
