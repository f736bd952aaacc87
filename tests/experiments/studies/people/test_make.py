"""Making of the user studies: what is shown, that it is whole, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.controls import ACTIONS
from envs.episodes.dataset import EpisodeReader
from envs.games.counting import read_step_and_action
from envs.utils.errors import InputError
from experiments.__main__ import execute
from experiments.studies.people.arguments import PeopleMakeArgs
from experiments.studies.people.material import Sample, load_material
from experiments.studies.people.plan import HeldOutEpisodes, plan_samples
from tests.experiments.studies.people.conftest import COUNTS, FRAMES
from tests.fixtures.datasets import tree


def frames_of(study: Path, clip: str) -> Any:
    """Return the frames of a clip, (T, H, W, 3)."""
    picture = np.asarray(Image.open(study / clip))
    assert picture.shape == (64, FRAMES * 64, 3)
    return picture.reshape(64, FRAMES, 64, 3).swapaxes(0, 1)


def recorded(data: Path, sample: Sample) -> Any:
    """Return the recorded frames of a sample's clip."""
    reader = EpisodeReader(data)
    episode = reader[reader.session_ids.index(sample.session)]
    assert episode.game == sample.game
    return episode.frames_THWC[sample.start : sample.start + FRAMES], episode


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run a command that must refuse; return its line."""
    assert execute(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_quality_shows_truth_beside_each_model_and_beside_itself(
    made_study: Path, people_data: Path
) -> None:
    samples = load_material(made_study).of_study("quality")
    assert len(samples) == COUNTS["quality"]
    places = {(s.game, s.session, s.start) for s in samples}
    assert len(places) == COUNTS["quality"] // 3
    for sample in samples:
        assert sample.models[0] == "truth"
        real, _ = recorded(people_data, sample)
        reference, comparison = (frames_of(made_study, clip) for clip in sample.clips)
        assert np.array_equal(reference, real)
        assert np.array_equal(comparison[:2], real[:2])  # two given frames
        assert np.array_equal(comparison, real) == (sample.models[1] == "truth")
    assert sorted(s.models[1] for s in samples) == sorted(["truth", "random", "explored"] * 4)


def test_action_begins_in_mid_air_and_holds_each_action(
    made_study: Path, people_data: Path
) -> None:
    samples = load_material(made_study).of_study("action")
    assert len(samples) == COUNTS["action"]
    assert sorted(s.action for s in samples) == sorted(["left", "jump", "right"] * 2)
    for sample in samples:
        assert (sample.game, sample.models) == ("Counting", ("random", "explored"))
        real, episode = recorded(people_data, sample)
        recent = [read_step_and_action(f)[1] for f in episode.frames_THWC[: sample.start + 1]]
        assert ACTIONS.index("jump") in recent[-4:-1]
        for clip in sample.clips:
            assert np.array_equal(frames_of(made_study, clip)[0], real[0])
    by_place: dict[int, set[int]] = {}
    for sample in samples:
        by_place.setdefault(sample.start, set()).add(sample.seed)
    assert all(len(seeds) == 1 for seeds in by_place.values())


def test_of_three_models_the_later_ones_are_compared_with_the_first(people_data: Path) -> None:
    args = PeopleMakeArgs(
        models=("a=A", "b=B", "c=C"),
        data=(people_data,),
        out=Path("out"),
        samples=1,
        starts=1,
        frames=FRAMES,
        most_motion=0.6,
        action_games=("Counting",),
    )
    samples = plan_samples(args, HeldOutEpisodes(args.data))
    pairs = [sample.models for sample in samples if sample.study == "action"]
    assert pairs == [("a", "b"), ("a", "c")] * 3
    shown = [sample.models[1] for sample in samples if sample.study == "quality"]
    assert shown == ["truth", "a", "b", "c"] * 2
    assert len({sample.id for sample in samples}) == len(samples)


def test_the_same_seed_makes_the_same_files_and_goes_on_after_an_interruption(
    made_study: Path, make_argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    assert execute([*make_argv, "--out", str(out)]) == 0
    first, second = tree(made_study), tree(out)
    assert first.pop("key") != second.pop("key")
    assert first == second

    # Without the manifest the study is incomplete; only the missing clip is made again.
    lost, kept = sorted((out / "clips").iterdir())[:2]
    written = kept.stat().st_mtime_ns
    lost.unlink()
    (out / "manifest.json").unlink()
    assert "no complete study" in refusal(capsys, ["study", "people", "serve", "--out", str(out)])
    assert execute([*make_argv, "--out", str(out)]) == 0
    assert kept.stat().st_mtime_ns == written
    assert {**tree(out), "key": b""} == {**tree(made_study), "key": b""}

    capsys.readouterr()
    line = refusal(capsys, [*make_argv, "--seed", "1", "--out", str(out)])
    assert "other settings" in line


def test_changed_material_is_refused(study: Path) -> None:
    clip = next((study / "clips").iterdir())
    whole = clip.read_bytes()
    clip.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{clip.name} was changed"):
        load_material(study)
    clip.unlink()
    with pytest.raises(InputError, match=f"{clip.name} is missing"):
        load_material(study)
    clip.write_bytes(whole)
    manifest = json.loads((study / "manifest.json").read_text())
    (study / "manifest.json").write_text(json.dumps({**manifest, "format": "other"}))
    with pytest.raises(InputError, match="not a study of this version"):
        load_material(study)
    (study / "manifest.json").write_text(json.dumps(manifest))
    (study / "key").write_text("00")
    with pytest.raises(InputError, match="key is missing or damaged"):
        load_material(study)


def test_what_cannot_be_studied_is_refused(
    make_argv: list[str],
    tiny_world: Path,
    other_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, copy = ["--out", str(tmp_path / "out")], tmp_path / "copy"
    copy.symlink_to(tiny_world)
    saved_twice = tmp_path / "twice"
    saved_twice.mkdir()
    for file in tiny_world.iterdir():
        (saved_twice / file.name).write_bytes(file.read_bytes())
    for models, message in (
        ([f"a={tiny_world}", f"b={copy}"], "a and b are the same folder"),
        ([f"a={tiny_world}"], "give two or more"),
        ([f"a={tiny_world}", f"a={other_world}"], "a name of its own"),
        ([f"truth={tiny_world}", f"b={other_world}"], "not truth"),
        ([f"a={tiny_world}", str(other_world)], "NAME=PATH"),
        ([f"a={tiny_world}", f"b={tmp_path / 'gone'}"], "gone does not exist"),
        ([f"a={tiny_world}", f"b={saved_twice}"], "the same model"),
    ):
        assert message in refusal(capsys, [*make_argv, "--models", *models, *out])
    for flags, message in (
        (["--samples", "99"], "windows of 5 frames, not 99"),
        (["--games", "Pong"], "--games Pong: the data hold Corridor, Counting"),
        (["--action-games", "Corridor"], "have no mid-air starts"),
        (["--starts", "500"], "mid-air starts, not 500"),
        (["--frames", "2"], "--frames 2: give 3 or more"),
        (["--samples", "0", "--starts", "0"], "leave no study"),
    ):
        assert message in refusal(capsys, [*make_argv, *flags, *out])
    assert not (tmp_path / "out").exists()
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "something else" in refusal(capsys, [*make_argv, "--out", str(tmp_path)])


@pytest.mark.rom
def test_a_game_whose_button_does_not_jump_has_no_mid_air_starts(
    make_argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.fixtures.datasets import record

    data = record(tmp_path / "data", games=("Airstriker-Genesis",), episodes=1, steps=20)
    argv = [*make_argv, "--data", data, "--action-games", "Airstriker-Genesis", "--samples", "0"]
    line = refusal(capsys, [*argv, "--out", str(tmp_path / "out")])
    assert "jump button of Airstriker-Genesis means none" in line
