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
LEAVES = {f"workbench.{leaf}" for leaf in ("types", "assets", "strict", "pictures", "films", "sounds")}  # anyone may

# package -> the other modules of the project that it may import, besides itself
ALLOWED = {
    "pipelines": LEAVES,
    "rewards": LEAVES,
    "workbench.methods": {"workbench.types", "workbench.losses", "workbench.advantages"},
}
TOP = ("app", "workbench.cli", "workbench.commands")  # they sit on top: nothing imports them but each other


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


def violations(path: Path, source: str) -> list[str]:
    me = module_of(path)
    found = []
    for target in sorted(imports(path, source)):
        for package, allowed in ALLOWED.items():
            inside = target == package or target.startswith(f"{package}.")
            if (me == package or me.startswith(f"{package}.")) and not inside and target not in allowed:
                found.append(f"{me} imports {target}")
        if target in TOP and me not in TOP:
            found.append(f"{me} imports {target}, which sits on top")
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_crosses_a_border(path):
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipelines/policy.py", "from rewards.clip import CLIPScore"),
        ("rewards/clip.py", "import pipelines"),
        ("rewards/clip.py", "from workbench import run"),
        ("workbench/methods/reno.py", "from ..run import plan"),
        ("workbench/methods/reno.py", "from ..store import index"),
        ("workbench/run.py", "from .cli import main"),
    ],
)
def test_a_forbidden_edge_is_noticed(file, source):
    assert violations(ROOT / file, source)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_stays_short_enough_to_read(path):
    limit = 120 if path.parent.name == "methods" else 400
    assert len(path.read_text().splitlines()) <= limit
