"""Pipelines that make pictures from a source, a mask, a control image or a reference: each row from its own."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from tiny import SEEDS
from tiny_conditioned import CONDITIONED, make_prompts, with_input
from tiny_trained import trainable

import pipelines
from pipelines import FlowSDE, replay, seam_check, seams
from pipelines.adapters import lora_layers
from pipelines.conditions import Conditions, find_grouping, group_rows
from pipelines.known_classes import INPUTS, MODALITIES
from pipelines.policy import Policy
from pipelines.prompt_cache import PromptCaches
from pipelines.seam_check import check_pipeline, record_steps
from pipelines.transitions import Ancestral
from rewards.compose import WeightedReward
from workbench.core.errors import BadInput
from workbench.core.inputs import MediaInput
from workbench.core.types import Batch, Media, Prompt, RewardSpec
from workbench.methods import GRPO, NFT

# how they take inputs; all others each
ALONE, ONE = {"QwenImageEditPlusPipeline"}, {"Flux2KleinPipeline:source", "Flux2Pipeline:source"}
BLENDING = {name for name in CONDITIONED if "Inpaint" in name and not name.endswith(":9")}
OFFSET = {name for name in CONDITIONED if "Img2Img" in name}
HELPED = {name for name in CONDITIONED if "ControlNet" in name}
UNTRAINED = "gives media back that it encoded"  # not by an autoencoder of random weights


@pytest.fixture(scope="module")
def policies():
    class Policies(dict):
        def __missing__(self, name):
            self[name] = tiny.policy(name)
            return self[name]

    return Policies()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("name", list(CONDITIONED))
def test_each_row_is_made_from_its_own_inputs_as_the_class_makes_it(policies, name):
    policy = policies[name]
    prompts, (other,) = make_prompts(policy, 1, 2), make_prompts(policy, 3)
    assert policy.grouping == ("alone" if name in ALONE else "one" if name in ONE else "each")
    assert policy.is_blending == (name in BLENDING) and policy.structure.has_offset == (name in OFFSET)
    assert policy.structure.helpers == ({"controlnet"} if name in HELPED else set())

    recorded, before = record_steps(policy, prompts, SEEDS), policy.nfe
    sample = policy.sample(prompts, seeds=SEEDS)
    assert policy.nfe - before == sum(step.rows for step in recorded)
    assert policy.size == sample.media.data.shape[1:]  # also where no media can be encoded
    assert torch.equal(sample.x[:, :-1], torch.stack([step.x for step in recorded], 1))
    assert policy.is_blending or torch.equal(sample.x[:, -1], recorded[-1].x_next)

    for i, step in enumerate(recorded):  # a replay at a recorded state is exact; at another state it isn't
        assert distance(policy._model_output(step.x, i, prompts), step.output) <= (3e-5 if i == 0 else 0)
    assert distance(policy._model_output(step.x.flip(0), i, prompts), step.output) > 0.1

    changed = policy.sample((prompts[0], other), seeds=SEEDS).media.data  # after the first inputs were encoded
    fresh = copy.copy(policy)
    fresh.prompt_caches = PromptCaches(0, 0)
    assert torch.equal(changed, fresh.sample((prompts[0], other), seeds=SEEDS).media.data)
    effect = distance(changed[1], sample.media.data[1])
    assert distance(changed[0], sample.media.data[0]) <= 1e-2 * effect > 0

    scored = copy.copy(policy)
    scored.kernel = Ancestral()
    if name in BLENDING:
        assert "stochastic" not in policy.provides
        with pytest.raises(TypeError, match="lays its source under the mask again after every step"):
            scored.sample(prompts, seeds=SEEDS)
    else:
        path = scored.sample(prompts, seeds=SEEDS)
        i = path.stochastic[-1]
        law = scored.transition(path.x[:, i], i, prompts)
        assert distance(law.log_prob(path.x[:, i + 1]), path.log_prob[:, i]) <= 1e-5


def test_every_image_class_that_takes_inputs_is_tried():
    tried = {tiny.class_of(name) for name in CONDITIONED}
    assert {name for name in INPUTS if MODALITIES[name][0] == "image"} <= tried


@pytest.mark.parametrize("name", ["FluxKontextPipeline", "FluxInpaintPipeline"])
def test_the_check_of_a_healthy_pipeline_passes_every_claim_with_other_inputs_for_each_row(policies, name):
    results = {r.claim: r for r in check_pipeline(policies[name])}
    assert [r for r in results.values() if r.holds is False and r.claim != UNTRAINED] == []
    assert len(results) == 20
    untried = {
        claim: r.evidence
        for claim, r in results.items()
        if r.holds is None and claim != "holds the weights of its files"
    }
    if name in BLENDING:
        assert len(untried) == 6 and "parts of a state are not sampled" in untried["scores the sampled steps"]
    else:
        assert untried == {}


FORGETS, ROWS, INPUTS_MATTER, COUNTS = (
    "forgets no input",
    "makes each row from its own inputs alone",
    "depends on its inputs",
    "counts the rows through its denoiser",
)


def texts_alone(self, prompts, *args, original=PromptCaches.recall, **kwargs):
    return original(self, tuple(str(p) for p in prompts), *args, **kwargs)


def unmasked(self, prompts, grouping, original=Conditions.arguments):
    white = MediaInput.of(Media(torch.ones(1, 3, 8, 8), "image"))
    return original(self, [Prompt(str(p), {**p.inputs, "mask": white}) for p in prompts], grouping)


@pytest.mark.parametrize(
    ("name", "owner", "method", "fault", "claim"),
    [
        ("FluxKontextPipeline", PromptCaches, "recall", texts_alone, FORGETS),
        ("Flux2KleinPipeline:source", Policy, "grouping", "each", ROWS),
        ("FluxInpaintPipeline", Conditions, "arguments", unmasked, INPUTS_MATTER),
        (
            "FluxControlNetPipeline",
            Policy,
            "nfe",
            property(lambda self: 2 * vars(self)["nfe"], lambda self, n: vars(self).update(nfe=n)),
            COUNTS,
        ),
    ],
)
def test_a_planted_fault_in_its_inputs_fails_the_claim_that_it_breaks(name, owner, method, fault, claim, monkeypatch):
    chosen = {c: check for c, check in (seam_check.CLAIMS | seam_check.INPUT_CLAIMS).items() if c == claim}
    monkeypatch.setattr(seam_check, "CLAIMS", chosen)
    monkeypatch.setattr(seam_check, "INPUT_CLAIMS", {})
    assert {r.claim: r.holds for r in check_pipeline(tiny.policy(name))}[claim]
    monkeypatch.setattr(owner, method, fault, raising=False)
    assert {r.claim: r.holds for r in check_pipeline(tiny.policy(name))}[claim] is False


@pytest.mark.parametrize(
    "name", ["StableDiffusionInstructPix2PixPipeline", "SanaSprintImg2ImgPipeline", "FluxInpaintPipeline"]
)
def test_the_gradient_from_the_picture_to_the_noise_is_how_fast_the_picture_changes(name):
    """In float64: float32 is too coarse for the curvature of Sana's."""
    policy = tiny.policy(name, tiny.build(name).to(torch.float64))
    prompts, noise = make_prompts(policy, 1, 2), policy.noise(SEEDS).double()
    shape = policy.sample(prompts, seeds=SEEDS).media.data.shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(noise: torch.Tensor, grad: int = 0) -> torch.Tensor:
        return (weights * policy.sample(prompts, seeds=SEEDS, noise=noise, grad=grad).media.data).sum()

    leaf = noise.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf, policy.steps), leaf)
    step = 1e-5 * noise.norm() * gradient / gradient.norm()
    with torch.no_grad():
        slope = (value(noise + step) - value(noise - step)) / (2 * step.norm())
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-3)


@torch.no_grad()
def test_rows_of_equal_inputs_share_a_call_where_the_class_takes_one_for_all(policies):
    """Three rows, of which the first and the last have one source: two calls, and results in the order of the rows."""
    policy = policies["Flux2KleinPipeline:source"]
    a, b = make_prompts(policy, 1, 2)
    assert policy.grouping == "one"
    assert group_rows((a, b, a), "one") == [[0, 2], [1]]
    sizes, recall = [], PromptCaches.recall
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PromptCaches, "recall", lambda self, p, *r, **k: (sizes.append(len(p)), recall(self, p, *r, **k))[1]
        )
        sample = policy.sample((a, b, a), seeds=(5, 6, 7))
    assert sizes == [2, 1]
    for row, (prompt, seed) in enumerate(((a, 5), (b, 6), (a, 7))):
        alone = policy.sample((prompt,), seeds=(seed,))
        assert distance(sample.media.data[row], alone.media.data[0]) < 1e-5
        assert distance(sample.x[row], alone.x[0]) < 1e-5


def test_in_half_precision_mixed_rows_are_not_taken_for_rounding():
    """Flux2 Klein takes a list of pictures for the references of all prompts, which changes little."""
    name = "Flux2KleinPipeline:source"
    policy = tiny.policy(name, tiny.build(name).to(torch.bfloat16))
    assert policy.grouping == "one"
    seen = iter([torch.zeros(1, 9), torch.ones(1, 9), 1e-3 * torch.ones(1, 9), torch.ones(2, 9)])
    with pytest.MonkeyPatch.context() as patch:  # where rounding hides the effect of an input, rows are computed alone
        patch.setattr(replay, "early_output", lambda *_: next(seen, torch.full((2, 9), 0.5)))
        assert find_grouping(policy) == "alone"


@torch.no_grad()
@pytest.mark.parametrize("name", ["FluxImg2ImgPipeline", "SanaSprintImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_in_half_precision_steps_replay_exactly_too(name):
    policy = tiny.policy(name, tiny.build(name).to(torch.bfloat16))
    prompts = make_prompts(policy, 1, 2)
    recorded, sample = record_steps(policy, prompts, SEEDS), policy.sample(prompts, seeds=SEEDS)
    assert torch.equal(policy.start(policy.noise(SEEDS), prompts), recorded[0].x)
    for i, step in enumerate(recorded):
        assert torch.equal(sample.x[:, i], step.x)
        assert distance(policy._model_output(step.x, i, prompts), step.output) <= (2e-2 if i == 0 else 0)


@torch.no_grad()
def test_a_class_that_sees_a_batch_in_another_size_is_asked_row_by_row(policies):
    """QwenImageEdit brings one source to its own area before its encoder sees it, but not the sources of a batch: in
    another size than its own, rows together would be other pictures than rows apart."""
    name = "QwenImageEditPipeline"
    assert policies[name].grouping == "each"  # 32 x 32 is its own here
    policy = tiny.policy(name, policies[name].pipe, call={**CONDITIONED[name].call, "height": 16, "width": 16})
    assert policy.grouping == "alone"
    prompts = make_prompts(policy, 1, 2)
    together = policy.sample(prompts, seeds=SEEDS).media.data
    apart = [policy.sample((p,), seeds=(s,)).media.data for p, s in zip(prompts, SEEDS, strict=True)]
    assert torch.equal(together, torch.cat(apart))


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["StableDiffusionControlNetPipeline", "FluxKontextPipeline", "QwenImageEditPlusPipeline", "FluxFillPipeline"],
)
def test_inputs_of_any_size_are_covered_and_cropped_to_that_of_the_call(policies, name):
    policy = policies[name]
    (prompt,), (height, width) = make_prompts(policy, 1), policy.conditions.shape
    wide = torch.rand(3, height, 2 * width, generator=torch.Generator().manual_seed(3))
    middle = wide[..., width // 2 : width // 2 + width]
    given = [with_input(prompt, **dict.fromkeys(policy.conditions.inputs, x)) for x in (wide, middle)]
    states = [policy.sample((p,), seeds=(1,)).x for p in given]
    assert torch.equal(*states) and states[0].shape[2:] == policy.structure.state.shape[1:]


def test_the_height_and_width_of_a_call_hold_where_the_class_has_an_area_of_its_own(policies):
    """Kontext makes a megapixel of whatever shape it is asked for, unless it is told an area."""
    pipe = policies["FluxKontextPipeline"].pipe
    policy = tiny.policy("FluxKontextPipeline", pipe, call={**CONDITIONED["FluxKontextPipeline"].call, "height": 16})
    assert policy.size == (3, 16, 8) and policy.conditions.shape == (16, 8)


def test_an_input_of_another_kind_is_one_sentence(policies):
    policy = policies["FluxKontextPipeline"]
    clip = MediaInput.of(Media(torch.rand(1, 2, 3, 8, 8), "video", 8.0))
    with pytest.raises(BadInput, match=r"source: a clip was given where this pipeline takes a picture"):
        policy.sample((Prompt("a", {"source": clip}),), seeds=(1,))
    with pytest.raises(BadInput, match="'a red cat': this pipeline makes its samples from a source"):
        policy.sample(("a red cat",), seeds=(1,))


@torch.no_grad()
def test_a_source_at_full_strength_leaves_no_trace_and_at_little_only_the_last_step():
    def with_strength(strength: float) -> Policy:
        call = {**CONDITIONED[name].call, "strength": strength}
        return tiny.policy(name, pipe, call=call)

    name, pipe = "StableDiffusion3Img2ImgPipeline", tiny.build("StableDiffusion3Img2ImgPipeline")
    full, least = with_strength(1.0), with_strength(0.25)
    assert (full.steps, full.structure.skipped, full.structure.has_offset) == (4, 0, False)
    assert (least.steps, least.structure.skipped, least.structure.has_offset) == (1, 3, True)
    prompts = make_prompts(least, 1, 2)
    sample = least.sample(prompts, seeds=SEEDS)
    assert torch.equal(least.start(least.noise(SEEDS), prompts), sample.x[:, 0])
    assert torch.equal(full.structure.start(full.noise(SEEDS)), full.sample(prompts, seeds=SEEDS).x[:, 0])


def test_a_lora_is_put_on_the_denoiser_and_not_on_its_controlnet():
    policy = trainable("StableDiffusionControlNetPipeline")
    assert {name for name, module in seams.named_networks(policy.pipe).items() if lora_layers(module)} == {"unet"}
    assert not any(p.requires_grad for p in policy.pipe.controlnet.parameters())


class Copied:
    """How near the picture is to its source."""

    spec = RewardSpec("copied", "1", frozenset({"image"}), differentiable=True, needs=frozenset({"source"}))

    def __call__(self, *, media, prompts, references=None):
        return -(media.data - references.data).square().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("name", "method", "kernel"),
    [
        ("StableDiffusionInstructPix2PixPipeline", GRPO(group=2, lr=1e-4), Ancestral()),
        ("FluxKontextPipeline", NFT(group=2, lr=1e-4), None),
        ("Flux2KleinPipeline:source", GRPO(group=2, lr=1e-4), FlowSDE()),
        ("FluxInpaintPipeline", NFT(group=2, lr=1e-4), None),
    ],
)
def test_a_round_of_training_runs_on_other_inputs_for_each_prompt(name, method, kernel):
    policy = trainable(name, kernel=kernel)
    before = [p.detach().clone() for p in policy.adapters.parameters]
    prompts = make_prompts(policy, 1, 2)
    (event,) = method(policy, WeightedReward({Copied(): 1.0}), [Batch(prompts, SEEDS)])
    assert event.metrics["grad_norm"] > 0 and event.metrics.get("log_ratio", 0.0) == 0.0
    assert any(not torch.equal(p, was) for p, was in zip(policy.adapters.parameters, before, strict=True))


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    """A folder of weights, and a config of eight lines that names it."""
    folder = tmp_path_factory.mktemp("kontext")
    repo = tiny.save("FluxKontextPipeline", folder)
    lines = [
        "# a tiny Kontext",
        "class: FluxKontextPipeline",
        f"repo: {repo}",
        "steps: 2",
        "dtype: fp32",
        "call: {guidance_scale: 2.5, height: 8, width: 8, _auto_resize: false, max_sequence_length: 16}",
    ]
    path = folder / "tiny-kontext.yaml"
    path.write_text("\n".join(lines))
    return path


def test_a_config_of_a_class_that_takes_a_source_says_so_by_itself(kontext):
    assert pipelines.read_config(kontext).inputs == {"source": "image"}
    policy = pipelines.load(kontext, device="cpu")
    results = {r.claim: r.holds for r in check_pipeline(policy)}
    assert results.pop(UNTRAINED) is False and all(results.values())
    folder = kontext.parent / "FluxKontextPipeline"
    assert pipelines.read_config(folder).inputs == {"source": "image"}
    assert pipelines.read_config({"name": str(kontext), "inputs": {"reference": "image"}}).inputs == {
        "reference": "image"
    }


def test_a_controlnet_comes_from_a_repository_of_its_own(tmp_path):
    """As the shipped config says; only repositories and the size are others here."""
    repo = tiny.save("StableDiffusionPipeline", tmp_path)
    controlnet = tiny.build("StableDiffusionControlNetPipeline").controlnet
    controlnet.save_pretrained(tmp_path / "controlnet")
    changes = {"repo": str(repo), "components": {"controlnet": str(tmp_path / "controlnet"), "safety_checker": None}}
    call = {"height": 16, "width": 16, "guidance_scale": 7.5}
    policy = pipelines.load("sd15-controlnet-canny", device="cpu", **changes, steps=2, call=call)
    prompts = make_prompts(policy, 1, 2)
    assert policy.structure.helpers == {"controlnet"} and policy.levels[0].s > 0
    assert policy.sample(prompts, seeds=SEEDS).media.data.isfinite().all()
