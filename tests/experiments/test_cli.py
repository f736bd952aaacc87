"""Command line: fast help, and one line with exit code 2 for bad input."""

import json
import os
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from envs.episodes.dataset import EpisodeReader
from envs.utils.errors import InputError
from experiments.__main__ import COMMANDS, execute

ROM_IS_MISSING = "SuperMarioBros-Nes"  # a game of stable-retro whose ROM is not free


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail as bad input; return its line on stderr."""
    assert execute(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("autoexplore: ")
    return lines[0]


def test_help_answers_at_once_and_names_every_command() -> None:
    started = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-m", "experiments", "--help"], capture_output=True, text=True, timeout=60
    )
    seconds = time.monotonic() - started
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)
    heavy = "print({'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules))"
    light = "[['doctor'], ['catalog'], ['data', 'verify', 'x']]"
    script = f"import sys, experiments.__main__ as m; [m.parse(argv) for argv in {light}]; {heavy}"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert loaded.stdout == "set()\n"
    assert seconds < 5  # 0.4 s on a quiet machine; what it must not do is load torch or Ray


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_explains_every_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        execute([command, "--help"])
    assert stop.value.code == 0
    assert "usage: autoexplore " + command in capsys.readouterr().out


def test_a_closed_stdout_ends_any_command_quietly(tmp_path: Path) -> None:
    """Close stdout as `| head` does, for `print` and for rich; the command's results stay."""
    data = tmp_path / "data"
    collect = shlex.split("collect Counting --episodes 1 --steps 20 --workers 1 --out")
    others = ("--help", "catalog --help", "catalog", "catalog --names", "doctor")
    for argv in (*map(str.split, others), [*collect, str(data)]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "experiments", *argv]
        ended = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=200
        )
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (141, ""), argv
    assert len(EpisodeReader(data)) == 1


def test_unknown_game(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(capsys, "collect", "Kangaro-Atari2600", "--out", str(tmp_path / "data"))
    assert "Kangaro-Atari2600" in line
    assert "Kangaroo-Atari2600" in line  # the suggestion
    assert not (tmp_path / "data").exists()


def test_missing_rom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    for argv in (
        ["collect", ROM_IS_MISSING, *out],
        ["pipeline", "--preset", "debug", "--games", ROM_IS_MISSING, *out],
        ["explore", ROM_IS_MISSING, "--model", str(tmp_path), *out],
    ):
        line = complaint(capsys, *argv)
        assert ROM_IS_MISSING in line
        assert "envs.roms" in line
    assert not any(tmp_path.iterdir())


def test_missing_checkpoint_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, gone, out = tmp_path / "data", str(tmp_path / "gone"), str(tmp_path / "out")
    data.mkdir()
    for argv in (
        ["train", "tokenizer", "--data", gone, "--out", out],
        ["train", "dynamics", "--data", str(data), "--tokenizer", gone, "--out", out],
        ["train", "tokenizer", "--data", str(data), "--init", gone, "--out", out],
        ["explore", "Counting", "--model", gone, "--out", out],
        ["evaluate", gone, "--data", str(data)],
        ["generate", gone, "--data", str(data), "--out", out],
        ["serve", gone],
        ["report", gone],
        ["collect", "Counting", "--policy", f"checkpoint:{gone}", "--out", out],
    ):
        assert gone in complaint(capsys, *argv)


def test_flags_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(tmp_path), str(tmp_path / "out")
    assert "--tokenizer" in complaint(capsys, "train", "dynamics", "--data", data, "--out", out)
    assert "--init" in complaint(
        capsys, "train", "tokenizer", "--recipe", "finetune", "--data", data, "--out", out
    )
    assert "g50" in complaint(
        capsys, "train", "dynamics", "--recipe", "g51", "--data", data, "--out", out
    )
    assert "--data" in complaint(capsys, "train", "tokenizer", "--out", out)
    objective = ["--model.dynamics.objective", "masked", "--data", data, "--out", out]
    assert "dynamics.objective" in complaint(capsys, "train", "tokenizer", *objective)
    assert "episodes" in complaint(capsys, "collect", "Counting", "--episodes", "0", "--out", out)
    assert "--inception" in complaint(
        capsys, "evaluate", "--peer", data, "--data", data, "--fid-resize", "nearest"
    )
    assert "--only" in complaint(capsys, "benchmark", "--only", "nothing")
    assert "console" in complaint(capsys, "catalog", "--console", "Vectrex")
    assert "reward-backend" in complaint(
        capsys, "pipeline", "--reward-backend", "remote", "--preset", "debug", "--out", out
    )


def test_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'huge'" in complaint(
        capsys, "pipeline", "--preset", "huge", "--out", str(tmp_path / "run")
    )
    assert "--out" in complaint(capsys, "pipeline")
    assert "nonsense" in complaint(capsys, "nonsense")
    assert "--seed" in complaint(
        capsys, "pipeline", "--seed", "many", "--out", str(tmp_path / "run")
    )
    assert "did you mean collect?" in complaint(capsys, "colect")


def test_no_command_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        execute([])
    assert stop.value.code == 0
    assert "usage: autoexplore COMMAND" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        execute(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"autoexplore {metadata.version('autoexplore')}\n"


BAD_INPUT = """
import sys
from experiments.__main__ import execute
out, gone = sys.argv[1:]
data, model = ["--data", gone, "--out", out], ["--model", gone, "--out", out]
codes = []
for argv in (
    ["collect", "Kangaro-Atari2600", "--out", out],
    ["pipeline", "--games", "Pong", "--out", out],
    ["evaluate", gone, "--data", gone, "--workers", "2"],
    ["generate", gone, *data],
    ["play", gone, "--data", gone],
    ["serve", gone],
    ["benchmark", "--games", "Kangaro-Atari2600"],
    ["export", "--tokenizer", gone, "--dynamics", gone, "--out", out],
    ["report", gone],
    ["train", "tokenizer", *data, "--workers", "2"],
    ["explore", "Counting", *model],
    ["explore", "Kangaro-Atari2600", "--reward", "random", "--out", out],
    ["tune", "Counting", *model],
    ["compare", "Counting", *model],
    ["expert", "Kangaro-Atari2600", "--out", out],
    ["study", "ablation", *data, "--parallel", "2"],
    ["study", "steps", gone, *data],
    ["study", "people", "make", "--models", f"a={gone}", f"b={out}", *data],
): codes.append(execute(argv))
assert not {"torch", "ray"} & set(sys.modules), "imported although the flags are wrong"
import ray
def refuse(*args, **options): raise AssertionError("Ray was started")
ray.init = refuse
for argv in (
    ["explore", "Counting", "--out", out],
    ["data", "rerender", gone, "--out", out],
): codes.append(execute(argv))
print(*codes)
"""


def test_bad_input_is_one_line_before_ray_starts(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", BAD_INPUT, str(tmp_path / "out"), str(tmp_path / "gone")]
    ended = subprocess.run(argv, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    codes, lines = ended.stdout.split(), ended.stderr.splitlines()
    assert codes == ["2"] * 20
    assert len(lines) == 20
    assert all(line.startswith("autoexplore: ") for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert str(tmp_path) in complaint(
        capsys, "pipeline", "--preset", "debug", "--out", str(tmp_path)
    )
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_catalog_lists_names_for_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["catalog", "--console", "Genesis", "--playable", "--names"]) == 0
    assert "Airstriker-Genesis" in capsys.readouterr().out.split()


def test_an_input_error_inside_a_ray_task_is_still_one_line(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    from experiments.commands import doctor

    @ray.remote
    def fails() -> None:
        raise InputError("the disk of the worker is full: free some space")

    monkeypatch.setattr(doctor, "run", lambda args: ray.get(fails.remote()))
    assert (
        complaint(capsys, "doctor")
        == "autoexplore: the disk of the worker is full: free some space"
    )


def test_a_full_memory_is_one_line_that_says_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from experiments.commands import doctor

    def runs_out(args: doctor.Args) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the docs")

    monkeypatch.setattr(doctor, "run", runs_out)
    assert complaint(capsys, "doctor") == (
        "autoexplore: out of memory: CUDA out of memory. Tried to allocate 2 GiB; "
        "use a smaller batch, --precision bf16 or --device cpu"
    )


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.commands import collect

    def interrupted(args: collect.Args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collect, "run", interrupted)
    assert execute(["collect", "Counting", "--out", "x"]) == 130
    assert capsys.readouterr().err.strip().endswith("autoexplore collect Counting --out x --resume")


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert execute(["doctor", "--no-start-ray", "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "ROMs" in shown
    assert "all checks passed" in shown


@pytest.mark.slow
def test_benchmark_writes_ratios(ray_cluster: None, tmp_path: Path) -> None:
    argv = shlex.split("benchmark --only collect windows --games Counting --steps 60 --repeats 1")
    assert execute([*argv, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(dict.fromkeys(row["group"] for row in rows)) == ["collect", "windows"]
    assert all(row["rate"] > 0 for row in rows)
    assert rows[0]["ratio"] == pytest.approx(rows[0]["rate"] / rows[0]["baseline_rate"])
    assert all(row["ratio"] > 0 for row in rows)
