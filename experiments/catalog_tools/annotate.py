"""Labelling of games on a local web page that shows the effect of each button."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from envs import COUNTING, catalog
from envs.utils.errors import InputError
from envs.utils.progress import console
from experiments.arguments import check_games
from experiments.catalog_tools import labels


@dataclass(frozen=True, kw_only=True)
class Args:
    """Label games on a page in your browser. Labels are saved at once; run again to continue."""

    games: tyro.conf.Positional[tuple[str, ...]] = ()
    """Games to label, in this order. Default: all whose ROM is installed."""
    name: str = "me"
    """Your name, for the file name of the labels."""
    out: Path = Path("annotations")
    """Folder of labels-NAME.csv and of the recorded clips."""
    port: int = 0
    """Port on 127.0.0.1, 1 to 65535; 0 selects a free one."""


def run(args: Args) -> None:
    """Serve the page until Ctrl+C, then print the number of labelled games."""
    if COUNTING in args.games:
        raise InputError(f"{COUNTING} is no console game and has no labels: omit it")
    games = check_games(args.games or catalog.games(playable=True))
    if not 0 <= args.port < 65536:
        raise InputError(f"--port {args.port} is no port: use 1 to 65535, or 0 for a free one")
    labels_file = labels.file_of(args.out, args.name)

    # The web server: wrong arguments are reported first.
    from experiments.catalog_tools.app import make_app
    from experiments.web_page import LOOPBACK, serve_page

    app = make_app(games, labels_file, args.out / "clips")

    def announce(url: str) -> None:
        console.print(f"{url}  {len(games)} games; Ctrl+C ends it")

    serve_page(app, LOOPBACK[0], args.port, announce)
    rows = labels.load_labels(labels_file).rows if labels_file.exists() else {}
    labelled = sum(game in rows and labels.complete(rows[game]) for game in games)
    console.print(f"{labels_file}: {labelled} of {len(games)} games labelled")
