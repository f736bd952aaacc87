"""The annotation page: its clips, its app over HTTP, and labelling by keyboard in a browser."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from envs.utils.errors import InputError
from experiments.catalog_tools import annotate, labels
from experiments.catalog_tools.clip_format import FRAMES, LEAD, read_clips
from experiments.catalog_tools.labels import LABELLED, UNKNOWN
from experiments.catalog_tools.recorder import Recorder
from tests.conftest import EVERYTHING
from tests.fixtures.browser import Browser
from tests.fixtures.processes import until_interrupted
from tests.fixtures.web import ask

GENESIS, ATARI, PONG = "Airstriker-Genesis", "Kangaroo-Atari2600", "Pong-Atari2600"
NO_ROM = "SuperMarioBros-Nes"
COMMAND = """import sys, tyro
from experiments.catalog_tools.annotate import Args, run
run(tyro.cli(Args, args=sys.argv[1:]))"""


# Clips


def finished(games: list[str], folder: Path, seconds: float = 120.0) -> Recorder:
    """A recorder that has done all its games."""
    recorder = Recorder(games, folder, seconds)
    recorder.start()
    deadline = time.monotonic() + 120
    while any(recorder.progress(game).status in ("waiting", "recording") for game in games):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    recorder.stop()
    return recorder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the real clips of two games."""
    folder = tmp_path_factory.mktemp("recorded") / "clips"
    recorder = finished([GENESIS, ATARI], folder)
    assert [recorder.progress(game).reason for game in (GENESIS, ATARI)] == ["", ""]
    return folder


@pytest.mark.parametrize(("game", "buttons"), [(GENESIS, 7), (ATARI, 6)])
def test_clips_start_alike_and_part_when_the_button_goes_down(
    clips: Path, game: str, buttons: int
) -> None:
    about = read_clips(clips / game)
    assert about is not None
    moving = 0
    for shown in about["moments"].values():
        assert [clip["action"] for clip in shown][:6] == [
            "none",
            "right",
            "left",
            "up",
            "down",
            "jump",
        ]
        assert len(shown) == buttons  # the Atari 2600 has no second button
        videos = []
        for clip in shown:
            sheet = cv2.imread(str(clips / game / clip["file"]))
            assert sheet is not None
            rows = sheet.reshape(-1, clip["height"], about["across"], clip["width"], 3).swapaxes(
                1, 2
            )
            videos.append(rows.reshape(-1, clip["height"], clip["width"], 3))
        assert {len(video) for video in videos} == {FRAMES}
        assert all(np.array_equal(video[:LEAD], videos[0][:LEAD]) for video in videos)
        moving += sum(not np.array_equal(video, videos[0]) for video in videos)
    assert moving >= 8


def test_recordings_are_kept_and_failures_reported(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    stamp = (folder / GENESIS / "clips.json").stat().st_mtime_ns
    recorder = finished([GENESIS, NO_ROM, ATARI], folder)
    assert (folder / GENESIS / "clips.json").stat().st_mtime_ns == stamp
    assert recorder.progress(NO_ROM).status == "failed"
    assert "no ROM" in recorder.progress(NO_ROM).reason
    assert recorder.progress(ATARI).status == "ready"
    assert "more than 0.2 s" in finished([PONG], folder, seconds=0.2).progress(PONG).reason
    assert {path.name for path in folder.iterdir()} == {GENESIS, ATARI}


# The page


@contextlib.contextmanager
def serving(out: Path, *games: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The real command in a process of its own, and its URL."""
    command = [sys.executable, "-u", "-c", COMMAND, *games, "--name", "ada", "--out", str(out)]
    with until_interrupted(command) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0], process


@pytest.fixture
def out(clips: Path, tmp_path: Path) -> Path:
    """An annotator's folder in which the clips are recorded already."""
    shutil.copytree(clips, tmp_path / "out" / "clips")
    return tmp_path / "out"


def test_the_page_shows_clips_over_http_and_records_what_is_missing(out: Path) -> None:
    with serving(out, GENESIS, PONG) as (url, process):
        assert url.startswith("http://127.0.0.1:")
        status, page, headers = ask(url)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert not any(
            elsewhere in page for elsewhere in (b"http://", b"https://", b'src="', b"@import")
        )
        response = json.loads(ask(f"{url}api/games")[1])
        assert [game["name"] for game in response["games"]] == [GENESIS, PONG]
        assert [column["name"] for column in response["columns"]] == list(LABELLED)

        shown = json.loads(ask(f"{url}api/games/{GENESIS}/clips")[1])
        file = shown["clips"]["moments"]["start"][1]["file"]
        picture = f"{url}api/games/{GENESIS}/clips/{file.replace('-', '/')}"
        assert ask(picture)[1] == (out / "clips" / GENESIS / file).read_bytes()
        for wrong in ("/0/..%2Fclips.png", "/9/none.png"):
            assert ask(f"{url}api/games/{GENESIS}/clips{wrong}")[0] == 404
        deadline = time.monotonic() + 60
        while (about := json.loads(ask(f"{url}api/games/{PONG}/clips")[1]))["status"] in (
            "waiting",
            "recording",
        ):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert about["status"] == "ready", about

        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "0 of 2 games labelled" in said


def test_the_app_saves_each_label_and_refuses_other_sites_and_wrong_words(out: Path) -> None:
    labels_file = labels.file_of(out, "ada")
    with serving(out, GENESIS, ATARI) as (url, _):
        view = f"{url}api/games/{ATARI}/labels/view"
        assert json.loads(ask(view, {"value": "side"})[1])["view"] == "side"
        row = labels.load_labels(labels_file).rows[ATARI]
        assert (row["view"], row["source"], row["axis"]) == ("side", "watched", "")
        before = labels_file.read_bytes()
        assert ask(view, {"value": "above"})[0] == 400
        assert ask(view.replace("view", "source"), {"value": "knowledge"})[0] == 400
        assert ask(view.replace(ATARI, NO_ROM), {"value": "side"})[0] == 404
        assert ask(f"{url}api/games", Host="evil.example")[0] == 400
        assert (
            ask(view, {"value": "top"}, Host="evil.example", Origin="http://evil.example")[0] == 400
        )
        for origin in ("http://evil.example", "null"):
            assert ask(view, {"value": "top"}, Origin=origin)[0] == 403
        assert (
            ask(view, {"value": "top"}, **{"Content-Type": "text/plain"})[0] == 422
        )  # what a foreign form could send
        assert labels_file.read_bytes() == before
        assert ask(view, {"value": "top"}, Origin=url.rstrip("/"))[0] == 200

        labels_file.write_text(labels_file.read_text().replace("watched", "dreamt"))
        status, said, _ = ask(view, {"value": "side"})
        assert status == 400
        assert b"line 2" in said
        assert "dreamt" in labels_file.read_text()  # errors of editing by hand are not overwritten


def test_bad_flags_are_refused(tmp_path: Path) -> None:
    for flags, message in (
        ({"games": (NO_ROM,)}, "no ROM"),
        ({"games": ("Counting",)}, "no labels"),
        ({"games": (ATARI,), "name": "a/b"}, "annotator 'a/b'"),
        ({"games": (ATARI,), "port": 70000}, "--port 70000"),
    ):
        with pytest.raises(InputError, match=message):
            annotate.run(annotate.Args(out=tmp_path, **flags))  # type: ignore[arg-type]


@pytest.mark.skipif(
    shutil.which("chromium") is None and not EVERYTHING, reason="needs the command chromium"
)
def test_labelling_by_keyboard_in_a_browser(out: Path, tmp_path: Path) -> None:
    labels_file = labels.file_of(out, "ada")
    with (
        serving(out, GENESIS, ATARI) as (url, _),
        contextlib.closing(Browser(tmp_path / "profile")) as browser,
    ):

        def saved(game: str, column: str) -> str:
            return labels.load_labels(labels_file).rows[game][column]

        def current() -> str:
            return str(browser.value("document.querySelector('.field.current').dataset.column"))

        browser.call("Page.navigate", url=url)
        browser.wait("document.querySelectorAll('figure canvas').length === 7")
        context = "document.querySelector('canvas').getContext('2d')"
        colours = f"new Set({context}.getImageData(0, 0, 320, 224).data).size"
        assert browser.value(colours) > 5  # the clip is really drawn
        browser.wait("document.querySelector('figure.down') !== null")
        assert current() == "view"
        browser.press("3")
        browser.wait(
            "document.querySelector('[data-word=top]').getAttribute('aria-checked') === 'true'"
        )
        assert saved(GENESIS, "view") == "top"
        assert current() == "axis"
        browser.press("Tab")
        assert current() == "motion"
        browser.press("ArrowUp")
        assert current() == "axis"
        browser.press("ArrowDown")
        browser.press("ArrowDown")
        assert current() == "right"
        assert browser.value("document.querySelector('figure.asked').dataset.action") == "right"
        browser.press("ArrowUp")
        browser.press("ArrowUp")
        for key in ("1", "2", *("1" * 4), "u", "u", "2", "1", "4"):
            browser.press(key)
        browser.wait("document.querySelector('#after').classList.contains('done')")
        row = labels.load_labels(labels_file).rows[GENESIS]
        assert labels.complete(row)
        expected = {
            "axis": "free",
            "motion": "space_shooter",
            "down": "crouch",
            "jump": UNKNOWN,
            "confidence": "1.00",
        }
        assert {column: row[column] for column in expected} == expected

        browser.call("Page.reload")
        browser.wait(
            "document.querySelectorAll('figure canvas').length === 6"
        )  # continues at the Atari game
        assert "Kangaroo" in browser.value("document.querySelector('h1').textContent")
        assert (
            browser.value("document.querySelector('#count').textContent") == "1 of 2 games labelled"
        )
        browser.press("p")
        browser.wait("document.querySelectorAll('figure canvas').length === 7")
        browser.press("m")
        browser.wait(
            "document.querySelector('[data-moment=\"after 5 s\"]').getAttribute('aria-pressed')"
            " === 'true'"
        )
        browser.press("x")
        browser.press(" ")
        assert browser.value("playing === false && difference === true")
        browser.press("Backspace")  # takes back the view of the first game
        browser.wait("document.querySelector('#count').textContent === '0 of 2 games labelled'")
        assert saved(GENESIS, "view") == ""
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=400,
            height=800,
            deviceScaleFactor=1,
            mobile=True,
        )
        assert (
            browser.value("document.documentElement.scrollWidth") == 400
        )  # a phone does not scroll sideways
        assert browser.complaints == []
