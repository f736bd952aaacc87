"""The validation split: one percent, decided in advance, stable while a data set grows."""

import pytest

from envs.episodes.manifest import Manifest


@pytest.mark.parametrize("size", [1, 2, 50, 149, 150, 1000])
def test_validation_is_one_percent_and_at_least_one(size: int) -> None:
    plan = Manifest()
    plan.plan((game, f"{game}{i}") for game in ("A", "B") for i in range(size))
    for game in ("A", "B"):
        wanted = 0 if size == 1 else max(1, round(size / 100))
        assert sum(plan.validation[game].values()) == wanted


def test_split_never_changes_while_a_set_grows() -> None:
    plan = Manifest()
    seen: dict[str, bool] = {}
    for size in (1, 2, 10, 50, 51, 400, 1000):
        plan.plan(("A", f"s{i}") for i in range(size))
        split = plan.validation["A"]
        assert all(split[session] == was for session, was in seen.items())
        seen = dict(split)
        assert sum(split.values()) == (0 if size == 1 else max(1, round(size / 100)))
    shuffled = Manifest()
    shuffled.plan(("B", f"s{i}") for i in reversed(range(1000)))
    ordered = Manifest()
    ordered.plan(("B", f"s{i}") for i in range(1000))
    assert shuffled.validation == ordered.validation, "the order of planning does not matter"
