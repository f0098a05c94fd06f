"""The edit world's oracle tells done, kept and ground apart, its hold-out does not leak, and its recipe survives being
killed."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline
from killed_builds import KilledBuilds, find_equal_weights
from transformers import CLIPModel

from pipelines.starter.edit import build, clip, generator, measure, negatives, training_set, world
from pipelines.starter.edit.oracle import EditDone, EditKept, EditOracle, EditOracleSoft, understand_instruction
from pipelines.starter.image.autoencoder import decode_latents, encode_pictures
from pipelines.starter.image.oracle import read_picture
from pipelines.starter.image.world import UNSEEN_PAIRS, Thing, Wanted
from pipelines.starter.resumable_training import Draw
from workbench.core.errors import BadInput
from workbench.core.io.media import read_media
from workbench.core.paths import CONFIGS
from workbench.core.types import Media, Reward
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.runs import config, store
from workbench.runs.prompt_files import read_prompt_file

PROMPTS = CONFIGS / "prompts"


def pictures(x: torch.Tensor) -> Media:
    return Media(x, "image")


@pytest.fixture(scope="module")
def sample():
    """56 edits of all kinds with one wording each, their sources and their targets."""
    draw = Draw.at_step(31, "tests")
    edits = [world.random_edit(draw.python, kind=world.KINDS[i % len(world.KINDS)]) for i in range(56)]
    texts = [draw.python.choice(world.instruction_wordings(edit)) for edit in edits]
    return edits, texts, *map(measure.round_pixels, world.render_edits(edits, draw.torch))


def shares(texts, sources, results) -> dict[str, float]:
    verdicts = measure.judge_results(texts, sources, measure.round_pixels(results))
    return {
        name: sum(getattr(v, name) for v in verdicts) / len(verdicts) for name in ("exact", "done", "kept", "ground")
    }


# --- the world


def test_every_wording_of_an_edit_is_read_back_and_leads_to_the_same_scene(sample):
    for edit in sample[0]:
        for text in world.instruction_wordings(edit):
            asked = world.parse_instruction(text)
            assert world.write_instruction(asked) == text and world.instruction_kind(text) == edit.instruction.kind
            assert set(world.edit_scene(edit.before, asked)) == set(edit.after), text
    for text in (
        "",
        "make it blue",
        "a red circle",
        "make the circle circle",
        "move the red circle",
        "swap the circle",
    ):
        assert world.parse_instruction(text) is None and world.instruction_kind(text) == "other"


def test_an_edit_undone_is_the_source_again(sample):
    undone = [(edit, world.undo_edit(edit)) for edit in sample[0]]
    assert {edit.instruction.kind for edit, back in undone if back is None} == {"remove"}
    for edit, back in undone:
        if back is None:
            continue
        again = world.edit_scene(edit.after, back.instruction)
        assert [(t.shape, t.colour, t.size) for t in again] == [(t.shape, t.colour, t.size) for t in edit.before]
        assert all(abs(a.x - b.x) + abs(a.y - b.y) < 1e-9 for a, b in zip(again, edit.before, strict=True))


def test_what_can_not_be_carried_out_leads_nowhere():
    one = Thing("circle", "red", "small", 12.0, 32.0, 8.0)
    other = Thing("circle", "blue", "small", 40.0, 32.0, 8.0)
    asked = world.parse_instruction
    assert world.edit_scene((one, other), asked("remove the circle")) is None  # which of the two?
    assert world.edit_scene((one,), asked("remove the blue circle")) is None  # not there
    assert world.edit_scene((one,), asked("move the circle left")) is None  # out of the picture
    assert world.edit_scene((one, other), asked("make the red circle blue")) is None  # two that no words tell apart
    assert world.edit_scene((one,), asked("make the circle small")) is None  # it is
    assert world.edit_scene((one,), asked("add a small red circle on the right")) is None
    assert world.edit_scene((one,), asked("remove the circle")) == ()


def test_training_is_shown_nothing_that_is_held_out_before_or_after():
    rng = random.Random(5)
    families = [training_set.random_family(rng) for _ in range(60)]
    edits = [edit for k, family in enumerate(families) for edit in training_set.family_edits(family, 4 * k)]
    nouns = {(t.colour, t.shape) for f in families for e in f for t in (*e.before, *e.after)}
    assert not nouns & UNSEEN_PAIRS and len(edits) > 200 and {e.kind for e in edits} == set(world.KINDS)
    for edit in edits:
        full = [world.parse_instruction(text) for text in edit.wordings]
        named = [a for a in full if a.noun.colour and (a.other is None or a.other.colour)]
        assert named and not any(map(world.is_instruction_held_out, named))
    tested = measure.draw_edits(28, random.Random(6), held_out=True)
    assert not any(map(world.may_train_on, tested)) and all(map(world.is_held_out, tested))
    assert all(len(e.before) == 1 or world.is_cast_held_out(e.before) for e in tested)
    with pytest.raises(ValueError, match="colour"):
        world.is_instruction_held_out(world.parse_instruction("remove the circle"))


# --- the oracle


def test_true_targets_are_right_also_through_the_autoencoder(sample):
    _, texts, sources, targets = sample
    assert shares(texts, sources, targets)["exact"] == 1.0
    vae = DiffusionPipeline.from_pretrained(build.resolve_repo("starter:image/teacher")).vae
    assert shares(texts, sources, decode_latents(vae, encode_pictures(vae, targets)))["exact"] >= 0.96


def test_what_was_not_edited_or_edited_otherwise_scores_zero(sample):
    _, texts, sources, targets = sample
    untouched = shares(texts, sources, sources)
    assert untouched["exact"] == untouched["done"] == 0.0 and untouched["ground"] == 1.0
    assert shares(texts, sources, targets.roll(1, 0))["exact"] == 0.0
    noise = torch.rand(sources.shape, generator=Draw.at_step(32, "noise").torch)
    told = shares(texts, sources, noise)
    assert told["exact"] == told["ground"] == 0.0


def test_another_ground_is_all_that_is_wrong_with_it(sample):
    _, texts, sources, targets = sample
    darker = shares(texts, sources, targets - 0.04)
    assert darker == {"exact": 0.0, "done": 1.0, "kept": 1.0, "ground": 0.0}


@pytest.mark.parametrize("miss", [m for m in negatives.MISSES if m != "ghost"])
def test_a_near_miss_is_wrong_in_what_it_misses(miss, sample):
    edits, rng = sample[0], random.Random(7)
    drawn = [(edit, negatives.near_miss(edit, miss, rng, allow_held_out=True)) for edit in edits]
    rows, wrong = zip(*((edit, result) for edit, result in drawn if result), strict=True)
    sources, results = negatives.render_results(rows, wrong, Draw.at_step(33, miss).torch)
    told = shares([world.write_instruction(e.instruction) for e in rows], sources, results)
    assert len(rows) > 25 and told["exact"] <= (0.1 if miss == "ground" else 0.02)
    missed = {"undone": "done", "other": "done", "extra": "kept", "moved": "kept", "ground": "ground"}[miss]
    assert told[missed] < 0.65 and told["ground"] == 1.0 if miss != "ground" else told["kept"] == 1.0
    own = [(world.write_instruction(r.edit.instruction), i) for i, r in enumerate(wrong) if r.edit]
    for text, i in own:  # of an edit of its own, it is the right result
        assert shares([text], sources[[i]], results[[i]])["exact"] == 1.0


def test_what_still_shines_through_is_no_ground():
    edits = measure.draw_edits(70, random.Random(8), held_out=False)
    edits = [e for e in edits if e.instruction.kind == "remove"]
    ghosts = [negatives.near_miss(e, "ghost", random.Random(k)) for k, e in enumerate(edits)]
    rows, wrong = zip(*((e, g) for e, g in zip(edits, ghosts, strict=True) if g), strict=True)
    sources, results = negatives.render_results(rows, wrong, Draw.at_step(34, "ghosts").torch)
    texts = [world.write_instruction(e.instruction) for e in rows]
    assert len(rows) >= 6 and shares(texts, sources, results)["exact"] <= 0.2


def test_a_swap_is_done_only_if_both_went():
    a, b = Thing("circle", "red", "small", 14.0, 32.0, 8.0), Thing("square", "blue", "large", 46.0, 32.0, 12.0)
    swap = world.Instruction("swap", Wanted("circle", "red"), other=Wanted("square", "blue"))
    right = world.edit_scene((a, b), swap)
    assert {(t.colour, t.x) for t in right} == {("red", 46.0), ("blue", 14.0)}
    text, half = "swap the circle and the square", (world.replace(a, x=46.0), world.replace(b, x=46.0, y=10.0, r=8.0))
    both = [world.Edit(swap, (a, b), scene) for scene in (right, half)]
    sources, results = world.render_edits(both, Draw.at_step(35, "swap").torch)
    assert [v.exact for v in measure.judge_results([text] * 2, sources, results)] == [True, False]


def test_the_oracles_are_rewards_of_source_text_and_result(sample):
    _, texts, sources, targets = sample
    results = targets[:6].clone()
    results[1], results[2] = sources[1], targets[2] - 0.04
    given = {"media": pictures(results), "prompts": texts[:6], "references": pictures(sources[:6])}
    assert EditOracle()(**given).tolist() == [1, 0, 0, 1, 1, 1]
    assert EditDone()(**given).tolist() == [1, 0, 1, 1, 1, 1]
    soft = EditOracleSoft()(**given).tolist()
    assert soft[2] == pytest.approx(2 / 3) and soft[0] == 1.0 and soft[1] < 1.0
    assert EditKept()(**given).tolist()[2] == 0.0
    assert all(isinstance(o(), Reward) for o in (EditOracle, EditOracleSoft, EditDone, EditKept))
    assert EditOracle().categories(["remove the circle", "a cat"]) == ["remove", "other"]
    given["media"].data[3, 0, 0, 0] = torch.nan
    odd = EditOracle()(**given | {"prompts": ["a red circle", "remove the pink cat", *texts[2:6]]})
    assert odd.isnan().tolist() == [True, True, False, True, False, False]
    with pytest.raises(BadInput, match="source"):
        EditOracle()(media=pictures(targets[:1]), prompts=texts[:1])
    with pytest.raises(BadInput, match="3 x 64 x 64"):
        EditOracle()(**given | {"media": pictures(torch.zeros(6, 3, 32, 32))})


def test_a_text_that_names_no_single_thing_of_the_source_is_not_understood(sample):
    edits, _, sources, _ = sample
    i = next(i for i, e in enumerate(edits) if len(e.before) == 2 and e.before[0].shape == e.before[1].shape)
    shape, colours = edits[i].before[0].shape, {t.colour for t in edits[i].before}
    absent = next(c for c in world.COLOURS if c not in colours)
    assert understand_instruction(f"remove the {shape}", sources[i]) is None
    assert understand_instruction(f"remove the {absent} {shape}", sources[i]) is None
    assert understand_instruction(f"remove the {colours.pop()} {shape}", sources[i]) is not None


# --- the recipe


def test_the_editor_knows_the_teachers_words_and_weights():
    teacher = DiffusionPipeline.from_pretrained(build.resolve_repo("starter:image/teacher"))
    tokenizer, words = generator.new_edit_tokenizer(), [*world.WORDS, "circle", "large", "left"]
    assert all(len(tokenizer(word).input_ids) == 3 for word in words)
    encoder = generator.extend_text_encoder(teacher.text_encoder, teacher.tokenizer, tokenizer)
    text = ["a large red circle left of a blue square"]
    ids = [t(text, return_tensors="pt").input_ids for t in (teacher.tokenizer, tokenizer)]
    outputs = [e(i).last_hidden_state for e, i in zip((teacher.text_encoder, encoder), ids, strict=True)]
    torch.testing.assert_close(*outputs)
    unet, hidden = generator.widen_unet(teacher.unet), outputs[0]
    z, t = torch.randn(1, 4, 16, 16, generator=Draw.at_step(36, "z").torch), torch.tensor([500.0])
    without = unet(torch.cat([z, torch.zeros_like(z)], 1), t, hidden).sample
    torch.testing.assert_close(without, teacher.unet(z, t, hidden).sample)
    assert (unet(torch.cat([z, z], 1), t, hidden).sample - without).abs().mean() > 1e-2


def test_the_reward_model_is_taught_with_words_that_are_false_and_not_held_out(sample):
    rng = random.Random(9)
    for edit in sample[0][:30]:
        for text in clip.false_wordings(edit, rng, 3):
            asked = world.parse_instruction(text)
            assert text not in world.instruction_wordings(edit) and not world.is_instruction_held_out(asked)


def test_a_killed_build_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    builds = KilledBuilds(monkeypatch, build.build, training_set, generator, clip)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert [builds.run(killed, "save", saves=n) for n in (3, 4)] == [False] * 2
    assert builds.run(killed, "save") and builds.run(whole)
    assert len(find_equal_weights(killed, whole)) == 4
    report = json.loads((whole / "pack" / "report.json").read_text())["measured"]
    assert report["oracle"]["true targets"]["mean"] == 1.0 and report["bytes"] < 9e6
    editor = DiffusionPipeline.from_pretrained(killed / "pack" / "base")
    assert isinstance(editor, StableDiffusionInstructPix2PixPipeline) and editor.unet.config.in_channels == 8
    assert CLIPModel.from_pretrained(killed / "pack" / "clip").config.vision_config.num_channels == 6


def test_prompt_files_name_the_sources_beside_them_and_longer_ones_begin_with_shorter_ones(tmp_path):
    few = {"strange": (7, 7), "additions": (5, 5)}
    build.write_prompts(tmp_path / "short", test=(7,), train=(7,), **few)
    build.write_prompts(tmp_path / "long", test=(7, 7), train=(7, 14), **few)
    for name, turns in (("test", world.KINDS), ("train", build.TRAINED_KINDS)):
        tables = [read_prompt_file(tmp_path / n / f"starter-edit-{name}.jsonl") for n in ("short", "long")]
        short, long = ([*zip(t.prompts, t.columns["source"], strict=True)] for t in tables)
        assert long[:7] == short and len(long) == 7 + len(turns) and len({*long}) == len(long)
        assert [world.instruction_kind(p) for p, _ in long] == [*world.KINDS, *turns]
        pictures = [(tmp_path / "long" / source).read_bytes() for _, source in long]
        assert pictures[:7] == [(tmp_path / "short" / source).read_bytes() for _, source in short]
        for kind in ("edit", "edit-strange", "edit-strange-draw"):
            shipped = read_prompt_file(PROMPTS / f"starter-{kind}-{name}.jsonl")
            asked = [*map(world.require_instruction, shipped.prompts)]
            assert {*map(world.is_instruction_held_out, asked)} == {name == "test"}
            assert len({(PROMPTS / source).read_bytes() for source in shipped.columns["source"]}) == len(asked)
        drawn = read_prompt_file(tmp_path / "long" / f"starter-edit-strange-draw-{name}.jsonl")
        assert all(read_picture(read_media(drawn.folder / source).data[0]) == [] for source in drawn.columns["source"])


def test_with_the_sources_of_other_prompts_the_edits_are_wrong(tmp_path):
    values = {"pipeline": "starter-edit", "method": "sample", "reward": "edit_oracle", "prompts": "starter-edit-test"}
    right = {}
    for control in ("none", "shuffled_inputs"):
        told = values | {"limit": 21, "batch": 21, "control": control, "name": control}
        plan = plan_run(config.check_config(config.build_dataclass(config.RunConfig, told, "test")))
        folder = store.RunFolder.open(tmp_path, control, dataclasses.asdict(plan.config))
        assert not [p.failed for p in run.execute_run(plan, folder) if p.failed]
        samples = [s for e in folder.events() if e.get("final") for s in e["samples"]]
        right[control] = [(s["prompt"], s["seed"], s["inputs"]) for s in samples]
        right[control, "oracle"] = sum(s["scores"]["edit_oracle"] for s in samples) / len(samples)
    assert right["none"] == right["shuffled_inputs"], "what is asked, and with which noise, is the same"
    assert right["none", "oracle"] > 0.6 and right["shuffled_inputs", "oracle"] < 0.15
    trains = values | {"method": {"name": "nft"}, "control": "shuffled_inputs", "train": {}, "limit": 21, "name": "x"}
    with pytest.raises(BadInput, match="shuffled_inputs judges what is there and trains nothing"):
        plan_run(config.check_config(config.build_dataclass(config.RunConfig, trains, "test")))
