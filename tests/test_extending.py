"""What docs/extending.md shows works as it stands there: its files are written into an empty folder, its commands
run."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_fixtures import usual_summary
from rich.console import Console

from workbench import cli
from workbench.core.paths import ROOT
from workbench.report import columns, pages
from workbench.report.columns import Cell, Column
from workbench.report.tables import console_table, csv_table

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = "\n".join(code for language, code in BLOCKS if not language).replace("\\\n", " ").splitlines()


def page_file(name: str) -> str:
    """The text of the file that a block of the page names in its first line."""
    (text,) = [code for _, code in BLOCKS if re.match(rf"# {re.escape(name)}(:.*)?\n", code)]
    return text


def page_command(start: str) -> list[str]:
    (line,) = [line for line in COMMANDS if line.startswith(start)]
    return shlex.split(line, comments=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A newcomer's folder, with the files of the page, as the working directory and on the path."""
    for name in ("my_pkg/warmth.py", "my_pkg/walk.py", "walk.yaml", "my-model.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(page_file(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_pkg"]:
        del sys.modules[name]


def run_command(start: str, *more: str) -> list[dict]:
    """The contestants of the run that a command of the page makes, with fewer prompts."""
    assert cli.main([*page_command(start)[1:], *more]) == 0
    newest = max(Path("runs").glob("*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())["contestants"]


def test_the_files_are_as_short_as_the_page_says():
    reward, method, pipeline = (page_file(name) for name in ("my_pkg/warmth.py", "my_pkg/walk.py", "my-model.yaml"))
    lengths = [len(text.splitlines()) for text in (reward, method, pipeline)]
    assert lengths == [1 + 23, 1 + 38, 8]  # with the line that names the file
    assert f"one file of {lengths[0] - 1} lines" in PAGE and f"one file of {lengths[1] - 1} lines" in PAGE


def test_the_reward_from_outside_the_tree_judges_files_and_is_optimised(folder, capsys):
    command = page_command("workbench score")
    command[2:3] = map(str, sorted((ROOT / "docs" / "app").glob("*.png"))[:2])
    assert cli.main([*command[1:], "--json"]) == 0
    assert all(isinstance(row["warmth"], float) for row in json.loads(capsys.readouterr().out))
    scores = {c["name"]: c["rewards"]["warmth"] for c in run_command("workbench compare reno", "--limit", "2")}
    assert scores["reno"]["optimised"] and scores["reno"]["mean"] > scores["base"]["mean"]


def apply_diff(diff: str, root: Path) -> None:
    """Each `@@` part has lines that stand in the file, once, and lines to add beside them."""
    name = re.match(r"--- (.*)\n", diff)[1]
    file = root / name
    for part in diff.split("@@\n")[1:]:
        lines = part.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] == " ")
        text = file.read_text()
        assert old and text.count(old) == 1, old
        file.write_text(text.replace(old, "".join(line[1:] for line in lines)))


def run_python(*arguments: str, cwd: Path) -> str:
    """What a process of its own prints; its `rewards` are those of the folder, if it has any."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(cwd), str(ROOT)])}
    process = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def contract_command(arguments: list[str]) -> list[str]:
    """What pytest is given to hold a reward to the contract."""
    where = ["-n0", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    return [str(ROOT / "tests" / "test_rewards.py"), *arguments, *where]


def count_passed(output: str) -> int:
    return int(re.search(r"(\d+) passed", output)[1])


def test_the_reward_from_outside_the_tree_is_held_to_the_contract(folder, launcher, tmp_path):
    command = contract_command(page_command("python -m pytest tests/test_rewards.py")[4:])
    code = f"import os, sys, pytest; os.chdir(out); sys.path.insert(0, out); sys.exit(pytest.main({command}))"
    codes, (output,) = launcher.launch(tmp_path / "contract", processes=1, code=code, out=str(folder))
    assert codes == [0] and count_passed(output) > 10, output


def test_the_reward_in_the_tree_is_listed_and_held_to_the_contract(tmp_path):
    """In a copy of `rewards`, in a process of its own for both."""
    shutil.copytree(ROOT / "rewards", tmp_path / "rewards", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "rewards" / "image" / "warmth.py").write_text(page_file("my_pkg/warmth.py"))
    (diff,) = [code for language, code in BLOCKS if language == "diff"]
    apply_diff(diff, tmp_path)
    listing, contract = [*page_command("workbench list rewards")[1:], "--json"], contract_command(["-k", "warmth"])
    code = f"import sys, pytest\nfrom workbench import cli\ncli.main({listing})\nsys.exit(pytest.main({contract}))"
    output = run_python("-c", code, cwd=tmp_path)
    rows, _ = json.JSONDecoder().raw_decode(output)
    assert [row["what"] for row in rows if row["name"] == "warmth"] == ["Mean of red minus blue, times `strength`."]
    assert count_passed(output) > 10


def test_the_method_from_outside_the_tree_runs_and_is_compared(folder):
    results = {c["name"]: c for c in run_command("workbench run walk.yaml", "limit=2")}
    assert results["Walk"]["rewards"]["starter_clip"]["optimised"]
    assert results["Walk"]["nfe"] == 9 * results["base"]["nfe"]
    nfe = {c["name"]: c["nfe"] for c in run_command("workbench compare my_pkg", "--limit", "2")}
    assert nfe["Walk"] == nfe["Walk-2"] == nfe["best_of_n"] == 9 * nfe["base"]


def test_the_pipeline_of_eight_lines_passes_the_check_and_is_compared(folder, capsys):
    assert cli.main([*page_command("workbench list --check")[1:], "--json"]) == 0
    claims = json.loads(capsys.readouterr().out)
    assert len(claims) > 10 and all(claim["holds"] for claim in claims)
    nfe = {c["name"]: c["nfe"] for c in run_command("workbench compare best_of_n", "--limit", "1")}
    assert nfe["best_of_n"] == 4 * nfe["base"] == 4 * 2 * 4


def test_the_column_is_seen_in_the_console_in_the_report_and_in_csv(tmp_path, monkeypatch):
    entry = page_file("workbench/report/columns.py").partition("\n")[2].strip().removesuffix(",")
    column = eval(entry, {"Column": Column, "Cell": Cell})
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, column))
    (tmp_path / "run.json").write_text(json.dumps({"name": "demo", "config": {}}))
    (tmp_path / "summary.json").write_text(json.dumps(usual_summary()))
    assert "seconds<br>per row" in pages.write_report(tmp_path).read_text()
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(console_table(usual_summary()))
    assert "per row" in console.export_text()
    assert "seconds_per_row" in csv_table(usual_summary()).splitlines()[0]
