"""`python -m envs.roms [FOLDER ...]`: import ROMs into stable-retro by their checksums.

Without a folder it imports the Atari games of the package `ale-py` and the ROMs in the folder that
AUTOEXPLORE_ROMS names, if it is set: machines of a cluster import theirs from shared storage when
they start. Only ROMs known to stable-retro are imported, and importing again changes nothing. You
have to supply ROMs of other games: this project contains none.
"""

import argparse
import importlib.util
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import stable_retro.data

from envs import catalog
from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError

MAX_ROM_BYTES = 2**25
"""Size of the largest ROM that stable-retro accepts."""
FOLDER_VARIABLE = "AUTOEXPLORE_ROMS"
"""Environment variable with the folder of your ROMs, the same on every machine of a cluster."""
EXTENSIONS = {*stable_retro.data.EMU_EXTENSIONS, ".bin", ".smd", ".smc", ".zip"}


def import_roms(folder: Path) -> list[str]:
    """Import every ROM below `folder`, also from zip archives, and return the new games, sorted.

    Raises: InputError if `folder` does not exist or a ROM cannot be stored.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give a folder with ROM files")
    known = stable_retro.data.get_known_hashes()
    imported = []
    for file in sorted(item for item in folder.rglob("*") if item.suffix.lower() in EXTENSIONS):
        for name, data in _contents(file):
            rom, sha1 = _groom(name, data)
            if sha1 not in known:
                continue
            game, extension, home = known[sha1]
            target = Path(home) / game / f"rom{extension}"
            if not target.exists():
                _store(target, rom)
                imported.append(game.removesuffix("-v0"))
    return sorted(imported)


def _contents(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the file itself and of the ROMs in it if it is a zip archive."""
    yield file.name, file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                is_rom = Path(entry.filename).suffix.lower() in EXTENSIONS
                if is_rom and entry.file_size <= MAX_ROM_BYTES:
                    yield entry.filename, archive.read(entry)


def _groom(name: str, data: bytes) -> tuple[bytes, str]:
    """Return a ROM without copier header and its SHA-1, empty if stable-retro cannot read it."""
    try:
        return stable_retro.data.groom_rom(name, io.BytesIO(data))
    # stable-retro's reader of interleaved .smd files does not run on Python 3.
    except (ValueError, TypeError, AttributeError) as error:
        print(f"{name} is not a readable ROM: {error}", file=sys.stderr)
        return data, ""


def _store(target: Path, rom: bytes) -> None:
    """Store a ROM for stable-retro, also under the name that arcade cores expect."""
    names = [target.name]
    metadata = target.parent / "metadata.json"
    if metadata.exists():
        names += filter(None, [json.loads(metadata.read_text()).get("original_rom_name")])
    try:
        for name in names:
            write_atomic(target.parent / name, rom)
    except OSError as error:
        raise InputError(f"cannot store {target}: {error.strerror or error}") from error


def bundled_folder() -> Path | None:
    """Return the folder of Atari ROMs in `ale-py` without importing it; None if not installed."""
    spec = importlib.util.find_spec("ale_py")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "roms"
    return folder if folder.is_dir() else None


def default_folders() -> list[Path]:
    """Return the folder of `ale-py`, if it is installed, and that of AUTOEXPLORE_ROMS, if set."""
    folders = []
    if (bundled := bundled_folder()) is not None:
        folders.append(bundled)
    else:
        print("ale-py is not installed: `pip install 'autoexplore[atari]'` brings 32 Atari games")
    if yours := os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(yours))
    return folders


def main(arguments: Sequence[str] | None = None) -> None:
    """Import from the given or the default folders, and print the number of playable games."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.roms", description="Import game ROMs into stable-retro."
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        help=f"folders with ROM files (default: those of ale-py and that of {FOLDER_VARIABLE})",
    )
    folders = parser.parse_args(arguments).folders
    if not folders:
        folders = default_folders()
    new = sum(len(import_roms(folder)) for folder in folders)
    playable = len(catalog.games(playable=True))
    print(f"{new} games imported; {playable} of {len(catalog.integrations())} can be played")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
