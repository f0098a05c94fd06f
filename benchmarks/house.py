"""How the code is laid out and named: import circles, arrows between packages, one-word functions, vague names, long
files.

    python benchmarks/house.py             the figures
    python benchmarks/house.py --names     and every one-word function and vague name, with its place

A name is vague where it names no thing: a participle (`told`, `found`) or an adverb (`here`, `apart`). k-diffusion,
nanoGPT, timm, torchtune and TRL have 13 to 47 % one-word functions and at most 0.3 % vague names.
"""

from __future__ import annotations

import ast
import collections
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("workbench", "rewards", "pipelines", "app.py")
VAGUE = frozenset(
    [
        "told",
        "found",
        "kept",
        "held",
        "made",
        "judged",
        "taught",
        "seen",
        "shown",
        "asked",
        "said",
        "given",
        "drawn",
        "built",
        "gathered",
        "matched",
        "known",
        "some",
        "few",
        "many",
        "own",
        "apart",
        "aside",
        "whole",
        "fine",
        "sure",
        "heard",
        "looked",
        "listed",
        "named",
        "wanted",
        "moved",
        "paid",
        "spent",
        "sunk",
        "rose",
        "ranked",
        "supplied",
        "able",
        "fits",
        "room",
        "beside",
        "afresh",
        "alone",
        "foreseen",
        "together",
        "rest",
        "odd",
        "twice",
        "there",
        "here",
        "now",
        "then",
        "wide",
        "least",
        "most",
        "far",
        "near",
        "whose",
        "worth",
        "place",
        "home",
        "loose",
        "torn",
        "strayed",
        "amended",
        "renamed",
        "left",
        "right",
        "again",
        "past",
        "both",
        "lacking",
        "missing",
        "done",
        "ready",
        "taken",
        "served",
        "living",
        "lost",
        "back",
        "lessons",
        "shelf",
        "desk",
        "specimens",
        "ears",
        "mine",
    ]
)


def project_files(root: Path = ROOT) -> list[Path]:
    return [file for top in TOPS for file in (sorted((root / top).rglob("*.py")) or [root / top])]


def module_name(file: Path, root: Path = ROOT) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, file: Path, modules: set[str], root: Path = ROOT) -> set[str]:
    """The modules among `modules` that a file with this source imports anywhere, inside functions and for type
    checkers too."""
    package = module_name(file, root).split(".")
    package = package if file.name == "__init__.py" else package[:-1]
    imports: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join(base + (node.module.split(".") if node.module else []))
            # `from package import module` imports the module; `from module import name` does not import `module.name`
            submodules = {f"{stem}.{alias.name}" for alias in node.names} & modules
            imports |= submodules or {stem}
    return (imports & modules) - {module_name(file, root)}


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the project's modules that it imports."""
    files = {module_name(file, root): file for file in project_files(root)}
    sources = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    return {name: imported_modules(sources[name], file, set(files), root) for name, file in files.items()}


def import_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module: Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            members = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(members) > 1:
                circles.append(sorted(members))

    sys.setrecursionlimit(10_000)
    for module in sorted(graph):
        if module not in index:
            visit(module)
    return circles


def count_words(name: str) -> int:
    return len(re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z]+|\d+", name.strip("_")))


def function_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("__"):
            yield node.lineno, node.name


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def package_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "workbench" else 1])


def main() -> None:
    graph, total = import_graph(), collections.Counter()
    for file in project_files():
        tree, place = ast.parse(file.read_text(encoding="utf-8")), file.relative_to(ROOT)
        for kind, names, is_counted in (
            ("one-word function", function_names(tree), lambda name: count_words(name) == 1),
            ("vague name", bound_names(tree), lambda name: name.strip("_").lower() in VAGUE),
        ):
            for line, name in names:
                total[kind, "all"] += 1
                if is_counted(name):
                    total[kind] += 1
                    if "--names" in sys.argv:
                        print(f"{kind}: {place}:{line} {name}")
    circles = import_circles(graph)
    arrows = {(package_of(a), package_of(b)) for a, targets in graph.items() for b in targets}
    for circle in circles:
        print("circle:", " ".join(circle))
    print(f"flat files in workbench/: {len(list((ROOT / 'workbench').glob('*.py')))}")
    print(f"import circles: {len(circles)}")
    print(f"arrows between packages: {sum(a != b for a, b in arrows)}")
    for kind in ("one-word function", "vague name"):
        print(f"{kind}s: {total[kind]} of {total[kind, 'all']} = {total[kind] / total[kind, 'all']:.1%}")
    print(f"longest file: {max(len(f.read_text(encoding='utf-8').splitlines()) for f in project_files())} lines")


if __name__ == "__main__":
    main()
