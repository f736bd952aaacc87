"""The page of the user studies: over HTTP, and in a browser with participants who interrupt it."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.__main__ import execute
from experiments.studies.people.answers import answers_path, participant_order, read_answers
from experiments.studies.people.material import load_material
from tests.conftest import EVERYTHING
from tests.experiments.studies.people.conftest import COUNTS
from tests.fixtures.browser import Browser
from tests.fixtures.processes import until_interrupted
from tests.fixtures.web import ask

ALL = sum(COUNTS.values())
KEYS = {"left": "ArrowLeft", "same": "ArrowDown", "right": "ArrowRight"}


@contextlib.contextmanager
def serving(
    study: Path, participants: int = 3, port: int = 0
) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:
    """The real command in a process of its own, and the participants' links."""
    argv = f"study people serve --out {study} --participants {participants} --port {port}"
    command = [sys.executable, "-u", "-m", "experiments", *argv.split()]
    with until_interrupted(command) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(participants + 1)]
        yield [line.split()[0] for line in lines[:-1]], process


def test_the_app_shows_no_model_and_saves_each_answer(study: Path) -> None:
    material = load_material(study)
    with serving(study) as (links, process):
        link = links[0]
        status, page, headers = ask(link)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert not any(elsewhere in page for elsewhere in (b"http://", b"https://", b"@import"))

        # Nothing tells who made a clip.
        state = ask(f"{link}/state")[1]
        order = participant_order(material, 1)
        assert [s["study"] for s in json.loads(state)["samples"]] == [s.sample.study for s in order]
        secrets = (b"random", b"explored", b"truth", b"Counting", b"Corridor")
        for number, shown in enumerate(order):
            for side, clip in enumerate(shown.clips):
                status, picture, headers = ask(f"{link}/clips/{number}/{side}")
                assert (status, picture) == (200, (study / clip).read_bytes())
                assert not any(word in str(headers).encode() for word in secrets)
        assert not any(word in page + state for word in secrets)

        # An answer is on the disk when the app says so.
        answer = f"{link}/answers/0"
        assert ask(answer, {"choice": "4"})[0] == 200
        (saved,) = read_answers(material, 1)
        assert (saved.sample, saved.value) == (order[0].sample.id, 4)
        assert json.loads(ask(f"{link}/state")[1])["samples"][0]["choice"] == "4"
        side = f"{link}/answers/{ALL - 1}"
        assert ask(side, {"choice": "left"})[0] == 200
        assert read_answers(material, 1)[-1].value == (1 if order[-1].swapped else 0)

        # Wrong words, places, links and sites change nothing.
        before = answers_path(material, 1).read_bytes()
        assert ask(answer, {"choice": "left"})[0] == 400
        assert ask(side, {"choice": "4"})[0] == 400
        assert ask(f"{link}/answers/{ALL}", {"choice": "4"})[0] == 404
        assert ask(f"{link}/answers/-1", {"choice": "4"})[0] == 404
        assert ask(f"{link[:-1]}/state")[0] == 404
        assert ask(f"{link}/clips/0/2")[0] == 422
        assert ask(answer, {"choice": "1"}, Host="evil.example")[0] == 400
        assert ask(answer, {"choice": "1"}, Origin="http://evil.example")[0] == 403
        assert answers_path(material, 1).read_bytes() == before

        assert execute(["study", "people", "serve", "--out", str(study)]) == 2  # one at a time
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert f"participant 1: 2 of {ALL} answered" in said


def test_an_edited_file_is_noticed_and_not_written_over(study: Path) -> None:
    material = load_material(study)
    with serving(study, 1) as ((link,), _):
        for number in range(3):
            assert ask(f"{link}/answers/{number}", {"choice": "1"})[0] == 200
        file = answers_path(material, 1)
        edited = file.read_text().replace('"value": 1.0', '"value": 5.0')
        file.write_text(edited)
        status, said, _ = ask(f"{link}/answers/3", {"choice": "1"})
        assert status == 400
        assert b"was edited" in said
        assert file.read_text() == edited


def test_bad_flags_and_folders_are_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = ["study", "people", "serve", "--out", str(study)]
    for argv, message in (
        ([*serve, "--participants", "0"], "--participants 0"),
        ([*serve, "--port", "70000"], "--port 70000"),
        ([*serve, "--host", "0.0.0.0"], "--host 0.0.0.0"),
        ([*serve, "--host", "no.such.host.invalid"], "cannot be used"),
        (["study", "people", "serve", "--out", str(tmp_path)], "no complete study"),
        (["study", "people", "score", "--out", str(tmp_path)], "no complete study"),
    ):
        assert execute(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


class Participant:
    """A script that answers in a browser as a person would."""

    def __init__(self, browser: Browser, link: str) -> None:
        self.browser = browser
        self.link = link

    def open(self, number: int) -> None:
        """Open the link; the page must go on with this sample, after instructions if it is new."""
        self.browser.call("Page.navigate", url=self.link)
        if number in (0, COUNTS["quality"]):
            self.start()
        self.wait(number)

    def start(self) -> None:
        """Leave the instructions."""
        self.browser.wait(
            "document.querySelector('#start') && !document.querySelector('#words').hidden"
        )
        self.browser.press("Enter")
        self.browser.value("document.querySelector('#start').click()")

    def wait(self, number: int) -> None:
        """Wait until this sample plays."""
        shown = "document.querySelector('#sample').dataset"
        self.browser.wait(f"{shown}.number === '{number}' && {shown}.ready === 'true'")

    def touch(self, choice: str) -> None:
        """Tap a button."""
        box = (
            f"document.querySelector('[data-choice={json.dumps(choice)}]').getBoundingClientRect()"
        )
        x, y = (self.browser.value(f"{box}.{axis} + 10") for axis in "xy")
        tap = [{"x": x, "y": y}]
        self.browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=tap)
        self.browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def answer(self, numbers: range, *, tapping: bool = False) -> None:
        """Answer these samples; the first is shown, the one after the last in the end."""
        for number in numbers:
            choice = choice_of(number)
            if tapping:
                self.touch(choice)
            else:
                self.browser.press(KEYS.get(choice, choice))
            if number + 1 == ALL:
                self.browser.wait("document.querySelector('#done') !== null")
            elif number + 1 == COUNTS["quality"]:
                self.start()
            if number + 1 < ALL:
                self.wait(number + 1)


def choice_of(number: int) -> str:
    """Return what all scripted participants answer to the sample at this place."""
    if number < COUNTS["quality"]:
        return str(1 + number % 5)
    return ("left", "same", "right")[number % 3]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("chromium") is None and not EVERYTHING, reason="needs the command chromium"
)
def test_three_participants_a_reload_and_a_killed_server_lose_nothing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    material, half = load_material(study), COUNTS["quality"] // 2
    with contextlib.closing(Browser(tmp_path / "profile")) as browser:
        with serving(study) as (links, process):
            port = int(links[0].split(":")[2].split("/")[0])
            first, second, third = (Participant(browser, link) for link in links)
            first.open(0)
            context = "document.querySelector('canvas').getContext('2d')"
            colours = f"new Set({context}.getImageData(0, 0, 64, 64).data).size"
            assert browser.value(colours) > 1  # the clip is really drawn
            frame = "document.querySelector('#clips').dataset.frame"
            browser.wait(f"{frame} === '3'")
            browser.wait(f"{frame} === '0'")  # and repeats
            first.answer(range(ALL))

            # The second taps, and reloads in the middle of each study.
            browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
            second.open(0)
            second.answer(range(half), tapping=True)
            browser.call("Page.reload")
            second.wait(half)
            browser.press("Backspace")
            second.wait(half - 1)
            chosen = "document.querySelector('[data-choice][aria-pressed=true]').dataset.choice"
            assert browser.value(chosen) == choice_of(half - 1)
            browser.press("Enter")
            second.wait(half)
            second.answer(range(half, ALL - 2), tapping=True)
            second.open(ALL - 2)
            second.answer(range(ALL - 2, ALL), tapping=True)
            browser.call("Emulation.setTouchEmulationEnabled", enabled=False)
            assert browser.complaints == []

            # The server is killed while the third answers; the page waits for the next one.
            third.open(0)
            third.answer(range(half))
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=20)
            assert len(read_answers(material, 3)) == half
            browser.press(choice_of(half))
            browser.wait("!document.querySelector('#trouble').hidden")
        with serving(study, port=port) as (again, _):
            assert again == links
            third.wait(half + 1)
            browser.wait("document.querySelector('#trouble').hidden")
            third.answer(range(half + 1, ALL))
            browser.call("Page.reload")
            browser.wait("document.querySelector('#done') !== null")
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                width=400,
                height=800,
                deviceScaleFactor=1,
                mobile=True,
            )
            assert browser.value("document.documentElement.scrollWidth") == 400
    for participant in (1, 2, 3):
        order = participant_order(material, participant)
        answers = read_answers(material, participant)
        assert [answer.sample for answer in answers] == [shown.sample.id for shown in order]
        assert [answer.choice for answer in answers] == [choice_of(n) for n in range(ALL)]
        assert [a.value for a in answers] == [
            shown.value(choice_of(n)) for n, shown in enumerate(order)
        ]
    assert execute(["study", "people", "score", "--out", str(study)]) == 0
    assert f"3 participants, 3 of whom answered all {ALL} samples" in capsys.readouterr().out
