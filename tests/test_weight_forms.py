"""Weights in the forms in which they are shared: variants, one file for a whole pipeline or a part, GGUF."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import PROMPTS, SEEDS

import pipelines
from pipelines.component_sources import list_weight_files
from workbench.core.errors import BadInput

SD, LTX = "StableDiffusionPipeline", "LTXPipeline"
ORIGINAL = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}


def load(name: str, folder: Path, **changes) -> pipelines.Policy:
    return pipelines.load(tiny.config(name, folder, **changes), device="cpu")


def original_name(name: str) -> str:
    for ours, theirs in ORIGINAL.items():
        name = name.replace(ours, theirs)
    return name


@pytest.fixture(scope="module")
def ltx(tmp_path_factory) -> Path:
    return tiny.save(LTX, tmp_path_factory.mktemp("ltx"))


@pytest.fixture(scope="module")
def transformer(ltx) -> dict[str, torch.Tensor]:
    return load_file(ltx / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def picture(ltx) -> torch.Tensor:
    return load(LTX, ltx).sample(PROMPTS, seeds=SEEDS).media.data


@pytest.fixture(scope="module", params=["100GB", "100KB"], ids=["one file", "shards"])
def half(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    tiny.build(SD).to(torch.float16).save_pretrained(folder, variant="fp16", max_shard_size=request.param)
    return folder


def test_a_folder_of_one_variant_loads_by_itself_and_says_so(half):
    config = tiny.config(SD, half)
    policy = pipelines.load(config, device="cpu")
    expected = tiny.build(SD).unet.conv_in.weight.half().float()
    assert torch.equal(policy.pipe.unet.conv_in.weight, expected)
    assert pipelines.describe_loading(config) == ["its folder has only files of the variant fp16, so these are loaded"]
    assert pipelines.describe_loading(replace(config, variant="fp16")) == []
    pipelines.plan_loading(replace(config, variant="fp16"), device="cpu")
    assert sum("fp16" in file.name for file in list_weight_files(config)) >= 3
    with pytest.raises(BadInput, match=r"no network has files of the variant 'bf16'; there are: fp16"):
        pipelines.plan_loading(replace(config, variant="bf16"), device="cpu")


def test_a_part_without_the_variant_is_taken_plain_and_plain_files_come_first_where_all_have_them(half, tmp_path):
    folder, other = Path(shutil.copytree(half, tmp_path / "mixed")), tiny.build(SD, seed=5)
    shutil.rmtree(folder / "vae")
    other.vae.save_pretrained(folder / "vae")
    policy = load(SD, folder)
    assert torch.equal(policy.pipe.vae.decoder.conv_in.weight, other.vae.decoder.conv_in.weight)
    for part in ("unet", "text_encoder"):
        getattr(other, part).save_pretrained(tmp_path / part)  # not in the folder, where diffusers deletes shards
        shutil.copytree(tmp_path / part, folder / part, dirs_exist_ok=True)
    assert torch.equal(load(SD, folder).pipe.unet.conv_in.weight, other.unet.conv_in.weight)
    expected = tiny.build(SD).unet.conv_in.weight.half().float()
    assert torch.equal(load(SD, folder, variant="fp16").pipe.unet.conv_in.weight, expected)
    assert pipelines.describe_loading(tiny.config(SD, folder)) == []


def test_a_whole_pipeline_loads_from_one_file_and_what_it_lacks_from_the_repository(
    ltx, transformer, picture, tmp_path
):
    names = {f"model.diffusion_model.{original_name(n)}": t.clone() for n, t in transformer.items()}
    save_file(names, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    vae = {"vae": {"repo": str(ltx), "subfolder": "vae"}}
    config = tiny.config(LTX, ltx, file=str(tmp_path / "whole.safetensors"), components=vae)
    policy = pipelines.load(config, device="cpu")
    assert torch.equal(policy.sample(PROMPTS, seeds=SEEDS).media.data, picture)
    assert tmp_path / "whole.safetensors" in list_weight_files(config)
    assert "made of the one file" in pipelines.describe_loading(config)[0]
    names.pop(max(names))
    save_file(names, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="tensors that it needs are not in the file|came without values"):
        pipelines.load(config, device="cpu")


def test_a_component_loads_from_one_file_of_its_authors(ltx, transformer, picture, tmp_path):
    file = tmp_path / "part.safetensors"
    save_file({original_name(n): t.clone() for n, t in transformer.items()}, file, metadata={"format": "pt"})
    policy = load(LTX, ltx, components={"transformer": {"file": str(file)}})
    assert torch.equal(policy.sample(PROMPTS, seeds=SEEDS).media.data, picture)


def test_a_gguf_transformer_loads_quantised(ltx, transformer, picture, tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "part.gguf"), "ltxv")
    kinds = gguf.GGMLQuantizationType
    for name, value in transformer.items():
        kind = kinds.Q8_0 if value.dim() == 2 and value.shape[1] % 32 == 0 else kinds.F32
        data = value.numpy() if kind == kinds.F32 else gguf.quants.quantize(value.numpy(), kind)
        writer.add_tensor(original_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    policy = load(LTX, ltx, components={"transformer": {"file": str(tmp_path / "part.gguf")}})
    made = policy.sample(PROMPTS, seeds=SEEDS).media.data
    assert 0 < (made - picture).abs().max() < 0.05
    (tmp_path / "part.gguf").write_bytes(b"GGML")
    with pytest.raises(BadInput, match=r"part\.gguf is no GGUF file"):
        pipelines.plan_loading(
            tiny.config(LTX, ltx, components={"transformer": {"file": str(tmp_path / "part.gguf")}}), device="cpu"
        )


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickled_file_is_refused_in_the_plan(ltx, tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    torch.save({}, file)
    for changes in ({"file": str(file)}, {"components": {"transformer": {"file": str(file)}}}):
        with pytest.raises(BadInput, match="pickled weights are never loaded"):
            pipelines.plan_loading(tiny.config(LTX, ltx, **changes), device="cpu")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file": "/nowhere/model.safetensors"}, "file: no such file: /nowhere/model.safetensors"),
        ({"components": {"transformer": {"file": "/nowhere/x.gguf"}}}, "components.transformer: no such file"),
        ({"components": {"transformer": 3}}, "expected null, true, a repository or a mapping, got 3"),
        ({"components": {"transformer": {"subfolder": "x"}}}, "needs a repo or a file"),
        ({"components": {"transformer": {"repo": "x/y", "dtype": "int4"}}}, "dtype: 'int4' is not a choice"),
    ],
)
def test_a_form_that_can_not_be_is_one_sentence(ltx, changes, sentence):
    with pytest.raises(BadInput, match=sentence):
        pipelines.plan_loading(tiny.config(LTX, ltx, **changes), device="cpu")
