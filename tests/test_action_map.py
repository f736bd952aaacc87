"""The map from buttons to latent actions: what it picks, what it says of itself, and what is no map."""

from typing import Any

import numpy as np
import pytest

from envs.errors import InputError
from worldmodel import ActionMap
from worldmodel.action_map import agreement, scores


def test_the_map_takes_what_stands_for_a_button_and_not_what_is_common() -> None:
    counts = np.array([[60, 40, 0], [60, 0, 2], [60, 0, 0]])
    assert ActionMap({"a": counts}).latents() == [1, 0, 0]
    by_hand = 40 / 100 * 40 / 40
    assert scores(counts)[0, 1] == pytest.approx(by_hand**0.5)
    two = ActionMap({"a": counts, "b": counts[:, ::-1]})
    assert two.latents("b") == [1, 2, 2]
    assert (two.table("unknown") == counts + counts[:, ::-1]).all()


def test_agreement_is_kappa_and_mutual_information() -> None:
    perfect = agreement(np.diag([10, 20, 30]), [0, 1, 2])
    assert perfect["kappa"] == perfect["agreement"] == 1
    assert perfect["information"] == pytest.approx(1)
    nothing = agreement(np.outer([1, 2, 3], [3, 2, 1]), [0, 1, 2])
    assert nothing["kappa"] == pytest.approx(0)
    assert nothing["information"] == pytest.approx(0)
    assert nothing["chance"] == pytest.approx((1 * 3 + 2 * 2 + 3 * 1) / 36)


@pytest.mark.parametrize("plain", [[], {}, {"counts": {}, "measured": {}}, {"counts": {"a": "x"}, "measured": {}}])
def test_other_files_are_no_map(plain: Any) -> None:
    with pytest.raises(InputError, match="action map: expected"):
        ActionMap.from_dict(plain)
