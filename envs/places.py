"""Where a data set lies: a local folder, or a prefix of an object store, behind the few operations that both have.

A local place is a plain `pathlib.Path`. `s3://bucket/prefix` (and `gs://`, as pyarrow's file systems have them) is a
`RemotePath`, which has the methods of a Path that data sets use. Options of the store stand in the URI, e.g.
`s3://bucket/data?endpoint_override=127.0.0.1:9000&scheme=http`; keys come from the environment, never from the URI.
"""

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from envs.errors import InputError
from envs.files import write_atomic

SCHEMES = ("s3", "gs")


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


Place = Path | RemotePath


def place(uri: "str | Path | RemotePath") -> Place:
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
    return isinstance(place(uri), RemotePath)


def replace_bytes(path: Place, data: bytes) -> None:
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
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
