"""Machines, hours and dollars of the paper's run and its multiples, from measured unit costs.

Run `python -m docs.cost_model.estimate docs/cost_model/units.json`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from docs.cost_model.measure import measure_units
from envs.utils.atomic_io import read_json, write_json_atomic
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

    @property
    def source(self) -> str:
        """Source of the hours."""
        return "measured" if self.kind == "vCPU" else "FLOPs counted, rate assumed"


def run(args: Args) -> None:
    """Measure if requested, and print tables in Markdown."""
    if len(args.times) != len(args.days) or min((*args.times, *args.days)) <= 0 or args.repeats < 1:
        raise InputError("give as many --days as --times, all above 0, and --repeats of 1 or more")
    if args.measure:
        write_json_atomic(args.units, measure_units(check_games([args.game])[0], args.repeats))
    model = CostModel(read_units(args.units))
    work = model.paper_run()
    print(model.units_table())
    print(model.epoch_table())
    print(model.work_table(work, args.times))
    for times, days in zip(args.times, args.days, strict=True):
        print(model.machines_table(work, times, days))


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
    """Load the unit costs. Raises: InputError if one is missing or is not a number above 0."""
    try:
        units = read_json(path)
    except (OSError, InputError) as error:
        raise InputError(f"{path}: cannot be read ({error}): create it with --measure") from None
    for name in NEEDED:
        value = units.get(name) if isinstance(units, dict) else None
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(f"{path}: {name} is {value}: create the file again with --measure")
    return dict(units)


@dataclass(frozen=True)
class CostModel:
    """Amounts of work that the paper fixes, unit costs of `NEEDED`, prices and assumptions."""

    units: dict[str, Any]
    prices: Prices = field(default_factory=Prices)
    assumed: Assumptions = field(default_factory=Assumptions)

    def paper_run(self) -> list[Work]:
        """Return all computations of the paper (Sec. 4-5, App. A) in the order of the pipeline."""
        agent, games = explore_preset("paper"), self.assumed.explored_games
        step = self.units["env_step_core_seconds"]
        chosen_step = step + self.units["action_core_seconds"]
        sessions = (
            ("Platformers, 483 x 50 x 500", 483 * 50 * 500, step),
            ("Platformers-50, 50 x 100 x 1,000", 50 * 100 * 1_000, step),
            (f"{games} games, explorer's 10,000 x 700", games * 10_000 * 700, chosen_step),
            (f"{games} games, as much random play", games * 10_000 * 700, step),
            (f"{games} games, test sets of 1,000 x 700", games * 1_000 * 700, step),
        )
        steps = games * agent.epochs * agent.steps_per_epoch * agent.runners * agent.envs_per_runner
        updates = games * agent.epochs * agent.updates_per_epoch
        return [
            *(_on_cores(f"collect: {name}", amount, cost) for name, amount, cost in sessions),
            *self._training(),
            _on_cores("explore: play", steps, chosen_step),
            self._on_gpu("explore: rewards", steps, "windows", "L4", self.units["window_flops"]),
            self._on_gpu("explore: updates", updates, "updates", "L4", self.units["update_flops"]),
            self._evaluation(),
        ]

    def _training(self) -> list[Work]:
        """Return the training runs of App. A.1, counted by `worldmodel.training.flops`."""
        lines = []
        for component, name, runs in (
            ("tokenizer", "base", 1),
            ("dynamics", "g200", 1),
            ("dynamics", "g50", 1),
            ("tokenizer", "finetune", 2 * self.assumed.explored_games),
            ("dynamics", "finetune", 2 * self.assumed.explored_games),
            ("dynamics", "scratch", self.assumed.explored_games),
            ("upscaler", "small-50k", 1),
        ):
            settings = train_preset(component, "paper", name)
            frozen = find_recipe(component, name).decoder_only
            cost = cost_of(component, preset("paper"), settings, decoder_only=frozen, cached=True)
            assert cost is not None
            clips = runs * settings.iterations * settings.batch_size
            stage = f"train: {component} {name}" + (f", {runs} times" if runs > 1 else "")
            lines.append(self._on_gpu(stage, clips, "clips", "A100", cost.flops))
        return lines

    def _evaluation(self) -> Work:
        """Return the evaluation of three models on clips of 12 frames, one per 20 frames of the
        test sets.

        Two frames are given and ten are predicted, two at a time in 25 MaskGIT steps. With the KV
        cache that takes the forward passes of 260 frames.
        """
        settings = train_preset("dynamics", "paper")
        cost = cost_of("dynamics", preset("paper"), settings, cached=True)
        assert cost is not None
        frame = cost.flops / 3 / settings.clip_length
        windows = 3 * self.assumed.explored_games * 1_000 * (700 // 20)
        return self._on_gpu("evaluate: autoregressive", windows, "windows", "A100", 260 * frame)

    def _on_gpu(self, stage: str, amount: float, unit: str, kind: str, flops: float) -> Work:
        rate = {"A100": self.assumed.a100_flops, "L4": self.assumed.l4_flops}[kind]
        return Work(stage, amount, unit, kind, amount * flops / rate / 3600)

    def dollars(self, work: Sequence[Work]) -> float:
        """Return the price of some lines."""
        prices = {"vCPU": self.prices.vcpu_spot, "L4": self.prices.l4, "A100": self.prices.a100}
        return sum(line.hours / self.assumed.busy * prices[line.kind] for line in work)

    def units_table(self) -> str:
        """Return the unit costs as a table, each with its source."""
        units, l4_flops = self.units, self.assumed.l4_flops
        step, window_flops = units["env_step_core_seconds"], units["window_flops"]
        chosen_step, update_flops = step + units["action_core_seconds"], units["update_flops"]
        by_source = {
            "measured": {
                "agent steps per core-second, recorded (4 emulator frames each)": f"{1 / step:.0f}",
                "the same, with actions chosen by the paper's agent": f"{1 / chosen_step:,.0f}",
                "bytes per frame on disk": f"{units['bytes_per_frame']:,.0f}",
                "reward windows per core-second": f"{1 / units['window_core_seconds']:,.2f}",
                "core-seconds per update of the agent": f"{units['update_core_seconds']:,.1f}",
            },
            "counted": {
                "GFLOP per reward window": f"{window_flops / 1e9:,.0f}",
                "GFLOP per update of the agent": f"{update_flops / 1e9:,.0f}",
            },
            "assumed rate": {
                "reward windows per second of an L4": f"{l4_flops / window_flops:,.0f}",
                "updates of the agent per second of an L4": f"{l4_flops / update_flops:,.0f}",
            },
            "assumed": {
                "TFLOP/s of an A100 in training": f"{self.assumed.a100_flops / 1e12:,.0f}",
                "share of billed time at work": f"{self.assumed.busy:.0%}",
            },
        }
        rows = [(*row, source) for source, values in by_source.items() for row in values.items()]
        return markdown(("unit", "value", "source"), rows)

    def epoch_table(self, replicas: Sequence[int] = (1, 2, 4, 8)) -> str:
        """Return the seconds of one epoch of the paper's explorer by number of reward replicas.

        Each environment has one vCPU.
        """
        agent, units = explore_preset("paper"), self.units
        step = units["env_step_core_seconds"] + units["action_core_seconds"]
        play = agent.steps_per_epoch * step
        windows = agent.steps_per_epoch * agent.runners * agent.envs_per_runner
        reward = windows * units["window_flops"] / self.assumed.l4_flops
        updates = agent.updates_per_epoch * units["update_flops"] / self.assumed.l4_flops
        heads = ["reward replicas", "play, s", "rewards, s", "updates, s", "epoch, s"]
        rows = []
        for count in replicas:
            epoch = max(play, reward / count) + updates  # windows are scored while playing
            seconds = (play, reward / count, updates, epoch, agent.epochs * epoch / 3600)
            rows.append((str(count), *(f"{value:.1f}" for value in seconds)))
        return markdown([*heads, f"{agent.epochs} epochs, h"], rows)

    def work_table(self, work: Sequence[Work], times: Sequence[float]) -> str:
        """Return each stage's amount, machine-hours and dollars, for each multiple of the run."""

        def dollars(lines: Sequence[Work]) -> list[str]:
            return [f"{multiple * self.dollars(lines):,.0f}" for multiple in times]

        heads = ["stage", "amount", "on", "machine-hours", "source"]
        rows = []
        for line in work:
            amount = f"{line.amount:,.0f} {line.unit}"
            cells = (line.stage, amount, line.kind, f"{line.hours:,.1f}", line.source)
            rows.append((*cells, *dollars([line])))
        rows.append(("total", "", "", "", "", *dollars(work)))
        return markdown([*heads, *(f"dollars x {multiple:g}" for multiple in times)], rows)

    def machines_table(self, work: Sequence[Work], times: float, days: float) -> str:
        """Return the machines that finish a multiple of the run in that many days, with prices."""
        hours = 24 * days * self.assumed.busy
        rows, total = [], 0.0
        for kind, name, size in (
            ("vCPU", "emulator workers (one vCPU each)", 16),
            ("L4", "reward replicas and learners", 1),
            ("A100", "training GPUs", 8),
        ):
            lines = [line for line in work if line.kind == kind]
            count = max(1, math.ceil(times * sum(line.hours for line in lines) / hours))
            cost = times * self.dollars(lines)
            total += cost
            rows.append((name, f"{count:,}", f"{math.ceil(count / size):,}", f"{cost:,.0f}"))
        frames = times * sum(line.amount for line in work if line.stage.startswith("collect"))
        gigabytes = frames * self.units["bytes_per_frame"] / 1e9
        head = self.prices.head * 24 * days
        storage = gigabytes * self.prices.storage_gb_month * days / 30
        stored = f"storage, {frames / 1e6:,.0f} M frames"
        rows += [
            ("head", "1", "1", f"{head:,.0f}"),
            (stored, f"{gigabytes:,.0f} GB", "", f"{storage:,.0f}"),
            ("total", "", "", f"{total + head + storage:,.0f}"),
        ]
        title = f"the paper's run x {times:g} in {days:g} days"
        return markdown((title, "count", "machines", "dollars"), rows)


def _on_cores(stage: str, steps: float, core_seconds: float) -> Work:
    return Work(stage, steps, "steps", "vCPU", steps * core_seconds / 3600)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, followed by an empty line."""
    return Table(heads, rows).markdown() + "\n"


if __name__ == "__main__":
    run(tyro.cli(Args, description=__doc__))
