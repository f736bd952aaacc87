"""Make a table or figure of the paper, from games to numbers beside the paper's."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from envs.utils.errors import InputError
from envs.utils.progress import console, format_duration, progress
from envs.utils.ray_session import ray_session
from experiments.arguments import ConfigArgs, PrecisionArgs, Preset, RayArgs
from experiments.configuration import override, read_config
from experiments.pipeline.config import Explorer, PipelineConfig, check_pipeline_games
from experiments.reproduction.arguments import reproduction_preset
from experiments.reproduction.items import ITEMS, Item, find_item, predicted_minutes

TESTS = ("auto", "expert", "deep")


@dataclass(frozen=True, kw_only=True)
class Args(RayArgs, ConfigArgs, PrecisionArgs):
    """Make a table or figure of the paper; run it again to continue.

    Tables and figures in the same --out share games, models and scores. A --config file holds
    settings of `pipeline`, such as explored_episodes.
    """

    item: tyro.conf.Positional[str | None] = None
    """Name of the item, e.g. table5 or figure16."""
    list: bool = False
    """List every table and figure of the paper, and what makes it."""
    json: bool = False
    """Print the list as JSON."""
    out: Path | None = None
    """Folder of the results."""
    preset: Preset = "cpu"
    """Size of models, play and training."""
    games: tuple[str, ...] = ()
    """Games with the same actions. Default: the paper's three at preset paper, else PrivateEye,
    Hero and ElevatorAction; Counting at debug. Tables 2, 3 and 13 are about CoinRun."""
    explorers: tuple[Explorer, ...] = ()
    """Explorers compared with random play. The first one's data train the models from scratch.
    Default: agent."""
    test: str = "auto"
    """Player of the test sets: expert (an agent trained on the game's own reward, 15 % random
    actions), deep (an archive of savestates chosen by the game's score), or auto: expert at preset
    paper, else deep."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds, each for all models and all play."""
    peer: tuple[Path, ...] = ()
    """figure20: folder of another model's predictions of its window, see `evaluate --help`, and, if
    you have them, one of the frames that it makes when it is given the real ones."""
    export_windows: Path | None = None
    """figure20: write its window to this folder, for another model to predict, and exit."""
    parallel: int = 1
    """Number of seeds in parallel, each in its own process with one torch thread."""
    dry_run: bool = False
    """Print the stages, and predict time and memory of those that train, instead of running them.
    """
    hardware: str = "here"
    """For --dry-run: here (this machine, measured) or a card and their number, e.g. a100x8, l4."""


def run(args: Args) -> None:
    """List the items, predict what one needs, or make it."""
    if args.list or args.json:
        print_items(as_json=args.json)
        return
    if args.item is None:
        raise InputError("reproduce: name a table or figure, e.g. table5, or give --list")
    item = find_item(args.item)
    if args.out is None and not args.dry_run:
        raise InputError("reproduce needs --out, the folder of the results")
    if args.test not in TESTS:
        raise InputError(f"--test {args.test}: choose from {', '.join(TESTS)}")
    if not args.seeds or args.parallel < 1:
        raise InputError("--seeds and --parallel: give 1 or more of each")
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError("--seeds: give each seed once")
    check_peers(args, item)
    config = configuration(args, item, plays=item.kind != "settings" and not args.dry_run)
    # This imports torch: wrong arguments are reported first.
    from experiments.reproduction import make

    if args.dry_run:
        make.print_plan(item, config, test_player(args, config), args.hardware)
        return
    assert args.out is not None
    if args.export_windows is not None:
        export_window(args, args.export_windows, config)
        return
    if item.kind == "settings":
        make.write_settings(args.out, item, config)
    else:
        make_item(args, item, config)
    console.print(f"written to {args.out}")


def configuration(args: Args, item: Item, *, plays: bool) -> PipelineConfig:
    """Return the settings of the flags and of the --config file, checked.

    `plays`: games are played, and need their ROMs.
    """
    if item.games and args.games not in ((), item.games):
        raise InputError(f"{item.name} is about {', '.join(item.games)}: leave out --games")
    c = reproduction_preset(args.preset, item.games)
    if args.config is not None:
        c = override(c, read_config(args.config), str(args.config))
    c = replace(c, games=args.games or c.games, explorers=args.explorers or c.explorers)
    c = check_pipeline_games(c, roms=plays)
    if args.parallel > 1:
        c = replace(c, threads=1)
    if args.precision != "auto":
        c = replace(c, precision=args.precision)
    return c


def check_peers(args: Args, item: Item) -> None:
    """Raise InputError unless there are predictions of another model if, and only if, needed."""
    if item.state != "needs":
        if args.peer or args.export_windows is not None:
            raise InputError(f"{item.name} needs no --peer and no --export-windows")
        return
    if args.dry_run:
        return
    if args.export_windows is None and not args.peer:
        raise InputError(
            f"{item.name} needs --peer DIR, which holds frame-000.png to frame-009.png, 64x64 RGB, "
            f"in the SESSION/FIRST-FRAME folder that `autoexplore reproduce {item.name} --preset "
            f"{args.preset} --out {args.out} --export-windows DIR` writes"
        )
    if (args.export_windows is not None and args.peer) or len(args.peer) > 2:
        raise InputError("give --export-windows DIR, or one or two folders to --peer")
    if len(args.seeds) > 1:
        raise InputError(f"{item.name} has a window of one seed: give one to --seeds")
    for folder in args.peer:
        if not folder.is_dir():
            raise InputError(f"--peer {folder}: no such folder")


def export_window(args: Args, folder: Path, c: PipelineConfig) -> None:
    """Write the window of an item that needs another model's predictions."""
    from experiments.reproduction import make
    from experiments.reproduction.peer_figure import play_and_export

    assert args.out is not None
    out, test, c = args.out.absolute(), test_player(args, c), replace(c, seed=args.seeds[0])
    make.check_folder_of(out, c, test)
    with ray_session(args.ray_address):
        written = play_and_export(folder, make.seed_folder(out, c.seed), c, test)
    console.print(f"written: {written}", soft_wrap=True, markup=False)


def test_player(args: Args, c: PipelineConfig) -> str:
    """Return the player of the test sets: expert or deep."""
    if args.test != "auto":
        return args.test
    return "expert" if c.preset == "paper" else "deep"


def make_item(args: Args, item: Item, c: PipelineConfig) -> None:
    """Run the missing stages of all seeds, then write and print the results."""
    from experiments.reproduction import make
    from worldmodel.evaluation.ray_tasks import map_ray_tasks

    assert args.out is not None
    out, test = args.out.absolute(), test_player(args, c)
    peers = tuple(folder.absolute() for folder in args.peer)
    calls = [(out, item.name, replace(c, seed=seed), test, peers) for seed in args.seeds]
    make.check_folder_of(out, c, test)
    with ray_session(args.ray_address):
        results: Any = ((number, make.run_item(*call)) for number, call in enumerate(calls))
        if args.parallel > 1:
            results = map_ray_tasks(make.run_item, calls, at_a_time=args.parallel)
        with progress("seeds", len(calls)) as bar:
            for number, _ in results:
                bar.advance(note=f"seed {calls[number][2].seed}")
    for line in make.write_item(out, item, c, args.seeds, test):
        console.print(line, markup=False)


def print_items(*, as_json: bool) -> None:
    """Print every item of the paper: name, state, command, minutes at each preset."""
    if as_json:
        print(json.dumps([item.describe() for item in ITEMS], indent=1))
        return
    heads = "item", "what", "state", "made by", "needed", "minutes"
    table = Table(*heads, "predicted training", box=None)
    for item in ITEMS:
        entry = item.describe()
        minutes = ", ".join(f"{name} {value:g}" for name, value in item.minutes.items())
        predicted = ", ".join(
            f"{preset} {format_duration(60 * values['minutes'])}"
            for preset, values in entry["predicted_training"].items()
        )
        command = entry["command"].removeprefix("autoexplore ")
        table.add_row(item.name, item.title, item.state, command, item.needed, minutes, predicted)
    cards = ", ".join(
        f"preset {name} on one {values['hardware']}" for name, values in predicted_minutes().items()
    )
    console.print(table)
    console.print(
        "Minutes were measured, with one seed in a new folder on two cores; those at cpu partly "
        "beside other jobs. The predicted time is that of all training, "
        f"{cards}; playing, exploring and evaluating come on top. It was not measured."
    )
