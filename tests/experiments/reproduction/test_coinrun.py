"""`reproduce` of the case study on CoinRun: its plans, and a small run from games to tables."""

import json
from pathlib import Path

import numpy as np
import pytest

from envs.episodes.dataset import EpisodeReader
from experiments.__main__ import execute
from experiments.reproduction.arguments import reproduction_preset
from experiments.reproduction.items import find_item
from experiments.reproduction.make import item_stages
from experiments.reproduction.paper_values import PAPER_ROWS
from experiments.reproduction.registry import PLANS
from tests.envs.games.test_coinrun import needs_game
from worldmodel import GenieRedux, GenieReduxG
from worldmodel.models.genie import load_world_model

GAME = ("CoinRun",)
DEBUG = reproduction_preset("debug", GAME)


@pytest.mark.parametrize("name", ["table2", "table3", "table13"])
def test_rows_are_those_of_the_paper(name: str) -> None:
    rows = PLANS[name](DEBUG).rows
    ours = [(row.group, row.data, row.label) for row in rows]
    assert sorted(ours) == sorted(PAPER_ROWS[name])
    for row in rows:
        assert row.mode == "one_pass"
        assert row.part in {"Tokenizer": "reconstruction", "LAM": "lam"}.get(
            row.label.removesuffix("-TA"), "prediction"
        )
        if row.label.startswith("GenieRedux"):
            assert row.actions == ("recorded" if "-G" in row.label else "inferred")


def test_training_and_tests_share_no_level() -> None:
    plan = PLANS["table3"](DEBUG)
    assert plan.base is not None
    for play in (plan.base, *(play for model in plan.models for play in model.play)):
        assert dict(play.options)["levels"] == 200
        assert "start_level" not in dict(play.options)
    for row in (*plan.rows, *PLANS["table2"](DEBUG).rows):
        (play,) = row.test
        assert dict(play.options)["start_level"] == 200
        assert ("velocity" in dict(play.options)) == (play.player == "diverse")


def test_agents_see_their_velocity_and_models_learn_the_lam_first() -> None:
    stages = {stage.name: stage for stage in item_stages("table3", DEBUG, "deep")}
    assert ("velocity", "painted") in stages["explore-trained-agent-CoinRun"].settings
    assert stages["data-diverse-CoinRun"].inputs == ("explore-trained-agent-CoinRun",)
    latent = stages["dynamics-latent-ta"]
    assert latent.inputs == ("tokenizer-ta", "lam-latent-ta", "data-trained-agent-CoinRun")
    assert latent.training is not None
    assert latent.training.config.dynamics.latent_actions
    assert latent.training.config.actions == latent.training.config.lam.codes == 7
    lam = stages["lam-latent"].training
    assert lam is not None
    assert lam.component == "lam"
    recorded = stages["dynamics-ta"].training
    assert recorded is not None
    assert recorded.config.actions == 7
    assert not recorded.config.dynamics.latent_actions


def test_models_of_the_agent_need_no_base_model() -> None:
    names = {stage.name for stage in item_stages("table13", DEBUG, "deep")}
    assert "model-base" not in names
    assert {"data-base-CoinRun", "model-ta", "model-latent-ta"} <= names


def test_preset_paper_has_the_sizes_of_appendix_f() -> None:
    c = reproduction_preset("paper", GAME)
    stages = item_stages("table3", c, "deep")
    trained = {stage.name: stage.training for stage in stages if stage.training is not None}
    assert {run.recipe.batch_size for run in trained.values()} == {84}
    assert trained["dynamics-latent"].recipe.iterations == 50_000
    assert {run.config.tokenizer.patch for run in trained.values()} == {4}


@needs_game
def test_dry_run_lists_the_latent_action_model(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["reproduce", "table2", "--preset", "debug", "--dry-run", "--hardware", "rtx4090"]
    assert execute(argv) == 0
    printed = capsys.readouterr().out
    assert "lam-latent" in printed
    assert "Training takes" in printed


def test_other_games_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["reproduce", "table2", "--preset", "debug", "--dry-run", "--games", "Counting"]
    assert execute(argv) == 2
    assert "table2 is about CoinRun: leave out --games" in capsys.readouterr().err
    assert find_item("table2").games == GAME


def test_the_model_beside_jafar_has_its_latent_actions() -> None:
    stages = {stage.name: stage for stage in item_stages("appendixF5", DEBUG, "deep")}
    for name in ("lam-jafar-sized", "dynamics-jafar-sized"):
        run = stages[name].training
        assert run is not None
        assert (run.config.lam.patch, run.config.lam.codes) == (16, 6)
    assert run.config.actions == 6
    other = stages["lam-latent"].training
    assert other is not None
    assert other.config.lam.codes == 7


def check_limits(folder: Path, printed: str) -> None:
    """Assert that the ranking of figure 24 and its pictures agree."""
    result = json.loads((folder / "ranking.json").read_text())
    ranking = result["ranking"]
    assert len(ranking) == result["windows"] > 1
    assert [row["psnr"] for row in ranking] == sorted(row["psnr"] for row in ranking)
    drawn = {row["drawn"]: row for row in ranking if row["drawn"]}
    assert set(drawn) == set(range(1, len(drawn) + 1))
    for number, row in drawn.items():
        assert row["newest"]
        assert f"episode {row['session']} from frame {row['start']}" in printed
        assert (folder / f"window-{number}.gif").exists()
    assert len({row["session"] for row in drawn.values()}) == len(drawn)
    assert "Spearman's rho of error and uncertainty" in result["text"]


@needs_game
@pytest.mark.slow
def test_the_case_study_runs_from_games_to_tables(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--preset", "debug", "--out", str(tmp_path / "out")]
    tables = {}
    for name in ("table2", "table3"):
        assert execute(["reproduce", name, *out]) == 0
        tables[name] = json.loads((tmp_path / "out" / f"{name}.json").read_text())["rows"]
    assert "34.44" in capsys.readouterr().out  # the paper's best row
    root = tmp_path / "out/seed-0"
    for name, rows in tables.items():
        assert len(rows) == len(PAPER_ROWS[name])
        for row in rows:
            assert row["metrics"]["psnr"]["mean"] > 0
            on_buttons = row["model"].startswith("GenieRedux-G")
            assert (row["metrics"]["delta_psnr"]["mean"] is not None) == on_buttons
            assert ("difference" in row) == on_buttons
    # No data set shows the squares that the agent saw.
    for play in ("base", "basic", "trained-agent", "diverse"):
        reader = EpisodeReader(root / f"data/{play}-CoinRun")
        frames = np.concatenate([reader[index].frames_THWC for index in range(len(reader))])
        assert frames.any()
        assert not frames[:, :13, :26].any()
    assert isinstance(load_world_model(root / "models/latent-ta"), GenieRedux)
    assert isinstance(load_world_model(root / "models/ta"), GenieReduxG)

    # Table 13 and the figures find the models there.
    before = (root / "stages/model-ta.json").stat().st_mtime_ns
    for name in ("table13", "figure16", "figure19", "figure21", "figure23", "figure24"):
        assert execute(["reproduce", name, *out]) == 0
    printed = capsys.readouterr().out
    assert "from above none, right, left, jump" in printed
    assert (root / "figures/figure19/actions.png").exists()
    horizon = json.loads((root / "figures/figure16/horizon.json").read_text())["modes"]
    assert list(horizon) == ["1 given frame", "4 given frames"]
    assert [len(of["overall"]["delta_psnr"]) for of in horizon.values()] == [10, 10]
    assert "(paper: 38.31)" in printed
    check_limits(root / "figures/figure24", printed)
    assert (root / "stages/model-ta.json").stat().st_mtime_ns == before
