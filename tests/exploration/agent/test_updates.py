"""Updates of several batches in one call, and the entropy bonus that they adjust."""

import math

import pytest
import torch

from exploration.agent.entropy_bonus import EntropyBonus
from tests.fixtures.explorers import ActionScorer, small_explorer


def test_one_call_makes_the_updates_of_several(ray_cluster):
    settings = {"lr": 1e-2, "target_entropy": 0.3, "entropy_coeff": 0.05, "steps_per_epoch": 12}
    one, two = (small_explorer(scorer=ActionScorer, **settings).build_algo() for _ in range(2))
    try:
        one.train()
        before = one.updates.done
        two.set_state(one.get_state())
        batches = [one.replay.sample_packed(2, 4) for _ in range(3)]
        together, errors = one.updates.make(batches)
        apart = [two.updates.make([batch])[0] for batch in batches]
        assert not errors
        for name, values in together.items():
            assert values == [value for terms in apart for value in terms[name]], name
        assert one.updates.bonus == two.updates.bonus
        assert one.updates.bonus.scale < 1
        assert one.updates.done - before == two.updates.done == 3
        for name, tensor in one.network().state_dict().items():
            assert torch.equal(tensor, two.network().state_dict()[name]), name
    finally:
        one.stop()
        two.stop()


def test_the_bonus_rises_below_the_target_and_stays_in_bounds():
    bonus = EntropyBonus(configured=0.1, target=0.5, largest=math.log(5))
    assert bonus.coefficient == 0.1
    assert bonus.adjusted(0.0).coefficient > 0.1 > bonus.adjusted(math.log(5)).coefficient
    assert bonus.adjusted(0.5 * math.log(5)).coefficient == pytest.approx(0.1)
    for _ in range(1_000):
        bonus = bonus.adjusted(0.0)
    assert bonus.coefficient == pytest.approx(100.0)
    fixed = EntropyBonus(configured=0.1, target=0.0, largest=math.log(5))
    assert fixed.adjusted(0.0) == fixed


def test_updates_set_the_priorities_of_what_they_drew(ray_cluster):
    settings = {"lr": 1e-2, "steps_per_epoch": 12, "priority_exponent": 0.9}
    one, two = (small_explorer(scorer=ActionScorer, **settings).build_algo() for _ in range(2))
    try:
        one.train()
        assert len({error for each in one.replay.fragments for error in each.errors_T}) > 2
        two.set_state(one.get_state())
        drawn = [[algorithm.replay.sample_packed(4, 4)] for algorithm in (one, two)]
        (mine,), (theirs,) = one.updates.make(drawn[0])[1], two.updates.make(drawn[1])[1]
        assert mine.shape == (4, 4)
        assert (mine == theirs).all()
        # The error of a value is its distance from its target, before any update of this batch.
        assert (mine[drawn[0][0].columns["learn"]] > 0).all()
    finally:
        one.stop()
        two.stop()
