"""The cost model: its arithmetic against independent calculations, and rejected input."""

import json
from pathlib import Path

import pytest

from docs.cost_model import estimate
from docs.cost_model.estimate import Args, Assumptions, CostModel, Prices, Work, read_units
from docs.cost_model.measure import measure_agent, measure_play
from envs.utils.errors import InputError
from exploration.config import explore_preset

UNITS = {
    "env_step_core_seconds": 0.002,
    "bytes_per_frame": 500,
    "action_core_seconds": 0.001,
    "update_core_seconds": 2.0,
    "update_flops": 1e11,
    "window_core_seconds": 0.5,
    "window_flops": 1e11,
}


def test_hours_follow_from_units() -> None:
    lines = {line.stage: line for line in CostModel(UNITS).paper_run()}
    collected = lines["collect: Platformers, 483 x 50 x 500"]
    assert collected.hours == pytest.approx(483 * 50 * 500 * 0.002 / 3600)
    played = lines["explore: play"]
    assert played.amount == 3 * 300 * 200 * 8
    assert played.hours == pytest.approx(played.amount * 0.003 / 3600)
    assert "| 4 | 0.6 | 1.3 | 0.7 | 2.0 | 0.2 |" in CostModel(UNITS).epoch_table()
    assert lines["explore: rewards"].hours == pytest.approx(
        played.amount * 1e11 / (0.25 * 121e12) / 3600
    )
    assert lines["explore: updates"].amount == 3 * 300 * 200


def test_training_agrees_with_the_arithmetic_at_paper_size() -> None:
    """Eight A100 at 40 %: the tokenizer 5.8 hours, the dynamics model 8.1 with stored tokens."""
    lines = {line.stage: line for line in CostModel(UNITS).paper_run()}
    assert lines["train: tokenizer base"].hours / 8 == pytest.approx(5.8, rel=0.1)
    assert lines["train: dynamics g200"].hours / 8 == pytest.approx(8.1, rel=0.1)


def test_machines_are_rounded_up_and_dollars_grow_with_the_work() -> None:
    work = [
        Work("collect: a", 1e6, "steps", "vCPU", 100),
        Work("train", 1, "run", "A100", 50),
    ]
    model = CostModel(UNITS, Prices(vcpu_spot=0.02, a100=3.0), Assumptions(busy=0.5))
    assert model.dollars(work[:1]) == pytest.approx(4.0)
    assert model.dollars(work[1:]) == pytest.approx(300.0)
    rows = model.machines_table(work, 10, 2).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    # 1,000 hours in 24, 16 vCPUs to a machine
    assert cells[2] == ["emulator workers (one vCPU each)", "42", "3", "40"]
    assert cells[4] == ["training GPUs", "21", "3", "3,000"]


def test_unit_costs_become_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "units.json"
    path.write_text(json.dumps(UNITS))
    estimate.run(Args(units=path))
    printed = capsys.readouterr().out
    assert sum(line.startswith("| ---") for line in printed.splitlines()) == 5
    assert "the paper's run x 100 in 30 days" in printed
    assert "| reward windows per core-second | 2.00 | measured |" in printed


@pytest.mark.parametrize(
    "change", [{"window_flops": 0}, {"bytes_per_frame": "many"}, {"update_flops": float("inf")}]
)
def test_invalid_unit_costs_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "units.json"
    path.write_text(json.dumps({**UNITS, **change}))
    with pytest.raises(InputError, match=next(iter(change))):
        read_units(path)
    with pytest.raises(InputError, match="create it with --measure"):
        read_units(tmp_path / "none.json")
    with pytest.raises(InputError, match="as many --days"):
        estimate.run(Args(units=path, times=(1,)))


def test_unit_costs_are_measured() -> None:
    played = measure_play("Counting", 1, steps=20)
    assert 0 < played["env_step_core_seconds"] < 1
    assert 0 < played["bytes_per_frame"] < 64 * 64 * 3
    explored = measure_agent(1, explore_preset("debug"))
    assert explored["update_core_seconds"] > explored["action_core_seconds"] > 0
    assert explored["update_flops"] > 1e6


def test_the_readme_has_the_tables_that_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    docs = Path(__file__).parents[2] / "docs"
    estimate.run(Args(units=docs / "cost_model" / "units.json"))
    text = (docs / "cost_model" / "README.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        assert line in text
