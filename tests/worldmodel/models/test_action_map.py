"""Map from buttons to latent actions, and models without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.utils.errors import InputError
from experiments.__main__ import execute
from tests.fixtures.datasets import record
from worldmodel import ActionMap, GenieReduxG, load_world_model, preset
from worldmodel.models.action_map import agreement, scores
from worldmodel.training.config import train_preset
from worldmodel.training.train import TrainingRun, train


def test_the_map_prefers_specific_latent_actions_to_common_ones() -> None:
    counts = np.array([[60, 40, 0], [60, 0, 2], [60, 0, 0]])
    assert ActionMap({"a": counts}).latent_actions() == [1, 0, 0]
    by_hand = 40 / 100 * 40 / 40
    assert scores(counts)[0, 1] == pytest.approx(by_hand**0.5)
    two = ActionMap({"a": counts, "b": counts[:, ::-1]})
    assert two.latent_actions("b") == [1, 2, 2]
    assert (two.table("unknown") == counts + counts[:, ::-1]).all()


def test_agreement_is_kappa_and_mutual_information() -> None:
    perfect = agreement(np.diag([10, 20, 30]), [0, 1, 2])
    assert perfect["kappa"] == perfect["agreement"] == 1
    assert perfect["information"] == pytest.approx(1)
    nothing = agreement(np.outer([1, 2, 3], [3, 2, 1]), [0, 1, 2])
    assert nothing["kappa"] == pytest.approx(0)
    assert nothing["information"] == pytest.approx(0)
    assert nothing["chance"] == pytest.approx((1 * 3 + 2 * 2 + 3 * 1) / 36)


@pytest.mark.parametrize(
    "plain",
    [
        [],
        {},
        {"counts": {}, "measured": {}},
        {"counts": {"a": "x"}, "measured": {}},
        {"counts": {"a": 3}, "measured": {}},
    ],
)
def test_other_data_is_refused(plain: Any) -> None:
    with pytest.raises(InputError, match="action map: expected"):
        ActionMap.from_dict(plain)


def test_export_of_a_model_on_real_actions_needs_no_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = record(tmp_path / "data", episodes=4, steps=40)
    for component, given in (
        ("tokenizer", {}),
        ("dynamics", {"tokenizer": tmp_path / "tokenizer"}),
    ):
        short = train_preset(component, "debug", iterations=2, checkpoint_every=2)
        out = tmp_path / component
        train(
            TrainingRun(
                component, config=preset("debug"), recipe=short, data=[data], out=out, **given
            )
        )
    parts = [f"--{name}={tmp_path / name}" for name in ("tokenizer", "dynamics")]
    command = ["export", *parts, f"--out={tmp_path / 'model'}"]
    assert execute([*command, f"--data={data}"]) == 2
    assert "real actions: leave --lam and --data out" in capsys.readouterr().err
    assert execute(command) == 0
    assert isinstance(load_world_model(tmp_path / "model"), GenieReduxG)
