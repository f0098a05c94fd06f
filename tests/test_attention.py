"""Flash attention is asked of a pipeline only where its denoiser takes it; no GPU and no flash-attn are needed to see
that."""

from __future__ import annotations

import diffusers
import pytest
import tiny
import torch
from diffusers.models import attention_dispatch as dispatch

import pipelines
from pipelines import attention
from workbench.core.errors import BadInput

FLASH, GPU = dispatch.AttentionBackendName.FLASH, torch.device("cuda")
LONGER = {"QwenImagePipeline": {"max_sequence_length": 512}}  # or its prompts are cut to one length


@pytest.fixture
def flash_masks(monkeypatch):
    """As if flash-attn were installed and worked; a call of it is torch's attention, and what it was given is
    listed."""
    observed, original = [], dispatch._AttentionBackendRegistry._backends[dispatch.AttentionBackendName.NATIVE]
    registry = dispatch._AttentionBackendRegistry
    names = registry._supported_arg_names[dispatch.AttentionBackendName.NATIVE]
    monkeypatch.setattr(attention, "find_backend_problem", lambda backend: "")
    monkeypatch.setattr(dispatch, "_CAN_USE_FLASH_ATTN", True)
    monkeypatch.setitem(registry._supported_arg_names, FLASH, names)
    monkeypatch.setitem(
        registry._backends, FLASH, lambda **arguments: observed.append(arguments["attn_mask"]) or original(**arguments)
    )
    return observed


def processors(pipe):
    parts = [part for name in ("transformer", "transformer_2", "unet") if (part := getattr(pipe, name, None))]
    return [p for part in parts for m in part.modules() if (p := getattr(m, "processor", None)) is not None]


def taken(pipe):
    return [p for p in processors(pipe) if getattr(p, "_attention_backend", None) == FLASH]


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_the_pipelines_that_are_refused_are_those_whose_denoiser_has_no_choice_or_masks(name, flash_masks, monkeypatch):
    """Each one is run with flash, whatever the lists say, by prompts of different lengths."""
    kind, call = tiny.class_of(name), {**tiny.TINY[name].call, **LONGER.get(name, {})}
    fixed, masked = kind in attention.FIXED, kind in attention.MASKED
    monkeypatch.setattr(attention, "_check_flash_fits", lambda *_: None)
    policy = tiny.policy(name, call=call)
    prompts = ("a red cat on a long and narrow table by the sea", "two")
    x = policy.start(policy.noise((1, 2)), prompts)
    if fixed:
        with pytest.raises(BadInput, match=f"would change nothing in {kind}"):
            attention.install_backend(policy.pipe, "flash")
    else:
        attention.install_backend(policy.pipe, "flash")
        assert taken(policy.pipe)
    policy._model_output(x, 0, prompts)
    assert bool(flash_masks) != fixed and any(mask is not None for mask in flash_masks) == masked


@pytest.mark.parametrize(
    ("pipeline", "dtype", "sentence"),
    [
        ("FluxPipeline", torch.float32, "attention: flash has no kernels for fp32; use dtype: bf16"),
        ("StableDiffusionXLPipeline", torch.bfloat16, "change nothing in StableDiffusionXLPipeline"),
        ("QwenImagePipeline", torch.bfloat16, "flash takes no masks, and QwenImagePipeline gives"),
    ],
)
def test_flash_where_it_cannot_run_is_refused_in_one_sentence_before_anything_loads(
    flash_masks, pipeline, dtype, sentence
):
    with pytest.raises(BadInput, match=sentence) as error:
        attention.choose_backend("flash", GPU, dtype, pipeline)
    assert "\n" not in str(error.value)
    assert attention.choose_backend("sdpa", GPU, dtype, pipeline) == "sdpa"
    assert attention.choose_backend("auto", GPU, dtype, pipeline).startswith("sdpa (auto")


def test_a_plan_knows_what_is_loaded_in_which_dtype(flash_masks, monkeypatch):
    """Without the line in plan_loading that passes them on, all three would be planned."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def planned(name, dtype):
        return pipelines.plan_loading(tiny.config(name, "some/repo"), device="cuda:0", dtype=dtype, attention="flash")[
            2
        ]

    assert planned("FluxPipeline", "bf16") == "flash"
    for name, dtype, sentence in (("FluxPipeline", "fp32", "fp32"), ("LTXPipeline", "bf16", "masks, and LTXPipeline")):
        with pytest.raises(BadInput, match=sentence):
            planned(name, dtype)


def test_flash_where_it_can_run_is_chosen(flash_masks):
    for pipeline, dtype in (("FluxPipeline", torch.bfloat16), ("WanPipeline", torch.float16), ("SomePipeline", None)):
        assert attention.choose_backend("flash", GPU, dtype, pipeline) == "flash"


def test_a_pipeline_takes_flash_for_itself_alone(flash_masks):
    """The default of diffusers, by which other networks in the process go, stays what it was."""
    pipe = tiny.build("WanPipeline:2.2").to(torch.bfloat16)
    before = dispatch._AttentionBackendRegistry._active_backend
    attention.install_backend(pipe, "flash")
    assert len(taken(pipe)) == len(processors(pipe)) > 0
    assert dispatch._AttentionBackendRegistry._active_backend == before != FLASH


class Custom(diffusers.StableDiffusionPipeline):
    """A pipeline that is on no list."""


def test_a_pipeline_on_no_list_is_refused_by_what_its_denoiser_did_with_it(flash_masks):
    pipe = Custom(**tiny.build("StableDiffusionPipeline").components, requires_safety_checker=False).to(torch.bfloat16)
    assert attention.choose_backend("flash", GPU, torch.bfloat16, "Custom") == "flash"
    with pytest.raises(BadInput, match="would change nothing in Custom"):
        attention.install_backend(pipe, "flash")


def test_a_denoiser_in_single_precision_is_refused_whatever_the_plan_was(flash_masks):
    pipe = tiny.build("FluxPipeline").to(torch.bfloat16)
    pipe.transformer.float()
    with pytest.raises(BadInput, match="no kernels for fp32"):
        attention.install_backend(pipe, "flash")
    assert processors(pipe) and not taken(pipe)


def test_a_flash_attn_that_diffusers_finds_too_old_is_told(flash_masks, monkeypatch):
    monkeypatch.setattr(dispatch, "_CAN_USE_FLASH_ATTN", False)
    with pytest.raises(BadInput, match="flash can't work here: .*too old"):
        attention.install_backend(tiny.build("FluxPipeline").to(torch.bfloat16), "flash")
