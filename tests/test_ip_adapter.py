"""IP-Adapters: a reference picture for each prompt, beside a LoRA, and what can't be loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from tiny_conditioned import make_prompts, save_ip_adapter

import pipelines
from pipelines import Lora, seam_check
from pipelines.adapters import lora_layers
from pipelines.component_sources import list_weight_files
from pipelines.loading import plan_loading
from pipelines.seam_check import check_pipeline
from workbench.core.errors import BadInput


@pytest.fixture(scope="module")
def with_adapter(tmp_path_factory):
    """A config of a tiny Stable Diffusion with an IP-Adapter, in files."""
    folder = tmp_path_factory.mktemp("ip-adapter")
    repo, block = tiny.save("StableDiffusionPipeline", folder), save_ip_adapter(folder)
    config = tiny.config("StableDiffusionPipeline", repo, inputs={"reference": "ip_adapter_image"}, ip_adapter=block)
    return replace(config, steps=2)


def test_an_ip_adapter_of_a_config_reads_the_reference_of_each_prompt(with_adapter, monkeypatch):
    checks = {claim: check for claim, check in seam_check.CLAIMS.items() if claim.startswith(("replays", "scores"))}
    monkeypatch.setattr(seam_check, "CLAIMS", checks)
    policy = pipelines.load(with_adapter, device="cpu")
    assert policy.grouping == "one"  # a list of pictures is one for each adapter
    assert [r for r in check_pipeline(policy) if not r.holds] == []
    files = {file.name for file in list_weight_files(with_adapter)}
    assert {"ip-adapter.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors"} <= files

    silent = pipelines.load(replace(with_adapter, ip_adapter={**with_adapter.ip_adapter, "scale": 0.0}), device="cpu")
    a, b = make_prompts(silent, 1, 2)
    media = [silent.sample((p,), seeds=(1,)).media.data for p in (a, b)]
    assert torch.equal(*media) and silent.grouping == "alone"  # nothing shows how it takes them


def test_what_is_trained_beside_an_ip_adapter_is_the_denoiser(with_adapter):
    policy = pipelines.load(with_adapter, device="cpu", train={"lora": Lora(rank=2)})
    names = lora_layers(policy.pipe.unet)
    assert names and not any("_ip" in name for name in names)
    base = policy.load_base()  # the denoiser is loaded again, its adapter too
    assert base.unet is not policy.pipe.unet and base.image_encoder is policy.pipe.image_encoder
    assert base.unet.encoder_hid_proj is not None
    with pytest.raises(BadInput, match="targets: weights can't be trained beside an IP-Adapter"):
        plan_loading(with_adapter, train={"lora": Lora(targets="weights")})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"file": "ip-adapter.bin"}, r"ip_adapter.file: ip-adapter.bin is not a .safetensors file; pickled weights"),
        ({"file": "gone.safetensors"}, r"ip_adapter.file: no such file: .*gone.safetensors"),
        ({"file": "image_encoder/model.safetensors"}, r"holds no IP-Adapter, whose tensors begin with image_proj and"),
        (
            {"encoder": "nowhere", "file": "ip-adapter.safetensors"},
            r"ip_adapter.encoder: there is no folder nowhere in ",
        ),
    ],
)
def test_an_ip_adapter_that_can_not_be_loaded_is_one_sentence_before_weights_load(with_adapter, change, sentence):
    with pytest.raises(BadInput, match=sentence):
        plan_loading(replace(with_adapter, ip_adapter={**with_adapter.ip_adapter, **change}))


def test_an_ip_adapter_needs_a_picture_and_a_class_that_takes_one(with_adapter):
    with pytest.raises(BadInput, match=r"nothing gives it a picture; say inputs: \{reference: ip_adapter_image\}"):
        plan_loading(replace(with_adapter, inputs={}))
    with pytest.raises(BadInput, match=r"pipeline flux-dev: ip_adapter: unknown key 'weight'"):
        pipelines.read_config({"name": "flux-dev", "ip_adapter": {"repo": "a/b", "weight": "c"}})
    for name, pipeline in (("flux-dev", "FluxPipeline"), ("sd35-medium", "StableDiffusion3Pipeline")):  # not U-Nets
        config = pipelines.read_config({"name": name, "ip_adapter": {"repo": "a/b", "file": "c.safetensors"}})
        with pytest.raises(BadInput, match=f"ip_adapter: {pipeline} can't be given one here; pipelines of the Stable"):
            plan_loading(config)
