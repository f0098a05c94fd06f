"""The documentation's tables of trainings are those that the recorded scores give."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from workbench.core.paths import ROOT
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


def test_the_training_that_goes_furthest_is_a_config():
    row, named = alignment.asked("rules", "crd-guided", 0), config.read_run_config("train-crd")
    same = dict(name="", watch=["oracle", "starter_clip"], train={**named.train, "policy": {}})
    assert dataclasses.replace(named, **same) == dataclasses.replace(row, **same | {"train": row.train})
