"""`workbench lora`: what a file is, by its header and metadata, and what of it a pipeline would apply."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import save_file
from test_lora_layouts import LAYOUTS, SD, write_and_merge
from train_fixtures import NFT, planned

from pipelines import Lora
from workbench import cli
from workbench.core.errors import BadInput


def ask(capsys, *words: object) -> tuple[int, str]:
    code = cli.main(["lora", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out or said.err


@pytest.fixture(scope="module")
def kohya(tmp_path_factory):
    name, layers, ends = LAYOUTS["kohya, with convolutions and a text encoder"]
    file = tmp_path_factory.mktemp("lora") / "style.safetensors"
    metadata = {
        "ss_base_model_version": "sd_v1",
        "ss_output_name": "neon\x1b[31m\nstyle",
        "ss_tag_frequency": json.dumps({"10_neon": {"neonstyle": 40, "a cat": 3}}),
    }
    write_and_merge(name, file, layers, ends, metadata)
    return file


def test_a_file_is_told_by_its_layers_and_its_metadata(kohya, capsys):
    code, said = ask(capsys, kohya)
    assert code == 0 and "\x1b" not in said
    for line in (
        "style.safetensors: neon\\x1b[31m style",
        "layout: kohya",
        "made for: Stable Diffusion",
        "its base is not recorded",
        "by ss_base_model_version: sd_v1",
        "denoiser: 4 layers, rank 6, alpha 3, 1 with convolutions",
        "text encoder: 2 layers, rank 6, alpha 3",
        "trigger word: neonstyle (40 captions)",
    ):
        assert line in said, line


@pytest.mark.parametrize(
    ("layout", "known", "family"),
    [
        ("FLUX by XLabs", "XLabs", "FLUX.1"),
        ("FLUX by kohya, fused", "kohya", "FLUX.1"),
        ("HunyuanVideo, fused", "diffusers", "HunyuanVideo"),
        ("FLUX.2 by ai-toolkit, fused", "ai-toolkit or ComfyUI", "FLUX.1"),  # tiny: the widths of FLUX.2 tell
        ("Wan in its first names", "ai-toolkit or ComfyUI", "Wan"),
        ("peft", "peft", "Stable Diffusion (which one the shapes don't say)"),
        ("old attention processors", "diffusers, old attention processors and diffusers", None),
    ],
)
def test_layout_and_family_are_found_by_names(layout, known, family, tmp_path, capsys):
    name, layers, ends = LAYOUTS[layout]
    write_and_merge(name, tmp_path / "x.safetensors", layers, ends)
    code, said = ask(capsys, tmp_path / "x.safetensors", "--json")
    told = json.loads(said)
    assert code == 0 and told["layout"] == known and family in (None, told["family"])
    assert told["evidence"] and told["groups"][0]["layers"]


@pytest.mark.parametrize(("width", "family"), [(768, "1"), (1024, "2"), (2048, "XL")])
def test_the_width_of_the_prompt_tells_which_stable_diffusion(width, family, tmp_path, capsys):
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    pair = {f"{layer}.lora_down.weight": torch.ones(4, width), f"{layer}.lora_up.weight": torch.ones(320, 4)}
    save_file(pair, tmp_path / "x.safetensors")
    assert json.loads(ask(capsys, tmp_path / "x.safetensors", "--json")[1])["family"] == f"Stable Diffusion {family}"


def test_with_a_pipeline_it_is_told_what_would_be_applied_without_its_weights(kohya, tmp_path, capsys):
    home = tiny.save(SD, tmp_path)
    for file in home.rglob("*.safetensors"):
        file.unlink()
    code, said = ask(capsys, kohya, "--pipeline", home)
    assert code == 0 and f"on {home}: applied: 2 layers of the text_encoder, 4 layers of the unet" in said
    code, said = ask(capsys, kohya, "--pipeline", "starter-image-teacher")
    assert code == 1 and "was made for another model" in said
    assert "are not on this machine yet" in ask(capsys, kohya, "--pipeline", "sd15")[1]


def test_what_is_no_lora_is_one_sentence(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"PK\x03\x04" + b"\x00" * 20)
    code, said = ask(capsys, tmp_path / "x.safetensors")
    assert code == 2 and said.count("\n") == 1 and "pickle" in said


def test_a_plan_says_what_is_applied_of_a_contestants_lora_and_what_is_dropped(tmp_path):
    """Before any weight loads: a layer of the starter's teacher, and one that it has not."""
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1."
    pairs = {f"{layer}{n}.lora_{x}.weight": torch.ones(*shape) for n in ("to_q", "to_z")
             for x, shape in (("A", (2, 96)), ("B", (96, 2)))}  # fmt: skip
    save_file(pairs, tmp_path / "x.safetensors")
    theirs = NFT | {"lora": str(tmp_path / "x.safetensors")}
    checks = planned(tmp_path, contestants={"base": "sample", "nft": theirs}, method=None).checks
    assert "contestant nft: LoRA x.safetensors: applied: 1 layers of the unet" in checks
    assert any(line.startswith("warning: ") and "not applied: 2 keys" in line and "to_z" in line for line in checks)
    assert any(f"starts from {tmp_path / 'x.safetensors'}, merged" in line for line in checks)


def test_a_correction_of_the_noise_is_not_trained_on_a_lora(tmp_path):
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{layer}.lora_A.weight": torch.ones(2, 96), f"{layer}.lora_B.weight": torch.ones(96, 2)}
    save_file(pair, tmp_path / "x.safetensors")
    contestants = {"base": "sample", "ours": {"name": "hypernoise", "lora": str(tmp_path / "x.safetensors")}}
    with pytest.raises(BadInput, match="must have none of its own"):
        planned(tmp_path, contestants=contestants, method=None, train={"lora": {"targets": "all"}})


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lora_to_train_needs_a_strength(alpha):
    with pytest.raises(BadInput, match="alpha must be a number above 0"):
        Lora(alpha=alpha)


def test_such_a_training_is_refused_before_weights_load(tmp_path):
    with pytest.raises(BadInput, match="strength 0 has no effect and learns nothing"):
        planned(tmp_path, train={"lora": {"rank": 2, "alpha": 0}})
