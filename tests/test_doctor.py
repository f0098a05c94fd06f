"""What the doctor says of rewards whose weights lie elsewhere: judges behind a server, encoders on the hub."""

from __future__ import annotations

from dataclasses import make_dataclass
from importlib.metadata import distributions

import pytest
from judge_server import completion, pictures, pixels, question

from rewards import REWARDS
from workbench import doctor


def at(server, cls: type, **settings) -> type:
    """The judge as the doctor finds it, with this server for its default."""
    defaults = {"url": server.url, "model": "judge", "retries": 0} | settings
    return make_dataclass(cls.__name__, [(k, type(v), v) for k, v in defaults.items()], bases=(cls,), frozen=True)


def colour(uri: str) -> str:
    red, _, blue = pixels(uri).double().mean((1, 2))
    return "red" if red > blue else "blue"


@pytest.mark.parametrize("name", ["unifiedreward", "editscore", "judge_pairs"])
def test_a_judge_that_can_not_be_reached_is_missing_and_one_sentence_says_what_to_do(serve, name):
    server = serve()
    server.close()
    state, told = doctor.verdict(at(server, REWARDS[name]))
    assert state == "missing" and told.startswith("not set up: judge: nothing answers at ")
    assert "start a server there or set `url`" in told and "weights" not in told and "\n" not in told


def test_a_judge_without_a_model_or_with_another_server_s_is_missing(serve):
    server = serve(models=("another",))
    state, told = doctor.verdict(at(server, REWARDS["judge"], model=""))
    assert state == "missing" and told == f"not set up: judge: name the `model` that {server.url} serves"
    state, told = doctor.verdict(at(server, REWARDS["q_insight"]))
    assert state == "missing" and "has no model 'judge'" in told
    assert not server.bodies, "and nothing was asked"


@pytest.mark.parametrize(("honest", "state"), [(True, "ok"), (False, "broken")])
def test_a_judge_of_edits_is_given_a_source_a_sample_and_must_tell_its_edit_from_another(serve, honest, state):
    """It marks an edit by whether it now has the colour that was asked for, or by the opposite."""

    def answer(body, n):
        shown = pictures(body)
        if len(shown) == 1:
            return completion('{"reasoning": "sharp", "score": [20, 20]}')
        asked = "red" if "red" in question(body) else "blue"
        mark = 20 if (colour(shown[1]) == asked) == honest else 2
        return completion(f'{{"reasoning": "so", "score": [{mark}, {mark}]}}')

    server = serve(answer)
    found, told = doctor.verdict(at(server, REWARDS["editscore"]))
    assert found == state and "each other's" in told
    edits = [shown for body in server.bodies if len(shown := pictures(body)) == 2]
    assert edits and all(source != edited for source, edited in edits)


@pytest.mark.parametrize("name", ["frechet", "vendi", "exemplar", "cmmd"])
def test_a_reward_on_an_encoder_that_is_not_here_is_missing_and_not_broken(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    state, told = doctor.verdict(REWARDS[name])
    assert state == "missing" and told.endswith(f"fetched when first used: {REWARDS[name].model}")


@pytest.mark.parametrize(("name", "key"), [("social", "model"), ("learned", "path"), ("remote", "names")])
def test_a_reward_that_needs_a_setting_is_missing_and_named_with_it(name, key):
    assert doctor.verdict(REWARDS[name]) == ("missing", f"not set up: {name}: the key {key!r} is missing")


def test_a_folder_by_the_name_of_an_optional_package_is_not_that_package(monkeypatch, tmp_path):
    """wandb logs into a folder `wandb`, and `python -m` looks for modules in the working directory."""
    optional = ("xformers", "bitsandbytes", "av", "wandb")
    for name in optional:
        (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    states = {what: state for what, state, _ in doctor._packages(tmp_path)}
    here = {found.metadata["Name"] for found in distributions()}
    assert {name: states[name] for name in optional} == {n: "ok" if n in here else "missing" for n in optional}
