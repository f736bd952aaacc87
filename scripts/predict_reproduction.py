"""Write the predicted training minutes that `autoexplore reproduce --list` shows.

    python -m scripts.predict_reproduction

They are those of `reproduce ITEM --preset gpu --dry-run --hardware rtx4090`, and of preset paper on
one h100, for every item with stages. Run it when a plan, a preset or the cost of a training
changes; tests/experiments/reproduction/test_items.py compares some with what the file holds.
"""

from typing import Any

from envs.utils.atomic_io import write_json_atomic
from experiments.commands.reproduce import Args, configuration, test_player
from experiments.reproduction.items import ITEMS, PREDICTED_FILE, Item
from experiments.reproduction.make import predicted_training_minutes

HARDWARE = {"gpu": "rtx4090", "paper": "h100"}
"""Preset -> card of the prediction."""


def predicted(item: Item, preset: Any) -> float:
    """Return the minutes of an item at a preset, to four digits."""
    args = Args(item=item.name, preset=preset)
    c = configuration(args, item, plays=False)
    minutes = predicted_training_minutes(item.name, c, test_player(args, c), HARDWARE[preset])
    return float(f"{minutes:.4g}")


def predict_all() -> dict[str, Any]:
    """Return the content of the file."""
    made = [item for item in ITEMS if item.is_made_here and item.kind != "settings"]
    return {
        preset: {"hardware": card, "minutes": {item.name: predicted(item, preset) for item in made}}
        for preset, card in HARDWARE.items()
    }


if __name__ == "__main__":
    write_json_atomic(PREDICTED_FILE, predict_all())
