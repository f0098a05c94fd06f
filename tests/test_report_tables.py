"""One table says what a column of the results is, and every view is drawn from it."""

import csv
import io
import json

import pytest
from report_fixtures import compared_summary, make_contestant, make_estimate, summary_of, usual_summary
from rich.console import Console

from workbench import cli
from workbench.report import columns, pages
from workbench.report.columns import Cell, Column, build_table
from workbench.report.tables import FORMATS, console_table, csv_table, find_best, latex_table, markdown_table


def console_text(summary):
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(console_table(summary))
    return console.export_text()


def write_run(folder, summary):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"name": "demo", "config": {}}))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def csv_rows(summary):
    return list(csv.DictReader(io.StringIO(csv_table(summary))))


def cells_by_name(summary, view, key):
    table = build_table(summary, view)
    return table.cells_of([column.key for column in table.columns].index(key))


def test_a_column_is_added_in_one_place_and_shown_everywhere(monkeypatch, tmp_path):
    extra = Column(
        "watts",
        "watts per row",
        lambda results, c: Cell(c["nfe"] * 7.0 / c["samples"], interval=(1.5, 2000.25)),
        help="measured at the wall",
    )
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, extra))
    page = pages.write_report(write_run(tmp_path / "run", usual_summary())).read_text()
    assert "watts per row" in page and 'title="measured at the wall"' in page and "<small>1.50 to 2,000</small>" in page
    for text in (console_text(usual_summary()), latex_table(usual_summary()), markdown_table(usual_summary())):
        assert "watts per row" in text and "7.00 [1.50, 2,000]" in text.replace("28.0", "7.00"), text
    row = csv_rows(usual_summary())[0]
    assert row["watts"] == "28.0" and (row["watts_low"], row["watts_high"]) == ("1.5", "2000.25")
    app = build_table(usual_summary(), "app")
    assert app.columns[-1].heading_in("app") == "watts per row" and app.rows[0].cells[-1].value == 28.0


def test_a_column_that_is_empty_is_left_out_only_where_it_is_optional(monkeypatch):
    def keys(summary, view):
        return [column.key for column in build_table(summary, view).columns]

    lone = summary_of(make_contestant("base", 0.5, 0.24, 16) | {"diversity": None})
    assert "diversity" in keys(lone, "console") and "diversity" not in keys(lone, "app")
    assert "wins" not in keys(usual_summary(), "console") and "wins" in keys(compared_summary(), "console")


def test_views_order_the_win_rate_as_they_read_best():
    order = {
        view: [c.key for c in build_table(compared_summary(), view).columns][:4] for view in ("console", "numbers")
    }
    assert order["numbers"] == ["oracle", "wins", "brightness", "starter_clip"]
    assert order["console"] == ["oracle", "brightness", "starter_clip", "wins"]


def test_latex_is_a_booktabs_tabular_with_intervals_and_marks():
    text = latex_table(compared_summary())
    lines = text.splitlines()
    n = len(build_table(compared_summary(), "text").columns)
    assert lines[0].startswith("% demo") and lines[1] == rf"\begin{{tabular}}{{l{'r' * n}}}"
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"contestant & oracle$^{\dagger}$ & wins & brightness$^{\dagger}$ & starter\_clip & diversity" in text
    assert r"reno & \textbf{0.78} [0.72, 0.84] & 71 \% [65, 77]" in text
    assert r"\textbf{0.310$^{*}$} [0.298, 0.322]" in text and r"best\_of\_n & 0.57 [0.51, 0.63]" in text
    assert rf"draft & \multicolumn{{{n}}}{{l}}{{failed}} \\" in text
    assert "OutOfMemoryError" in lines[-1] and lines[-1][0] == "%"
    body = text[text.index(r"\begin") : text.index(r"\end{")]
    assert {row.count(" & ") for row in body.splitlines() if row.endswith(r"\\") and "multicolumn" not in row} == {n}


def test_latex_needs_no_character_that_latex_reserves():
    evil = r"50% of #1_{a}^~\ & <b>"
    text = latex_table(summary_of(make_contestant(evil, 0.5, -0.24, 16), run="line\n\\input{x}"))
    assert (
        r"50\% of \#1\_\{a\}\textasciicircum{}\textasciitilde{}\textbackslash{} \& \textless{}b\textgreater{}" in text
    )
    assert "$-$0.240" in text and text.splitlines()[0].startswith(r"% line \input{x}")


def test_only_what_lies_apart_from_the_base_is_bold():
    close = summary_of(
        make_contestant("base", 0.52, 0.24, 64), make_contestant("reno", 0.60, 0.242, 64, make_estimate(0.08, 0.1))
    )
    assert r"\textbf" not in latex_table(close)
    worse = summary_of(
        make_contestant("base", 0.52, 0.24, 64), make_contestant("reno", 0.2, 0.1, 64, make_estimate(-0.3, 0.1))
    )
    assert r"\textbf" not in latex_table(worse)


def test_where_lower_is_better_the_lowest_is_bold():
    summary = usual_summary()
    for c, mean in zip(summary["contestants"], (0.4, 0.2, 0.5), strict=False):
        c["rewards"]["starter_clip"] = make_estimate(mean, 0.01, optimised=True, lower=True)
    table = build_table(summary, "text")
    keys = [column.key for column in table.columns]
    assert (
        find_best(table, keys.index("starter_clip")) == "best_of_n" and find_best(table, keys.index("oracle")) == "reno"
    )
    assert find_best(table, keys.index("diversity")) is None


def test_few_prompts_have_no_intervals_and_nothing_is_bold():
    summary = usual_summary()
    for c in summary["contestants"][:3]:
        for part in (*c["rewards"].values(), *c["oracle"].values()):
            part["ci95"] = None
    for text in (latex_table(summary), markdown_table(summary), csv_table(summary)):
        assert "textbf" not in text and "_low" not in text and "None" not in text and "nan" not in text


def test_markdown_is_a_table_whose_cells_stay_cells():
    summary = compared_summary()
    summary["contestants"][4]["failed"] = "a | b\n*c*"
    lines = markdown_table(summary).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0].startswith("| contestant | oracle (held out) | wins | brightness (held out) | starter\\_clip | ")
    n = len(build_table(summary, "text").columns)
    assert {line.replace("\\|", "").count("|") for line in table} == {n + 2} and "a \\| b \\*c\\*" in table[-1]
    assert "| reno | 0.78 [0.72, 0.84] | 71 % [65, 77] | " in table[4] and "0.310\\* [0.298, 0.322]" in table[4]


def test_csv_has_every_value_unrounded():
    rows = {row["contestant"]: row for row in csv_rows(compared_summary())}
    reno = rows["reno"]
    assert (reno["oracle"], reno["oracle_low"], reno["oracle_high"]) == ("0.78", "0.72", "0.84")
    assert reno["wins"] == "0.71" and float(reno["seconds_per_sample"]) == 1024 / 48 / 16 and reno["nfe"] == "1024"
    assert reno["optimised"] == "starter_clip" and rows["base"]["optimised"] == "" and rows["base"]["wins"] == ""
    assert rows["fk"]["share_of_largest_budget"] == "0.5" and rows["draft"]["failed"] == "OutOfMemoryError: <no> room"
    assert cells_by_name(compared_summary(), "costs", "share_of_largest_budget")["fk"].warning == "fell short"


def test_a_reward_that_is_called_like_a_column_has_a_column_of_its_own():
    summary = json.loads(json.dumps(compared_summary()).replace('"brightness"', '"seconds"'))
    row = csv_rows(summary)[2]
    assert row["reward_seconds"] == "0.41" and float(row["seconds"]) == 1024 / 48


def test_the_command_prints_or_writes_each_format(tmp_path, capsys):
    run = write_run(tmp_path / "run", compared_summary())
    for name, write in FORMATS.items():
        assert cli.main(["report", str(run), "--format", name]) == 0
        assert capsys.readouterr().out == write(compared_summary())
        assert cli.main(["report", str(run), "--format", name, "--out", str(tmp_path / "file")]) == 0
        assert capsys.readouterr().out == "" and (tmp_path / "file").read_text() == write(compared_summary())
    assert not (run / "report.html").exists()  # a table draws no pictures
    assert cli.main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 1  # one contestant failed
    assert (tmp_path / "page.html").read_text() == (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "csv", "--json"], "--json: prints the summary; leave it out with --format csv"),
        (["--format", "csv", "--out", "no/such/folder/x.csv"], "--out no/such/folder/x.csv: there is no folder"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(arguments, words, tmp_path, capsys):
    assert cli.main(["report", str(write_run(tmp_path / "run", usual_summary())), *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
