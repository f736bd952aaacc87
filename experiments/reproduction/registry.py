"""All tables that are measured and figures that are drawn, by their names."""

from collections.abc import Callable, Mapping
from functools import partial

from experiments.pipeline.config import PipelineConfig
from experiments.reproduction import coinrun_plans, figures, plans
from experiments.reproduction.coinrun_figures import (
    agent_strips,
    horizon_figure,
    jafar_sized_strips,
    random_strips,
)
from experiments.reproduction.figures import Figure, study_figure
from experiments.reproduction.limits import limits_strips
from experiments.reproduction.peer_figure import peer_strips
from experiments.reproduction.plans import TablePlan
from experiments.studies import representation, uncertainty
from experiments.studies.arguments import RepresentationArgs, UncertaintyArgs

PLANS: Mapping[str, Callable[[PipelineConfig], TablePlan]] = {
    "table2": coinrun_plans.basic_test_set,
    "table3": coinrun_plans.diverse_test_set,
    "table4": plans.ablation,
    "table5": plans.each_game,
    "table6": plans.rewards,
    "table11": plans.first_game,
    "table12": plans.all_games,
    "table13": coinrun_plans.agents_models,
    "appendixF5": coinrun_plans.beside_jafar,
}
_latent = partial(agent_strips, model="latent-ta", label="GenieRedux-TA")
_recorded = partial(agent_strips, model="ta", label="GenieRedux-G-TA")
FIGURES: Mapping[str, Callable[..., Figure]] = {
    "figure4": lambda c: figures.held_strips(c, c.games[:1]),
    "figure5": lambda c: study_figure(c, representation.run, RepresentationArgs),
    "figure6": lambda c: study_figure(c, uncertainty.run, UncertaintyArgs),
    "figure7": lambda c: figures.compared_strips(c, c.games[:1]),
    "figure9": figures.base_strips,
    "figure10": lambda c: figures.held_strips(c, c.games),
    "figure11": lambda c: figures.compared_strips(c, c.games),
    "figure13": figures.agents_play,
    "figure16": horizon_figure,
    "figure17": random_strips,
    "figure18": partial(_latent, part="motion"),
    "figure19": partial(_latent, part="actions"),
    "figure20": peer_strips,
    "figure21": jafar_sized_strips,
    "figure22": partial(_recorded, part="motion"),
    "figure23": partial(_recorded, part="actions"),
    "figure24": limits_strips,
}
"""Figures of a configuration. figure20 also takes `peers`, folders of predictions."""


def table_plan(name: str, c: PipelineConfig) -> TablePlan:
    """Return the plan of a table for the games and explorers of a configuration."""
    return PLANS[name](c)
