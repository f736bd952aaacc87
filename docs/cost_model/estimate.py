"""Machines, hours and dollars of the paper's run and its multiples, from measured unit costs.

Run `python -m docs.cost_model.estimate docs/cost_model/units.json`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from docs.cost_model.measure import measure
from envs.utils.atomic_io import write_json_atomic
from envs.utils.errors import InputError
from experiments.arguments import check_games
from experiments.reports.page import Table
from exploration.config import explore_preset
from worldmodel import preset
from worldmodel.training.config import find_recipe, train_preset
from worldmodel.training.flops import cost_of


@dataclass(frozen=True, kw_only=True)
class Args:
    """Print the cost model of `docs/cost_model/README.md` as tables."""

    units: tyro.conf.Positional[Path]
    """JSON of unit costs; written with --measure, otherwise read."""
    measure: bool = False
    """Measure the unit costs on this machine first, in about two minutes on one core."""
    game: str = "Airstriker-Genesis"
    """Game for measuring the emulator."""
    repeats: int = 3
    """Number of measurements of each unit cost; the fastest counts."""
    times: tuple[float, ...] = (1, 100)
    """Multiples of the paper's run to estimate."""
    days: tuple[float, ...] = (3, 30)
    """Days available for each multiple."""


@dataclass(frozen=True)
class Prices:
    """Assumed dollars per hour: list prices in us-west-2, and approximate spot prices."""

    vcpu_spot: float = 0.29 / 16
    """One vCPU of c7i.4xlarge, spot."""
    l4: float = 0.978
    """One g6.2xlarge (an L4, 8 vCPUs), on demand."""
    a100: float = 21.96 / 8
    """One eighth of p4d.24xlarge, on demand."""
    head: float = 0.403
    """One m7i.2xlarge, on demand."""
    storage_gb_month: float = 0.30
    """One GB of EFS storage for a month."""


@dataclass(frozen=True)
class Assumptions:
    """Values that were not measured."""

    a100_flops: float = 0.4 * 312e12
    """FLOP/s of an A100 in bf16 training: 40 % of its peak, as large models reach."""
    l4_flops: float = 0.25 * 121e12
    """FLOP/s of an L4 on the reward and the agent's updates: 25 % of its peak (small batches)."""
    busy: float = 0.8
    """Share of the billed time in which machines work; they also start, wait and are preempted."""
    explored_games: int = 3
    """Number of games that the paper explores and evaluates."""


@dataclass(frozen=True)
class Work:
    """One line of the estimate: an amount of work and the machine-hours that it takes."""

    stage: str
    amount: float
    unit: str
    kind: str
    """Kind of machine: vCPU, L4 or A100."""
    hours: float
    """Machine-hours at full use."""
    source: str


def run(args: Args) -> None:
    """Measure if requested, and print tables in Markdown."""
    if len(args.times) != len(args.days) or min((*args.times, *args.days)) <= 0 or args.repeats < 1:
        raise InputError("give as many --days as --times, all above 0, and --repeats of 1 or more")
    if args.measure:
        write_json_atomic(args.units, measure(check_games([args.game])[0], args.repeats))
    units = read_units(args.units)
    prices, assumed = Prices(), Assumptions()
    work = paper_run(units, assumed)
    print(units_table(units, assumed))
    print(epoch_table(units, assumed))
    print(work_table(work, prices, assumed, args.times))
    for times, days in zip(args.times, args.days, strict=True):
        print(machines_table(work, prices, assumed, times, days, units))


NEEDED = (
    "env_step_core_seconds",
    "bytes_per_frame",
    "action_core_seconds",
    "update_core_seconds",
    "update_flops",
    "window_core_seconds",
    "window_flops",
)


def read_units(path: Path) -> dict[str, Any]:
    """Load the unit costs. Raises InputError if one is missing or is no number above 0."""
    try:
        units = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}): create it with --measure") from None
    for name in NEEDED:
        value = units.get(name) if isinstance(units, dict) else None
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(f"{path}: {name} is {value}: create the file again with --measure")
    return dict(units)


def paper_run(units: dict[str, Any], assumed: Assumptions) -> list[Work]:
    """Return all computations of the paper (Sec. 4-5, App. A) in the order of the pipeline."""
    agent, games = explore_preset("paper"), assumed.explored_games
    sessions = {
        "Platformers, 483 x 50 x 500": 483 * 50 * 500,
        "Platformers-50, 50 x 100 x 1,000": 50 * 100 * 1_000,
    }
    sessions |= {
        f"{games} games, explorer's 10,000 x 700": games * 10_000 * 700,
        f"{games} games, as much random play": games * 10_000 * 700,
        f"{games} games, test sets of 1,000 x 700": games * 1_000 * 700,
    }
    chosen = units["env_step_core_seconds"] + units["action_core_seconds"]
    played = [
        _cores(
            f"collect: {name}",
            amount,
            chosen if "explorer" in name else units["env_step_core_seconds"],
        )
        for name, amount in sessions.items()
    ]
    steps = games * agent.epochs * agent.steps_per_epoch * agent.runners * agent.envs_per_runner
    updates = games * agent.epochs * agent.updates_per_epoch
    exploring = [
        _cores("explore: play", steps, chosen),
        _flops("explore: rewards", steps, "windows", "L4", units["window_flops"], assumed),
        _flops("explore: updates", updates, "updates", "L4", units["update_flops"], assumed),
    ]
    return [*played, *training(assumed), *exploring, *evaluating(assumed)]


def training(assumed: Assumptions) -> list[Work]:
    """Return the training runs of App. A.1, counted by `worldmodel.training.flops`."""
    lines = []
    for component, name, runs in (
        ("tokenizer", "base", 1),
        ("dynamics", "g200", 1),
        ("dynamics", "g50", 1),
        ("tokenizer", "finetune", 2 * assumed.explored_games),
        ("dynamics", "finetune", 2 * assumed.explored_games),
        ("dynamics", "scratch", assumed.explored_games),
        ("upscaler", "small-50k", 1),
    ):
        settings = train_preset(component, "paper", name)
        decoder_only = find_recipe(component, name).decoder_only
        cost = cost_of(component, preset("paper"), settings, decoder_only=decoder_only, cached=True)
        assert cost is not None
        clips = runs * settings.iterations * settings.batch_size
        times = f", {runs} times" if runs > 1 else ""
        lines.append(
            _flops(f"train: {component} {name}{times}", clips, "clips", "A100", cost.flops, assumed)
        )
    return lines


def evaluating(assumed: Assumptions) -> list[Work]:
    """Return the evaluation of three models on clips of 12 frames, one per 20 frames of the tests.

    Two frames are given and ten are predicted, two at a time in 25 MaskGIT steps. With the KV cache
    that takes the forward passes of 260 frames.
    """
    settings = train_preset("dynamics", "paper")
    cost = cost_of("dynamics", preset("paper"), settings, cached=True)
    assert cost is not None
    frame = cost.flops / 3 / settings.clip_length
    windows = 3 * assumed.explored_games * 1_000 * (700 // 20)
    return [_flops("evaluate: autoregressive", windows, "windows", "A100", 260 * frame, assumed)]


def _cores(stage: str, steps: float, core_seconds: float) -> Work:
    return Work(stage, steps, "steps", "vCPU", steps * core_seconds / 3600, "measured")


def _flops(
    stage: str, amount: float, unit: str, kind: str, flops: float, assumed: Assumptions
) -> Work:
    rate = assumed.a100_flops if kind == "A100" else assumed.l4_flops
    return Work(
        stage, amount, unit, kind, amount * flops / rate / 3600, "FLOPs counted, rate assumed"
    )


def dollars(work: Work, prices: Prices, assumed: Assumptions) -> float:
    """Return the price of one line."""
    rate = {"vCPU": prices.vcpu_spot, "L4": prices.l4, "A100": prices.a100}[work.kind]
    return work.hours / assumed.busy * rate


def units_table(units: dict[str, Any], assumed: Assumptions) -> str:
    """Return the unit costs as a table, each with its source."""
    step, act, window = (units[f"{name}_core_seconds"] for name in ("env_step", "action", "window"))
    rows = [
        (
            "agent steps per core-second, recorded (4 emulator frames each)",
            f"{1 / step:,.0f}",
            "measured",
        ),
        (
            "the same, with actions chosen by the paper's agent",
            f"{1 / (step + act):,.0f}",
            "measured",
        ),
        ("bytes per frame on disk", f"{units['bytes_per_frame']:,.0f}", "measured"),
        ("reward windows per core-second", f"{1 / window:,.2f}", "measured"),
        (
            "core-seconds per update of the agent",
            f"{units['update_core_seconds']:,.1f}",
            "measured",
        ),
        ("GFLOP per reward window", f"{units['window_flops'] / 1e9:,.0f}", "counted"),
        ("GFLOP per update of the agent", f"{units['update_flops'] / 1e9:,.0f}", "counted"),
        (
            "reward windows per second of an L4",
            f"{assumed.l4_flops / units['window_flops']:,.0f}",
            "assumed rate",
        ),
        (
            "updates of the agent per second of an L4",
            f"{assumed.l4_flops / units['update_flops']:,.0f}",
            "assumed rate",
        ),
        ("TFLOP/s of an A100 in training", f"{assumed.a100_flops / 1e12:,.0f}", "assumed"),
        ("share of billed time at work", f"{assumed.busy:.0%}", "assumed"),
    ]
    return table(("unit", "value", "source"), rows)


def work_table(
    work: Sequence[Work], prices: Prices, assumed: Assumptions, times: Sequence[float]
) -> str:
    """Return each stage's amount, machine-hours and dollars, for each multiple of the run."""
    heads = [
        "stage",
        "amount",
        "on",
        "machine-hours",
        "source",
        *(f"dollars x {t:g}" for t in times),
    ]
    rows = [
        (
            line.stage,
            f"{line.amount:,.0f} {line.unit}",
            line.kind,
            f"{line.hours:,.1f}",
            line.source,
            *(f"{t * dollars(line, prices, assumed):,.0f}" for t in times),
        )
        for line in work
    ]
    sums = (f"{t * sum(dollars(line, prices, assumed) for line in work):,.0f}" for t in times)
    return table(heads, [*rows, ("total", "", "", "", "", *sums)])


def machines_table(
    work: Sequence[Work],
    prices: Prices,
    assumed: Assumptions,
    times: float,
    days: float,
    units: dict[str, Any],
) -> str:
    """Return the machines that finish a multiple of the run in that many days, and their price."""
    hours = 24 * days * assumed.busy
    kinds = {
        "vCPU": ("emulator workers (one vCPU each)", 16),
        "L4": ("reward replicas and learners", 1),
    }
    kinds["A100"] = ("training GPUs", 8)
    rows, total = [], 0.0
    for kind, (name, size) in kinds.items():
        lines = [line for line in work if line.kind == kind]
        count = max(1, math.ceil(times * sum(line.hours for line in lines) / hours))
        cost = times * sum(dollars(line, prices, assumed) for line in lines)
        total += cost
        rows.append((name, f"{count:,}", f"{math.ceil(count / size):,}", f"{cost:,.0f}"))
    frames = times * sum(line.amount for line in work if line.stage.startswith("collect"))
    gigabytes = frames * units["bytes_per_frame"] / 1e9
    others = {
        "head": prices.head * 24 * days,
        "storage": gigabytes * prices.storage_gb_month * days / 30,
    }
    rows.append(("head", "1", "1", f"{others['head']:,.0f}"))
    rows.append(
        (
            f"storage, {frames / 1e6:,.0f} M frames",
            f"{gigabytes:,.0f} GB",
            "",
            f"{others['storage']:,.0f}",
        )
    )
    rows.append(("total", "", "", f"{total + sum(others.values()):,.0f}"))
    return table(
        (f"the paper's run x {times:g} in {days:g} days", "count", "machines", "dollars"), rows
    )


def epoch_table(
    units: dict[str, Any], assumed: Assumptions, replicas: Sequence[int] = (1, 2, 4, 8)
) -> str:
    """Return the seconds of one epoch of the paper's explorer by number of reward replicas.

    Each environment has one vCPU.
    """
    agent = explore_preset("paper")
    count = agent.runners * agent.envs_per_runner
    play = agent.steps_per_epoch * (units["env_step_core_seconds"] + units["action_core_seconds"])
    windows = agent.steps_per_epoch * count * units["window_flops"] / assumed.l4_flops
    updates = agent.updates_per_epoch * units["update_flops"] / assumed.l4_flops
    rows = []
    for number in replicas:
        epoch = max(play, windows / number) + updates  # windows are scored while playing
        parts = (f"{play:.1f}", f"{windows / number:.1f}", f"{updates:.1f}", f"{epoch:.1f}")
        rows.append((str(number), *parts, f"{agent.epochs * epoch / 3600:.1f}"))
    heads = (
        "reward replicas",
        "play, s",
        "rewards, s",
        "updates, s",
        "epoch, s",
        f"{agent.epochs} epochs, h",
    )
    return table(heads, rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, followed by an empty line."""
    return Table(heads, rows).markdown() + "\n"


if __name__ == "__main__":
    run(tyro.cli(Args, description=__doc__))
