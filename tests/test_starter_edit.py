"""The edit world's oracle tells done, kept and ground apart, its hold-out does not leak, and its recipe survives being
killed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline
from safetensors.torch import load_file
from transformers import CLIPModel

from pipelines.starter import resumable_training
from pipelines.starter.edit import build, clip, generator, measure, negatives, training_set, world
from pipelines.starter.edit.oracle import EditDone, EditKept, EditOracle, EditOracleSoft, understand_instruction
from pipelines.starter.image.autoencoder import decode_latents, encode_pictures
from pipelines.starter.image.world import UNSEEN_PAIRS, Thing, Wanted
from pipelines.starter.resumable_training import Draw
from workbench.core.errors import BadInput
from workbench.core.types import Media, Reward


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


class Killed(BaseException):
    """Nothing in the recipe catches this, as nothing catches a real kill."""


def test_a_killed_build_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    save, whole = resumable_training.save_atomically, resumable_training.train_stage

    def run(folder: Path, saves: float, *stages: str) -> bool:
        left = [saves]

        def dies(state, path):
            save(state, path)
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        for module in (resumable_training, training_set, generator):
            monkeypatch.setattr(module, "save_atomically", dies)
        try:
            build.build(folder, folder / "pack", fast=True, stages=stages)
        except Killed:
            return False
        return True

    for module in (generator, clip):  # a checkpoint after every step
        monkeypatch.setattr(module, "train_stage", lambda *a, **k: whole(*a, **(k | {"every": 0.0})))
    assert [run(tmp_path / "a", n, "save") for n in (3, 4)] == [False] * 2
    assert run(tmp_path / "a", float("inf"), "save") and run(tmp_path / "b", float("inf"))
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a" / "pack").rglob("*.safetensors"))
    assert len(names) == 4
    for name in names:
        left, right = load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name)
        assert all(torch.equal(left[k], right[k]) for k in left), name
    report = json.loads((tmp_path / "b" / "pack" / "report.json").read_text())["measured"]
    assert report["oracle"]["true targets"]["mean"] == 1.0 and report["bytes"] < 9e6
    editor = DiffusionPipeline.from_pretrained(tmp_path / "a" / "pack" / "base")
    assert isinstance(editor, StableDiffusionInstructPix2PixPipeline) and editor.unet.config.in_channels == 8
    assert CLIPModel.from_pretrained(tmp_path / "a" / "pack" / "clip").config.vision_config.num_channels == 6


def test_prompt_files_name_the_sources_beside_them(tmp_path):
    from workbench.runs.prompt_files import read_prompt_file

    build.write_prompts(tmp_path, test=7, train=7)
    for name in ("test", "train"):
        table = read_prompt_file(tmp_path / f"starter-edit-{name}.jsonl")
        assert len(table) == 7 and all((tmp_path / source).is_file() for source in table.columns["source"])
        assert [world.instruction_kind(p) for p in table.prompts] == list(world.KINDS)
