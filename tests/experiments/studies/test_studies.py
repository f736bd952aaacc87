"""The ablation and its tables, calibration, and each study of one model end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.studies.ablation_runs import VARIANTS, AblationGrid, Budget, variant_config
from experiments.studies.ablation_tables import ablation_markdown, seed_interval
from experiments.studies.representation import replace_codes
from experiments.studies.uncertainty import TokenPredictions, plain_patches, separate
from tests.fixtures.datasets import record
from worldmodel.evaluation.calibration import auc, reliability


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("study") / "data", episodes=3, steps=40)


def figures(out: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((out / f"{name}.json").read_text()))


# Ablation


def ablation(data: str, out: Path, *more: str) -> int:
    argv = ["study", "ablation", "--data", data, "--out", str(out), "--preset", "debug"]
    argv += ["--seeds", "0", "1", "--variants", "base", "masked", "--iterations", "2"]
    argv += ["--tokenizer-iterations", "2", "--horizon", "4"]
    return execute([*argv, "--sampling-steps", "1", "--limit", "2", *more])


def test_an_ablation_measures_every_cell_once_and_continues(data: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert ablation(data, out) == 0
    cells = sorted(file.parent.name for file in out.glob("cells/*/cell.json"))
    assert cells == ["base-seed-0", "base-seed-1", "masked-seed-0", "masked-seed-1"]
    first = figures(out, "ablation")
    rows = first["modes"]["autoregressive"]
    assert [row["seeds"] for row in rows.values()] == [[0, 1]] * 2
    one, other = (rows[name]["overall"]["all_steps"]["values"] for name in ("base", "masked"))
    found = rows["masked"]["overall"]["differences"]["all_steps"]["values"]
    assert found == pytest.approx([b - a for a, b in zip(one, other, strict=True)])
    base = json.loads((out / "cells/base-seed-0/cell.json").read_text())
    assert base["asked"]["config"]["dynamics"]["token_input"] is False
    assert base["asked"]["recipe"]["iterations"] == 2
    shown = (out / "ablation.md").read_text()
    assert "| base: no token input, plain cross-entropy | 2 | 2 |" in shown
    assert Image.open(out / "ablation.png").size[0] > 500

    # One cell is lost: only this one is computed again, with the same result.
    lost, kept = out / "cells/masked-seed-1/cell.json", out / "cells/base-seed-0/cell.json"
    written = kept.stat().st_mtime_ns
    lost.unlink()
    assert ablation(data, out) == 0
    assert figures(out, "ablation") == first
    assert kept.stat().st_mtime_ns == written


@pytest.mark.slow
def test_an_ablation_on_ray_gives_the_same(ray_cluster: None, data: str, tmp_path: Path) -> None:
    for name, parallel in (("one", "1"), ("two", "2")):
        assert ablation(data, tmp_path / name, "--parallel", parallel, "--modes", "one_pass") == 0
    assert figures(tmp_path / "one", "ablation") == figures(tmp_path / "two", "ablation")


def test_another_ablation_or_folder_is_refused(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"data": ["elsewhere"]}))
    assert ablation(data, tmp_path) == 2
    assert "whose data is ['elsewhere']" in capsys.readouterr().err
    (tmp_path / "config.json").rename(tmp_path / "thesis.tex")
    assert ablation(data, tmp_path) == 2
    assert "something else than an ablation" in capsys.readouterr().err
    assert ablation(data, tmp_path / "new", "--variants", "nothing") == 2
    assert "masked_frames" in capsys.readouterr().err
    assert ablation(data, tmp_path / "new", "--cpu-seconds", "5") == 2
    assert "give one of them" in capsys.readouterr().err
    with pytest.raises(InputError, match="cpu-seconds -1"):
        Budget(cpu_seconds=-1)


def test_variants_that_a_preset_makes_the_same_share_their_cells() -> None:
    grid = AblationGrid(*(Path(), VARIANTS, (), (), "debug", Budget(), Budget(), ()), evaluate={})
    owners = grid.cell_owners()
    assert owners["clean_past"] == owners["tdce"] == "tdce"
    assert owners["masked"] == "masked"
    assert dataclasses.replace(grid, preset="paper").cell_owners()["masked"] == "tdce"
    assert variant_config("cpu", VARIANTS["single_frames"]).dynamics.chunk_lengths == (1,)


def test_an_interval_over_seeds_is_students() -> None:
    found = seed_interval([1.0, 2.0, 3.0])
    assert found["mean"] == pytest.approx(2)
    assert found["high"] - 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
    assert seed_interval([2.5])["low"] is None
    assert seed_interval([None])["mean"] is None


def test_an_empty_ablation_has_no_table() -> None:
    evaluated = {"horizon": 10, "steps": 25, "limit": None}
    settings = {"preset": "cpu", "test_data": [], "evaluate": evaluated}
    budget = {"iterations": None, "cpu_seconds": 600.0}
    shown = ablation_markdown(
        {
            "settings": {**settings, "tokenizer": budget, "dynamics": budget},
            "modes": {"one_pass": {}},
        }
    )
    assert "600 CPU-seconds" in shown
    assert "|" not in shown


# Calibration


def test_calibration_error_is_zero_for_calibrated_and_the_gap_for_excessive_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(60_000, generator=generator)
    calibrated = torch.rand(60_000, generator=generator) < confidence
    found = reliability(confidence, calibrated)
    assert found["ece"] < 0.01
    assert [part["confidence"] for part in found["bins"]] == sorted(
        part["confidence"] for part in found["bins"]
    )
    assert sum(part["tokens"] for part in found["bins"]) == 60_000
    overconfident = reliability(torch.full((1000,), 0.9), torch.arange(1000) % 2 == 0)
    assert overconfident["ece"] == pytest.approx(0.4, abs=0.01)


def test_auc_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(6, (40,), generator=generator).float()
    positive = torch.rand(40, generator=generator) < 0.4
    pairs = scores[positive][:, None] - scores[~positive][None]
    assert auc(scores, positive) == pytest.approx(
        ((pairs > 0).float() + (pairs == 0) / 2).mean().item()
    )
    assert auc(scores, torch.ones(40, dtype=torch.bool)) is None


# Studies of one model


def test_every_token_but_the_background_takes_its_nearest_or_farthest_code() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [0.0, -1.0]])
    made = replace_codes(torch.tensor([[[[0, 1], [2, 3]]]]), codes, background=3)
    assert made["nearest"].flatten().tolist() == [1, 0, 3, 3]
    assert made["farthest"].flatten().tolist() == [2, 2, 0, 3]


@pytest.mark.parametrize(
    ("name", "flags", "pictures"),
    [
        ("representation", ["--limit", "3"], {"representation-Counting.png"}),
        ("uncertainty", ["--limit", "8"], {"uncertainty.png", "uncertainty-Counting.png"}),
        ("horizon", ["--limit", "2", "--horizon", "8", "--sampling-steps", "1"], {"horizon.png"}),
        (
            "steps",
            ["--limit", "2", "--horizon", "4", "--steps", "1", "2", "--repeats", "1"],
            {"steps.png"},
        ),
    ],
)
def test_each_study_writes_figures_and_pictures(
    name: str, flags: list[str], pictures: set[str], tiny_world: Path, data: str, tmp_path: Path
) -> None:
    assert (
        execute(["study", name, str(tiny_world), "--data", data, "--out", str(tmp_path), *flags])
        == 0
    )
    assert {file.name for file in tmp_path.glob("*.png")} == pictures
    for picture in pictures:
        assert min(Image.open(tmp_path / picture).size) > 100
    found = figures(tmp_path, name)
    if name == "representation":
        of = found["games"]["Counting"]
        assert of["psnr"].keys() == {"reconstruction", "nearest", "farthest"}
        assert 0 <= of["background"]["moving"] <= 1
        assert 0 < of["replaced"] < 1
    elif name == "uncertainty":
        of = found["overall"]
        assert of == found["games"]["Counting"]
        assert sum(part["tokens"] for part in of["bins"]) == 8 * 64
        assert of["separation"].keys() == {"entropy"}, "disagreement needs the training data"
        assert 0 <= of["separation"]["entropy"]["scenes"] <= 1
        assert 0 <= of["ece"] <= 1
    elif name == "horizon":
        for mode in ("one_pass", "autoregressive"):
            assert len(found["modes"][mode]["overall"]["delta_psnr"]) == 8
        assert found["window"] == 8
    else:
        assert [(row["mode"], row["steps"]) for row in found["rows"]] == [
            (mode, steps) for mode in ("one_pass", "autoregressive") for steps in (1, 2)
        ]
        assert all(row["seconds_a_frame"] > 0 for row in found["rows"])


def test_with_its_training_data_a_model_is_measured_by_disagreement_too(
    tiny_world: Path, data: str, tmp_path: Path
) -> None:
    argv = ["study", "uncertainty", str(tiny_world), "--data", data, "--limit", "8"]
    assert execute([*argv, "--reference-data", data, "--out", str(tmp_path)]) == 0
    of = figures(tmp_path, "uncertainty")["overall"]
    assert of["separation"].keys() == {"entropy", "disagreement"}
    assert of["unseen_share"] == 0, "its own screens"
    for separated in of["separation"].values():
        assert separated["unseen"] is None, "there is nothing to tell apart"
        assert 0 <= separated["patches"] <= 1


def test_uncertainty_is_compared_between_kinds_of_patches_and_screens() -> None:
    # Two windows of four tokens: the first idle and plain, the second with two moving patches.
    moving = torch.tensor([[False, False, False, False], [True, True, False, False]])
    plain = torch.tensor([[True, True, True, True], [False, False, False, True]])
    frames = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    uncertain = torch.tensor([[0.0, 0.1, 0.0, 0.1], [0.5, 0.3, 0.4, 0.2]])
    whatever = torch.zeros(2, 4)
    predictions = TokenPredictions(
        frames, frames, uncertain, torch.empty(2, 0), whatever, moving, whatever, moving, plain
    )
    unseen = torch.tensor([False, True])
    separated = separate(uncertain, predictions, unseen)
    # Of 2 x 6 pairs of a moving and a static patch, one static patch (0.4) is above one (0.3).
    assert separated["patches"] == pytest.approx(11 / 12)
    assert (separated["plain"], separated["scenes"], separated["unseen"]) == (1, 1, 1)
    assert separate(1 - uncertain, predictions, unseen)["unseen"] == 0
    assert separate(uncertain, predictions, None)["unseen"] is None
    colours = torch.zeros(1, 3, 8, 8)
    colours[:, 0, 0, 0] = colours[:, 2, 4:, 4:] = 1.0
    assert plain_patches(colours, 2).tolist() == [[[False, True], [True, True]]]
