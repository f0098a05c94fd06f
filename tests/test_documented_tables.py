"""The documentation's tables of trainings are those that the recorded scores give."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest

from workbench.core.paths import ROOT
from workbench.engine.catalogue import list_methods
from workbench.methods import METHODS
from workbench.runs import config

sys.path.append(str(ROOT / "benchmarks"))  # last: a file there is called as the package `rewards` is
import alignment  # noqa: E402


@pytest.mark.parametrize("table", ["rules", "learned"])
def test_the_tables_of_fine_tuning_in_the_documentation_come_from_the_record(table, tmp_path, capsys):
    alignment.show(tmp_path, table, list(alignment.TABLES[table][1]), alignment.SEEDS)
    if table == "rules":
        alignment.samples(tmp_path, alignment.SEEDS)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    told = (ROOT / "docs" / "training.md").read_text().replace("−", "-")
    assert len(rows) > 20
    assert [row for row in rows if row not in told] == []


BUDGET = {"n", "iterations", "neighbours", "paths", "rounds", "particles", "candidates", "expander"}


@pytest.mark.parametrize("name", ["methods-teacher", "methods-student"])
def test_the_comparison_measures_methods_as_a_user_meets_them(name):
    """Its configs set what spends the budget, and leave the rest at its default."""
    built = config.build_methods(config.read_run_config(name), METHODS)
    assert len(built) >= 8
    for label, method in built.items():
        plain = type(method)()
        other = {f.name for f in dataclasses.fields(method) if getattr(method, f.name) != getattr(plain, f.name)}
        assert other <= BUDGET, label


def test_lists_say_of_each_method_what_the_comparison_in_the_documentation_found():
    """By the interval of its difference from best of n, on the teacher and on the student."""
    text = (ROOT / "docs" / "methods.md").read_text().replace("−", "-")
    seen: dict[str, set[bool]] = {}
    for name, gap in re.findall(r"^\| `(\w+)` \| \S+ \[[^]]+\] \| (\S+ \[[^]]+\]) \|", text, re.MULTILINE):
        seen.setdefault(name, set()).add(float(re.findall(r"[-+]?[\d.]+", gap)[2]) < 0)
    compared = {name for name in seen if getattr(METHODS.get(name), "measured", "")}
    assert len(compared) >= 12 and compared >= {"das", "fk", "svdd", "guidance", "reno", "dno_black_box"}
    for name in compared - {"guidance"}:  # less than the plain pipeline
        assert {"worse" in METHODS[name].measured, "no difference" not in METHODS[name].measured} == seen[name], name
    listed = {row["name"]: row["what"] for row in list_methods()}
    assert all(METHODS[name].measured in listed[name] for name in compared)


def test_the_training_that_goes_furthest_is_a_config():
    row, named = alignment.asked("rules", "crd-guided", 0), config.read_run_config("train-crd")
    same = dict(name="", watch=["oracle", "starter_clip"], train={**named.train, "policy": {}})
    assert dataclasses.replace(named, **same) == dataclasses.replace(row, **same | {"train": row.train})
