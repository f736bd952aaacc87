"""The examples run, one after the other, as a reader would run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.episodes import EpisodeReader

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def python(*words: str) -> str:
    """Run Python with the project's packages in a process of its own -> what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_scripts_run_one_after_the_other(tmp_path: Path) -> None:
    scripts = sorted(EXAMPLES.glob("0*.py"))
    first, second, third = (python(str(script), str(tmp_path)) for script in scripts)
    assert "4 episodes, 244 frames" in first
    assert "tokens (1, 4, 8, 8)" in second
    rewards = [float(line.split()[-1]) for line in third.splitlines() if "reward" in line]
    assert len(rewards) == 8
    assert all(0 < reward < 1 for reward in rewards)


@pytest.mark.slow
@pytest.mark.ray
def test_the_policy_plays(tmp_path: Path) -> None:
    command = "-m experiments collect Counting --policy examples.policy:ZigZag --episodes 2"
    printed = python(*command.split(), "--steps", "60", "--out", str(tmp_path / "data"))
    assert "2 episodes, 122 frames" in printed
    for episode in EpisodeReader(tmp_path / "data"):
        assert episode.policy_id == "examples.policy:ZigZag"
        shares = np.bincount(episode.actions, minlength=5) / 60
        assert 0 < shares[4] < 0.3
        assert shares[2] == shares[3] == 0
        assert min(shares[0], shares[1]) > 0.1


def test_scripts_are_short() -> None:
    for script in EXAMPLES.glob("*.py"):
        assert len(script.read_text().splitlines()) <= 40, script.name


@pytest.mark.slow
def test_cells_of_the_notebook_run_and_their_output_is_stored(tmp_path: Path) -> None:
    copy = tmp_path / "quickstart.ipynb"
    copy.write_bytes((EXAMPLES / "quickstart.ipynb").read_bytes())
    python("-m", "scripts.run_notebook", str(copy), "--write")
    for path in (copy, EXAMPLES / "quickstart.ipynb"):
        cells = [
            cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
        ]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert "4 episodes, 244 frames" in "".join(cells[0]["outputs"][0]["text"])
        assert "image/png" in cells[-1]["outputs"][-1]["data"]
