"""Pages of the project: short, up to date, and with links and commands that exist."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from envs.utils.errors import InputError
from experiments.__main__ import COMMANDS, parse
from scripts import make_cli_docs

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINES_OF_COMMANDS = re.compile(r"\bautoexplore ([^\n#`]+)")
INLINE = re.compile(r"(?<!`)`(?:autoexplore )?([^`\n]+)`")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
HISTORY = ROOT / "CHANGELOG.md"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[list[str]]:
    """Return the commands in a page's code blocks, in words, without `autoexplore`."""
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(page.read_text())]
    lines = [line for block in blocks for line in LINES_OF_COMMANDS.findall(block)]
    return [words for line in lines if (words := shlex.split(line)) and words[0] in COMMANDS]


def usage_error(words: list[str]) -> str:
    """Return the error of parsing a command, empty if there is none."""
    try:
        parse(words)
    except InputError as error:
        return f"autoexplore {shlex.join(words)}: {error}"
    return ""


def test_the_page_of_commands_is_up_to_date() -> None:
    script = "from scripts import make_cli_docs; print(make_cli_docs.page(), end='')"
    made = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout == make_cli_docs.PAGE.read_text(), "run `make docs`"
    assert str(ROOT) not in made.stdout


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (
            target.exists() and (not anchor or anchor in anchors(target))
        ):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_flags_that_are_shown(page: Path) -> None:
    shown = commands(page) if page != make_cli_docs.PAGE else []
    assert [error for words in shown if (error := usage_error(words))] == []


@functools.cache
def help_of(command: str) -> str:
    """Return the help of a command and of its subcommands."""
    return make_cli_docs.section([command])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_in_running_text_exist(page: Path) -> None:
    generated = page in (make_cli_docs.PAGE, HISTORY)
    snippets = [] if generated else INLINE.findall(page.read_text())
    missing = [
        (code, flag)
        for code in snippets
        if (command := code.split()[0]) in COMMANDS
        for flag in FLAG.findall(code)
        if flag not in help_of(command)
    ]
    assert missing == []


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [*PAGES, *(ROOT / ".github" / "workflows").iterdir()]
    named = {
        name
        for page in texts
        for name in re.findall(r"(?:`|run: |^)make ([\w-]+)(?=`|\s+#|$)", page.read_text(), re.M)
    }
    assert {"demo", "test", "lint", "docs", "test-slow"} <= named <= targets


def test_the_table_of_what_was_mended_for_gpus_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    rows = re.findall(r"^\| ([AB]\d+) \|.*$", text, re.MULTILINE)
    assert rows == [*(f"A{row}" for row in range(1, 17)), *(f"B{row}" for row in range(1, 9))]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) >= len(rows)
    for name, test in named:
        places = ("", "tests/worldmodel/", "tests/fixtures/stand_in_device/")
        (file,) = [path for place in places if (path := ROOT / place / name).exists()]
        assert f"def {test}(" in file.read_text(), name


def test_the_demo_picture_is_small() -> None:
    assert os.path.getsize(ROOT / "docs" / "media" / "demo.gif") <= 1_000_000
