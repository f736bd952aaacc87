"""CPU time of this process by part of its work."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class PartTimer:
    """CPU-seconds of this process by part. A part within another counts by itself."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0
        """Seconds of the parts that have ended within the one that runs."""

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the block as this part."""
        started, outer, self._inner = time.process_time(), self._inner, 0.0
        try:
            yield
        finally:
            spent = time.process_time() - started
            self._seconds[part] += spent - self._inner
            self._inner = outer + spent

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call."""
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken
