"""Contestants named on the command line, brought to one budget, cut by one, and reported together."""

from __future__ import annotations

import json

import pytest

from workbench import cli
from workbench.core.errors import BadInput
from workbench.engine import compare
from workbench.methods import METHODS, BestOfN, ReNO, Sample, trains_weights
from workbench.runs.budget import Budget, Cost

ASKED = ["--reward", "starter_clip", "--watch", "oracle", "--prompts", "starter-image-test"]


@pytest.mark.parametrize("name", METHODS)
def test_fit_takes_the_largest_setting_that_the_budget_allows(name):
    method = METHODS[name]()
    if not method.scales:
        return
    fitted = compare.fit_to_budget(method, 2, 100, name)
    n = getattr(fitted, method.scales)
    larger = type(method)(**vars(fitted) | {method.scales: n + 1})
    assert fitted.calls(2) <= 100 < larger.calls(2)


def test_a_budget_that_no_setting_can_keep_is_refused():
    with pytest.raises(BadInput, match="at least 8 denoiser calls"):
        compare.fit_to_budget(ReNO(), 8, 7, "reno")
    with pytest.raises(BadInput, match="makes 8 denoiser calls"):
        compare.fit_to_budget(Sample(), 8, 7, "sample")


def test_base_and_best_of_n_are_always_among_the_contestants():
    home, blocks = compare.contestant_blocks(["reno", "starter-image-teacher"], "starter-image", 16)
    assert home == "starter-image" and [*blocks] == ["base", "reno", "starter-image-teacher", "best_of_n"]
    assert blocks["best_of_n"]["n"] == 16 and blocks["reno"]["iterations"] == 15
    assert blocks["starter-image-teacher"] == {"name": "sample", "draw": 0, "pipeline": "starter-image-teacher"}


def test_a_clock_makes_methods_longer_and_never_their_batches_larger():
    """A call of the denoiser under way can't be stopped, so what is a row of it stays as it was asked for."""
    names = [n for n, m in METHODS.items() if m.scales and not trains_weights(m())]
    blocks = compare.contestant_blocks(names, "starter-image-teacher", None, timed=True)[1]
    longer = {n for n in names if blocks[n][METHODS[n].scales] != getattr(METHODS[n](), METHODS[n].scales)}
    assert longer == {"best_of_n", "zero_order", "search_over_paths", "reno", "dno", "dno_black_box", "ditto"}
    for name in longer:
        assert METHODS[name](**{k: v for k, v in blocks[name].items() if k != "name"}).calls(8) > compare.ENDLESS / 2
    assert (blocks["fk"]["particles"], blocks["svdd"]["candidates"], blocks["beam"]["width"]) == (4, 20, 2)


def test_with_calls_and_a_clock_nobody_gets_more_than_the_calls():
    blocks = compare.contestant_blocks(["fk"], "starter-image-teacher", 64, timed=True)[1]
    assert blocks["fk"]["particles"] == blocks["best_of_n"]["n"] == 8


def test_a_method_runs_on_the_pipeline_after_its_at_sign():
    _, blocks = compare.contestant_blocks(["{best_of_n: {n: 3}}@starter-image-teacher"], "starter-image", None)
    assert blocks["best_of_n"] == {"name": "best_of_n", "n": 3, "pipeline": "starter-image-teacher"}


@pytest.mark.parametrize(
    ("contestants", "sentence"),
    [
        (["reno"], "name a pipeline"),
        (["starter-imag"], "did you mean 'starter-image'"),
        (["ren@starter-image"], "did you mean 'reno'"),
        (["{reno: {iteration: 3}}@starter-image"], "did you mean 'iterations'"),
        (["{reno: [@starter-image"], "not valid YAML"),
        (["[reno]"], "names no single method"),
        (["{reno: {iterations: 1}, fk: {}}"], "names no single method"),
        (["x" * 300], "is no pipeline, method or run folder"),
    ],
)
def test_what_is_no_contestant_is_one_sentence(contestants, sentence, capsys):
    assert cli.main(["compare", *contestants, *ASKED, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_budget_stops_before_the_step_that_would_exceed_it():
    two = Budget(nfe=2)
    assert not two.would_exceed(Cost(), Cost(nfe=3), rows=3) and two.would_exceed(Cost(nfe=3), Cost(nfe=6), rows=3)
    assert Budget(seconds=1.0).would_exceed(Cost(seconds=0.2), Cost(seconds=0.8), rows=1)
    with pytest.raises(BadInput, match="nfe or seconds"):
        Budget().check_limits()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    runs = tmp_path_factory.mktemp("compared")
    args = ["compare", "reno", "starter-image-teacher", "--pipeline", "starter-image", "--calls", "8", "--limit", "3"]
    assert cli.main([*args, *ASKED, "--seeds", "2", "--runs", str(runs), "--json"]) == 0
    return next(runs.glob("*/summary.json")).parent


def test_contestants_of_two_pipelines_share_one_table(compared):
    parts = {c["name"]: c for c in json.loads((compared / "summary.json").read_text())["contestants"]}
    assert parts["starter-image-teacher"]["pipeline"] == "starter-image-teacher"
    assert parts["starter-image-teacher"]["nfe"] == 6 * 8 * 2  # guided: two rows a call
    assert parts["reno"]["nfe"] == parts["best_of_n"]["nfe"] == 6 * 8
    assert 0 <= parts["reno"]["wins"]["starter_clip"]["mean"] <= 1 and parts["reno"]["decodes"] == 6 * 8


def test_the_scaling_curve_doubles_its_budget_and_ends_where_the_contestant_ends(compared):
    parts = {c["name"]: c for c in json.loads((compared / "summary.json").read_text())["contestants"]}
    curve = parts["best_of_n"]["curve"]
    assert [p["nfe"] for p in curve] == [1, 2, 4, 8]
    rewards = [p["rewards"]["starter_clip"]["mean"] for p in curve]
    assert rewards == sorted(rewards), "the best so far never falls"
    assert rewards[0] == pytest.approx(parts["base"]["rewards"]["starter_clip"]["mean"], abs=1e-5)
    assert rewards[-1] == pytest.approx(parts["best_of_n"]["rewards"]["starter_clip"]["mean"])


def test_a_run_that_is_cut_delivers_the_best_so_far(tmp_path, compared):
    args = [
        "run",
        "methods-student",
        "contestants={base: sample, best_of_n: {n: 21}, reno: {iterations: 20}}",
        "limit=3",
        "samples_per_prompt=2",
        "batch=6",
        "watch=[oracle]",
        "budget.nfe=4",
        "--runs",
        str(tmp_path),
        "--json",
    ]
    assert cli.main(args) == 0
    cut = {c["name"]: c for c in json.loads(next(tmp_path.glob("*/summary.json")).read_text())["contestants"]}
    assert cut["best_of_n"]["nfe"] == cut["reno"]["nfe"] == 6 * 4
    assert BestOfN(n=21).calls(1) == 21, "the config asked for more"


def test_a_method_that_has_looked_something_up_is_described_by_its_settings_alone(compared):
    _, blocks = compare.contestant_blocks([f"{{reuse: {{noise: {compared}/reno}}}}"], "starter-image", None)
    assert blocks["reuse"] == {"name": "reuse", "noise": f"{compared}/reno"}


def test_a_run_folder_stands_for_what_it_aligned(compared):
    _, blocks = compare.contestant_blocks([str(compared)], None, None)
    assert blocks["reno"]["iterations"] == 7 and "starter-image-teacher" in blocks
