"""Prediction of a pipeline, which runs nothing."""

from pathlib import Path

import pytest

from experiments.__main__ import execute


def predict(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Return what a dry run on one L4 prints."""
    assert execute(["pipeline", "--dry-run", "--hardware", "l4", *flags]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_stages_that_train_have_a_time_and_a_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = predict(capsys, "--preset", "gpu")
    assert "pipeline gpu of PrivateEye-Atari2600, CoinRun on l4: nothing is run" in printed
    assert "train the tokenizer 1,000 of 16 56 s 5.4 GB" in printed
    assert "for each of 2 games at 40% of the peak" in printed
    assert "needs more than" not in printed
    assert not list(tmp_path.iterdir())


def test_the_paper_needs_no_rom_and_more_than_a_small_card(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = predict(capsys, "--preset", "paper", "--games", "SuperMarioBros-Nes")
    assert "72,000 of 112" in printed
    advice = "tokenizer needs more than the 24 GB of the card: train it with --grad-accum-steps 14"
    assert advice in printed


def test_settings_and_rounds_are_those_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    printed = predict(capsys, "--preset", "debug", "--rounds", "2")
    assert "dynamics-2 fine-tune the dynamics model 20 of 2" in printed
    assert execute(["pipeline", "--dry-run", "--preset", "debug", "--games", "Tetris99"]) == 2
    assert execute(["pipeline", "--preset", "debug"]) == 2
    assert "pipeline needs --out" in capsys.readouterr().err
