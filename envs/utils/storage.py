"""Storage of data sets: a local folder or a prefix of an object store, with common methods.

A local path is a plain `pathlib.Path`. `s3://bucket/prefix` (and `gs://`, as pyarrow's file systems
have them) is a `RemotePath`, which has the methods of a Path that data sets use. Options of the
store are part of the URI, e.g. `s3://bucket/data?endpoint_override=127.0.0.1:9000&scheme=http`;
credentials come from the environment, never from the URI.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
from filelock import FileLock, Timeout

from envs.utils.atomic_io import write_atomic
from envs.utils.errors import InputError, one_line

SCHEMES = ("s3", "gs")
LOCK_NAME = ".lock"
LOCK_BYTES = 256
"""Size of a remote lock. A constant: a reader asks for the size first, then for that many bytes,
and another writer's lock of another size would reach it cut short or padded with zeros."""
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
"""Age from which a remote lock is that of a dead writer."""
SETTLE_SECONDS = 0.5
"""Delay after which a new remote lock is read again, in case another writer started meanwhile."""


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object or a prefix, with the methods of `pathlib.Path` that data sets use.

    A store shows an object only after its last byte has arrived. All methods raise OSError if the
    store refuses or does not answer.
    """

    scheme: str
    key: str
    """bucket/prefix/name"""
    options: str = ""
    """Options of the store: the part of the URI behind the question mark."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}" + (f"?{self.options}" if self.options else "")

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.scheme, f"{self.key}/{name}", self.options)

    @property
    def _filesystem(self) -> pafs.FileSystem:
        return _connect(self.scheme, self.key.split("/")[0], self.options, os.getpid())

    def resolve(self) -> "RemotePath":
        """Return the path itself, which is always absolute."""
        return self

    def relative_to(self, other: "RemotePath") -> PurePosixPath:
        """Return the path below `other`."""
        return PurePosixPath(self.key).relative_to(other.key)

    def stat(self) -> Any:
        """Return `st_size`, `st_mtime_ns` and `st_ino` of the object."""
        info = self._filesystem.get_file_info(self.key)
        if info.type is not pafs.FileType.File:
            raise FileNotFoundError(f"no object {self}")
        return SimpleNamespace(st_size=info.size, st_mtime_ns=info.mtime_ns or 0, st_ino=0)

    def exists(self) -> bool:
        """Return True for an object or a prefix with objects."""
        return bool(self._filesystem.get_file_info(self.key).type is not pafs.FileType.NotFound)

    def is_dir(self) -> bool:
        """Return True for a prefix with objects."""
        return bool(self._filesystem.get_file_info(self.key).type is pafs.FileType.Directory)

    def open(self, mode: str = "rb") -> Any:
        """Open the object for reading with random access."""
        assert mode == "rb", "objects are written with write_bytes"
        return self._filesystem.open_input_file(self.key)

    def read_bytes(self) -> bytes:
        """Return the content of the object."""
        with self.open() as file:
            return bytes(file.read())

    def write_bytes(self, data: bytes) -> None:
        """Replace the object."""
        with self._filesystem.open_output_stream(self.key) as stream:
            stream.write(data)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        if not missing_ok or self.exists():
            self._filesystem.delete_file(self.key)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yield the objects below this prefix that match; unlike in Path, `*` matches slashes."""
        selector = pafs.FileSelector(self.key, recursive=True, allow_not_found=True)
        for info in self._filesystem.get_file_info(selector):
            name = info.path.removeprefix(f"{self.key}/")
            if info.type is pafs.FileType.File and fnmatchcase(name, pattern.replace("**/", "")):
                yield self / name


StoragePath = Path | RemotePath


def parse_uri(uri: str | StoragePath) -> StoragePath:
    """Return the path that a URI names.

    Raises: InputError for an unknown scheme or a missing bucket.
    """
    if isinstance(uri, RemotePath):
        return uri
    scheme, separator, rest = str(uri).partition("://")
    if not separator or scheme == "file":
        return Path(rest if separator else uri)
    key, _, options = rest.partition("?")
    key = key.strip("/")
    if scheme not in SCHEMES or not key:
        known = ", ".join(f"{name}://bucket/prefix" for name in SCHEMES)
        raise InputError(f"{uri}: not a location for data: give a folder, or {known}")
    return RemotePath(scheme, key, options)


def is_remote(uri: str | Path) -> bool:
    """Return True if a URI names an object store."""
    return isinstance(parse_uri(uri), RemotePath)


def replace_bytes(path: StoragePath, data: bytes) -> None:
    """Replace a file or an object atomically: a reader sees the old or the new content.

    Raises: InputError if it cannot be written.
    """
    try:
        if isinstance(path, RemotePath):
            path.write_bytes(data)
        else:
            write_atomic(path, data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {one_line(error)}") from error


@lru_cache(maxsize=8)
def _connect(scheme: str, bucket: str, options: str, process: int) -> pafs.FileSystem:
    """Return a process's connection to a store; a forked process must not share its parent's."""
    uri = f"{scheme}://{bucket}" + (f"?{options}" if options else "")
    try:
        return pafs.FileSystem.from_uri(uri)[0]
    except (ValueError, OSError) as error:
        raise InputError(f"{uri}: {one_line(error)}") from error


def lock(root: StoragePath) -> "FolderLock | RemoteLock":
    """Lock a data set against other writers until the lock is closed.

    Raises: InputError if another writer holds the lock, or `root` cannot be written.
    """
    try:
        return RemoteLock(root) if isinstance(root, RemotePath) else FolderLock(root)
    except OSError as error:
        raise InputError(f"cannot write to {root}: {one_line(error)}") from error


class FolderLock:
    """Exclusive lock on a local folder (flock). The system releases it when its process dies."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        file = root / LOCK_NAME
        # Without flock, filelock would fall back to a lock file that outlives a killed process.
        self._lock = FileLock(file, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            holder = file.read_text() or "another process"
            raise InputError(
                f"{root} is being written by {holder}: wait for it, or give another folder"
            ) from error
        file.write_text(_this_process())

    def check(self) -> None:
        """Do nothing: the lock cannot be lost while the process lives."""

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()


class RemoteLock:
    """Lock on an object store: an object that a thread renews every 10 s and that expires in 60 s.

    Object stores have no locks. Two writers that start within half a second may both succeed; the
    episodes of both are then complete, but the manifest is that of the last writer.
    """

    def __init__(self, root: RemotePath) -> None:
        self._root, self._object = root, root / LOCK_NAME
        self._identity = {"holder": _this_process(), "token": secrets.token_hex(8)}
        self._lost, self._renewed = False, 0.0
        try:
            held = self._read()
            age = time.time() - float(held.get("time", 0))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self._object} is not a lock that AutoExplore wrote ({error}): delete it if "
                "nothing writes there"
            ) from error
        if age < STALE_SECONDS:
            raise InputError(
                f"{root} is being written by {held.get('holder')}, last seen {max(age, 0):.0f} s "
                "ago: wait for it (the lock of a dead writer expires after "
                f"{STALE_SECONDS:.0f} s), or give another location"
            )
        self._renew()
        # Of two writers that start together, the last one to write the object keeps the lock.
        time.sleep(SETTLE_SECONDS)
        if not self._is_mine():
            raise InputError(
                f"{root} is being written by another process that started at the same time: "
                "give another location"
            )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewed, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise InputError if the lock expired, so that another writer may have started."""
        if self._lost or time.time() - self._renewed > STALE_SECONDS:
            raise InputError(
                f"the lock on {self._root} was lost to another writer, or the store did not "
                "answer: run again"
            )

    def close(self) -> None:
        """Release the lock."""
        self._closed.set()
        self._thread.join()
        if not self._lost:
            self._object.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        return dict(json.loads(self._object.read_bytes())) if self._object.exists() else {}

    def _is_mine(self) -> bool:
        return self._read().get("token") == self._identity["token"]

    def _renew(self) -> None:
        now = time.time()
        content = json.dumps({**self._identity, "time": now})
        self._object.write_bytes(content.encode().ljust(LOCK_BYTES))
        self._renewed = now

    def _keep_renewed(self) -> None:
        while not self._closed.wait(RENEW_SECONDS):
            try:
                self._lost = self._lost or not self._is_mine()
                if not self._lost:
                    self._renew()
            except (TypeError, ValueError):
                self._lost = True  # the object is not what this process wrote
            except OSError:
                continue  # tried again after RENEW_SECONDS; `check` reports a lock that expired


def _this_process() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"
