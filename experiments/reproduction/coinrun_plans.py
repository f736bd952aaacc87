"""Tables of the case study on CoinRun (section 5, App. F): GenieRedux and GenieRedux-G.

Both are trained on random play and, with the suffix -TA, on the play of an agent that was trained
on the game's own reward. All training is in the first levels, both test sets are in others. The
agent sees its velocity in two squares, which no recorded episode shows (App. F.1).
"""

from collections.abc import Iterator
from typing import Any

from envs.games.base import EnvOptions
from experiments.pipeline.config import PipelineConfig
from experiments.reproduction.plans import Model, Play, TablePlan, TableRow

TRAINING_LEVELS = 200
"""Levels, from the first on, that models and agent are trained in."""
TRAINING: EnvOptions = (("levels", TRAINING_LEVELS),)
OTHER: EnvOptions = (("start_level", TRAINING_LEVELS),)
PAINTED: EnvOptions = (("velocity", "painted"),)
JAFAR_LAM = {"patch": 16, "codes": 6}
"""Latent action model of Jafar. Its other sizes are those of the paper's GenieRedux."""
NOTE = (
    f"Models and agent are trained in levels 0 to {TRAINING_LEVELS - 1}, tests are in all others. "
    "GenieRedux and the LAM are driven by the actions that the LAM infers from the true frames, so "
    "that they know something of the frames that they predict."
)


def base_play(c: PipelineConfig) -> Play:
    """Return the random play in the training levels."""
    return Play("base", c.games, TRAINING)


def agent_play(c: PipelineConfig) -> Play:
    """Return the play of the trained agent in the training levels."""
    return Play("trained-agent", c.games, (*TRAINING, *PAINTED))


def basic_play(c: PipelineConfig) -> Play:
    """Return the basic test set: random play in other levels."""
    return Play("basic", c.games, OTHER)


def diverse_play(c: PipelineConfig) -> Play:
    """Return the diverse test set: play of the trained agent in other levels."""
    return Play("diverse", c.games, (*OTHER, *PAINTED), agent_play(c))


def random_models(c: PipelineConfig) -> tuple[Model, ...]:
    """Return GenieRedux on random play. GenieRedux-G on it is the base model."""
    return (Model("latent", (base_play(c),), "tokenizer", latent=True),)


def jafar_sized_models(c: PipelineConfig) -> tuple[Model, ...]:
    """Return GenieRedux with the sizes of Jafar (Willi et al., 2024), on random play."""
    return (
        Model(
            "jafar-sized", (base_play(c),), "tokenizer", latent=True, settings={"lam": JAFAR_LAM}
        ),
    )


def trained_agent_models(c: PipelineConfig) -> tuple[Model, ...]:
    """Return GenieRedux-G-TA and GenieRedux-TA, which share a tokenizer."""
    play = (agent_play(c),)
    return (
        Model("ta", play, "scratch"),
        Model("latent-ta", play, "tokenizer", tokenizer_of="ta", latent=True),
    )


def diverse_plan(c: PipelineConfig, *names: str) -> TablePlan:
    """Return the plan of a figure: some `trained_agent_models` on the diverse test set."""
    models = tuple(model for model in trained_agent_models(c) if model.name in names)
    plays = (diverse_play(c),)
    return TablePlan(models, (), more_plays=plays, base=base_play(c), trains_base=False)


def model_rows(test: Play, *, agent: bool, lam: bool = True) -> Iterator[TableRow]:
    """Yield the rows of the models on random play or, if `agent`, on the agent's."""
    recorded, latent = ("ta", "latent-ta") if agent else ("base", "latent")
    data, suffix = ("trained agent", "-TA") if agent else ("random", "")

    def row(label: str, model: str, **more: Any) -> TableRow:
        return TableRow(f"CoinRun, {test.player}", data, label + suffix, model, (test,), **more)

    yield row("Tokenizer", recorded, part="reconstruction")
    if lam:
        yield row("LAM", latent, part="lam")
    yield row("GenieRedux", latent, actions="inferred")
    yield row("GenieRedux-G", recorded, baseline=latent, baseline_actions="inferred")


def basic_test_set(c: PipelineConfig) -> TablePlan:
    """Return table 2: models on random play, tested on random play."""
    rows = tuple(model_rows(basic_play(c), agent=False))
    return TablePlan(
        random_models(c), rows, NOTE, base=base_play(c), compared_with="GenieRedux on the same data"
    )


def diverse_test_set(c: PipelineConfig) -> TablePlan:
    """Return table 3: all models, tested on the trained agent's play."""
    test = diverse_play(c)
    rows = [*model_rows(test, agent=False, lam=False), *model_rows(test, agent=True, lam=False)]
    return TablePlan(
        (*random_models(c), *trained_agent_models(c)),
        tuple(rows),
        NOTE,
        base=base_play(c),
        compared_with="GenieRedux on the same data",
    )


def agents_models(c: PipelineConfig) -> TablePlan:
    """Return table 13: models on the trained agent's play, tested on random play."""
    return TablePlan(
        trained_agent_models(c),
        tuple(model_rows(basic_play(c), agent=True)),
        NOTE,
        base=base_play(c),
        trains_base=False,
        compared_with="GenieRedux on the same data",
    )


def beside_jafar(c: PipelineConfig) -> TablePlan:
    """Return the comparison of App. F.5: GenieRedux with the sizes of Jafar, and with its own."""
    group, test = "CoinRun, basic", (basic_play(c),)
    rows = (
        TableRow(
            group, "random", "GenieRedux, Jafar's sizes", "jafar-sized", test, actions="inferred"
        ),
        TableRow(group, "random", "GenieRedux", "latent", test, actions="inferred"),
    )
    note = f"{NOTE} `evaluate --peer` scores the predictions of Jafar itself on the same windows."
    return TablePlan((*random_models(c), *jafar_sized_models(c)), rows, note, base=base_play(c))
