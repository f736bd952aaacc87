"""`report --check`: a run that nobody touched, and runs with changed scores, models and code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import execute
from experiments.code_version import code_version
from experiments.pipeline.check import check_run, describe_check
from experiments.pipeline.runner import output_hash


@pytest.fixture
def run(finished_run: tuple[Path, str], tmp_path: Path) -> Path:
    """Return a copy of a finished pipeline that a test may change."""
    return Path(shutil.copytree(finished_run[0], tmp_path / "run", ignore=_cached))


def _cached(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "cache"]


def test_an_untouched_run_has_no_faults(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = check_run(run)
    assert result.faults == result.unfinished == []
    assert result.outputs == len(list((run / "stages").glob("*.json")))
    assert result.means > 20
    assert set(result.versions) == {code_version()}
    assert execute(["report", str(run), "--check"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{result.outputs} outputs compared" in printed
    assert "no faults" in printed


def test_changed_and_missing_outputs_are_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "data/test-random")
    manifest = run / "models/base/manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    faults = check_run(run).faults
    assert len(faults) == 2
    assert any("test-random is gone" in fault for fault in faults)
    assert any("models/base was changed since" in fault for fault in faults)
    assert execute(["report", str(run), "--check"]) == 2
    assert "2 of its files are not what was recorded" in capsys.readouterr().err


def test_a_mean_that_its_windows_do_not_have_is_a_fault(run: Path) -> None:
    file = run / "evaluation/base-random.npz"
    with np.load(file) as arrays:
        windows = dict(arrays)
    windows["psnr"] = windows["psnr"] + 1
    np.savez(file, **windows)
    faults = check_run(run).faults
    # The folder's files changed too.
    assert any("evaluation was changed since" in fault for fault in faults)
    record = run / "stages/evaluate.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"output_hash": output_hash(run / "evaluation")}))
    (fault,) = check_run(run).faults
    assert "base-random.json: psnr is" in fault


def test_other_code_and_unfinished_stages_are_named(run: Path) -> None:
    record = run / "stages/tokenizer.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"code": "0.1.0+0123456789ab"}))
    stage = run / "stages/report.json"
    stage.write_text(json.dumps(json.loads(stage.read_text()) | {"state": "started"}))
    lines = describe_check(check_run(run))
    assert any("not finished: report" in line for line in lines)
    assert any("1 by 0.1.0+0123456789ab" in line for line in lines)


def test_a_folder_without_stages_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["report", str(tmp_path), "--check"]) == 2
    assert "holds no stages" in capsys.readouterr().err
