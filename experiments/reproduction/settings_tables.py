"""Tables 7 to 10: the paper's settings beside those of a preset."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from experiments.reports.page import Table
from worldmodel.config import WorldModelConfig
from worldmodel.training.config import TrainConfig

AUTOENCODER = {
    "encoder blocks": ("encoder_blocks", 8),
    "decoder blocks": ("decoder_blocks", 8),
    "width": ("dim", 512),
    "heads": ("heads", 8),
}
"""Row -> field and the paper's value."""
PAPER: Mapping[str, Mapping[str, tuple[str, float]]] = {
    "table7": {**AUTOENCODER, "codes": ("codes", 1024), "width of a code": ("code_dim", 32)},
    "table8": {
        "blocks": ("blocks", 12),
        "width": ("dim", 512),
        "heads": ("heads", 8),
        "sampling temperature": ("temperature", 1.0),
        "MaskGIT steps": ("steps", 25),
    },
    "table9": {**AUTOENCODER, "codes": ("codes", 7), "width of a code": ("code_dim", 32)},
    "table10": {
        "largest learning rate": ("lr", 1e-4),
        "smallest learning rate": ("min_lr", 5e-5),
        "beta 1": ("beta1", 0.9),
        "beta 2": ("beta2", 0.99),
        "weight decay": ("weight_decay", 1e-4),
        "factor at the start of the warm-up": ("warmup_factor", 0.5),
        "steps of the warm-up": ("warmup", 5_000),
    },
}


def settings_rows(
    name: str, config: WorldModelConfig, recipe: TrainConfig, sampling: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the rows of a table of settings: name, value of the preset, the paper's."""
    optimizer = asdict(recipe)
    optimizer |= {"beta1": recipe.betas[0], "beta2": recipe.betas[1]}
    optimizer["min_lr"] = recipe.lr * recipe.min_lr_factor
    values = {
        "table7": asdict(config.tokenizer),
        "table8": {**asdict(config.dynamics), **sampling},
        "table9": asdict(config.lam),
        "table10": optimizer,
    }[name]
    return [
        {"setting": row, "value": values[key], "paper": paper}
        for row, (key, paper) in PAPER[name].items()
    ]


def settings_table(rows: list[dict[str, Any]], preset: str) -> Table:
    """Return the rows as a table."""
    cells = [[row["setting"], f"{row['value']:g}", f"{row['paper']:g}"] for row in rows]
    return Table(["setting", f"preset {preset}", "paper"], cells)
