"""A run's YAML: what it may say, and the one sentence that answers each mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest

from workbench.core import schema
from workbench.core.errors import BadInput
from workbench.core.paths import CONFIGS
from workbench.core.schema import build_dataclass
from workbench.core.setting_help import describe_settings
from workbench.core.types import derive_seed
from workbench.methods import METHODS
from workbench.runs import config
from workbench.runs import prompts as data

GOOD = "pipeline: starter-image\nmethod: {name: reno, lr: 1e-1}\nreward: brightness\nprompts: [a red circle]\n"


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_config_becomes_methods_with_numbers_where_yaml_saw_text(tmp_path):
    made = config.build_methods(config.read_run_config(write(tmp_path, GOOD)), METHODS)
    assert list(made) == ["base", "reno"] and made["reno"].lr == 0.1


def test_the_name_of_a_run_is_its_files_name(tmp_path):
    assert config.read_run_config(write(tmp_path, GOOD)).name == "mine"


def test_dotted_overrides_reach_into_blocks_and_keep_the_rest(tmp_path):
    made = config.read_run_config(
        write(tmp_path, GOOD), ["method.iterations=3", "samples_per_prompt=4", "watch=[oracle]"]
    )
    assert (
        made.method == {"name": "reno", "lr": "1e-1", "iterations": 3}
        and made.samples_per_prompt == 4
        and made.watch == ["oracle"]
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("method.iteration=3", "did you mean 'iterations'"),
        ("methd=reno", "did you mean 'method'"),
        ("method.name=rino", "did you mean 'reno'"),
        ("method.iterations=-1", "at least 0"),
        ("method.iterations=2.5", "a whole number"),
        ("method.iterations=true", "a whole number"),
        ("method.lr=fast", "a number"),
        ("method.lr=.nan", "a number"),
        ("samples_per_prompt=0", "at least 1"),
        ("batch=many", "a whole number"),
        ("attention=flsh", "did you mean 'flash'"),
        ("name=../../etc", "can't name a folder"),
        ("seeds", "key=value"),
        ("seeds=[", "not valid YAML"),
        ("prompts=7", "prompts"),
        ("contestants={x: reno}", "not both"),
        ("samples_per_prompt.x=3", "samples_per_prompt is 1, and nothing can be set inside that"),
        ("watch.x=1", "watch is .'oracle'., and nothing"),
        ("prompts.a=1", "prompts is .'a red circle'., and nothing"),
        ("watch=[{oracle: {}}]", "watch: a list has names of rewards only, got {'oracle': {}}"),
    ],
)
def test_each_mistake_in_a_setting_is_answered_by_one_sentence_that_names_it(tmp_path, change, sentence):
    text = GOOD + "samples_per_prompt: 1\nwatch: [oracle]\n"
    with pytest.raises(BadInput, match=sentence) as caught:
        config.build_methods(config.read_run_config(write(tmp_path, text), [change]), METHODS)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Renamed:
    former_names: ClassVar[Mapping[str, str]] = {"at_once": "prompts_per_pass"}
    prompts_per_pass: int = 0
    lr: float = 0.1


@pytest.fixture
def renamed(monkeypatch):
    monkeypatch.setattr(schema, "_ANNOUNCED", set())
    monkeypatch.setitem(METHODS, "reno", Renamed)


OLD_NAME = "at_once is called prompts_per_pass now; the old name still works\n"


def test_an_old_key_is_taken_as_the_new_one_and_said_once(renamed, capsys):
    assert (
        build_dataclass(Renamed, {"at_once": 2}, "method")
        == build_dataclass(Renamed, {"at_once": 2}, "method")
        == Renamed(2)
    )
    assert capsys.readouterr().err == "method." + OLD_NAME


def test_an_old_key_beside_its_new_one_is_refused(renamed):
    with pytest.raises(BadInput, match="^method: 'at_once' and 'prompts_per_pass' are one setting; keep"):
        build_dataclass(Renamed, {"at_once": 2, "prompts_per_pass": 2}, "method")


@pytest.mark.parametrize("in_file", ["at_once", "prompts_per_pass"])
@pytest.mark.parametrize("block", ["method: {{name: reno, {}: 1}}", "contestants: {{reno: {{{}: 1}}}}"])
@pytest.mark.parametrize("given", ["{}at_once=2", "{}prompts_per_pass=2"])
def test_an_override_by_an_old_key_replaces_what_the_file_says_by_either(
    renamed, tmp_path, capsys, in_file, block, given
):
    text = GOOD.replace("method: {name: reno, lr: 1e-1}", block.format(in_file))
    where = "method." if block.startswith("method") else "contestants.reno."
    read = config.read_run_config(write(tmp_path, text), [given.format(where)])
    assert config.build_methods(read, METHODS)["reno"] == Renamed(2)
    assert (read.method or read.contestants["reno"])["prompts_per_pass"] == 2
    assert capsys.readouterr().err == (where + OLD_NAME if "at_once" in in_file + given else "")


def test_an_override_that_is_a_whole_block_may_use_old_keys(renamed, tmp_path):
    read = config.read_run_config(write(tmp_path, GOOD), ["method={name: reno, at_once: 3}"])
    assert read.method == {"name": "reno", "prompts_per_pass": 3}


def test_a_contestant_is_no_list_of_pairs_though_one_could_be_made_a_mapping(tmp_path):
    """What looks at a config looks at mappings: a page's filter, and what says which pipelines and files are read."""
    text = GOOD.replace("method: {name: reno, lr: 1e-1}", "contestants: {a: [[name, reno], [lr, 0.1]]}")
    with pytest.raises(BadInput, match="contestants.a: expected a method's name or a mapping"):
        config.build_methods(config.read_run_config(write(tmp_path, text)), METHODS)


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ("{reno: 5}", "contestants.reno: expected a method's name or a mapping of its settings, got 5"),
        ("{reno: [1]}", "contestants.reno: expected a method's name or a mapping"),
        ("{a: {name: [x]}}", r"contestants.a: unknown method \['x'\]"),
        ("{a: {name: reno, pipeline: 5}}", "contestants.a.pipeline: expected a name, a folder or a hub id, got 5"),
        ("{a: {name: reno, pipeline: [x]}}", "contestants.a.pipeline: expected a name"),
        ("{a: {name: reno, pipeline: null}}", "contestants.a.pipeline: expected a name"),
    ],
)
def test_a_contestant_that_can_not_be_is_one_sentence_that_names_it(tmp_path, block, sentence):
    text = GOOD.replace("method: {name: reno, lr: 1e-1}", f"contestants: {block}")
    with pytest.raises(BadInput, match=sentence):
        config.build_methods(config.read_run_config(write(tmp_path, text)), METHODS)


@pytest.mark.parametrize("prompts", [[1, 2], ["a cat", None], [{"promt": "a cat"}], "x" * 300, "y/" * 3000])
def test_prompts_that_can_not_be_are_one_sentence(prompts):
    with pytest.raises(BadInput, match="^test: ") as caught:
        data.read_prompts(prompts, "test")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_config_of_a_name_that_no_file_can_have_is_one_sentence():
    with pytest.raises(BadInput, match="config: x+ … .*can't be looked for"):
        config.read_run_config("x" * 300)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pipeline: [", "line 1.*not valid YAML"),
        ("- a\n- b\n", "a run is a mapping"),
        (b"\xff\xfe\x00\x01\x02", "line 1: not UTF-16 text.*save it as UTF-8"),
        ("pipeline: x\nreward: y\nmethod: reno\n", "'prompts' is missing"),
    ],
)
def test_a_file_that_is_no_config_says_so(tmp_path, text, sentence):
    with pytest.raises(BadInput, match=sentence):
        config.read_run_config(write(tmp_path, text))


def test_an_unknown_config_offers_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'demo'"):
        config.read_run_config("dmo")


@pytest.mark.parametrize("path", sorted((CONFIGS / "runs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_run_config_that_ships_is_valid(path):
    assert config.build_methods(config.read_run_config(path), METHODS)


def test_a_samples_noise_seed_does_not_depend_on_its_neighbours():
    alone = data.sample_rows(["a dog"], seed=7, samples_per_prompt=2)
    among = data.sample_rows(["a cat", "a dog"], seed=7, samples_per_prompt=2)
    assert [r[1:] for r in alone] == [r[1:] for r in among if r[1] == "a dog"]
    assert derive_seed(7, "a dog", 0) != derive_seed(7, "a dog", 1) != derive_seed(8, "a dog", 1)


@dataclass(frozen=True)
class Explained:
    beside: int = 1  # on its own line
    wrapped: float = (
        2.0  # on the line of its default, for the formatter has wrapped one that was longer than a line may be in here
    )
    # on the line above it
    below: str = "#no comment"
    bare: str = "x"
    again: int = 3  # of the parent


@dataclass(frozen=True)
class Inherited(Explained):
    again: int = 4
    beside: int = 5  # of the child

    def method(
        self,
        bare: str = "",  # no setting's
    ) -> None: ...


def test_a_settings_help_is_the_comment_beside_it_wrapped_above_or_of_the_class_it_comes_from():
    said = {name: (default, help) for name, default, help in describe_settings(Inherited)}
    assert said.pop("wrapped")[1].startswith("on the line of its default, for the formatter")
    assert said == {
        "beside": (5, "of the child"),
        "below": ("#no comment", "on the line above it"),
        "bare": ("x", ""),
        "again": (4, "of the parent"),
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_is_explained(name):
    """What `workbench list methods` and the page say of it."""
    assert not [setting for setting, _, help in describe_settings(METHODS[name]) if not help.strip()]


@pytest.mark.parametrize("setting", ["advantage_clip", "advantage"])
def test_what_parrot_inherits_and_has_no_part_in_it_is_no_setting_of_it(setting):
    assert setting not in {name for name, *_ in describe_settings(METHODS["parrot"])}
    with pytest.raises(BadInput, match=f"unknown key '{setting}'"):
        build_dataclass(METHODS["parrot"], {setting: 1}, "method")
