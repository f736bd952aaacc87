"""CPU time by part."""

import time

import pytest

from exploration.part_timer import PartTimer


def work(seconds: float) -> None:
    started = time.process_time()
    while time.process_time() - started < seconds:
        pass


def test_a_part_within_another_counts_by_itself():
    timer = PartTimer()
    with timer("outer"):
        work(0.02)
        for _ in range(2):
            with timer("inner"):
                work(0.02)
        with pytest.raises(ZeroDivisionError), timer("inner"):
            _ = 1 / 0
    time.sleep(0.02)  # takes no CPU time
    seconds = timer.take()
    assert seconds == {"inner": pytest.approx(0.04, rel=0.3), "outer": pytest.approx(0.02, rel=0.3)}
    assert timer.take() == {}
