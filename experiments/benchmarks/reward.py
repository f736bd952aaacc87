"""The rows of the benchmark about exploring: sampling with a reward, the reward service, swapping weights, an update.

On a machine with few cores a real world model competes with the games for them, and what a reward costs is then its
arithmetic. So the path of the reward (cutting, sending, batching, writing) is measured with a model of next to none,
which still reads whole windows, and the model of preset cpu beside it, without a target. For the same reason what a
second runner adds is measured with a core for each: the games of one alone keep two cores busy.
"""

import dataclasses
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from experiments.benchmarks.common import Args, Row, median_of
from exploration.agent.learner import as_learner_batch
from exploration.agent.loss import actor_critic_loss
from exploration.algorithm import AutoExplore
from exploration.config import recipe
from exploration.reward.scorers import LocalScorer, ServeScorer
from exploration.train import configure
from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset, serve
from worldmodel.uncertainty import load_model, window_entropies

STEPS = 60
"""Steps of every env in one measurement of sampling."""
SLOW_STEPS = 12
"""The same where the model of preset cpu is asked about each of them."""
WINDOWS = 64


def reward(args: Args, scratch: Path) -> Iterator[Row]:
    """Sampling by the explorer's own runners with and without a reward; the service against the bare model."""
    thin, real = save_model(scratch / "thin", thin=True), save_model(scratch / "cpu", thin=False)
    yield from scaling(args)
    plain = sampling_rate(args, None)
    null = sampling_rate(args, NullScorer)
    yield Row(
        "reward", "sampling, null reward", null, "steps/s", "sampling without reward", plain, 0.97
    )
    for name, model, batch, target in (
        ("a model of 1 token", thin, 64, 0.9),
        ("the model of preset cpu", real, 0, None),
    ):
        short: dict[str, Any] = {} if target else {"steps": SLOW_STEPS, "repeats": 1}
        local = sampling_rate(args, partial(LocalScorer, model, batch=batch), **short)
        yield Row(
            "reward",
            f"sampling, {name} in process",
            local,
            "steps/s",
            "sampling without reward",
            plain,
        )
        app = serve.run(model, batch=batch)
        try:
            served = sampling_rate(args, partial(ServeScorer, app), **short)
            yield Row(
                "reward",
                f"sampling, {name} by Serve",
                served,
                "steps/s",
                "without reward",
                plain,
                target,
            )
            yield Row(
                "reward", f"sampling, {name} by Serve", served, "steps/s", "in process", local
            )
            if not target:
                yield from service(args, app, model)
        finally:
            serve.stop(app)
    yield update(args)


def scaling(args: Args) -> Iterator[Row]:
    """Two runners against one, where the system lets a process be held on a core: on a core each."""
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        rates = [sampling_rate(args, None, runners, pin=True) for runners in (2, 1)]
        yield Row(
            "reward",
            "two runners, a core each",
            rates[0],
            "steps/s",
            "one runner on a core",
            rates[1],
            1.8,
        )
    rates = [sampling_rate(args, None, runners) for runners in (2, 1)]
    yield Row(
        "reward", "two runners, any core", rates[0], "steps/s", "one runner, any core", rates[1]
    )


def save_model(folder: Path, *, thin: bool) -> Path:
    """An untrained model of preset cpu; or one of 1 token a frame. Speed does not depend on weights."""
    config = preset("debug" if thin else "cpu")
    if thin:
        tokenizer = dataclasses.replace(
            config.tokenizer, patch=64, encoder_blocks=1, decoder_blocks=1
        )
        config = dataclasses.replace(
            config, tokenizer=tokenizer, dynamics=dataclasses.replace(config.dynamics, blocks=1)
        )
    GenieReduxG(Tokenizer(config), Dynamics(config)).save(folder)
    return folder


class NullScorer:
    """Answers nothing but zeros, at once."""

    def submit(self, frames_B5HWC: Any, actions_B4: Any) -> Callable[[], Any]:
        return lambda: np.zeros((len(frames_B5HWC), 1), np.float32)


def explorer(
    args: Args, scorer: Callable[[], Any] | None, runners: int, steps: int = STEPS
) -> AutoExplore:
    """The algorithm of preset cpu, 4 games a runner, with next to nothing to learn."""
    few = {
        "steps_per_epoch": steps,
        "updates_per_epoch": 1,
        "batch_size": 1,
        "evaluate_every": 1_000,
    }
    config = recipe("cpu", runners=runners, **few)
    algorithm: Any = configure(config, args.games, scorer).build_algo()
    return algorithm


def sampling_rate(
    args: Args,
    scorer: Callable[[], Any] | None,
    runners: int = 2,
    repeats: int | None = None,
    steps: int = STEPS,
    pin: bool = False,
) -> float:
    """Steps sampled per second by runners with 4 games each: the median over epochs, after one to warm up.

    `pin`: hold each runner on a core of its own.
    """
    algorithm = explorer(args, scorer, runners, steps)
    try:
        if pin:
            algorithm.env_runner_group.foreach_env_runner(pin_to_core, local_env_runner=False)
        rates = []
        for _ in range((repeats or args.repeats) + 1):
            result: Any = algorithm.train()
            played = sum(game["steps"] for game in result["env_runners"]["games"].values())
            rates.append(float(played) / result["seconds"]["sample"])
    finally:
        algorithm.stop()
    return statistics.median(rates[1:])


def pin_to_core(runner: Any) -> None:
    """Keep a runner's process and its games, with all their threads, on one core."""
    cores = sorted(os.sched_getaffinity(0))
    core = cores[(runner.worker_index - 1) % len(cores)]
    for process in (os.getpid(), *(game.pid for game in runner.env.unwrapped.processes)):
        for thread in os.listdir(f"/proc/{process}/task"):
            os.sched_setaffinity(int(thread), {core})


def service(args: Args, app: str, model: Path) -> Iterator[Row]:
    """Windows a second of one replica of one thread against the bare model's, 64 at a time; seconds of a swap."""
    noise = np.random.default_rng(0)
    frames = noise.integers(256, size=(WINDOWS, 5, 64, 64, 3), dtype=np.uint8)
    actions = noise.integers(5, size=(WINDOWS, 4))
    bare, scorer = load_model(model), ServeScorer(app)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Turn about, so that what else the machine does meets both.
        rates = [
            (
                _rate(lambda: window_entropies(bare, frames, actions)),
                _served(scorer, frames, actions),
            )
            for _ in range(2)
        ]
    finally:
        torch.set_num_threads(threads)
    least, served = (statistics.median(column) for column in zip(*rates, strict=True))
    yield Row(
        "reward",
        "reward service, 64 windows",
        60 * served,
        "windows/min",
        "bare model",
        60 * least,
        0.95,
    )
    stop = threading.Event()
    failed: list[str] = []
    asking = threading.Thread(
        target=_ask, args=(ServeScorer(app, retries=0), frames[:4], actions[:4], stop, failed)
    )
    asking.start()
    try:
        milliseconds = median_of(
            args.repeats, lambda: 1_000 * _seconds(lambda: serve.swap(app, model))
        )
    finally:
        stop.set()
        asking.join()
    what = f"swap of served weights, {len(failed)} requests failed"
    yield Row("reward", what, milliseconds, "ms", "a second", 1_000.0, 1.0, at_most=True)


def _ask(
    scorer: ServeScorer, frames: Any, actions: Any, stop: threading.Event, failed: list[str]
) -> None:
    while not stop.is_set():
        try:
            scorer.entropies(frames, actions)
        except Exception as error:  # whatever it is, it is counted
            failed.append(repr(error))


def _rate(score: Callable[[], Any]) -> float:
    return WINDOWS / _seconds(score)


def _served(scorer: ServeScorer, frames: Any, actions: Any) -> float:
    """Two requests in flight, as there are with more than one fragment."""
    both = np.concatenate([frames, frames]), np.concatenate([actions, actions])
    return 2 * WINDOWS / _seconds(lambda: scorer.entropies(*both))


def _seconds(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def update(args: Args) -> Row:
    """Updates a minute by RLlib's learner, against forward, loss, backward, clip and Adam alone on the same batch."""
    algorithm = explorer(args, None, runners=0)
    try:
        algorithm.train()
        plan = recipe("cpu")
        batch = algorithm.replay.sample(plan.batch_size, plan.seq_len)
        network, config = algorithm.network(), algorithm.config.loss
        optimizer = torch.optim.Adam(network.parameters(), lr=plan.lr)
        algorithm._update(batch)

        def step() -> None:
            rows = as_learner_batch(batch)[DEFAULT_MODULE_ID]
            tensors = {name: torch.as_tensor(rows[name]) for name in rows if name != "state_in"}
            state = torch.as_tensor(batch["h"]).float(), torch.as_tensor(batch["c"]).float()
            logits_BTA, values_BT, _ = network(tensors["obs"], state)
            optimizer.zero_grad()
            actor_critic_loss(logits_BTA, values_BT, tensors, config)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), plan.grad_clip)
            optimizer.step()

        step()
        times = [
            (_seconds(lambda: algorithm._update(batch)), _seconds(step))
            for _ in range(2 * args.repeats)
        ]
    finally:
        algorithm.stop()
    ours, least = (statistics.median(column) for column in zip(*times, strict=True))
    return Row(
        "reward", "update by the learner", 60 / ours, "/min", "bare torch step", 60 / least, 1 / 1.1
    )
