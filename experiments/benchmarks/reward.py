"""Benchmarks of exploration: sampling with a reward, the reward service, weight swaps, updates.

On a machine with few cores a real world model competes with the games for them, and the reward then
costs its arithmetic. The path of the reward (cutting, sending, batching, writing) is therefore
measured with a tiny model that takes whole windows. The model of preset cpu is measured without a
target.
"""

import dataclasses
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from experiments.benchmarks.common import Args, Row, cpu_seconds, median_of, wall_seconds
from exploration.agent.learner import as_learner_batch
from exploration.agent.loss import actor_critic_loss
from exploration.algorithm import AutoExplore
from exploration.config import explore_preset
from exploration.reward.scorers import ClipRewards, LocalScorer, ServeScorer
from exploration.train import configure
from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset, serve
from worldmodel.config import WINDOW
from worldmodel.uncertainty import cut_windows, load_model, window_entropies

STEPS = 60
"""Number of steps of every environment in one measurement of sampling."""
SLOW_STEPS = 12
"""Number of steps if the model of preset cpu scores each of them."""
WINDOWS = 64


def measure_reward(args: Args, scratch: Path) -> Iterator[Row]:
    """Measure sampling with and without a reward, and the service against the bare model."""
    row, games = partial(Row, "reward"), args.games
    single = sampling_rate(games, None, args.repeats, runners=1)
    plain = sampling_rate(games, None, args.repeats)
    yield row("two env runners", plain, "steps/s", "one env runner", single)
    null = sampling_rate(games, NullScorer, args.repeats)
    baseline = "sampling without reward"
    yield row("sampling, null reward", null, "steps/s", baseline, plain, 0.97)
    for name, thin, batch, target, steps, repeats in (
        ("model of 1 token", True, 64, 0.9, STEPS, args.repeats),
        ("model of preset cpu", False, 0, None, SLOW_STEPS, 1),
    ):
        model = save_untrained(scratch / ("thin" if thin else "cpu"), thin=thin)
        scorer = partial(LocalScorer, model, batch=batch)
        local = sampling_rate(games, scorer, repeats, steps=steps)
        yield row(f"sampling, {name} in process", local, "steps/s", baseline, plain)
        app = serve.deploy(model, serve.ServeConfig(batch=batch))
        try:
            served = sampling_rate(games, partial(ServeScorer, app), repeats, steps=steps)
            name = f"sampling, {name} by Serve"
            yield row(name, served, "steps/s", "without reward", plain, target)
            yield row(name, served, "steps/s", "in process", local)
            if not thin:
                yield measure_service(app, model)
                yield measure_swap(app, model, args.repeats)
        finally:
            serve.shutdown(app)
    yield from measure_reward_windows(scratch / "cpu", args.repeats)
    yield measure_update(games, args.repeats)


def measure_reward_windows(model: Path, repeats: int) -> Iterator[Row]:
    """Measure reward windows of the model of preset cpu in CPU time, on one thread."""
    windows = cut_windows(*noise_clip(WINDOWS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = {}
        for precision in ("fp32", "bf16"):
            work = partial(window_entropies, load_model(model, "cpu", precision), *windows)
            work()  # warms up
            rates[precision] = WINDOWS / median_of(repeats, partial(cpu_seconds, work))
    finally:
        torch.set_num_threads(threads)
    for name, rate in rates.items():
        yield Row(
            "reward", f"reward of preset cpu, {name}", rate, "windows/CPU-s", "fp32", rates["fp32"]
        )


def save_untrained(folder: Path, *, thin: bool) -> Path:
    """Save an untrained model of preset cpu, or one of 1 token per frame if thin."""
    config = preset("debug" if thin else "cpu")
    if thin:
        one_block: dict[str, Any] = {"encoder_blocks": 1, "decoder_blocks": 1}
        config = dataclasses.replace(
            config,
            tokenizer=dataclasses.replace(config.tokenizer, patch=64, **one_block),
            dynamics=dataclasses.replace(config.dynamics, blocks=1),
        )
    GenieReduxG(Tokenizer(config), Dynamics(config)).save(folder)
    return folder


class NullScorer:
    """Scorer that returns zeros at once."""

    def submit(
        self, frames_THWC: Any, actions_T: Any, top_fraction: float
    ) -> Callable[[], ClipRewards]:
        """Return a function that returns zeros."""
        return lambda: ClipRewards(np.zeros(len(frames_THWC) - WINDOW + 1, np.float32))


def build_explorer(
    games: Sequence[str], scorer: Callable[[], Any] | None, runners: int, steps: int = STEPS
) -> AutoExplore:
    """Return the algorithm of preset cpu with 4 games per runner and hardly any learning."""
    learning: dict[str, Any] = {"updates_per_epoch": 1, "batch_size": 1, "evaluate_every": 1_000}
    config = explore_preset("cpu", runners=runners, steps_per_epoch=steps, **learning)
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


def measure_service(app: str, model: Path) -> Row:
    """Measure one replica with one thread against the bare model."""
    frames, actions = noise_clip(2 * WINDOWS)
    windows = cut_windows(*noise_clip(WINDOWS))
    bare, scorer = load_model(model), ServeScorer(app)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Measured in turn, so that the load of the machine affects both.
        rates = [
            (
                60 * WINDOWS / wall_seconds(lambda: window_entropies(bare, *windows)),
                # Two requests in flight, as with several fragments.
                60 * 2 * WINDOWS / wall_seconds(lambda: scorer.submit(frames, actions)()),
            )
            for _ in range(2)
        ]
    finally:
        torch.set_num_threads(threads)
    bare_rate, served = np.median(rates, axis=0).tolist()
    name = f"reward service, {WINDOWS} windows"
    return Row("reward", name, served, "windows/min", "bare model", bare_rate, 0.95)


def measure_swap(app: str, model: Path, repeats: int) -> Row:
    """Measure a swap of the served weights, and count the requests that fail meanwhile."""
    clip, stop = noise_clip(4), threading.Event()
    scorer, failures = ServeScorer(app, retries=0), 0

    def request() -> None:
        nonlocal failures
        while not stop.is_set():
            try:
                scorer.submit(*clip)()
            except Exception:  # count failures of any kind
                failures += 1

    requests = threading.Thread(target=request)
    requests.start()
    try:
        swap = partial(serve.update_weights, app, model)
        milliseconds = median_of(repeats, lambda: 1_000 * wall_seconds(swap))
    finally:
        stop.set()
        requests.join()
    name = f"swap of served weights, {failures} requests failed"
    return Row("reward", name, milliseconds, "ms", "a second", 1_000.0, 1.0, at_most=True)


def noise_clip(windows: int) -> tuple[Any, Any]:
    """Return a clip of noise with that many windows: frames uint8 (windows + 4, 64, 64, 3) and the
    actions between them.
    """
    noise = np.random.default_rng(0)
    frames = noise.integers(256, size=(windows + WINDOW - 1, 64, 64, 3), dtype=np.uint8)
    return frames, noise.integers(5, size=len(frames) - 1)


def measure_update(games: Sequence[str], repeats: int) -> Row:
    """Measure RLlib's learner against forward, loss, backward, clipping and Adam alone."""
    algorithm = build_explorer(games, None, runners=0)
    try:
        algorithm.train()
        settings = explore_preset("cpu")
        packed = algorithm.replay.sample_packed(settings.batch_size, settings.seq_len)
        batch = packed.unpack()
        network, loss_config = algorithm.network(), algorithm.config.loss
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)

        def learn() -> None:
            algorithm.updates.make([packed])

        def step() -> None:
            rows = as_learner_batch(batch)[DEFAULT_MODULE_ID]
            tensors = {name: torch.as_tensor(rows[name]) for name in rows if name != "state_in"}
            state = torch.as_tensor(batch["h"]).float(), torch.as_tensor(batch["c"]).float()
            logits_BTA, values_BT, _ = network(tensors["obs"], state)
            optimizer.zero_grad()
            actor_critic_loss(logits_BTA, values_BT, tensors, loss_config)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.grad_clip)
            optimizer.step()

        learn()
        step()
        times = [(wall_seconds(learn), wall_seconds(step)) for _ in range(2 * repeats)]
    finally:
        algorithm.stop()
    learner, bare = (60 / np.median(times, axis=0)).tolist()
    return Row("reward", "update by the learner", learner, "/min", "bare torch step", bare, 1 / 1.1)
