"""Every table and figure of the paper, and what makes it here. Loads no torch."""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from envs.utils.errors import InputError

PREDICTED_FILE = Path(__file__).with_name("predicted_minutes.json")
"""Predicted training minutes of each item, which scripts/predict_reproduction.py writes:
{preset: {"hardware": card, "minutes": {item: minutes}}}."""

State = Literal["made", "needs", "command"]
"""made: `reproduce` makes it. needs: it does, of what `needed` names. command: the one that
`command` names does."""
Kind = Literal["table", "settings", "figure", "other"]
"""settings: a table that is read from the presets or the catalogue of games, without a run."""


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper."""

    name: str
    """Name on the command line, e.g. table5."""
    title: str
    kind: Kind
    state: State
    needed: str = ""
    """Input that you have to give."""
    command: str = ""
    """Command that makes it; empty for `reproduce` itself without other flags."""
    games: tuple[str, ...] = ()
    """Games that it is about; empty for any."""
    minutes: Mapping[str, float] = field(default_factory=dict)
    """Preset -> minutes of a seed on two cores, in a new folder: measured on the clock on a quiet
    machine, or the processor time of all processes, which differs little from that. Those at
    cpu are sums of the stages' times, some of them beside other jobs."""

    @property
    def is_made_here(self) -> bool:
        """True if `reproduce` makes it."""
        return self.state != "command"

    def describe(self) -> dict[str, Any]:
        """Return its entry in the list as JSON data."""
        own = {**asdict(self), "predicted_training": self.predicted_training()}
        own["command"] = own["command"] or f"autoexplore reproduce {self.name}"
        return dict(json.loads(json.dumps(own)))

    def predicted_training(self) -> dict[str, dict[str, Any]]:
        """Return preset -> the minutes that all training is predicted to take, and on which card.

        Empty if nothing is trained.
        """
        return {
            preset: {"hardware": values["hardware"], "minutes": values["minutes"][self.name]}
            for preset, values in predicted_minutes().items()
            if values["minutes"].get(self.name)
        }


@functools.cache
def predicted_minutes() -> dict[str, Any]:
    """Return the content of PREDICTED_FILE."""
    return dict(json.loads(PREDICTED_FILE.read_text()))


def _table(name: str, title: str, **minutes: float) -> Item:
    return Item(name, title, "table", "made", minutes=minutes)


def _coinrun(name: str, title: str, kind: Kind = "table", **minutes: float) -> Item:
    """Return an item of the case study on CoinRun."""
    return Item(name, f"CoinRun: {title}", kind, "made", games=("CoinRun",), minutes=minutes)


def _figure(name: str, title: str, **minutes: float) -> Item:
    return Item(name, title, "figure", "made", minutes=minutes)


def _settings(name: str, title: str) -> Item:
    return Item(name, title, "settings", "made", minutes={"debug": 0.1})


def _elsewhere(name: str, title: str, command: str) -> Item:
    return Item(name, title, "other", "command", command=f"autoexplore {command}")


ITEMS = (
    _settings("table1", "RetroAct beside other data sets"),
    _coinrun("table2", "visual fidelity, basic test set", debug=0.5, cpu=4.8),
    _coinrun("table3", "visual fidelity, diverse test set", debug=1.1, cpu=20),
    _table(
        "table4",
        "Pretraining on more games, token input, TDCE loss, autoregressive sampling",
        debug=0.4,
        cpu=22,
    ),
    _table("table5", "Random against explored data, for each game", debug=0.5, cpu=18),
    _table("table6", "Rewards of the agent: random features, VAE, uncertainty", debug=1.0, cpu=24),
    _settings("table7", "Settings of the tokenizer"),
    _settings("table8", "Settings of the dynamics model"),
    _settings("table9", "Settings of the latent action model"),
    _settings("table10", "Settings of the optimizer"),
    _table("table11", "All models sampled autoregressively, first game", debug=0.5),
    _table("table12", "One model for all games", debug=0.5),
    _coinrun("table13", "models on an agent's data, basic test set", debug=0.9, cpu=14),
    _elsewhere("figure3", "Games of RetroAct", "catalog --counts --plot labels.png"),
    _figure("figure4", "One start, each action, first game", debug=0.3),
    _figure("figure5", "Meaning of the tokens: nearest and farthest codes", debug=0.3),
    _figure("figure6", "Uncertainty of idle and moving scenes", debug=0.3),
    _figure("figure7", "Predictions after random and after explored data", debug=0.6),
    _elsewhere("figure8", "User study: quality of clips", "study people"),
    _figure("figure9", "Predictions of the base model", debug=0.3),
    _figure("figure10", "One start, each action, all games", debug=0.3),
    _figure(
        "figure11",
        "Predictions of each game after random and after explored data",
        debug=0.5,
    ),
    _elsewhere("figure12", "Starts in mid-air, two models", "generate --mid-air --beside"),
    _figure("figure13", "Play of the explorer", debug=0.4),
    _elsewhere("figure14", "Page of the first user study", "study people serve"),
    _elsewhere("figure15", "User study: quality of actions", "study people"),
    _coinrun("figure16", "quality and control over the horizon", "figure", debug=0.9, cpu=12),
    _coinrun("figure17", "GenieRedux-G, motion and actions", "figure", debug=0.5, cpu=2.1),
    _coinrun("figure18", "GenieRedux-TA, motion", "figure", debug=1.0, cpu=14),
    _coinrun("figure19", "GenieRedux-TA, each action", "figure", debug=1.0, cpu=14),
    Item(
        "figure20",
        "CoinRun: Jafar",
        "figure",
        "needs",
        "predictions of Jafar",
        "autoexplore reproduce figure20 --peer DIR",
        ("CoinRun",),
    ),
    _coinrun("figure21", "GenieRedux with Jafar's sizes", "figure", debug=0.5),
    _coinrun("figure22", "GenieRedux-G-TA, motion", "figure", debug=0.9, cpu=12),
    _coinrun("figure23", "GenieRedux-G-TA, each action", "figure", debug=1.0, cpu=12),
    _coinrun("figure24", "limits of GenieRedux-G-TA", "figure", debug=0.9, cpu=13),
    _elsewhere("appendixA2", "Test set of an expert", "expert"),
    _coinrun("appendixF5", "GenieRedux with the sizes of Jafar", debug=0.5),
    _elsewhere("appendixB", "Super-resolution of frames", "train upscaler"),
)


def find_item(name: str) -> Item:
    """Return an item by name: table5, figure7, fig7. Raises InputError if none can be made."""
    full = name.lower().replace("fig.", "fig")
    if full.startswith("fig") and not full.startswith("figure"):
        full = full.replace("fig", "figure", 1)
    found = next((item for item in ITEMS if item.name.lower() == full), None)
    if found is None:
        raise InputError(f"reproduce {name}: the paper has no such item: see reproduce --list")
    if found.state == "command":
        raise InputError(f"reproduce {name}: made by another command: {found.command}")
    return found
