"""One writer at a time: a lock on a folder, which the system drops, or an object that has to be renewed."""

import fcntl
import json
import os
import secrets
import threading
import time
from pathlib import Path
from typing import IO

from envs.errors import InputError
from envs.places import Place, RemotePath

NAME = ".lock"
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A remote lock that was not renewed for so long is that of a dead writer."""
SETTLE_SECONDS = 0.5


def lock(root: Place) -> "FolderLock | RemoteLock":
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
            raise InputError(f"{root} is being written by {holder}: wait for it, or give another folder") from error
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
        self._holder = {"holder": f"process {os.getpid()} on {os.uname().nodename}", "token": secrets.token_hex(8)}
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
                raise InputError(f"{root} is being written by another process, which came first: give another place")
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
