"""Benchmarks of exploration: sampling with a reward, the reward service, weight swaps, updates.

On a machine with few cores a real world model competes with the games for them, and the reward then
costs its arithmetic. The path of the reward (cutting, sending, batching, writing) is therefore
measured with a tiny model that still reads whole windows. The model of preset cpu is measured too,
without a target.
"""

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from exploration.config import explore_preset
from exploration.reward.scorers import ClipRewards, LocalScorer, ServeScorer
from exploration.train import configure
from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset, serve
from worldmodel.uncertainty import WINDOW, cut_windows, load_model, window_entropies

STEPS = 60
"""Number of steps of every environment in one measurement of sampling."""
SLOW_STEPS = 12
"""Number of steps if the model of preset cpu scores each of them."""
WINDOWS = 64


def reward(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure sampling with and without a reward, and the service against the bare model."""
    thin, real = (
        save_untrained(scratch / "thin", thin=True),
        save_untrained(scratch / "cpu", thin=False),
    )
    single = sampling_rate(args.games, None, args.repeats, runners=1)
    plain = sampling_rate(args.games, None, args.repeats)
    yield Row("reward", "two env runners", plain, "steps/s", "one env runner", single)
    null = sampling_rate(args.games, NullScorer, args.repeats)
    yield Row(
        "reward", "sampling, null reward", null, "steps/s", "sampling without reward", plain, 0.97
    )
    for name, model, batch, target in (
        ("model of 1 token", thin, 64, 0.9),
        ("model of preset cpu", real, 0, None),
    ):
        steps, repeats = (STEPS, args.repeats) if target else (SLOW_STEPS, 1)
        local = sampling_rate(
            args.games, partial(LocalScorer, model, batch=batch), repeats, steps=steps
        )
        yield Row(
            "reward",
            f"sampling, {name} in process",
            local,
            "steps/s",
            "sampling without reward",
            plain,
        )
        app = serve.deploy(model, serve.ServeConfig(batch=batch))
        try:
            served = sampling_rate(args.games, partial(ServeScorer, app), repeats, steps=steps)
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
                yield from service(app, model, args.repeats)
        finally:
            serve.shutdown(app)
    yield update(args.games, args.repeats)


def save_untrained(folder: Path, *, thin: bool) -> Path:
    """Save an untrained model of preset cpu, or one of 1 token per frame if thin."""
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
    """Scorer that returns zeros at once."""

    def submit(
        self, frames_THWC: Any, actions_T: Any, top_fraction: float
    ) -> Callable[[], ClipRewards]:
        return lambda: ClipRewards(np.zeros(len(frames_THWC) - WINDOW + 1, np.float32))


def build_explorer(
    games: Sequence[str], scorer: Callable[[], Any] | None, runners: int, steps: int = STEPS
) -> AutoExplore:
    """Return the algorithm of preset cpu with 4 games per runner and hardly any learning."""
    config = explore_preset(
        "cpu",
        runners=runners,
        steps_per_epoch=steps,
        updates_per_epoch=1,
        batch_size=1,
        evaluate_every=1_000,
    )
    algorithm: Any = configure(config, games, scorer).build_algo()
    return algorithm


def sampling_rate(
    games: Sequence[str],
    scorer: Callable[[], Any] | None,
    repeats: int,
    *,
    runners: int = 2,
    steps: int = STEPS,
) -> float:
    """Return steps per second of runners with 4 games each, the median over epochs."""
    algorithm = build_explorer(games, scorer, runners, steps)
    try:
        rates = []
        for _ in range(repeats + 1):  # the first one warms up
            result: Any = algorithm.train()
            played = sum(game["steps"] for game in result["env_runners"]["games"].values())
            rates.append(float(played) / result["seconds"]["sample"])
    finally:
        algorithm.stop()
    return statistics.median(rates[1:])


def service(app: str, model: Path, repeats: int) -> Iterator[Row]:
    """Measure one replica with one thread against the bare model, and a swap of weights."""
    noise = np.random.default_rng(0)
    frames = noise.integers(256, size=(2 * WINDOWS + WINDOW - 1, 64, 64, 3), dtype=np.uint8)
    actions = noise.integers(5, size=len(frames) - 1)
    windows = cut_windows(frames[: WINDOWS + WINDOW - 1], actions[: WINDOWS + WINDOW - 2])
    bare, scorer = load_model(model), ServeScorer(app)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Measured in turn, so that the load of the machine affects both.
        rates = [
            (
                _rate(lambda: window_entropies(bare, *windows)),
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
        target=_ask, args=(ServeScorer(app, retries=0), frames[:8], actions[:7], stop, failed)
    )
    asking.start()
    try:
        milliseconds = median_of(
            repeats, lambda: 1_000 * _seconds(lambda: serve.update_weights(app, model))
        )
    finally:
        stop.set()
        asking.join()
    name = f"swap of served weights, {len(failed)} requests failed"
    yield Row("reward", name, milliseconds, "ms", "a second", 1_000.0, 1.0, at_most=True)


def _ask(
    scorer: ServeScorer, frames: Any, actions: Any, stop: threading.Event, failed: list[str]
) -> None:
    while not stop.is_set():
        try:
            scorer.submit(frames, actions)()
        except Exception as error:  # count failures of any kind
            failed.append(repr(error))


def _rate(score: Callable[[], Any]) -> float:
    return WINDOWS / _seconds(score)


def _served(scorer: ServeScorer, frames: Any, actions: Any) -> float:
    """Return windows per second with two requests in flight, as with several fragments."""
    return 2 * WINDOWS / _seconds(lambda: scorer.submit(frames, actions)())


def _seconds(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def update(games: Sequence[str], repeats: int) -> Row:
    """Measure RLlib's learner against forward, loss, backward, clipping and Adam alone."""
    algorithm = build_explorer(games, None, runners=0)
    try:
        algorithm.train()
        plan = explore_preset("cpu")
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
            (_seconds(lambda: algorithm._update(batch)), _seconds(step)) for _ in range(2 * repeats)
        ]
    finally:
        algorithm.stop()
    ours, least = (statistics.median(column) for column in zip(*times, strict=True))
    return Row(
        "reward", "update by the learner", 60 / ours, "/min", "bare torch step", 60 / least, 1 / 1.1
    )
