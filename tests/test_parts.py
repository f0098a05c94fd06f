"""What a method's text settings stand for is known before anything loads, and works through a whole run."""

from __future__ import annotations

import json

import pytest

from workbench import cli
from workbench.core.errors import BadInput
from workbench.methods import NRG, ReNO, Rewrite
from workbench.runs.resolve import resolve_dependencies

RUN = ["run", "methods-student", "limit=2", "samples_per_prompt=1", "watch=[oracle]"]


def test_a_method_without_parts_is_left_as_it_is():
    method = ReNO()
    assert resolve_dependencies(method) is method


def test_an_expander_is_made_of_its_name():
    assert resolve_dependencies(Rewrite(expander="closed")).expander.expand(
        ["a red circle and a blue square"], 1, "image"
    )[0]


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ("{name: nrg}", "'model' is missing"),
        ("{name: nrg, model: nowhere.safetensors}", "no file nowhere.safetensors"),
        ("{name: rewrite, expander: clsed}", "did you mean 'closed'"),
    ],
)
def test_a_part_that_is_not_there_is_one_sentence_before_anything_loads(block, sentence, capsys, tmp_path):
    assert cli.main([*RUN, f"contestants.other={block}", "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_prompts_are_reworded_in_a_whole_run(tmp_path, capsys):
    block = "{base: sample, reworded: {name: rewrite, n: 1, expander: closed}}"
    assert cli.main([*RUN, f"contestants={block}", "--runs", str(tmp_path), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["contestants"]
    assert parts[1]["nfe"] == 2 * parts[0]["nfe"]


def test_the_model_of_a_latent_reward_must_be_a_file():
    with pytest.raises(BadInput, match="missing"):
        resolve_dependencies(NRG())
