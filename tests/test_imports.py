"""Who may import whom, and how long a file may be: the architecture, held by a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    [ROOT / "app.py", *(p for top in ("workbench", "rewards", "pipelines") for p in (ROOT / top).rglob("*.py"))]
)
OURS = ("workbench", "rewards", "pipelines", "app")

# Each package imports only those above it. Pipelines, rewards and methods know nothing of one another.
ORDER = (
    {"workbench.core"},
    {"pipelines", "rewards", "workbench.methods"},
    {"workbench.runs"},
    {"workbench.evaluation"},
    {"workbench.training"},
    {"workbench.report"},
    {"workbench.engine"},
    {"workbench.feedback", "workbench.tools"},
    {"workbench.ui"},
    {"app"},
    {"workbench.commands"},
    {"workbench.cli"},
    {"workbench.__main__"},
)
LEVELS = {package: level for level, packages in enumerate(ORDER) for package in packages}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source: str) -> set[str]:
    """The project's own modules that a file imports, relative imports resolved."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join(base + (node.module.split(".") if node.module else []))
            # `from package import module` imports the module; `from module import name` does not import `module.name`
            modules = {f"{stem}.{alias.name}" for alias in node.names}
            found |= {m for m in modules if exists(m)} or {stem}
    return {m for m in found if m.split(".")[0] in OURS}


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def package_of(module: str) -> str | None:
    return next((p for p in LEVELS if module == p or module.startswith(f"{p}.")), None)


def violations(path: Path, source: str) -> list[str]:
    me, mine = module_of(path), package_of(module_of(path))
    return [
        f"{me} imports {target}"
        for target in sorted(imports(path, source))
        if (theirs := package_of(target)) is not None and theirs != mine
        if mine is None or LEVELS[theirs] >= LEVELS[mine]
    ]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_crosses_a_border(path):
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipelines/policy.py", "from rewards.image.clip import CLIPScore"),
        ("pipelines/policy.py", "from workbench.methods import METHODS"),
        ("rewards/image/clip.py", "import pipelines"),
        ("rewards/image/clip.py", "from workbench.engine import run"),
        ("workbench/methods/inference/reno.py", "from ...engine.run import plan"),
        ("workbench/methods/inference/reno.py", "from rewards.image.clip import CLIPScore"),
        ("workbench/core/paths.py", "from workbench.runs.store import index"),
        ("workbench/report/pages.py", "from ..engine import run"),
        ("workbench/engine/run.py", "from ..cli import main"),
    ],
)
def test_a_forbidden_edge_is_noticed(file, source):
    assert violations(ROOT / file, source)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_stays_short_enough_to_read(path):
    limit = 120 if "methods" in path.parts else 400
    assert len(path.read_text().splitlines()) <= limit
