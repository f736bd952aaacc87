"""The command line: `autoexplore <command>`, the same as `python -m experiments <command>`.

Each command is a module of `experiments.commands` with a dataclass `Args`, whose field docstrings
are the help, and `run(args)`. One with a preset has `defaults(argv)` as well. Only the chosen
module is imported. Exit codes: 0 done, 2 bad input (one line on stderr), 130 stopped with Ctrl+C,
141 stdout was closed.
"""

import contextlib
import difflib
import importlib
import io
import os
import select
import shlex
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import tyro

from envs.utils.errors import InputError
from envs.utils.progress import EXIT_SIGPIPE
from envs.utils.ray_session import prepare_ray_environment
from experiments import __version__

COMMANDS = {
    "catalog": "List games, their labels and which ROMs are installed.",
    "collect": "Record episodes of games with a random, sticky or trained policy.",
    "data": "Verify, summarise, compact, convert and re-render recorded episodes.",
    "train": "Train a tokenizer, latent action model, dynamics model or upscaler.",
    "export": "Combine a tokenizer and a dynamics model into a world model.",
    "explore": "Train an exploration agent on the world model's uncertainty.",
    "expert": "Train an agent on a game's own reward and record a test set.",
    "tune": "Tune explorers while they learn: by hand, or by population-based training.",
    "compare": "Compare trained explorers with random play over several seeds.",
    "evaluate": "Evaluate a world model on held-out episodes against a copy-last-frame baseline.",
    "study": "Ablations and analyses of the world model (JSON and PNG in --out).",
    "generate": "Generate frames from recorded episodes and save GIFs next to the ground truth.",
    "play": "Play inside a world model with the keyboard.",
    "serve": "Serve the world model's reward with Ray Serve.",
    "pipeline": "Run the whole pipeline: collect, train, explore, fine-tune, evaluate, report.",
    "report": "Create a self-contained HTML report of a run.",
    "benchmark": "Benchmark data loading, the model and the reward against simple baselines.",
    "doctor": "Check the installation and suggest fixes.",
}
"""Name and one-line description of each command."""
DESCRIPTION = "Train world models of retro games without human demonstrations."
EXIT_BAD_INPUT = 2
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
        if not _stdout_closed():
            raise
        # Python flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_SIGPIPE
    sys.exit(code)


def _stdout_closed() -> bool:
    """Return True if the reader of stdout is gone, as after `| head`; other pipes may break as
    well."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always told
    return any(event & select.POLLERR for _, event in poll.poll(0))


def execute(argv: list[str]) -> int:
    """Run one command and return its exit code. argv: the words after `autoexplore`."""
    try:
        command, args = parse(argv)
        command.run(args)
    except KeyboardInterrupt:
        print(f"\nstopped. {_resume_hint(argv)}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        bad_input = next((link for link in _chain(error) if isinstance(link, InputError)), None)
        if bad_input is None:
            raise
        print(f"autoexplore: {_one_line(str(bad_input.args[0]))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def parse(argv: list[str]) -> tuple[ModuleType, Any]:
    """Import the command that argv begins with; return its module and its parsed Args.

    Raises InputError for an unknown command or a bad flag, SystemExit(0) after --help or --version.
    """
    name = argv[0] if argv else "--help"
    if name == "--version":
        print(f"autoexplore {__version__}")
        raise SystemExit(0)
    if name in ("-h", "--help"):
        print(overview())
        raise SystemExit(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see autoexplore --help"
        raise InputError(f"unknown command {name!r}: {hint}")
    prepare_ray_environment(local=False)  # Ray reads it when a command imports Ray
    command = importlib.import_module(f"experiments.commands.{name}")
    # A command with a preset takes it, and the file of --config, as the defaults of its flags.
    default = {"default": command.defaults(argv[1:])} if hasattr(command, "defaults") else {}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args = tyro.cli(
                command.Args,
                prog=f"autoexplore {name}",
                description=_first_paragraph(command.__doc__ or ""),
                args=argv[1:],
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
                **default,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_usage_line(complaint.getvalue())) from None
    return command, args


def overview() -> str:
    """Return the text of `autoexplore --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: autoexplore COMMAND [FLAGS]",
            "",
            DESCRIPTION,
            "",
            *lines,
            "",
            "`autoexplore COMMAND --help` explains every flag; --version prints the version.",
        ]
    )


def _usage_line(box: str) -> str:
    """Return the first part of tyro's box around a usage error, as one line.

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
    """Yield the error and its causes, through Ray's wrappers, which keep them in their
    attributes."""
    waiting, seen = [error], set()
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        inner = getattr(link, "cause", None)
        workers = getattr(link, "worker_failures", None)
        causes = [inner, link.__cause__, *(workers.values() if isinstance(workers, dict) else ())]
        # A RayTaskError is an instance of its cause's class, but its text is a whole traceback:
        # take the cause first.
        if isinstance(inner, BaseException):
            waiting.extend(causes)
            continue
        yield link
        waiting.extend(causes)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _first_paragraph(text: str) -> str:
    return _one_line(text.split("\n\n")[0])


def _resume_hint(argv: list[str]) -> str:
    """Return the command that continues after Ctrl+C: pipeline as it is, others with --resume."""
    command = shlex.join(["autoexplore", *argv])
    if argv[:1] == ["pipeline"] or argv[:2] == ["study", "ablation"]:
        return f"Finished stages are kept; go on with: {command}"
    if argv and argv[0] in ("collect", "train", "explore", "expert", "tune"):
        return f"Go on with: {command}" + ("" if "--resume" in argv else " --resume")
    return f"Start again with: {command}"


if __name__ == "__main__":
    main()
