"""The command line: `autoexplore <command>`, the same as `python -m experiments <command>`.

Each command is a file beside this one with a dataclass `Args`, whose field docstrings are the help, and `run(args)`.
The files import only light modules at their top, so that `--help` answers at once. Exit codes: 0 done, 2 bad input
(one line on stderr), 130 stopped with Ctrl+C, 141 nobody reads stdout any more.
"""

import contextlib
import importlib
import io
import os
import select
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union

import tyro

from envs.errors import InputError

COMMANDS = (
    "catalog",
    "collect",
    "data",
    "train",
    "map",
    "explore",
    "expert",
    "tune",
    "rounds",
    "agents",
    "evaluate",
    "study",
    "generate",
    "play",
    "serve",
    "pipeline",
    "report",
    "benchmark",
    "scaling",
    "doctor",
)
DESCRIPTION = (
    "Train world models of retro games without human demonstrations: random agents play, a world model learns to "
    "predict them, an agent seeks what the model does not understand, the model learns from what it brings back."
)
TROUBLE = 2
STOPPED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit the process with its code."""
    code: Any
    try:
        try:
            code = execute(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as stop:  # after --help
            code = stop.code
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        from envs.runs import NOBODY_READS

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        code = NOBODY_READS
    sys.exit(code)


def _nobody_reads() -> bool:
    """Whether the other end of stdout is closed, as by `| head`; an emulator's pipe may break as well."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always told
    return any(event & select.POLLERR for _, event in poll.poll(0))


def execute(argv: list[str]) -> int:
    """Run one command. argv: what stands after `autoexplore`. Returns the exit code."""
    try:
        args = parse(argv)
        sys.modules[type(args).__module__].run(args)
    except KeyboardInterrupt:
        print(f"\nstopped. {_how_to_go_on(argv)}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        bad_input = next((link for link in _chain(error) if isinstance(link, InputError)), None)
        if bad_input is None:
            raise
        print(f"autoexplore: {_one_line(str(bad_input.args[0]))}", file=sys.stderr)
        return TROUBLE
    return 0


def parse(argv: list[str]) -> Any:
    """The chosen command's Args. Raises InputError for flags that do not fit, SystemExit(0) after `--help`."""
    modules = [importlib.import_module(f"experiments.{name}") for name in COMMANDS]
    commands = tuple(
        Annotated[module.Args, tyro.conf.subcommand(name=name, description=_first_paragraph(module.__doc__ or ""))]
        for name, module in zip(COMMANDS, modules, strict=True)
    )
    kinds: Any = Union[commands]  # noqa: UP007  # made at run time, where `|` has no meaning for a tuple
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kinds,
                prog="autoexplore",
                description=DESCRIPTION,
                args=argv,
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_usage_line(complaint.getvalue())) from None


def _usage_line(box: str) -> str:
    """Tyro explains a usage error in a box of many lines, titled and ruled off: its first part, as one line.

    Where the terminal has no box characters the title is a part of its own.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip(" │")
        if text and set(text) <= set("─-"):
            parts.append([])
        elif text and not text.startswith(("╭", "╰")):
            parts[-1].append(text)
    told = parts[0] if "╭" in box or len(parts) < 2 else parts[1]
    return " ".join(told).rstrip(".") + "; see autoexplore --help"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it, through Ray's wrappers, which keep the cause in `cause` or per worker."""
    waiting, seen = [error], set()
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        inner = getattr(link, "cause", None)
        workers = getattr(link, "worker_failures", None)
        causes = [inner, link.__cause__, *(workers.values() if isinstance(workers, dict) else ())]
        # A RayTaskError is an instance of its cause's class, but its text is a whole traceback: take the cause first.
        if isinstance(inner, BaseException):
            waiting.extend(causes)
            continue
        yield link
        waiting.extend(causes)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _first_paragraph(text: str) -> str:
    return _one_line(text.split("\n\n")[0])


def _how_to_go_on(argv: list[str]) -> str:
    """What to type to continue after Ctrl+C: pipeline and rounds always continue, other long commands with --resume."""
    command = shlex.join(["autoexplore", *argv])
    if argv[:1] in (["pipeline"], ["rounds"]) or argv[:2] == ["study", "ablation"]:
        return f"Finished stages are kept; go on with: {command}"
    if argv and argv[0] in ("collect", "train", "explore", "expert", "tune"):
        return f"Go on with: {command}" + ("" if "--resume" in argv else " --resume")
    return f"Start again with: {command}"


if __name__ == "__main__":
    main()
