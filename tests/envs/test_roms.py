"""Import of ROMs by their checksums."""

import zipfile
from pathlib import Path

import pytest
import stable_retro

from envs import catalog, roms
from envs.utils.errors import InputError

PLAYABLE = catalog.games(playable=True)


def test_roms_are_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "data" / "Game-Genesis-v0").mkdir(parents=True)
    rom = bytes(range(256))
    with zipfile.ZipFile(tmp_path / "incoming" / "pack.zip", "w") as archive:
        archive.writestr("game.md", rom)
    (tmp_path / "incoming" / "other.md").write_bytes(b"not a known game")
    known = {
        "4916d6bdb7f78e6803698cab32d1586ea457dfc8": (
            "Game-Genesis-v0",
            ".md",
            str(tmp_path / "data"),
        )
    }
    monkeypatch.setattr(stable_retro.data, "get_known_hashes", lambda: known)
    assert roms.import_roms(tmp_path / "incoming") == ["Game-Genesis"]
    stored = tmp_path / "data" / "Game-Genesis-v0" / "rom.md"
    assert stored.read_bytes() == rom
    assert roms.import_roms(tmp_path / "incoming") == []
    with pytest.raises(InputError, match="there is no folder"):
        roms.import_roms(tmp_path / "nowhere")


def test_roms_command_says_what_can_be_played(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    roms.main([])
    assert capsys.readouterr().out == f"0 games imported; {len(PLAYABLE)} of 1006 can be played\n"
    monkeypatch.setattr(roms, "bundled_folder", lambda: None)
    roms.main([])
    assert "ale-py is not installed" in capsys.readouterr().out


def test_roms_of_shared_storage_are_imported_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(roms, "import_roms", lambda folder: asked.append(folder) or ["Game"])
    monkeypatch.setenv(roms.FOLDER_VARIABLE, str(tmp_path))
    roms.main([])
    assert asked == [roms.bundled_folder(), tmp_path]
    assert capsys.readouterr().out.startswith("2 games imported")
    roms.main(["elsewhere"])
    assert asked[2:] == [Path("elsewhere")]
