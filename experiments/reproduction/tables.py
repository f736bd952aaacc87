"""All tables that are measured: name -> plan."""

from collections.abc import Callable, Mapping

from experiments.pipeline.config import PipelineConfig
from experiments.reproduction import coinrun_plans, plans
from experiments.reproduction.plans import TablePlan

PLANS: Mapping[str, Callable[[PipelineConfig], TablePlan]] = {
    "table2": coinrun_plans.basic_test_set,
    "table3": coinrun_plans.diverse_test_set,
    "table4": plans.ablation,
    "table5": plans.each_game,
    "table6": plans.rewards,
    "table11": plans.first_game,
    "table12": plans.all_games,
    "table13": coinrun_plans.agents_models,
}


def table_plan(name: str, c: PipelineConfig) -> TablePlan:
    """Return the plan of a table for the games and explorers of a configuration."""
    return PLANS[name](c)
