"""Command line: `autoexplore COMMAND`, the same as `python -m experiments COMMAND`.

Each command is a module of `experiments.commands` with a dataclass `Args`, whose field docstrings
are the help, and `run(args)`. A command with a preset also has `defaults(argv)`. Only the module of
the chosen command is imported. Exit codes: 0 success, 2 bad input (one line on stderr), 130 Ctrl+C,
141 closed stdout.
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
from experiments.arguments import DeviceArgs

COMMANDS = {
    "catalog": "List games, their labels and which ROMs are installed.",
    "collect": "Record episodes of games with a random, scripted or trained policy.",
    "data": "Verify, summarise, compact, convert and re-render recorded episodes.",
    "train": "Train a tokenizer, latent action model, dynamics model or upscaler.",
    "export": "Combine a tokenizer and a dynamics model into a world model.",
    "explore": "Train an exploration agent on the world model's uncertainty.",
    "expert": "Train an agent on a game's own reward and record a test set.",
    "tune": "Tune explorers while they learn: by hand, or by population-based training.",
    "compare": "Compare trained explorers with random play over several seeds.",
    "evaluate": "Evaluate a world model on held-out episodes against a copy-last-frame baseline.",
    "study": "Ablations and analyses of the world model (JSON and PNG in --out).",
    "reproduce": "Make a table or figure of the paper, from games to numbers beside the paper's.",
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
RESUMABLE = ("collect", "train", "explore", "expert", "tune")
"""Commands that continue an interrupted run with --resume."""
RUN_AGAIN = (
    ["pipeline"],
    ["reproduce"],
    ["study", "ablation"],
    ["study", "exploration"],
    ["study", "people", "make"],
)
"""Commands that continue when they are run again with the same flags."""
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


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
        # Python flushes stdout once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_SIGPIPE
    sys.exit(code)


def _stdout_closed() -> bool:
    """Return True if nothing reads stdout any more, as after `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in poll.poll(0))


def execute(argv: list[str]) -> int:
    """Run one command and return its exit code. argv: the words after `autoexplore`."""
    try:
        command, args = parse(argv)
        flags = args
        while hasattr(flags, "which"):
            flags = flags.which
        if isinstance(flags, DeviceArgs):
            flags.use_device()
        command.run(args)
    except KeyboardInterrupt:
        print(f"\nstopped. {_resume_hint(argv)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        message = _expected_failure(error)
        if message is None:
            raise
        print(f"autoexplore: {_one_line(message)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _expected_failure(error: Exception) -> str | None:
    """Return the line for a failure that the user can do something about, None for any other."""
    causes = list(_causes(error))
    for link in causes:
        if isinstance(link, InputError):
            return str(link.args[0])
    for link in causes:
        # Torch's class, Ray's or numpy's: none of them is imported here.
        names = {kind.__name__ for kind in type(link).__mro__}
        if names & {"OutOfMemoryError", "MemoryError"}:
            said = str(link).strip().splitlines()[0].rstrip(".")
            return f"out of memory: {said}; use a smaller batch, --precision bf16 or --device cpu"
    return None


def parse(argv: list[str]) -> tuple[ModuleType, Any]:
    """Import the command that argv begins with; return its module and its parsed Args.

    Raises InputError for an unknown command or a bad flag, SystemExit(0) after --help or --version.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "--version"):
        print(f"autoexplore {__version__}" if name == "--version" else overview())
        raise SystemExit(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see autoexplore --help"
        raise InputError(f"unknown command {name!r}: {hint}")
    prepare_ray_environment(local=False)  # before a command imports Ray
    command = importlib.import_module(f"experiments.commands.{name}")
    # The preset and the file of --config are the defaults of the flags.
    default = {"default": command.defaults(argv[1:])} if hasattr(command, "defaults") else {}
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            args = tyro.cli(
                command.Args,
                prog=f"autoexplore {name}",
                description=_one_line((command.__doc__ or "").split("\n\n")[0]),
                args=argv[1:],
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
                **default,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_usage_error(stderr.getvalue())}; see autoexplore --help") from None
    return command, args


def overview() -> str:
    """Return the text of `autoexplore --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"usage: autoexplore COMMAND [FLAGS]\n\n{DESCRIPTION}\n\n{commands}\n\n"
        "`autoexplore COMMAND --help` explains every flag; --version prints the version."
    )


def _usage_error(box: str) -> str:
    """Return the first paragraph of tyro's box around a usage error, as one line.

    If the terminal has no box characters, the title is a paragraph too.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip(" │")
        if text and set(text) <= set("─-"):
            parts.append([])
        elif text and not text.startswith(("╭", "╰")):
            parts[-1].append(text)
    first = parts[0] if "╭" in box or len(parts) < 2 else parts[1]
    return " ".join(first).rstrip(".")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, including those in the attributes of Ray's wrappers."""
    queue, seen = [error], set()
    while queue:
        link = queue.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        inner = getattr(link, "cause", None)
        # A RayTaskError is an instance of its cause's class, but its text is a whole traceback.
        if not isinstance(inner, BaseException):
            yield link
        workers = getattr(link, "worker_failures", None)
        queue += [inner, link.__cause__, *(workers.values() if isinstance(workers, dict) else ())]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _resume_hint(argv: list[str]) -> str:
    """Return the sentence that tells how to continue after Ctrl+C."""
    command = shlex.join(["autoexplore", *argv])
    if any(argv[: len(words)] == words for words in RUN_AGAIN):
        return f"Finished stages are kept; continue with: {command}"
    if argv and argv[0] in RESUMABLE:
        return f"Continue with: {command}" + ("" if "--resume" in argv else " --resume")
    return f"Start again with: {command}"


if __name__ == "__main__":
    main()
