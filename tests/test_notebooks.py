"""The notebooks of docs/notebooks run from top to bottom, and what their cells end in can be shown."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "docs" / "notebooks").glob("*.ipynb"))


def run_cell(source: str, namespace: dict) -> object:
    """The value of the cell's last expression, as a notebook would show it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace) if last else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            value = run_cell("".join(cell["source"]), namespace)
            assert value is None or repr(value)
            if hasattr(value, "_repr_html_"):
                assert value._repr_html_().startswith("<div")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_its_links_lead_somewhere(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4 and notebook["cells"][0]["source"][0].startswith("# ")
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
        for target in "".join(cell["source"]).split("](")[1:] if cell["cell_type"] == "markdown" else ():
            target = target.split(")")[0]
            assert target.startswith("http") or (path.parent / target).is_file(), target


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["align", "train_and_export", "your_own_reward"]
