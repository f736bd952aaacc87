"""Rules of prose and of names that a machine can check. CONTRIBUTING.md states them."""

import ast
import importlib
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("envs", "worldmodel", "exploration", "experiments")
MODULES = {
    path.relative_to(ROOT): ast.parse(path.read_text())
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}

NOT_IMPERATIVE = re.compile(r"(What|Whether|Where|How|Which|Of)\b")
PRIVATE_REFERENCE = re.compile(
    r"\bspec:|\(spec[:)]|\b(spec|ray|learning|data|gpu|design|style|explore|bugs|people)\.md\b"
)
MOST_MODULES = 18
ONE_FOR_EACH_COMMAND = "experiments/commands"
"""Folder that grows with the command line, not with what a reader must keep in mind."""

SHARED_NAMES = {
    "Args": "the flags of a command",
    "run": "the entry of a command",
    "defaults": "the default flags of a command with a preset",
    "from_run": "the flags of a command from the config.json of a run",
    "main": "the entry of a module that is run as a script",
}
"""Names that several modules may define, each with its reason."""

PUBLIC = [
    "envs.make",
    "envs.catalog.games",
    "envs.catalog.table",
    "envs.collect.collect",
    "envs.controls.ACTIONS",
    "envs.episodes.EpisodeReader",
    "envs.episodes.EpisodeWriter",
    "worldmodel.Dynamics.forward",
    "worldmodel.GenieRedux.generate",
    "worldmodel.GenieRedux.load",
    "worldmodel.GenieRedux.save",
    "worldmodel.GenieRedux.token_entropy",
    "worldmodel.GenieReduxG.generate",
    "worldmodel.GenieReduxG.load",
    "worldmodel.GenieReduxG.save",
    "worldmodel.GenieReduxG.token_entropy",
    "worldmodel.LatentActionModel.encode",
    "worldmodel.Tokenizer.codebook",
    "worldmodel.Tokenizer.decode",
    "worldmodel.Tokenizer.encode",
    "worldmodel.WorldModelConfig",
    "worldmodel.WorldModelEnv",
    "worldmodel.preset",
    "worldmodel.losses.token_distance_cross_entropy",
    "worldmodel.metrics.delta_psnr",
    "worldmodel.metrics.frechet_distance",
    "worldmodel.metrics.psnr",
    "worldmodel.metrics.ssim",
    "exploration.AutoExploreConfig",
    "exploration.reward.uncertainty_reward",
]


def docstrings(tree: ast.Module) -> list[str]:
    """Return the docstrings of a module, its classes, functions and fields."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    return [
        line.value.value.strip()
        for body in bodies
        for line in body
        if isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_begin_with_a_verb_or_a_noun(package: str) -> None:
    bad = [
        f"{path}: {text.splitlines()[0]}"
        for path, tree in MODULES.items()
        if path.parts[0] == package
        for text in docstrings(tree)
        if NOT_IMPERATIVE.match(text)
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_text_refers_to_private_notes(package: str) -> None:
    bad = [
        f"{path}: {found[0]}"
        for path in MODULES
        if path.parts[0] == package
        for found in PRIVATE_REFERENCE.finditer((ROOT / path).read_text())
    ]
    assert not bad, "\n".join(bad)


def test_no_folder_is_too_full() -> None:
    modules = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    del modules[Path(ONE_FOR_EACH_COMMAND)]
    assert {str(f): n for f, n in modules.items() if n > MOST_MODULES} == {}


def test_public_names_of_modules_are_unique() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path))
    twice = {name: paths for name, paths in homes.items() if len(paths) > 1}
    assert {n: p for n, p in twice.items() if n not in SHARED_NAMES} == {}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_can_be_imported(name: str) -> None:
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:depth]))
        found = getattr(found, part)
    # The name leads to the object that its module defines, not to a stand-in.
    assert getattr(found, "__name__", parts[-1]) == parts[-1]
