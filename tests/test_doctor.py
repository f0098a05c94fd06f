"""What the doctor says: of rewards whose weights lie elsewhere, judges behind a server, encoders on the hub; of all
that are here; and of the same ones broken on purpose."""

from __future__ import annotations

from dataclasses import make_dataclass, replace
from importlib.metadata import distributions

import pytest
import torch
from judge_server import completion, pictures, pixels, question

from pipelines.starter.oracle import Oracle
from rewards import REWARDS
from rewards.vlm.judge import Judge
from workbench.core.types import Media
from workbench.runs.registry import all_rewards
from workbench.tools import doctor, probe_media


def set_up(cls: type, **settings) -> type:
    """The reward as the doctor finds it, with these settings for its defaults."""
    return make_dataclass(cls.__name__, [(k, type(v), v) for k, v in settings.items()], bases=(cls,), frozen=True)


def at(server, cls: type, **settings) -> type:
    return set_up(cls, **{"url": server.url, "model": "judge", "retries": 0} | settings)


def colour(uri: str) -> str:
    red, _, blue = pixels(uri).double().mean((1, 2))
    return "red" if red > blue else "blue"


@pytest.mark.parametrize("name", ["unifiedreward", "editscore", "judge_pairs"])
def test_a_judge_that_can_not_be_reached_is_missing_and_one_sentence_says_what_to_do(serve, name):
    server = serve()
    server.close()
    state, told = doctor.examine_reward(at(server, REWARDS[name]))
    assert state == "missing" and told.startswith("not set up: judge: nothing answers at ")
    assert "start a server there or set `url`" in told and "weights" not in told and "\n" not in told


def test_a_judge_without_a_model_or_with_another_server_s_is_missing(serve):
    server = serve(models=("another",))
    state, told = doctor.examine_reward(at(server, REWARDS["judge"], model=""))
    assert state == "missing" and told == f"not set up: judge: name the `model` that {server.url} serves"
    state, told = doctor.examine_reward(at(server, REWARDS["q_insight"]))
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
    found, told = doctor.examine_reward(at(server, REWARDS["editscore"]))
    assert found == state and "each other's" in told
    edits = [shown for body in server.bodies if len(shown := pictures(body)) == 2]
    assert edits and all(source != edited for source, edited in edits)


@pytest.mark.parametrize("name", ["frechet", "vendi", "exemplar", "cmmd"])
def test_a_reward_on_an_encoder_that_is_not_here_is_missing_and_not_broken(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    state, told = doctor.examine_reward(REWARDS[name])
    assert state == "missing" and told.endswith(f"fetched when first used: {REWARDS[name].model}")


@pytest.mark.parametrize(("name", "key"), [("social", "model"), ("learned", "path"), ("remote", "names")])
def test_a_reward_that_needs_a_setting_is_missing_and_named_with_it(name, key):
    assert doctor.examine_reward(REWARDS[name]) == ("missing", f"not set up: {name}: the key {key!r} is missing")


def test_a_tokenizer_of_a_hub_name_without_an_owner_is_looked_for_as_well():
    assert doctor.hub_repositories(REWARDS["imagereward"].spec) == ["THUDM/ImageReward", "bert-base-uncased"]


def test_a_folder_by_the_name_of_an_optional_package_is_not_that_package(monkeypatch, tmp_path):
    """wandb logs into a folder `wandb`, and `python -m` looks for modules in the working directory."""
    optional = ("xformers", "bitsandbytes", "wandb")
    for name in optional:
        (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    states = {what: state for what, state, _ in doctor.check_packages(tmp_path)}
    here = {found.metadata["Name"] for found in distributions()}
    assert {name: states[name] for name in optional} == {n: "ok" if n in here else "missing" for n in optional}


# What is here, and the same broken on purpose

FORMULAS = {"brightness", "contrast", "colourfulness", "sharpness", "saturated_pixels", "compressibility"}
FORMULAS |= {"loudness", "clipping", "silence", "motion", "unchanged", "background", "first_frame"}
READERS = ["starter_clip", "starter_clap", "starter_video_clip", "oracle", "oracle_soft", "hidden_taste"]
READERS += ["edit_oracle", "edit_oracle_soft", "edit_done", "edit_kept"]
READERS += ["starter_edit_clip"]
PACK = {*READERS, "dynamic_degree", "edit_ground", "first_kept"}
OF_PICTURES = ["frechet", "kid", "kad", "cmmd", "vendi", "prdc", "exemplar", "subject", "consistency"]
OF_SOUNDS = ["fad", "audio_kad", "audio_vendi", "audio_exemplar"]
COMPARED = ["frechet", "kid", "kad", "cmmd", "prdc", "exemplar", "subject", "fad", "audio_kad", "audio_exemplar"]


def test_every_bundled_reward_that_needs_nothing_works_and_none_is_called_broken(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = {name: doctor.examine_reward(cls) for name, cls in all_rewards().items() if not issubclass(cls, Judge)}
    assert {name: told for name, (state, told) in found.items() if state == "broken"} == {}
    assert {name for name, (state, _) in found.items() if state == "ok"} == FORMULAS | PACK


def test_each_part_of_the_pack_makes_media(tmp_path):
    assert list(doctor.check_starter_pack(tmp_path)) == [
        ("starter-image", "ok", "4 pictures made by 3 networks with the recorded fingerprints"),
        ("starter-music", "ok", "4 sounds made by 3 networks with the recorded fingerprints"),
        ("starter-video", "ok", "4 clips made by 3 networks with the recorded fingerprints"),
        ("starter-edit", "ok", "4 pictures made by 3 networks with the recorded fingerprints"),
        ("starter-image-to-video", "ok", "4 clips made by 3 networks with the recorded fingerprints"),
    ]


def seen_by_the_pack(name: str) -> type:
    """A reward of published encoders, through one that is here."""
    return set_up(REWARDS[name], model="starter:music/clap" if name in OF_SOUNDS else "starter:image/clip")


@pytest.mark.parametrize("name", OF_PICTURES + OF_SOUNDS)
def test_a_reward_on_an_encoder_works_once_the_encoder_is_here(name):
    state, told = doctor.examine_reward(seen_by_the_pack(name))
    assert state == "ok" and ("references" in told) == (name in COMPARED)


def turned(cls: type) -> type:
    class Turned(cls):
        def __call__(self, **given):
            return -super().__call__(**given)

    return Turned


def mixed_up(cls: type) -> type:
    """Gives each sample the score of its neighbour."""

    class MixedUp(cls):
        def __call__(self, *, media, prompts, references=None):
            return super().__call__(media=media[[*range(1, len(media)), 0]], prompts=prompts, references=references)

    return MixedUp


def indifferent(cls: type) -> type:
    class Indifferent(cls):
        def __call__(self, **given):
            return super().__call__(**given) * 0 + 0.25

    return Indifferent


def raising(cls: type) -> type:
    class Raising(cls):
        def __call__(self, **given):
            raise RuntimeError("torn")

    return Raising


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (turned, ["each other's"]),
        (
            mixed_up,
            ["each other's", "zero variance"],
        ),  # to the oracle a neighbour's prompt is plainly wrong, as all else
        (indifferent, ["zero variance"]),
        (raising, ["RuntimeError: torn"]),
    ],
)
@pytest.mark.parametrize("name", READERS)
def test_a_reward_that_reads_prompts_and_is_broken_is_called_so_for_every_kind_of_media(name, broken, why):
    state, told = doctor.examine_reward(broken(all_rewards()[name]))
    rows = told.split("; ")
    assert state == "broken" and len(rows) == len(all_rewards()[name].spec.modalities)
    assert all(any(reason in row for reason in why) for row in rows)


@pytest.mark.parametrize("name", COMPARED)
def test_a_reward_that_likes_waste_better_than_its_examples_is_broken(name):
    state, told = doctor.examine_reward(turned(seen_by_the_pack(name)))
    assert state == "broken" and "references" in told and "spoilt" in told


@pytest.mark.parametrize("name", sorted(FORMULAS | {"dynamic_degree"}))
def test_a_formula_that_tells_nothing_apart_is_broken(name):
    state, told = doctor.examine_reward(indifferent(all_rewards()[name]))
    assert state == "broken" and "gives 0.25 to everything" in told


def test_a_motion_that_sees_still_pictures_is_broken():
    class Still(all_rewards()["dynamic_degree"]):
        def __call__(self, *, media, **given):
            still = replace(media, data=media.data[:, :1].expand_as(media.data))
            return super().__call__(media=still, **given)

    state, told = doctor.examine_reward(Still)
    assert state == "broken" and "zero variance" in told


def test_a_reward_that_is_broken_for_one_kind_of_media_alone_is_broken_and_the_kind_is_named():
    class Deaf(Oracle):
        worlds = Oracle.worlds | {"audio": turned(type(Oracle.worlds["audio"]))()}

    state, told = doctor.examine_reward(Deaf)
    assert state == "broken" and told.startswith("sounds: own prompts -1.000") and "pictures" not in told


@pytest.mark.parametrize(("lost", "state"), [("spoilt", "ok"), ("exact", "broken")])
def test_what_is_spoilt_may_be_beyond_judgement_and_what_is_exact_may_not(lost, state):
    class Choosy(REWARDS["contrast"]):
        def __call__(self, *, media, prompts, references=None):
            scores = super().__call__(media=media, prompts=prompts, references=references)
            scores[dict(exact=0, spoilt=-1)[lost]] = torch.nan
            return scores

    found, told = doctor.examine_reward(Choosy)
    assert found == state and ("over 7 of 8" in told or "no score for 1 of 8" in told)


@pytest.mark.parametrize("kind", probe_media.STARTER_PROBES)
def test_exact_specimens_are_what_their_prompts_say_and_spoilt_ones_are_not(kind):
    shown = probe_media.STARTER_PROBES[kind]()
    own = [*shown.prompts] * probe_media.PER_PROMPT

    def read(media: Media, prompts: list[str]) -> list[float]:
        return Oracle()(media=media, prompts=prompts).tolist()

    assert len(shown.exact) == 2 * probe_media.PER_PROMPT and len(shown.spoilt) == probe_media.PER_PROMPT
    assert read(shown.exact, own) == [1.0] * len(own) and not any(read(shown.exact, own[::-1]))
    assert not any(
        read(shown.spoilt, own[: probe_media.PER_PROMPT]) + read(shown.spoilt, own[1 : probe_media.PER_PROMPT + 1])
    )


def test_plain_sounds_are_tones_and_noises_in_turn():
    waves = probe_media.play_sounds().exact.data[:, 0]
    power = torch.fft.rfft(waves).abs().square()[:, 1:] + 1e-9
    flat = power.log().mean(1).exp() / power.mean(1)  # near 0 for a tone; 0.56 for white noise
    assert (flat[::2] < 0.01).all() and (flat[1::2] > 0.5).all()
