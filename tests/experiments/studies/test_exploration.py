"""The study of exploration: a small one from playing to its tables, and the words of its tables."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import nn

from envs.episodes.dataset import EpisodeReader
from envs.utils.run_dir import read_metrics
from experiments.__main__ import execute
from experiments.studies.exploration_cell import AGENTS, TESTS
from experiments.studies.exploration_tables import (
    MAP_COLOURS,
    combine_seeds,
    compare_distances,
    compare_to_baseline,
    differences_table,
    means_table,
)
from worldmodel import GenieReduxG
from worldmodel.evaluation.feature_networks import network_name


def equal_weights(one: nn.Module, other: nn.Module) -> bool:
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


@pytest.mark.slow
def test_a_small_study_runs_to_its_tables_and_is_not_repeated(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    argv = ["study", "exploration", "Corridor", "--preset", "debug", "--out", str(out)]
    argv += ["--arms", "random", "random-longer", "archive-count", "--seeds", "0", "--data", "half"]
    argv += ["--factorial", "archive-count"]
    argv += ["--steps", "800", "--base-steps", "800", "--test-episodes", "1", "--limit", "2"]
    argv += ["--decoder-iterations", "2", "--dynamics-iterations", "2"]
    assert execute(argv) == 0
    found = json.loads((out / "exploration.json").read_text())
    rows = {(row["arm"], row["test"]): row for row in found["rows"]}
    halves = {"archive-count-decoder", "archive-count-dynamics"}
    assert {arm for arm, _ in rows} == {"base", "random", "random-longer", "archive-count", *halves}
    assert {test for _, test in rows} == {*TESTS, "unseen"}
    assert rows["archive-count", "deep"]["windows"] == 2
    assert rows["random", "near"]["psnr"]["difference"][0] == 0
    assert rows["base", "near"]["psnr"]["mean"] > 0
    (cell,) = found["cells"]
    assert cell["arms"]["random"]["frames"] == 802
    trained = read_metrics(out / "Corridor/seed-0/explore")[-1]["explore/env_steps"]
    assert cell["arms"]["random-longer"]["frames"] >= 800 + trained
    assert sum(cell["arms"]["random"]["actions"].values()) == pytest.approx(1)
    picture = np.asarray(Image.open(out / "map-Corridor.png"))
    assert (picture == ImageColor.getrgb(MAP_COLOURS["blue"])).all(-1).any()
    if network_name() is not None:
        assert rows["archive-count", "deep"]["fid"]["mean"] > 0
        assert rows["random", "deep"]["fid"]["difference"] == [0, None, None]
    model = GenieReduxG.load(out / "Corridor/seed-0/models/archive-count-decoder-half")
    arm, random = (
        GenieReduxG.load(out / "Corridor/seed-0/models" / f"{name}-half")
        for name in ("archive-count", "random")
    )
    assert equal_weights(model.tokenizer, arm.tokenizer)
    assert equal_weights(model.dynamics, random.dynamics)
    assert not equal_weights(model.dynamics, arm.dynamics)
    printed = capsys.readouterr().out
    assert "Corridor, mean PSNR in dB" in printed
    before = (out / "Corridor/seed-0/data/random/manifest.json").stat().st_mtime_ns
    assert execute(argv) == 0
    assert (out / "Corridor/seed-0/data/random/manifest.json").stat().st_mtime_ns == before
    elsewhere = tmp_path / "elsewhere.json"

    def run_with(**changed: Any) -> int:
        other = {"cells": [cell | {"seed": 7} | changed]}
        elsewhere.write_text(json.dumps(other))
        return execute([*argv, "--results", str(elsewhere)])

    assert run_with(seed=0) == 2
    assert "Corridor, seed 0 is in this study already" in capsys.readouterr().err
    assert run_with(settings=cell["settings"] | {"limit": 5}) == 2
    assert "was run with limit 5, this study with 2" in capsys.readouterr().err
    assert run_with() == 0
    both = json.loads((out / "exploration.json").read_text())
    assert [each["seed"] for each in both["cells"]] == [0, 7]
    assert all(row["seeds"] == [0, 7] for row in both["rows"])
    assert both["rows"][0]["windows"] == 2 * found["rows"][0]["windows"]


@pytest.mark.slow
def test_every_trained_and_archive_arm_plays_its_own_steps(
    ray_cluster: None, tmp_path: Path
) -> None:
    arms = ("random", "hold", "agent", "archive-entropy", "archive-disagreement", "agent-archive")
    out = tmp_path / "study"
    argv = ["study", "exploration", "Corridor", "--preset", "debug", "--out", str(out)]
    argv += ["--arms", *arms, "--seeds", "0", "--data", "new", "--steps", "1000"]
    argv += ["--base-steps", "400", "--test-episodes", "1", "--limit", "2"]
    argv += ["--decoder-iterations", "1", "--dynamics-iterations", "1"]
    assert execute(argv) == 0
    found = json.loads((out / "exploration.json").read_text())
    for arm in arms:
        tests = {row["test"] for row in found["rows"] if row["arm"] == arm and row["windows"]}
        assert set(TESTS) <= tests
    (cell,) = found["cells"]
    root = out / "Corridor/seed-0"
    sessions: set[str] = set()
    for arm in arms:
        reader = EpisodeReader(root / "data" / arm)
        frames = sum(record.num_frames for record in reader.records)
        assert 1000 <= frames < 1000 + 808, "up to one round of eight short episodes more"
        assert cell["arms"][arm]["frames"] == frames
        own = {record.session_id for record in reader.records}
        assert not own & sessions, "no two arms have an episode in common"
        sessions |= own
    for arm, stage in AGENTS.items():
        trained = read_metrics(root / stage)[-1]["explore/env_steps"]
        assert cell["arms"][arm]["training_steps"] == trained > 0
    assert json.loads((root / "explore/config.json").read_text())["archive"] is None
    begins = json.loads((root / "explore-archive/config.json").read_text())["archive"]
    assert Path(begins).name == "archive-entropy"
    for arm in ("archive-disagreement", "agent-archive"):
        episodes = EpisodeReader(root / "data" / arm)
        paths = [episodes[index].info["path"] for index in range(len(episodes))]
        assert any(paths), "episodes of the second round begin at savestates"
    assert (root / "data/archive-disagreement/archive/disagreement.safetensors").exists()


@pytest.mark.slow
def test_arms_are_added_to_a_finished_study(ray_cluster: None, tmp_path: Path) -> None:
    out = tmp_path / "study"
    argv = ["study", "exploration", "Corridor", "--preset", "debug", "--out", str(out)]
    argv += ["--seeds", "0", "1", "--data", "new", "--steps", "400", "--base-steps", "400"]
    argv += ["--test-episodes", "1", "--limit", "2"]
    argv += ["--decoder-iterations", "1", "--dynamics-iterations", "1", "--arms", "random"]
    assert execute(argv) == 0
    before = json.loads((out / "exploration.json").read_text())
    kept = {path: path.stat().st_mtime_ns for path in out.glob("Corridor/seed-*/stages/*.json")}
    assert execute([*argv, "sticky"]) == 0
    after = json.loads((out / "exploration.json").read_text())
    assert {row["arm"] for row in after["rows"]} == {"base", "random", "sticky"}
    assert all(row["seeds"] == [0, 1] for row in after["rows"])
    assert [row for row in after["rows"] if row["arm"] != "sticky"] == before["rows"]
    assert [set(cell["arms"]) for cell in after["cells"]] == 2 * [{"random", "sticky"}]
    again = {path for path, written in kept.items() if path.stat().st_mtime_ns != written}
    assert {path.name for path in again} == {"cell.json"}
    new = {path.name for path in out.glob("Corridor/seed-*/stages/*.json") if path not in kept}
    assert new == {
        f"{part}.json"
        for part in ("data-sticky", "decoder-sticky-new", "dynamics-sticky-new",
                     "model-sticky-new", "score-sticky-new")
    }  # fmt: skip


def test_differences_are_paired_and_several_seeds_give_the_interval() -> None:
    def scores(*psnr: float) -> dict[str, np.ndarray]:
        return {"psnr": np.array(psnr), "session": np.array(["a", "a", "b", "b"])}

    one = compare_to_baseline(scores(2, 3, 4, 5), scores(1, 2, 2, 3), "psnr")
    assert one["mean"] == 3.5
    assert one["difference"][0] == pytest.approx(1.5)
    assert one["difference"][1] < 1.5 < one["difference"][2]
    assert combine_seeds([one]) == one
    arm, other = scores(2, 2, 2, 2), scores(1, 1, 1, 1)
    two = compare_to_baseline(arm, scores(0, 0, 0, 0), "psnr")
    several = combine_seeds([compare_to_baseline(arm, other, "psnr"), two])
    # Means 1 and 2: deviation 0.707, error 0.5, t(1) = 12.706.
    assert several["difference"] == pytest.approx([1.5, 1.5 - 6.353, 1.5 + 6.353], abs=1e-3)
    distances = [
        compare_distances({"fid": np.array(mine)}, {"fid": np.array(mine + 2)}) for mine in (3.0, 4)
    ]
    assert distances[0] == {"mean": 3, "difference": [-2, None, None]}
    assert combine_seeds(distances) == {"mean": 3.5, "difference": [-2, -2, -2]}
    nothing = {"psnr": np.full(4, math.nan), "session": arm["session"]}
    unknown = compare_to_baseline(nothing, nothing, "psnr")
    assert unknown == {"mean": None, "difference": None}
    assert combine_seeds([unknown, two]) == two
    assert combine_seeds([unknown, unknown]) == unknown


def test_tables_show_means_of_all_models_and_differences_to_the_random_arm() -> None:
    tests = (*TESTS, "unseen")

    def rows(arm: str, data: str, mean: float) -> list[dict]:
        value = {"mean": mean, "difference": [mean - 20, mean - 21, mean - 19]}
        return [
            {"arm": arm, "data": data, "test": test, "psnr": value, "delta_psnr": value}
            for test in tests[:-1]
        ] + [{"arm": arm, "data": data, "test": "unseen"}]

    every = [*rows("base", "", 19), *rows("random", "new", 20), *rows("archive-count", "new", 22)]
    means = means_table(every)
    assert means.columns == ["arm", "data", *tests]
    assert means.rows[0] == ["base", "-", *["19.00"] * len(TESTS), "-"]
    differences = differences_table(every[len(tests) :])
    assert [row[0] for row in differences.rows] == ["archive-count"]
    assert differences.rows[0][1] == "+2.00 [1.00, 3.00]"
