"""Measure how fast the parts are, each against the plain thing it should not be much slower than, in the same run."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.common import RayArgs, check_games, ray_session


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs):
    """Measure speeds as ratios inside one run, so that they mean the same on any machine."""

    out: Path | None = None
    """Folder for benchmark.json."""
    games: tuple[str, ...] = ("Airstriker-Genesis", "Kangaroo-Atari2600")
    """Games to play."""
    steps: int = 500
    """Steps of each episode that is played."""
    repeats: int = 3
    """Measurements of each row; the middle one counts."""
    only: tuple[str, ...] = ()
    """Measure only these groups: collect, windows, reward."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a rate, and what it is compared with. target: the least ratio that is wanted, if any."""

    group: str
    what: str
    rate: float
    unit: str
    against: str = ""
    against_rate: float = float("nan")
    target: float | None = None

    @property
    def ratio(self) -> float:
        return self.rate / self.against_rate


def run(args: Args) -> None:
    """Measure, print the table, and write benchmark.json."""
    from rich.table import Table

    from envs.errors import InputError
    from envs.files import write_json_atomic
    from envs.runs import console

    groups: dict[str, Callable[[Args, Path], Iterator[Row]]] = {
        "collect": collecting,
        "windows": windows,
        "reward": reward,
    }
    unknown = set(args.only) - set(groups)
    if unknown:
        raise InputError(f"--only {sorted(unknown)[0]}: choose among {', '.join(groups)}")
    check_games(args.games)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, ray_session(args.ray_address):
        for name, measure in groups.items():
            if not args.only or name in args.only:
                console.print(f"measuring {name} ...")
                rows += measure(args, Path(scratch))
    table = Table("", "rate", "against", "its rate", "ratio", "wanted", box=None, header_style="bold")
    for row in rows:
        compared = row.against != ""
        table.add_row(
            row.what,
            f"{row.rate:,.0f} {row.unit}",
            row.against,
            f"{row.against_rate:,.0f}" if compared else "",
            f"{row.ratio:.3f}" if compared else "",
            f">= {row.target:g}" if row.target is not None else "",
        )
    console.print(table)
    if args.out is not None:
        measured = [asdict(row) | ({"ratio": row.ratio} if row.against else {}) for row in rows]
        write_json_atomic(args.out / "benchmark.json", measured)
        console.print(f"written to {args.out / 'benchmark.json'}")


def middle(times: int, measure: Callable[[], float]) -> float:
    """The median of some measurements."""
    return statistics.median(measure() for _ in range(times))


def collecting(args: Args, scratch: Path) -> Iterator[Row]:
    """Frames stored per CPU-second, against emulator, skip and resize alone, turn about in this one process."""
    import numpy as np

    import envs
    from envs.player import RandomPolicy, Session, play_episode
    from envs.shards import write_shard

    for game in args.games:
        env = envs.make(game)
        try:
            bare, stored = [], []
            for number in range(args.repeats):
                actions = np.random.default_rng(number).integers(5, size=args.steps)
                started, steps = time.process_time(), 0
                env.reset(seed=0)
                for action in actions:
                    steps += 1
                    if env.step(np.int64(action))[2]:
                        env.reset(seed=0)
                bare.append(steps / (time.process_time() - started))
                started, frames = time.process_time(), 0
                while frames < args.steps:
                    session = Session(game, "random", number, frames)
                    episode = play_episode(env, RandomPolicy(), session, steps=args.steps)
                    write_shard(scratch / "stored", [episode.encode()], session.id)
                    frames += episode.num_frames
                stored.append(frames / (time.process_time() - started))
        finally:
            env.close()
        yield Row(
            "collect",
            f"{game}: frames stored a core",
            statistics.median(stored),
            "/s",
            "emulator, skip and resize alone",
            statistics.median(bare),
            0.95,
        )


def windows(args: Args, scratch: Path) -> Iterator[Row]:
    """Random 16-frame windows per CPU-second from compressed episodes, staged, in batches of 112."""
    from envs.collect import collect
    from worldmodel.clips import ClipLoader, Clips

    data = scratch / "windows"
    collect(args.games, data, episodes=4, steps=args.steps, progress=False)
    clips = Clips([data], scratch / "cache", length=16, split=None)
    batch = 112
    loader = ClipLoader(clips, batch, threads=0)
    next(loader)

    def one() -> float:
        started, batches = time.process_time(), 20
        for _ in range(batches):
            next(loader)
        return batches * batch / (time.process_time() - started)

    yield Row("windows", "windows of 16 frames a core, ready in batches of 112", middle(args.repeats, one), "/s")


def reward(args: Args, scratch: Path) -> Iterator[Row]:
    """Steps sampled per second by the explorer's own runners with a reward, against sampling without any reward.

    The world model is an untrained one of preset cpu: its speed does not depend on its weights. The null scorer answers
    at once, so that it shows what cutting windows and writing rewards costs by itself.
    """
    from functools import partial

    from exploration.scorers import LocalScorer, ServeScorer
    from worldmodel import Dynamics, GenieReduxG, Tokenizer, preset, serve

    config = preset("cpu")
    model = scratch / "model"
    GenieReduxG(Tokenizer(config), Dynamics(config)).save(model)
    plain = sampling_rate(args, None)
    null = sampling_rate(args, NullScorer)
    yield Row("reward", "sampling, null reward", null, "steps/s", "sampling without reward", plain, 0.97)
    local = sampling_rate(args, partial(LocalScorer, model))
    yield Row("reward", "sampling, reward in process", local, "steps/s", "sampling without reward", plain)
    app = serve.run(model)
    try:
        served = sampling_rate(args, partial(ServeScorer, app))
    finally:
        serve.stop(app)
    yield Row("reward", "sampling, reward by Serve", served, "steps/s", "sampling without reward", plain)


class NullScorer:
    """Answers nothing but zeros, at once."""

    def submit(self, frames_B5HWC: Any, actions_B4: Any) -> Callable[[], Any]:
        import numpy as np

        return lambda: np.zeros((len(frames_B5HWC), 1), np.float32)


def sampling_rate(args: Args, scorer: Callable[[], Any] | None) -> float:
    """Steps sampled per second by 2 runners with 4 games each: the median over epochs, after one to warm up."""
    from exploration.recipes import recipe
    from exploration.run import configure

    plan = dataclasses.replace(recipe("cpu"), steps=40, updates=1, batch_size=1, evaluate_every=1_000)
    algorithm = configure(plan, args.games, scorer).build_algo()
    try:
        rates = []
        for _ in range(args.repeats + 1):
            result = algorithm.train()
            steps = sum(game["steps"] for game in result["env_runners"]["games"].values())
            rates.append(float(steps) / result["seconds"]["sample"])
    finally:
        algorithm.stop()
    return statistics.median(rates[1:])
