"""What goes into a paper: the report's charts as SVG and PDF, chosen rows of its table, and a button that copies it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from report_fixtures import make_curve, usual_summary
from vote_fixtures import write_run

from workbench.cli import main
from workbench.core.errors import BadInput
from workbench.report import drawings, figures, tables
from workbench.ui.widgets import result_view


def make_summary():
    summary = usual_summary()
    summary["contestants"][2]["curve"] = make_curve((64, 0.5), (400, 0.6), (1600, 0.78))
    return summary


EVENTS = [{"contestant": "reno", "step": n, "batch": 0, "metrics": {"reward": n / 100}} for n in range(9)]


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "runs", names=("base", "best_of_n", "reno", "draft"), prompts=("a", "b"))
    folder.write("summary.json", make_summary() | {"run": folder.path.name})
    return folder.path


def texts_of(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def read_pdf(data):
    """The content of the page, found by the table of places as a reader does."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", data)[1])
    assert data[start:].startswith(b"xref\n0 6\n")
    places = [int(line[:10]) for line in data[start:].split(b"\n")[3:8]]
    assert all(data[place:].startswith(b"%d 0 obj" % n) for n, place in enumerate(places, 1))
    length, content = re.search(rb"/Length (\d+) >>\nstream\n(.*)\nendstream", data, re.DOTALL).groups()
    assert len(content) == int(length)
    return content.decode("cp1252")


def test_figures_show_the_numbers_of_the_summary_in_both_formats():
    drawn = figures.draw_figures(make_summary(), EVENTS)
    assert list(drawn) == ["means-oracle", "means-brightness", "means-starter_clip", "difference-oracle",
                           "scaling-oracle", "scaling-starter_clip", "progress-reward"]  # fmt: skip
    for drawing in drawn.values():
        content = read_pdf(drawings.to_pdf(drawing))
        for words in texts_of(drawings.to_svg(drawing)):
            assert f"({words.replace('−', '–')}) Tj" in content
        places = [p for points, *_ in drawing.lines for p in points] + [p for p, *_ in drawing.dots]
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in places)
    words = texts_of(drawings.to_svg(drawn["means-oracle"]))
    assert words[0] == "oracle, never optimised" and "0.78 [0.72, 0.84]" in words and "draft" not in words
    assert "+0.05 [−0.02, +0.12]" in texts_of(drawings.to_svg(drawn["difference-oracle"]))


def test_names_of_any_kind_stay_text_and_a_letter_that_the_font_lacks_is_said():
    summary = make_summary()
    summary["contestants"][2]["name"] = r"<b>(re\no)</b> é"
    drawing = figures.draw_figures(summary, [])["means-oracle"]
    assert r"<b>(re\no)</b> é" in texts_of(drawings.to_svg(drawing))
    assert r"(<b>\(re\\no\)</b> é) Tj" in read_pdf(drawings.to_pdf(drawing))
    summary["contestants"][2]["name"] = "猫"
    drawing = figures.draw_figures(summary, [])["means-oracle"]
    assert "猫" in texts_of(drawings.to_svg(drawing))
    with pytest.raises(BadInput, match="has no letters for '猫'; take --figures svg"):
        drawings.to_pdf(drawing)


def test_the_command_writes_figures_and_chosen_rows_in_their_order(run, tmp_path, capsys):
    words = ["report", str(run), "--contestants", "reno,base"]
    assert main([*words, "--figures", "pdf", "--out", str(tmp_path / "figures")]) == 0
    files = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert "means-oracle.pdf" in files and capsys.readouterr().out.count(".pdf") == len(files)
    content = read_pdf((tmp_path / "figures" / "means-oracle.pdf").read_bytes())
    assert content.index("(reno)") < content.index("(base)") and "best_of_n" not in content
    for kind in ("latex", "markdown", "csv"):
        assert main([*words, "--format", kind]) == 0
        table = capsys.readouterr().out
        assert (
            table.index("\nreno" if kind != "markdown" else "| reno") < table.index("base ") if kind != "csv" else True
        )
        assert "best_of_n" not in table and r"best\_of\_n" not in table
    whole = tables.latex_table(make_summary())
    chosen = tables.latex_table(make_summary(), ["base", "reno"])
    assert set(chosen.splitlines()) <= set(whole.splitlines())  # the same numbers, cell by cell


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--figures", "svg"], "name a folder with --out"),
        (["--figures", "svg", "--format", "csv", "--out", "x"], "leave out --format csv"),
        (["--contestants", "reno"], "chooses rows of a table or of figures"),
        (["--format", "csv", "--contestants", "renoo"], "'reno'"),
        (["--figures", "svg", "--out", "x", "--contestants", "renoo"], "'reno'"),
    ],
)
def test_what_can_not_be_drawn_is_one_sentence(run, words, sentence, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert main(["report", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (run.parent / "x").exists()


def test_the_apps_table_is_copied_as_the_command_writes_it(run, tmp_path):
    from workbench.runs.store import RunFolder

    folder = RunFolder(run)
    page = result_view.read_result(folder, tmp_path / "temp").html
    texts = re.findall(r'data-wb-copy="([^"]+)"', page)
    assert len(texts) == 3 and r"\toprule" in texts[0] and texts[1].startswith("| contestant") and "," in texts[2]
