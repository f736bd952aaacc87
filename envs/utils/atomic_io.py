"""Atomic file writes: a temporary file, fsync, rename. Also hashes and JSON files."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash at any moment it holds the old or the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with `write_atomic`."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` if the block ends without an error.

    Every file inside is fsynced before the rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old: Path | None = None
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        sync_folder(temporary)
        os.chmod(temporary, 0o755)
        if path.exists():
            old = move_aside(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old is not None and not path.exists():
            os.replace(old, path)
        raise
    sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old)


def temporary_path(path: Path) -> Path:
    """Return an unused name beside a file.

    It is random: on a network file system, processes of several machines can have the same number.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def move_aside(path: Path) -> Path:
    """Give a folder that is to be deleted a temporary name, and return it.

    Deleting takes time; a crash meanwhile must not leave half a folder under its own name.
    """
    aside = path.with_name(f".{path.name}.old.tmp")
    if aside.exists():  # left by a crash
        shutil.rmtree(aside)
    return path.replace(aside)


def sync_folder(path: Path) -> None:
    """Call fsync on a folder, so that a rename inside it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises: InputError if it is not JSON, OSError if it cannot be read.
    """
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from error
