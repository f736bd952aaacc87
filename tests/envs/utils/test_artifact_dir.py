"""Folders of weights: replaced whole, and cleaned up after a crash."""

import os
from pathlib import Path

import pytest

from envs.utils.artifact_dir import new_artifact, read_artifact, remove_partial_checkpoints


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "best"
    with new_artifact(path, format="a-1", step=1) as folder:
        (folder / "old.json").write_text("1")
    with pytest.raises(OSError, match="disk full"), new_artifact(path, format="a-1", step=2):
        raise OSError("disk full")
    assert read_artifact(path, "agent", "a-1")["step"] == 1
    with new_artifact(path, format="a-1", step=3) as folder:
        (folder / "new.json").write_text("3")
    assert read_artifact(path, "agent", "a-1")["step"] == 3
    assert {file.name for file in path.iterdir()} == {"new.json", "manifest.json"}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_is_deleted_or_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name in (".step-00000002.k3x.tmp", ".step-00000001.old.tmp", "step-00000003"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "state.json").write_text("{}")
    remove_partial_checkpoints(tmp_path)
    assert [folder.name for folder in checkpoints.iterdir()] == ["step-00000003"]
    assert "step-00000003 is ignored" in capsys.readouterr().out


def test_a_failing_rename_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best"
    with new_artifact(path, format="a-1", step=1):
        pass
    rename = os.replace

    def fail_on_the_new_folder(source: Path, target: Path) -> None:
        if target == path and ".old." not in Path(source).name:
            raise OSError("no space")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_on_the_new_folder)
    with pytest.raises(OSError, match="no space"), new_artifact(path, format="a-1", step=2):
        pass
    assert read_artifact(path, "agent", "a-1")["step"] == 1
    assert list(tmp_path.iterdir()) == [path]
