"""Adapters: what is found to adapt, copies that swap, and exports that other programs load back to the same policy."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import diffusers
import peft
import pytest
import tiny
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import PROMPTS, SEEDS
from tiny_trained import SD, SMALL, nudge, trainable

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))  # last: a file there is called `rewards`

from exports import unknown_names  # noqa: E402

from pipelines import ExportMismatch, Lora, TrainablePolicy, export_files, export_policy, load
from pipelines.adapters import find_target_layers, lora_factors, lora_layers, strip_lora
from pipelines.layer_names import comfy_key, find_naming
from pipelines.lora_source import WEIGHTS
from pipelines.lora_start import fold_strength
from workbench.core.errors import BadInput

SDXL, SD3, FLUX, WAN, AUDIO = (
    f"{name}Pipeline" for name in ("StableDiffusionXL", "StableDiffusion3", "Flux", "Wan", "AudioLDM2")
)


@pytest.fixture
def policy(pipe):
    policy = trainable(SD, copy.deepcopy(pipe), kernel=None)
    nudge(policy)
    return policy


def picture(policy):
    return policy.sample(PROMPTS, seeds=SEEDS).media.data


def test_attention_is_found_by_what_it_is_and_more_where_more_is_asked_for(pipe):
    attention, linear, every = (set(find_target_layers(pipe.unet, kind)) for kind in ("attention", "linear", "all"))
    assert attention < linear < every
    assert {name.split("attn1.")[1] for name in attention if "attn1." in name} == {"to_q", "to_k", "to_v", "to_out.0"}
    assert not any(".ff." in name for name in attention) and any(".ff." in name for name in linear)
    assert "conv_in" in every - linear
    flux = find_target_layers(tiny.build(FLUX).transformer, "attention")
    assert any(name.endswith("add_k_proj") for name in flux) and any(name.endswith("to_add_out") for name in flux)


def test_what_cannot_be_adapted_is_left_out_or_refused():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sealed, self.grouped = torch.nn.MultiheadAttention(4, 1), torch.nn.Conv1d(4, 4, 1, groups=2)
            self.free = torch.nn.Linear(4, 4)

    assert find_target_layers(Model(), "all") == ["free"]
    with pytest.raises(TypeError, match="Model has no layers of the kind 'attention'"):
        find_target_layers(Model(), "attention")


@pytest.mark.parametrize("kind", ["linear", "all"])
def test_every_kind_of_layer_can_be_trained_and_exported(pipe, tmp_path, kind):
    policy = trainable(SD, copy.deepcopy(pipe), kernel=None, lora=Lora(rank=2, alpha=3.0, targets=kind))
    nudge(policy)
    exported = export_policy(policy, tmp_path / "lora")
    assert exported.difference < 1e-3 * exported.effect
    assert {t.dim() for t in load_file(tmp_path / "lora" / WEIGHTS).values()} == ({2, 4} if kind == "all" else {2})


def test_training_starts_at_the_pipeline_and_the_same_seed_starts_the_same(pipe):
    before = picture(tiny.policy(SD, pipe))
    one, two, other = (
        trainable(SD, copy.deepcopy(pipe), kernel=None, lora=Lora(rank=4, seed=seed)) for seed in (0, 0, 1)
    )
    assert one.adapters.content_hash() == two.adapters.content_hash() != other.adapters.content_hash()
    assert one.adapters.distance_from_base() == 0 and torch.equal(picture(one), before)


def test_the_distance_is_that_of_the_merged_weights(policy):
    results = lora_layers(policy.pipe.unet).values()
    deltas = [scale * b @ a for a, b, scale in map(lora_factors, results)]
    weights = [layer.get_base_layer().weight for layer in results]
    norm = [torch.cat([t.flatten() for t in group]).norm() for group in (deltas, weights)]
    assert policy.adapters.distance_from_base() == pytest.approx(float(norm[0] / norm[1]), rel=1e-5)


def test_copies_swap_in_and_out(policy):
    old, before = picture(policy), policy.adapters.content_hash()
    policy.take_copy("old")
    nudge(policy, seed=1)
    new, after = picture(policy), policy.adapters.content_hash()
    with policy.use("old"):
        assert torch.equal(picture(policy), old) and policy.adapters.content_hash() == before
        with policy.use("train"):  # what is live stays what it is inside
            assert policy.adapters.content_hash() == before
    assert torch.equal(picture(policy), new) and policy.adapters.content_hash() == after != before
    with pytest.raises(RuntimeError, match="stop"), policy.use("old"):
        raise RuntimeError("stop")
    assert policy.adapters.content_hash() == after
    with pytest.raises(KeyError, match="no copy 'ema'.* train, old"):
        policy.use("ema")
    with pytest.raises(ValueError, match="another name"):
        policy.take_copy("train")


def test_a_copy_follows_the_policy_by_its_decay(policy):
    policy.follow("old", 0.0)  # the first time it is the policy
    first = {key: p.detach().clone() for key, p in policy.adapters.live.items()}
    nudge(policy, seed=1)
    policy.follow("old", 0.75)
    for key, p in policy.adapters.live.items():
        assert torch.allclose(policy.adapters.copies["old"][key], 0.75 * first[key] + 0.25 * p.detach(), atol=1e-6)


def test_a_graph_outlives_the_copies_and_the_reference_looked_at_since(policy):
    """DiffusionNFT's order: the trained prediction with its graph, then the old one and the reference, then
    backward."""
    x = policy.start(policy.noise(SEEDS), PROMPTS)

    def gradient(between):
        out = policy.predict(x, 1, PROMPTS).x0
        with torch.no_grad():
            between()
        return torch.autograd.grad(out.square().mean(), policy.adapters.parameters)

    def look():
        for block in (policy.use("old"), policy.reference()):
            with block:
                policy.predict(x, 1, PROMPTS)

    policy.take_copy("old")
    nudge(policy, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(gradient(lambda: None), gradient(look), strict=True))


def test_stripping_gives_the_base_back(policy, pipe):
    bare = strip_lora(copy.deepcopy(policy.pipe.unet))
    assert not lora_layers(bare) and bare.state_dict().keys() == pipe.unet.state_dict().keys()
    assert all(torch.equal(value, pipe.unet.state_dict()[key]) for key, value in bare.state_dict().items())


@pytest.mark.parametrize("name", [SD, SDXL, SD3, FLUX, WAN, AUDIO])
def test_an_export_gives_the_trained_predictions_in_a_pipeline_built_anew(name, tmp_path):
    """By the very line that the export names, in a pipeline that has never been trained; the base is the control."""
    policy = trainable(name, kernel=None)
    nudge(policy)
    exported = export_policy(policy, tmp_path / "lora", merged=True)
    assert exported.difference < 1e-3 * exported.effect
    for line in exported.load:
        fresh = tiny.build(name)
        exec(line, {"pipe": fresh, "peft": peft})
        repeated, base = (tiny.policy(name, p).predict for p in (fresh, tiny.build(name)))
        x = policy.start(policy.noise(SEEDS), PROMPTS)
        with torch.no_grad():
            want = policy.predict(x, 0, PROMPTS).x0
            assert (repeated(x, 0, PROMPTS).x0 - want).abs().max() < 1e-3 * (base(x, 0, PROMPTS).x0 - want).abs().max()
        trained, outputs, plain = (picture(p) for p in (policy, tiny.policy(name, fresh), tiny.policy(name)))
        assert (outputs - trained).abs().max() < 1e-2 * (plain - trained).abs().max(), (
            "whole samples, by the pipeline's own call"
        )
    assert ("peft" in exported.load[0]) == (name == AUDIO)
    assert bool(exported.notes) == (name == AUDIO) != (tmp_path / "lora" / "comfyui.safetensors").exists()


def test_strength_is_folded_in_and_said(policy, tmp_path):
    export_policy(policy, tmp_path / "lora", about={"base_model": "tiny"})
    with safe_open(tmp_path / "lora" / WEIGHTS, "pt") as file:
        message, keys = file.metadata(), set(file.keys())
    assert '"unet.lora_alpha": 4, "unet.r": 4' in message["lora_adapter_metadata"] and message["base_model"] == "tiny"
    assert keys == {f"unet.{k}.lora_{x}.weight" for k in lora_layers(policy.pipe.unet) for x in "AB"}
    bare = diffusers.StableDiffusionPipeline.lora_state_dict(str(tmp_path / "lora"))[0]
    without = tiny.build(SD)
    without.load_lora_weights(bare)  # a reader of tensors alone: nothing tells it alpha
    assert torch.allclose(picture(tiny.policy(SD, without)), picture(policy), atol=1e-4)


@pytest.mark.parametrize("name", [SD, SDXL, SD3, FLUX, WAN, "LTXPipeline", "QwenImagePipeline", "Flux2KleinPipeline",
                                  "ZImagePipeline", "PixArtAlphaPipeline"])  # fmt: skip
def test_the_comfyui_file_patches_the_same_weights_as_comfyui_would(name, tmp_path):
    """weight += alpha / rank * up @ down, rank being the rows of down (comfy/weight_adapter/lora.py), under names that
    ComfyUI has, whatever layer is trained."""
    policy = trainable(name, kernel=None, lora=Lora(rank=2, alpha=3.0, targets="all"))
    nudge(policy)
    (module,) = policy.adapters.denoisers.values()
    factors = {key: fold_strength(layer) for key, layer in lora_layers(module).items()}
    assert export_files.write_for_comfy(module, "transformer", factors, {}, tmp_path, {}) == []
    file = load_file(tmp_path / "comfyui.safetensors")
    assert len(file) == 3 * len(factors) and unknown_names(type(module).__name__, file, factors) == []
    naming = find_naming(module)
    for key, layer in lora_layers(module).items():
        key = comfy_key(key, naming)
        down, up, alpha = (file[f"{key}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        a, b, scale = lora_factors(layer)
        assert float(alpha) == len(down) == 2
        assert torch.allclose(up.flatten(1) @ down.flatten(1), scale * b.flatten(1) @ a.flatten(1), atol=1e-5)


def test_a_denoiser_without_the_mixin_of_diffusers_is_exported_all_the_same(tmp_path):
    policy = trainable("TextToVideoSDPipeline", kernel=None, lora=Lora(rank=2))
    nudge(policy)
    exported = export_policy(policy, tmp_path / "lora")
    assert exported.effect > 100 * exported.difference and (tmp_path / "lora/unet/adapter_model.safetensors").is_file()
    assert "no ComfyUI file" in exported.notes[0]


def test_layers_that_diffusers_calls_by_keyword_get_no_lora():
    """`self.proj_in(input=x)`, which peft's layers don't take."""
    layers = find_target_layers(tiny.build("AnimateDiffPipeline").unet, "linear")
    assert not [name for name in layers if "motion_modules" in name and name.endswith(("proj_in", "proj_out"))]
    assert [name for name in layers if "motion_modules" in name]


def test_a_layer_that_comfyui_has_not_is_left_out_in_a_sentence(tmp_path):
    module = tiny.build("LatentConsistencyModelPipeline").unet
    factors = {name: (torch.ones(2, 4), torch.ones(4, 2)) for name in ("time_embedding.cond_proj", "conv_in")}
    (note,) = export_files.write_for_comfy(module, "unet", factors, {}, tmp_path, {})
    assert "lacks time_embedding.cond_proj" in note
    assert {key.partition(".")[0] for key in load_file(tmp_path / "comfyui.safetensors")} == {"lora_unet_conv_in"}


def test_a_name_that_comfyui_has_not_is_noticed():
    """As the file for LTX had them, where layers beside the attention were trained."""
    keys = ["diffusion_model.proj_in.alpha", "diffusion_model.proj_out.alpha"]
    assert unknown_names("LTXVideoTransformer3DModel", keys, []) == ["diffusion_model.proj_in"]


@pytest.mark.parametrize("name", [SD, WAN])
def test_diffusers_own_converter_of_such_files_reads_the_comfyui_file(name, tmp_path):
    policy = trainable(name, kernel=None)
    nudge(policy)
    export_policy(policy, tmp_path / "lora")
    fresh = tiny.build(name)
    fresh.load_lora_weights(str(tmp_path / "lora"), weight_name="comfyui.safetensors")
    assert torch.allclose(picture(tiny.policy(name, fresh)), picture(policy), atol=1e-4)
    assert not torch.allclose(picture(tiny.policy(name)), picture(policy), atol=1e-3)


def test_whatever_layer_of_wan_is_trained_is_called_as_the_model_itself_calls_it(tmp_path):
    """As diffusers' converter of the model's own checkpoints has it."""
    policy = trainable(WAN, kernel=None, lora=Lora(rank=2, targets="linear"))
    nudge(policy)
    export_policy(policy, tmp_path / "lora")
    (module,) = policy.adapters.denoisers.values()
    file = load_file(tmp_path / "lora" / "comfyui.safetensors")
    model_names = {
        key.removesuffix(".alpha").removeprefix("diffusion_model.") for key in file if key.endswith(".alpha")
    }
    converted = convert_wan_transformer_to_diffusers({f"{key}.weight": torch.zeros(1) for key in model_names})
    assert set(converted) == {f"{key}.weight" for key in lora_layers(module)} and any(
        "time_proj" in key for key in converted
    )


def test_two_experts_are_both_trained_and_both_exported(tmp_path):
    """Wan 2.2: the second expert has a file and a line of its own."""

    def experts():
        parts = {name: part for name, part in tiny.build(WAN).components.items() if name != "transformer_2"}
        second = tiny.build(WAN, seed=5).transformer
        pipe = diffusers.WanPipeline(**parts | {"transformer_2": second, "boundary_ratio": 0.9})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    policy = trainable(WAN, experts(), kernel=None)
    assert set(policy.adapters.denoisers) == {"transformer", "transformer_2"}
    nudge(policy)
    exported = export_policy(policy, tmp_path / "lora", comfy=False)
    assert exported.difference < 1e-3 * exported.effect and len(exported.load) == len(exported.files) == 2
    fresh = experts()
    for line in exported.load:
        exec(line, {"pipe": fresh})
    assert torch.allclose(picture(tiny.policy(WAN, fresh)), picture(policy), atol=1e-4)


def test_a_copy_can_be_exported_and_whole_weights_too(pipe, policy, tmp_path):
    policy.take_copy("ema")
    nudge(policy, seed=1)
    export_policy(policy, tmp_path / "ema", name="ema", comfy=False)
    fresh = copy.deepcopy(pipe)
    fresh.load_lora_weights(str(tmp_path / "ema"))
    with policy.use("ema"):
        assert torch.allclose(picture(tiny.policy(SD, fresh)), picture(policy), atol=1e-4)
    full = trainable(SD, copy.deepcopy(pipe), kernel=None, lora=Lora(targets="weights"))
    nudge(full, 0.01)
    exported = export_policy(full, tmp_path / "whole")
    assert exported.difference < 1e-3 * exported.effect and [p.parts[-3] for p in exported.files] == ["merged"] * 2


def refused(policy, tmp_path, match):
    with pytest.raises(ExportMismatch, match=match):
        export_policy(policy, tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_give_the_policy_back_is_not_left_behind(policy, tmp_path, monkeypatch):
    original = export_files.peft_config
    with monkeypatch.context() as patch:  # a strength that is not folded in
        patch.setattr(export_files, "peft_config", lambda w: original(w) | {"lora_alpha": 2 * original(w)["r"]})
        refused(policy, tmp_path, "other weights were loaded back")
    with monkeypatch.context() as patch:  # a loader that loads nothing and says nothing
        patch.setattr(diffusers.StableDiffusionPipeline, "load_lora_weights", lambda self, *_, **__: None)
        refused(policy, tmp_path, "32 layers were not loaded back")
    policy.source = lambda parts: tiny.build(SD, seed=3)  # another base
    refused(policy, tmp_path, "predict otherwise than the policy")


def test_an_export_is_never_written_over(policy, tmp_path):
    with pytest.raises(FileExistsError, match="exists already"):
        export_policy(policy, tmp_path)


def test_a_config_loads_a_policy_to_train_and_exports_against_its_own_files(tmp_path):
    config = tiny.config(SD, tiny.save(SD, tmp_path))
    policy = load(config, device="cpu", train={"lora": SMALL, "ema": 0.5})
    assert isinstance(policy, TrainablePolicy) and policy.ema == 0.5
    nudge(policy)
    fresh = policy.load_base()
    assert fresh.unet is not policy.pipe.unet and fresh.vae is policy.pipe.vae and not lora_layers(fresh.unet)
    exported = export_policy(policy, tmp_path / "lora")
    assert exported.difference < 1e-3 * exported.effect and Path(exported.files[0]).is_relative_to(tmp_path)


def test_whole_weights_in_half_precision_are_refused_before_anything_loads(tmp_path, monkeypatch):
    config = tiny.config(SD, tiny.save(SD, tmp_path))
    monkeypatch.setattr("pipelines.loading._build_pipeline", None)
    with pytest.raises(BadInput, match="weights are trained in float32.*use dtype: fp32"):
        load(config, device="cpu", dtype="bf16", train={"lora": Lora(targets="weights")})
