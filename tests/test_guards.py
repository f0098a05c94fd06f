"""Safety checkers and watermarkers of a folder are off unless asked for; a checker that is kept makes no black picture
that a reward would judge."""

from __future__ import annotations

import diffusers
import pytest
import tiny
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tiny import PROMPTS, SEEDS

import pipelines
from pipelines import guards, seam_check
from workbench.core.errors import BadInput
from workbench.engine.plan import plan_run
from workbench.runs import config as configs

SD = "StableDiffusionPipeline"
KEPT = {"safety_checker": True}


def add_checker(pipe, threshold: float):
    """The pipeline with a safety checker that flags every picture whose cosine is above `threshold`."""
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    vision = dict(sizes, image_size=32, patch_size=8)
    config = transformers.CLIPConfig(text_config=dict(sizes, vocab_size=514), vision_config=vision, projection_dim=16)
    checker = StableDiffusionSafetyChecker(config).eval().requires_grad_(False)
    torch.nn.init.constant_(checker.concept_embeds_weights, threshold)
    size = {"height": 32, "width": 32}
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    return type(pipe)(**pipe.components | {"safety_checker": checker, "feature_extractor": extractor})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("safe")
    for name, threshold in (("all", -2.0), ("none", 2.0)):
        add_checker(tiny.build(SD), threshold).save_pretrained(folder / name)
    return folder


def load(folder, **changes):
    return pipelines.load(tiny.config(SD, folder, **changes), device="cpu")


def test_a_safety_checker_is_off_unless_asked_for_and_the_plan_says_so(folders):
    policy, plain = load(folders / "all"), tiny.policy(SD)
    assert policy.pipe.safety_checker is None and policy.pipe.config.requires_safety_checker is False
    made = policy.sample(PROMPTS, seeds=SEEDS).media.data
    assert torch.equal(made, plain.sample(PROMPTS, seeds=SEEDS).media.data) and policy.blank_reason == ""
    config = tiny.config(SD, folders / "all")
    assert pipelines.describe_loading(config) == [
        "its safety_checker is off; components: {safety_checker: true} keeps it"
    ]
    assert pipelines.describe_loading(tiny.config(SD, folders / "all", components={"safety_checker": None})) == []
    values = {"pipeline": str(folders / "all"), "method": "best_of_n", "reward": "brightness", "prompts": ["a"]}
    values |= {"name": "safe"}
    plan = plan_run(configs.check_config(configs.build_dataclass(configs.RunConfig, values, "test")))
    assert any(
        line.endswith("its safety_checker is off; components: {safety_checker: true} keeps it") for line in plan.checks
    )
    assert "is kept" in pipelines.describe_loading(tiny.config(SD, folders / "all", components=KEPT))[0]


def test_what_a_kept_checker_flags_is_a_nan_row_with_its_reason(folders, monkeypatch):
    policy = load(folders / "all", components=KEPT)
    media = policy.sample(PROMPTS, seeds=SEEDS).media
    assert media.data.isnan().all() and policy.blank_reason == "flagged by the pipeline's safety checker"
    checker = policy.pipe.safety_checker
    forward = checker.forward
    monkeypatch.setattr(checker, "forward", lambda **kwargs: (forward(**kwargs)[0], [True, False]))
    data = policy.sample(PROMPTS, seeds=SEEDS).media.data
    assert data[0].isnan().all() and data[1].isfinite().all() and data[1].any()
    none = load(folders / "none", components=KEPT)
    assert none.sample(PROMPTS, seeds=SEEDS).media.data.isfinite().all() and none.blank_reason == ""


def test_gradients_pass_a_kept_checker_and_it_is_as_it_was_afterwards(folders):
    policy, plain = load(folders / "none", components=KEPT), tiny.policy(SD)
    gradients = []
    for each in (policy, plain):
        noise = each.noise(SEEDS).requires_grad_()
        data = each.sample(PROMPTS, seeds=SEEDS, noise=noise, grad=each.steps).media.data
        gradients.append(torch.autograd.grad(data.square().sum(), noise)[0])
    assert torch.equal(*gradients) and gradients[0].any()
    assert "run_safety_checker" not in vars(policy.pipe)


def test_the_check_of_a_pipeline_looks_behind_its_checker(folders, monkeypatch):
    claims = {"decodes the last state to the sample", "differentiates its decoder"}
    monkeypatch.setattr(seam_check, "CLAIMS", {claim: seam_check.CLAIMS[claim] for claim in claims})
    results = list(seam_check.check_pipeline(load(folders / "all", components=KEPT)))
    assert len(results) == 5 and all(result.holds for result in results)


def test_a_watermark_is_off_unless_asked_for(monkeypatch, tmp_path):
    """Where invisible-watermark is installed, Stable Diffusion XL draws one into every picture, as an array."""

    class Watermarker:
        def apply_watermark(self, images):
            raise AssertionError("drawn")

    module = diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl
    monkeypatch.setattr(module, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(module, "StableDiffusionXLWatermarker", Watermarker, raising=False)
    xl = "StableDiffusionXLPipeline"
    folder = tiny.save(xl, tmp_path)
    for components, drawn in (({}, False), ({"watermark": True}, True)):
        policy = pipelines.load(tiny.config(xl, folder, components=components), device="cpu")
        assert (policy.pipe.watermark is not None) == drawn


def test_switches_are_those_that_the_class_has():
    arguments = {"safety_checker", "requires_safety_checker", "watermarker"}  # DeepFloyd IF's
    off = {"safety_checker": None, "requires_safety_checker": False, "watermarker": None}
    assert guards.guards_off({}, arguments) == off
    assert guards.guards_off(KEPT, arguments) == {"watermarker": None}
    assert guards.guards_off({}, {"unet"}) == {}


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        ("DiTPipeline", "its call takes no prompt"),
        ("DDPMPipeline", "its call takes no prompt"),
        ("StableVideoDiffusionPipeline", "its call takes no prompt"),
        ("PIAPipeline", "its call needs image besides a prompt"),
        ("CosmosTextToWorldPipeline", "its guardrails"),
    ],
)
def test_a_pipeline_without_a_prompt_or_with_more_is_refused_by_name(tmp_path, cls, reason):
    path = tmp_path / "mine.yaml"
    path.write_text(f"class: {cls}\nrepo: some/where\nsteps: 2\nmodality: video\nrate: 8\n")
    with pytest.raises(BadInput, match=f"{cls} can't be aligned here: {reason}"):
        pipelines.read_config(path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model_index.json").write_text(f'{{"_class_name": "{cls}"}}')
    with pytest.raises(BadInput, match=f"{cls} can't be aligned here: {reason}"):
        pipelines.read_config(tmp_path / "folder")
