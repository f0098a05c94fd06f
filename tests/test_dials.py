"""Reward conditioning: levels that a denoiser is told, how they are learnt, stored and set."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import safetensors.torch
import tiny
import torch
from tiny_trained import SD, nudge, trainable

import pipelines
from pipelines import DistributedPolicy, Lora, dial_files, export_policy, plan_loading
from pipelines.dials import GAIN, find_dials
from pipelines.starter import EditDone, EditGround, EditKept
from pipelines.starter.edit.imperfect import write_imperfect_edits
from rewards import build_reward
from workbench.core.errors import BadInput
from workbench.core.inputs import BEST_LEVEL, prompt_inputs, stack_sources
from workbench.core.io import media
from workbench.core.types import Batch, Media, Prompt
from workbench.methods import RewardCondition
from workbench.methods.common.example_scores import scale_to_levels, score_examples, shuffle_scores
from workbench.runs.captioned_media import ScoredFolder
from workbench.runs.resolve import resolve_dependencies

PROMPTS = ("a red cat", "two dogs")
AXES = ("light", "calm")


def set_tables(policy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for dials in find_dials(policy.pipe).values():
        dials.table.data = torch.randn(dials.table.shape, generator=generator) / GAIN


def predict(policy, x, prompts):
    with torch.no_grad():
        return policy.predict(x, 0, prompts).x0


@pytest.mark.parametrize("name", [SD, "AceStepPipeline", "WanPipeline:2.2", "AnimateDiffPipeline"])
def test_zero_tables_leave_the_model_and_every_row_gets_its_own_levels(name):
    policy = trainable(name, kernel=None, axes=AXES)
    prompts = policy.example_prompts(*PROMPTS, "a blue hat")
    x = policy.sample(prompts, seeds=(1, 2, 3)).x[:, 0]
    with policy.reference():
        base = predict(policy, x, prompts)
    assert torch.equal(predict(policy, x, prompts), base)
    set_tables(policy)
    with policy.reference():
        assert torch.equal(predict(policy, x, prompts), base)
    told = [Prompt(p, prompt_inputs(p), {"light": k, "calm": 2.5}) for k, p in enumerate(prompts)]
    together, effect = predict(policy, x, told), (predict(policy, x, told) - base).abs().amax((1, *range(2, x.dim())))
    close = {"rtol": 1e-4, "atol": 1e-3 * float(effect.min())}
    order = [2, 0, 1]
    assert torch.allclose(predict(policy, x[order], [told[k] for k in order]), together[order], **close)
    for k in range(3):
        assert torch.allclose(predict(policy, x[k : k + 1], told[k : k + 1]), together[k : k + 1], **close)
    assert torch.allclose(predict(DistributedPolicy(policy, micro=2), x, told), together, **close)
    silent = [Prompt(p, prompt_inputs(p), {}) for p in prompts]
    assert torch.equal(predict(policy, x, silent), base), "nothing said"


def test_a_class_without_text_states_is_refused_before_weights_load():
    config = pipelines.PipelineConfig("ZImagePipeline", "Tongyi-MAI/Z-Image", steps=4)
    for refuse in (
        lambda: dial_files.check_new_dials(config, shard=False),
        lambda: trainable("ZImagePipeline", kernel=None, axes=AXES),
    ):
        with pytest.raises(BadInput, match="ZImagePipeline gives its denoiser no `encoder_hidden_states`"):
            refuse()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of each prompt a bright picture with 5 for light, and a dark one with 0, of other patterns."""
    place = tmp_path_factory.mktemp("examples")
    rows = []
    for k, (text, level) in enumerate(itertools.product(PROMPTS, (5, 0))):
        pattern = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(level))
        media.write_media(Media(0.1 + 0.1 * level + 0.4 * pattern, "image"), place / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "text": text, "scores": {"light": level} | ({"calm": 3} if k else {})})
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def batches(first, last):
    made = [Batch(PROMPTS * 2, tuple(range(4 * k, 4 * k + 4))) for k in range(first, last)]
    return type("Batches", (list,), {"first": first})(made)


def train(policy, folder, first, last, **settings):
    method = resolve_dependencies(RewardCondition(**{"examples": str(folder), "lr": 5e-3, "guidance": None} | settings))
    return [event.metrics for event in method(policy, None, batches(first, last))]


@pytest.fixture(scope="module")
def trained(folder):
    torch.manual_seed(0)
    policy = trainable("FluxPipeline", kernel=None, axes=("calm", "light"), steps=1, lora=Lora(rank=4, targets="all"))
    return policy, train(policy, folder, 0, 14)


def test_a_training_learns_what_the_levels_mean(trained, folder):
    policy, metrics = trained
    assert all(m["grad_norm"] > 0 and m["loss"] > 0 for m in metrics)
    examples = ScoredFolder(str(folder))
    x0 = policy.encode(Media.cat([examples.read(PROMPTS[0], n, policy.size) for n in (0, 1)])).float().repeat(4, 1, 1)
    x = policy.noised(x0, 0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(9)))

    def error(*levels):
        told = [Prompt(PROMPTS[0], {}, {"light": level}) for level in levels * 4]
        return (predict(policy, x, told) - x0).square().mean().item()

    with policy.reference():
        base = error(5, 0)
    assert error(5, 0) < 0.5 * base, "the loss has fallen"
    assert error(5, 0) < error(0, 5), "the bright one and the dark one"
    for asked, level in (({"light": 0, "calm": None}, 0.0), ({"calm": None}, 5.0)):  # 5 where nothing is asked
        policy.dials = asked
        told = [Prompt(prompt, {}, {"light": level}) for prompt in PROMPTS]
        assert torch.equal(predict(policy, x[:2], PROMPTS), predict(policy, x[:2], told))
    policy.dials = {}


def test_without_scores_nothing_is_told_and_tables_stay_zero(folder):
    policy = trainable(SD, kernel=None, axes=("calm", "light"), steps=1)
    train(policy, folder, 0, 2, score_dropout=1.0)
    assert not find_dials(policy.pipe)["unet"].table.any() and policy.adapters.distance_from_base() > 0


def test_every_example_teaches_the_whole_of_a_dial_and_levels_lie_between_its_ends(trained):
    dials = find_dials(trained[0].pipe)["transformer"]
    calm, light = dials.table.detach()  # each from 0 to 5
    assert calm.any(1).all() and light.any(1).all(), "one example at 3 has moved both ends of calm"
    levels = dials.tabulate_levels().detach()
    assert levels.shape == (2, 6, calm.shape[-1]) and torch.equal(levels[:, [0, 5]], dials.table.detach())
    assert torch.allclose(levels[1, 2], torch.lerp(light[0], light[1], 0.4), atol=1e-6)


def test_a_state_goes_on_to_the_bit(folder):
    whole, half, later = (trainable(SD, kernel=None, axes=("calm", "light"), ema=0.5, steps=1) for _ in range(3))
    train(whole, folder, 0, 3)
    train(half, folder, 0, 2)
    later.load_state_dict(half.state_dict())
    train(later, folder, 2, 3)
    assert later.adapters.content_hash() == whole.adapters.content_hash() != half.adapters.content_hash()
    assert all(torch.equal(v, whole.adapters.copies["ema"][k]) for k, v in later.adapters.copies["ema"].items())


@pytest.mark.parametrize("targets", ["attention", "weights"])
def test_an_export_has_the_dials_for_us_and_for_plain_diffusers(tmp_path, targets):
    base = tiny.save(SD, tmp_path)
    config = tiny.config(SD, base, steps=2)
    policy = pipelines.load(config, device="cpu", train={"lora": Lora(rank=2, targets=targets), "axes": AXES})
    nudge(policy, 0.1)
    set_tables(policy)
    exported = export_policy(policy, tmp_path / "out", pipeline=config, comfy=True)
    assert exported.difference <= 1e-3 * exported.effect and not list((tmp_path / "out").rglob("comfyui*"))
    loaded = pipelines.load(
        pipelines.read_config({"name": str(tmp_path / "out"), "dials": {"light": 1.5}}), device="cpu"
    )
    seeds, policy.dials = (3, 4), {"light": 1.5}
    ours = policy.sample(PROMPTS, seeds=seeds).media.data
    assert torch.allclose(loaded.sample(PROMPTS, seeds=seeds).media.data, ours, atol=1e-4)
    with loaded.reference():
        assert not torch.allclose(loaded.sample(PROMPTS, seeds=seeds).media.data, ours, atol=1e-3)
    policy.dials = {}
    best, pipe = policy.sample(PROMPTS, seeds=seeds).media.data, tiny.build(SD)
    exec("\n".join(exported.load), {"pipe": pipe, "safetensors": safetensors, "torch": torch})  # as the card says
    settings = {name: [value] * 2 for name, value in config.text.items()} | config.call
    settings |= {
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "num_inference_steps": config.steps,
    }
    plain = pipe(list(PROMPTS), output_type="pt", **settings)
    assert torch.allclose(plain.images, best, atol=1e-4)
    for dials, sentence in (
        ({"lihgt": 3}, "unknown axis 'lihgt'; did you mean 'light'"),
        ({"light": 6}, "light is a number from 0 to 5, or null, and not 6"),
        ({"calm": True}, "calm is a number from 0 to 5"),
    ):
        with pytest.raises(BadInput, match=sentence):
            plan_loading(pipelines.read_config({"name": str(tmp_path / "out"), "dials": dials}), device="cpu")
    with pytest.raises(BadInput, match="these weights have no dials"):
        plan_loading(replace(config, dials={"light": 3}), device="cpu")
    with pytest.raises(BadInput, match="has dials already"):
        dial_files.check_new_dials(pipelines.read_config(str(tmp_path / "out")), shard=False)
    (tmp_path / "out" / dial_files.FILE).unlink()
    with pytest.raises(BadInput, match="holds other dials than export.json says"):
        pipelines.load(str(tmp_path / "out"), device="cpu")


def test_scores_come_with_the_examples_or_from_the_reward(folder, tmp_path):
    examples = ScoredFolder(str(folder))
    assert examples.axes == ("calm", "light")
    own = score_examples(examples, None, (3, 16, 16))
    assert [row["light"] for row in own.values()] == [5, 0, 5, 0] and "calm" not in own[examples.name(PROMPTS[0], 0)]
    shuffled = shuffle_scores(own)
    assert shuffled.keys() == own.keys() and [*map(str, shuffled.values())] != [*map(str, own.values())]
    for name in ("0.png", "1.png", "2.png", "3.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
        (tmp_path / f"{name[0]}.txt").write_text(PROMPTS[int(name[0]) // 2])
    bare, reward = ScoredFolder(str(tmp_path)), build_reward({"brightness": 1.0, "sharpness": 1.0})
    assert bare.axes == () and RewardCondition(examples=bare).dial_axes(reward) == ("brightness", "sharpness")
    scores = score_examples(bare, build_reward({"brightness": 1.0}), (3, 16, 16))
    assert [row["brightness"] for row in scores.values()] == pytest.approx([5, 0, 5, 0])


def test_a_reward_is_scaled_by_its_own_quantiles():
    values = torch.linspace(0, 1, 101)
    assert scale_to_levels(values, "x")[[0, 5, 50, 95, 100]].tolist() == pytest.approx([0, 0, 2.5, 5, 5])
    rare = torch.cat([torch.zeros(1), torch.ones(99), torch.tensor([torch.nan])])  # its quantiles are equal
    levels = scale_to_levels(rare, "x")
    assert levels[0] == 0 and levels[1:100].eq(BEST_LEVEL).all() and levels[100].isnan()
    with pytest.raises(BadInput, match="sharpness scores all examples alike"):
        scale_to_levels(torch.ones(9), "sharpness")


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ({"light": 7}, "0.png: scores: light is a number from 0 to 5, and not 7"),
        ({"light": "good"}, "light is a number from 0 to 5, and not 'good'"),
        ([1, 2], "scores: expected a level for each axis"),
    ],
)
def test_scores_that_are_none_are_named(folder, tmp_path, scores, sentence):
    (tmp_path / "0.png").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a", "scores": scores}))
    with pytest.raises(BadInput, match=sentence):
        ScoredFolder(str(tmp_path))


def test_imperfect_edits_are_as_their_scores_say(tmp_path):
    assert write_imperfect_edits(tmp_path, edits=14, results=3) == 42
    examples = ScoredFolder(str(tmp_path))
    rows = [(p, n) for p in examples.list_prompts() for n in range(examples.count(p))]
    results = Media.cat([examples.read(p, n, (3, 64, 64)) for p, n in rows])
    scores, prompts = [examples.scores(p, n) for p, n in rows], [p for p, _ in rows]
    assert 10 <= sum(set(row.values()) == {5.0} for row in scores) <= 30
    for axis, oracle in (("done", EditDone()), ("kept", EditKept()), ("ground", EditGround())):
        values = oracle(media=results, prompts=prompts, references=stack_sources(oracle, results, prompts))
        right = [v for v, row in zip(values.tolist(), scores, strict=True) if set(row.values()) == {5.0}]
        wrong = [v for v, row in zip(values.tolist(), scores, strict=True) if row[axis] == 0]
        assert sum(right) >= len(right) - 1 and sum(wrong) <= 1 and wrong, axis
    with pytest.raises(BadInput, match=r"has a metadata.jsonl already"):
        write_imperfect_edits(tmp_path)
