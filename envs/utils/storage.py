"""Where a data set lies: a local folder, or a prefix of an object store, behind the few operations that both have.

A local place is a plain `pathlib.Path`. `s3://bucket/prefix` (and `gs://`, as pyarrow's file systems have them) is a
`RemotePath`, which has the methods of a Path that data sets use. Options of the store stand in the URI, e.g.
`s3://bucket/data?endpoint_override=127.0.0.1:9000&scheme=http`; keys come from the environment, never from the URI.
"""

import fcntl
import fnmatch
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow.fs as pafs

from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError

SCHEMES = ("s3", "gs")
NAME = ".lock"
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A remote lock that was not renewed for so long is that of a dead writer."""
SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class Stat:
    """What `RemotePath.stat` tells."""

    st_size: int
    st_mtime_ns: int
    st_ino: int = 0


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or the prefix of some, with the methods of `pathlib.Path` that data sets use.

    Objects appear whole: a store shows nothing of one before its last byte is there. All methods raise OSError as those
    of Path do, where the store refuses or does not answer.
    """

    scheme: str
    key: str
    """bucket/prefix/name"""
    options: str = ""
    """The store's options, as they stand behind the URI's question mark."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}" + (f"?{self.options}" if self.options else "")

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.scheme, f"{self.key}/{name}", self.options)

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.scheme, str(PurePosixPath(self.key).parent), self.options)

    @property
    def filesystem(self) -> pafs.FileSystem:
        return _filesystem(self.scheme, self.key.split("/")[0], self.options, os.getpid())

    def resolve(self) -> "RemotePath":
        return self

    def relative_to(self, other: "RemotePath") -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(other.key)

    def stat(self) -> Stat:
        info = self.filesystem.get_file_info(self.key)
        if info.type is not pafs.FileType.File:
            raise FileNotFoundError(f"no object {self}")
        return Stat(info.size, info.mtime_ns or 0)

    def exists(self) -> bool:
        return bool(self.filesystem.get_file_info(self.key).type is not pafs.FileType.NotFound)

    def is_dir(self) -> bool:
        return bool(self.filesystem.get_file_info(self.key).type is pafs.FileType.Directory)

    def open(self, mode: str = "rb") -> Any:
        """A file for reading, from any place in it."""
        if mode != "rb":
            raise ValueError("an object is read with open, and written with write_bytes")
        return self.filesystem.open_input_file(self.key)

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return bytes(file.read())

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """Replace the object."""
        with self.filesystem.open_output_stream(self.key) as stream:
            stream.write(data)

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.exists():
            self.filesystem.delete_file(self.key)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Objects below this prefix whose path relative to it matches; `**` stands for any folders."""
        selector = pafs.FileSelector(self.key, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type is pafs.FileType.File:
                found = RemotePath(self.scheme, info.path, self.options)
                if _matches(found.relative_to(self).parts, tuple(pattern.split("/"))):
                    yield found


StoragePath = Path | RemotePath


def parse_uri(uri: "str | Path | RemotePath") -> StoragePath:
    """The place that a URI names. Raises InputError for one of a kind that is not known, or without a bucket."""
    if isinstance(uri, RemotePath):
        return uri
    scheme, found, rest = str(uri).partition("://")
    if not found or scheme == "file":
        return Path(rest if found else uri)
    key, _, options = rest.partition("?")
    key = key.strip("/")
    if scheme not in SCHEMES or not key:
        known = ", ".join(f"{name}://bucket/prefix" for name in SCHEMES)
        raise InputError(f"{uri}: not a place for data: give a folder, or {known}")
    return RemotePath(scheme, key, options)


def is_remote(uri: str | Path) -> bool:
    """Whether a URI names an object store."""
    return isinstance(parse_uri(uri), RemotePath)


def replace_bytes(path: StoragePath, data: bytes) -> None:
    """Replace a file or an object by `data`: a reader sees the old or the new one, never a part."""
    if isinstance(path, RemotePath):
        path.write_bytes(data)
    else:
        write_atomic(path, data)


@lru_cache(maxsize=8)
def _filesystem(scheme: str, bucket: str, options: str, process: int) -> pafs.FileSystem:
    """One connection for a process; a forked one must not share its parent's."""
    uri = f"{scheme}://{bucket}" + (f"?{options}" if options else "")
    try:
        return pafs.FileSystem.from_uri(uri)[0]
    except (ValueError, OSError) as error:
        raise InputError(f"{uri}: {str(error).splitlines()[0]}") from error


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:])
    )


def lock(root: StoragePath) -> "FolderLock | RemoteLock":
    """Keep other writers out of a place until `release`. Raises InputError where one is there, or none may write."""
    return RemoteLock(root) if isinstance(root, RemotePath) else FolderLock(root)


class FolderLock:
    """Keeps a second writer out of a folder until it is released. The system drops the lock of a process that dies.

    Raises InputError where another writer holds it.
    """

    def __init__(self, root: Path) -> None:
        self._file: IO[str] | None = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._file = (root / NAME).open("a+")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {os.uname().nodename}")
            self._file.flush()
        except BlockingIOError as error:
            assert self._file is not None
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise InputError(
                f"{root} is being written by {holder}: wait for it, or give another folder"
            ) from error
        except OSError as error:
            raise InputError(f"cannot write to {root}: {error.strerror or error}") from error

    def check(self) -> None:
        """Nothing: the system keeps the lock for as long as the process lives."""

    def release(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


class RemoteLock:
    """The same for an object store, by an object that a thread renews every 10 s; one older than 60 s is taken over.

    A store has no lock of its own. Two writers that begin within the same half second can both get in; the sessions of
    both are whole then, but the manifest is that of the one that wrote last.
    """

    def __init__(self, root: RemotePath) -> None:
        self._object = root / NAME
        self._holder = {
            "holder": f"process {os.getpid()} on {os.uname().nodename}",
            "token": secrets.token_hex(8),
        }
        self._lost, self._renewed = False, 0.0
        try:
            held = self._read()
            age = time.time() - float(held.get("time", 0))
            if age < STALE_SECONDS:
                raise InputError(
                    f"{root} is being written by {held.get('holder')}, last seen {max(age, 0):.0f} s ago: wait for it "
                    f"(a dead writer is forgotten after {STALE_SECONDS:.0f} s), or give another place"
                )
            self._renew()
            time.sleep(SETTLE_SECONDS)
            if self._read().get("token") != self._holder["token"]:
                raise InputError(
                    f"{root} is being written by another process, which came first: give another place"
                )
        except OSError as error:
            raise InputError(f"cannot write to {root}: {str(error).splitlines()[0]}") from error
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises InputError where the lock could not be renewed in time and another writer may have come."""
        if self._lost or time.time() - self._renewed > STALE_SECONDS:
            raise InputError(
                f"{self._object.parent} was lost to another writer, or the store did not answer: run again"
            )

    def release(self) -> None:
        """Let others write."""
        self._done.set()
        self._thread.join()
        if not self._lost:
            self._object.unlink(missing_ok=True)

    def _read(self) -> dict[str, str]:
        if not self._object.exists():
            return {}
        return dict(json.loads(self._object.read_text()))

    def _renew(self) -> None:
        now = time.time()
        self._object.write_bytes(json.dumps({**self._holder, "time": now}).encode())
        self._renewed = now

    def _keep(self) -> None:
        while not self._done.wait(RENEW_SECONDS):
            try:
                self._lost = self._lost or self._read().get("token") != self._holder["token"]
                if not self._lost:
                    self._renew()
            except OSError:
                continue  # tried again at the next turn; `check` says when that was too long ago
