"""`reproduce`: the list of the paper's items, their stages, and small runs from games to tables."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.utils.atomic_io import read_json, write_json_atomic
from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.code_version import code_version
from experiments.pipeline.runner import StageContext
from experiments.reproduction.arguments import reproduction_preset
from experiments.reproduction.items import ITEMS, find_item
from experiments.reproduction.make import item_stages
from experiments.reproduction.paper_values import PAPER_ROWS
from experiments.reproduction.registry import FIGURES, PLANS
from tests.fixtures.datasets import record

TWO_GAMES = ("Counting", "Corridor")


def test_list_names_every_table_and_figure_with_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert execute(["reproduce", "--list", "--json"]) == 0
    items = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert {f"table{n}" for n in range(1, 14)} <= set(items)
    # Figures 1 and 2 are drawings of the method.
    assert {f"figure{n}" for n in range(3, 25)} <= set(items)
    assert all(item["needed"] for item in items.values() if item["state"] == "needs")
    assert all(item["command"].startswith("autoexplore ") for item in items.values())
    assert items["figure20"]["command"] == "autoexplore reproduce figure20 --peer DIR"
    assert items["table5"]["command"] == "autoexplore reproduce table5"
    assert execute(["reproduce", "--list"]) == 0
    assert "table13" in capsys.readouterr().out


def test_what_the_list_says_is_made_has_a_plan() -> None:
    made = {item.name for item in ITEMS if item.is_made_here}
    settings = {item.name for item in ITEMS if item.kind == "settings"}
    assert made == settings | set(PLANS) | set(FIGURES)
    assert set(PAPER_ROWS) == set(PLANS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("table99", "no such item"),
        ("appendixA2", "autoexplore expert"),
    ],
)
def test_an_item_that_cannot_be_made_is_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_item(name)


def test_items_are_found_by_short_names() -> None:
    assert find_item("fig7") is find_item("Figure7") is find_item("fig.7")


@pytest.mark.parametrize("name", [*PLANS, *FIGURES])
@pytest.mark.parametrize("test", ["deep", "expert"])
def test_stages_read_only_what_earlier_ones_wrote(name: str, test: str) -> None:
    c = replace(reproduction_preset("debug"), games=TWO_GAMES, explorers=("archive", "agent"))
    done: set[str] = set()
    outputs: set[str] = set()
    for stage in item_stages(name, c, test):
        assert set(stage.inputs) <= done, stage.name
        assert stage.name not in done
        assert stage.output not in outputs
        done.add(stage.name)
        outputs.add(stage.output)


def test_table_12_trains_one_model_on_all_games() -> None:
    c = replace(reproduction_preset("debug"), games=TWO_GAMES)
    stages = {stage.name: stage for stage in item_stages("table12", c, "deep")}
    assert stages["dynamics-agent-together"].inputs[-2:] == (
        "data-agent-Counting",
        "data-agent-Corridor",
    )
    assert "dynamics-agent-Counting" not in stages


def test_models_from_scratch_train_for_15000_steps_at_the_papers_size() -> None:
    c = reproduction_preset("paper")
    stages = {stage.name: stage for stage in item_stages("table5", c, "expert")}
    run = stages["dynamics-scratch-Smurfs-Nes"].training
    assert run is not None
    assert run.recipe.iterations == 15_000


def test_the_papers_base_model_learns_from_200_games_then_from_50() -> None:
    c = reproduction_preset("paper")
    assert (c.pretraining_games, c.base_games) == (("platformers-200",), ("platformers-50",))
    stages = {stage.name: stage for stage in item_stages("table4", c, "expert")}
    many, base = "data-pretraining-platformers-200", "data-base-together"
    assert stages["tokenizer"].inputs == (many, base)
    assert stages["dynamics-pretraining"].inputs == ("tokenizer", many)
    assert stages["dynamics"].inputs == ("tokenizer", "dynamics-pretraining", base)
    steps = {}
    for name in ("dynamics-pretraining", "dynamics"):
        run = stages[name].training
        assert run is not None
        steps[name] = (run.recipe.iterations, run.recipe.batch_size)
    assert steps == {"dynamics-pretraining": (185_000, 80), "dynamics": (80_000, 160)}
    assert "score-pretrained-held-out-together-one_pass" in stages
    assert "score-base-held-out-together-one_pass" in stages


@pytest.mark.parametrize("name", ["table7", "table8", "table9", "table10"])
def test_settings_of_preset_paper_are_the_papers(name: str, tmp_path: Path) -> None:
    assert execute(["reproduce", name, "--preset", "paper", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert len(rows) >= 5
    for row in rows:
        assert row["value"] == pytest.approx(row["paper"]), row["setting"]


def test_dry_run_predicts_training_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["reproduce", "table4", "--preset", "debug", "--dry-run", "--hardware", "rtx4090"]
    assert execute([*argv, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "dynamics-token-input" in printed
    assert "Training takes" in printed
    assert not (tmp_path / "out").exists()


def test_bad_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out"), "--preset", "debug"]
    for argv, words in (
        (["reproduce"], "name a table or figure"),
        (["reproduce", "table5", "--preset", "debug"], "needs --out"),
        (["reproduce", "table5", *out, "--test", "tas"], "choose from auto, expert, deep"),
        (["reproduce", "table5", *out, "--seeds", "1", "1"], "each seed once"),
        (["reproduce", "table5", *out, "--games", "Counting", "CoinRun"], "actions"),
    ):
        assert execute(argv) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert execute(["reproduce", "table5", *out]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_a_test_set_that_a_model_learned_from_is_refused(tmp_path: Path) -> None:
    c = reproduction_preset("debug")
    stages = {stage.name: stage for stage in item_stages("table5", c, "deep")}
    test, learned = "data-test-Counting", "data-agent-Counting"
    for name in (test, learned):
        record(tmp_path / stages[name].output, episodes=2, steps=20)
    model = "model-agent-Counting"
    (tmp_path / "stages").mkdir()
    for name, read in ((model, "dynamics-agent-Counting"), ("dynamics-agent-Counting", learned)):
        write_json_atomic(tmp_path / f"stages/{name}.json", {"read": {read: "hash"}})
    write_json_atomic(tmp_path / f"stages/{learned}.json", {})
    score = stages["score-agent-Counting-test-Counting-one_pass"]
    context = StageContext(tmp_path, c, out=tmp_path / score.output, resume=False)
    context.stages = stages
    with pytest.raises(InputError, match=r"2 of 2 episodes to evaluate are in .*agent-Counting"):
        score.run(context)


def check_sources(root: Path, row: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that a row names what it comes from, and that a changed number is found."""
    (source,) = row["sources"]
    assert source["seed"] == 0
    assert source["code"] == code_version()
    assert (root / source["file"]).exists()
    records = root / "seed-0/stages"
    for part in ("read", "trained"):
        for name, value in source[part].items():
            assert read_json(records / f"{name}.json")["output_hash"] == value
    assert {"model-agent-Counting", "data-test-Counting"} <= set(source["read"])
    assert {"data-base-Counting", "data-pretraining-Corridor", "data-agent-Counting"} <= set(
        source["trained"]
    )
    page = (root / "table5/index.html").read_text()
    assert f'<a href="../{source["file"]}">' in page
    assert '<a href="#row-1">' in page
    assert '<span id="row-1">' in page

    assert execute(["report", str(root), "--check"]) == 0
    assert "no faults" in " ".join(capsys.readouterr().out.split())
    table = root / "table5.json"
    whole = table.read_text()
    changed = json.loads(whole)
    changed["rows"][0]["metrics"]["psnr"]["mean"] += 1
    table.write_text(json.dumps(changed))
    assert execute(["report", str(root), "--check"]) == 2
    assert "table5.json, row 1: psnr (mean)" in " ".join(capsys.readouterr().out.split())
    table.write_text(whole)


@pytest.mark.slow
def test_tables_and_figures_share_models_and_are_not_repeated(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--preset", "debug", "--out", str(tmp_path / "out"), "--seeds", "0"]
    assert execute(["reproduce", "table5", *out]) == 0
    printed = capsys.readouterr().out
    assert "37.77" in printed  # the paper's best row
    found = json.loads((tmp_path / "out" / "table5.json").read_text())
    rows = {(row["data"], row["model"]): row for row in found["rows"]}
    assert set(rows) == {
        ("random", "GenieRedux-G, base"),
        ("random", "GenieRedux-G-ft"),
        ("explored", "tokenizer-ft"),
        ("explored", "GenieRedux-G, from scratch"),
        ("explored", "GenieRedux-G-ft"),
        ("random, autoregressive", "GenieRedux-G-ft"),
        ("explored, autoregressive", "GenieRedux-G-ft"),
    }
    explored = rows["explored", "GenieRedux-G-ft"]
    difference = (
        explored["metrics"]["psnr"]["mean"]
        - (rows["random", "GenieRedux-G-ft"]["metrics"]["psnr"]["mean"])
    )
    assert explored["difference"]["psnr"]["mean"] == pytest.approx(difference, abs=1e-4)
    assert rows["explored", "tokenizer-ft"]["metrics"]["delta_psnr"]["mean"] is None
    check_sources(tmp_path / "out", explored, capsys)

    # Table 11 finds the models there, and adds two scores.
    assert execute(["reproduce", "table11", *out]) == 0
    scored = sorted(path.stem for path in (tmp_path / "out/seed-0/stages").glob("score-*.json"))
    assert len(scored) == 8
    model = tmp_path / "out/seed-0/stages/model-agent-Counting.json"
    before = model.stat().st_mtime_ns
    capsys.readouterr()
    for figure in ("figure7", "figure10"):
        assert execute(["reproduce", figure, *out]) == 0
    assert "real, random-Counting, agent-Counting" in capsys.readouterr().out
    for figure in ("figure7", "figure10"):
        assert (tmp_path / f"out/seed-0/figures/{figure}/Counting.png").exists()
    assert model.stat().st_mtime_ns == before

    # Results with other settings need another folder.
    assert execute(["reproduce", "table5", *out, "--test", "expert"]) == 2
    assert "whose test is deep, not expert" in capsys.readouterr().err
