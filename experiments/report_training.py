"""How the parts of a run learnt: the report's curves, and what the codebook is used for."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments.report_charts import Series, line_chart
from experiments.report_data import MODEL_NAMES, TESTS, Measured, read_metric


def codes(root: Path, length: int) -> tuple[str, Markup]:
    """What the codebook is used for, in words and as a curve."""
    from experiments.report_figures import code_use
    from worldmodel import GenieReduxG

    model = GenieReduxG.load(root / "models" / "base")
    use = code_use(model, [root / "data" / f"test-{test}" for test in TESTS], length)
    total = len(use.shares)
    words = (
        f"On held-out frames the tokenizer uses {use.used:,} of its {total:,} codes, as evenly as "
        f"{use.perplexity:.0f} equal ones. Its commonest code stands on {use.static:.0%} of the patches in which "
        f"nothing changed since the frame before and on {use.moving:.0%} of the others"
        + (": a code for standing still, as the paper found." if use.static > 2 * use.moving else ".")
    )
    ranks = sorted({round(10 ** (step / 20)) for step in range(61)} & set(range(1, total + 1)))
    line = Series("codes, commonest first", "base", ranks, [use.shares[rank - 1] for rank in ranks])
    title = "Codebook: how often each code is used"
    return words, Markup(
        line_chart([line], x_label="rank", y_label="share of tokens", title=title, log_x=True, log_y=True)
    )


def training(root: Path, measured: Measured) -> dict[str, Any]:
    """How the parts learnt."""
    words, code_chart = codes(root, measured.horizon + 2)
    tokenizer, dynamics, explorer = root / "tokenizer", root / "dynamics", root / "explore"
    tuned = {side: root / "finetune" / side for side in TESTS}

    def curve(run: Path, name: str, style: str, label: str) -> Series:
        return Series(label, style, *read_metric(run, name))

    def chart(title: str, y: str, *lines: Series, x: str = "steps") -> Markup:
        return Markup(line_chart(lines, x_label=x, y_label=y, title=title, log_y=y == "loss"))

    def sides(part: str, name: str) -> list[Series]:
        return [curve(tuned[side] / part, name, side, MODEL_NAMES[side]) for side in ("random", "explored")]

    charts = [
        chart(
            "Tokenizer: loss",
            "loss",
            curve(tokenizer, "train/loss", "base", "training"),
            curve(tokenizer, "validation/loss", "explored", "validation"),
        ),
        chart(
            "Tokenizer: rebuilt frames",
            "PSNR, dB",
            curve(tokenizer, "train/psnr", "base", "training"),
            curve(tokenizer, "validation/psnr", "explored", "validation"),
        ),
        chart(
            "Dynamics: loss",
            "loss",
            curve(dynamics, "train/loss", "base", "training"),
            curve(dynamics, "validation/loss", "explored", "validation"),
        ),
        chart(
            "Dynamics: masked tokens guessed right",
            "share",
            curve(dynamics, "train/accuracy", "base", "training"),
            curve(dynamics, "validation/accuracy", "explored", "validation"),
        ),
        chart("Decoder fine-tuning", "PSNR, dB", *sides("decoder", "train/psnr")),
        chart("Dynamics fine-tuning", "loss", *sides("dynamics", "train/loss")),
        chart(
            "Explorer: its reward",
            "mean uncertainty",
            curve(explorer, "explore/reward", "base", "while it learns"),
            x="epochs",
        ),
    ]
    return {"training_text": words, "training_charts": [*charts, code_chart]}
