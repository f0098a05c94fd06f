"""LoRA files of other programs: the same random change in each layout, against weights that are merged by hand."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.adapters import lora_layers
from pipelines.lora_file import read_lora_file
from pipelines.lora_loading import install_lora
from workbench.core.errors import BadInput

SD, XL, FLUX, FLUX2 = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline", "Flux2KleinPipeline"
WAN, HUNYUAN, QWEN, LTX = "WanPipeline", "HunyuanVideoPipeline", "QwenImagePipeline", "LTXPipeline"
ATTN = "down_blocks.1.attentions.0.transformer_blocks.0.attn2."
CONV = "down_blocks.0.resnets.0.conv1"
RANK = 6


@dataclass
class Written:
    """One layer of a file, and the layers of the pipeline whose outputs are its rows."""

    name: str  # in the file
    network: str
    layers: tuple[str, ...]
    alpha: float | None = 3.0
    dora: bool = False


@cache
def original(name: str) -> Any:
    return tiny.build(name)


def build(name: str) -> Any:
    """A copy whose networks can be changed."""
    pipe = copy.copy(original(name))
    for key, part in vars(pipe).items():
        if isinstance(part, nn.Module):
            setattr(pipe, key, copy.deepcopy(part))
    return pipe


def weights_of(pipe: Any, one: Written) -> list[Tensor]:
    return [getattr(pipe, one.network).get_submodule(layer).weight for layer in one.layers]


def draw(pipe: Any, one: Written, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """A [rank,in,...], B [out,rank,...] and the norms of DoRA [out] of one layer of a file."""
    weights = weights_of(pipe, one)
    _, inputs, *kernel = weights[0].shape
    a = torch.randn(RANK, inputs, *kernel, generator=generator)
    b = torch.randn(sum(len(w) for w in weights), RANK, *[1] * len(kernel), generator=generator)
    return a, b, 0.5 + torch.rand(len(b), generator=generator) if one.dora else None


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float, norms: Tensor | None) -> Tensor:
    """W + scale B A; with DoRA, each output's row brought to its norm (arXiv:2402.09353, Eq. 5)."""
    rows = weight.flatten(1) + scale * b.flatten(1) @ a.flatten(1)
    if norms is not None:
        rows = rows * (norms / rows.norm(dim=1))[:, None]
    return rows.view(weight.shape)


def write_and_merge(
    name: str,
    file: Path,
    layers: list[Written],
    ends: tuple[str, str, str, str],
    metadata: Mapping[str, str] | None = None,
) -> dict[tuple[str, str], Tensor]:
    """Write a LoRA of random values; returns what each weight should be with it. `ends`: A, B, alpha, norms."""
    pipe, generator, tensors, merged = original(name), torch.Generator().manual_seed(0), {}, {}
    for one in layers:
        a, b, norms = draw(pipe, one, generator)
        scale = 1.0 if one.alpha is None else one.alpha / RANK
        tensors |= {f"{one.name}{ends[0]}": a, f"{one.name}{ends[1]}": b}
        if one.alpha is not None and ends[2]:
            tensors[f"{one.name}{ends[2]}"] = torch.tensor(one.alpha)
        if norms is not None:
            shape = (-1, *[1] * (b.dim() - 1)) if ends[3] == ".dora_scale" else (-1,) if b.dim() == 2 else (1, -1, 1, 1)
            tensors[f"{one.name}{ends[3]}"] = norms.view(shape)
        weights = weights_of(pipe, one)
        rows = [len(w) for w in weights]
        parts = norms.split(rows) if norms is not None else [None] * len(rows)
        for layer, weight, some, part in zip(one.layers, weights, b.split(rows), parts, strict=True):
            merged[one.network, layer] = merge(weight, a, some, scale, part)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, dict(metadata or {}))
    return merged


def assert_same_effect(pipe: Any, merged: Mapping[tuple[str, str], Tensor]) -> None:
    """Every layer computes as with the merged weights, and no other layer has an adapter."""
    adapted = {
        (name, layer) for name, part in vars(pipe).items() if isinstance(part, nn.Module) for layer in lora_layers(part)
    }
    assert adapted == set(merged)
    for (network, layer), weight in merged.items():
        part = getattr(pipe, network).get_submodule(layer)
        x = torch.randn(2, weight.shape[1], *[5] * (weight.dim() - 2), generator=torch.Generator().manual_seed(1))
        wanted = copy.deepcopy(part.get_base_layer())
        wanted.weight.data = weight
        torch.testing.assert_close(part(x), wanted(x), rtol=1e-5, atol=2e-5)
        assert (part(x) - part.get_base_layer()(x)).abs().max() > 1e-2


KOHYA, PEFT = (
    (".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale"),
    (".lora_A.weight", ".lora_B.weight", ".alpha", ".lora_magnitude_vector"),
)


def unet(prefix: str, dot: str, dora: bool = False, convolution: bool = True, **settings: Any) -> list[Written]:
    names = [ATTN + "to_q", ATTN + "to_k", ATTN + "to_out.0", *([CONV] if convolution else [])]
    return [Written(prefix + n.replace(".", dot), "unet", (n,), dora=dora, **settings) for n in names]


def encoder(prefix: str, dot: str, network: str = "text_encoder", **settings: Any) -> list[Written]:
    inside = "text_model." if network == "text_encoder_2" else ""  # CLIPTextModelWithProjection has it still
    return [
        Written(f"{prefix}text_model{dot}{name.replace('.', dot)}", network, (inside + name,), **settings)
        for name in ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
    ]


def blocks(*fused: tuple[str, str], network: str = "transformer", **settings: Any) -> list[Written]:
    return [Written(name, network, tuple(layers.split()), **settings) for name, layers in fused]


DOUBLE, SINGLE = "transformer_blocks.0.", "single_transformer_blocks.0."
IMG_QKV = " ".join(f"{DOUBLE}attn.to_{x}" for x in "qkv")
TXT_QKV = " ".join(f"{DOUBLE}attn.add_{x}_proj" for x in "qkv")
FLUX_LAYERS = (
    ("double_blocks.0.img_attn.qkv", IMG_QKV),
    ("double_blocks.0.txt_attn.qkv", TXT_QKV),
    ("double_blocks.0.img_attn.proj", f"{DOUBLE}attn.to_out.0"),
    ("double_blocks.0.txt_mlp.2", f"{DOUBLE}ff_context.net.2"),
    ("double_blocks.0.img_mod.lin", f"{DOUBLE}norm1.linear"),
    ("single_blocks.0.linear2", f"{SINGLE}proj_out"),
)  # fmt: skip
FLUX2_LAYERS = (
    ("double_blocks.0.img_attn.qkv", IMG_QKV),
    ("double_blocks.0.txt_attn.qkv", TXT_QKV),
    ("double_blocks.0.txt_attn.proj", f"{DOUBLE}attn.to_add_out"),
    ("single_blocks.0.linear1", f"{SINGLE}attn.to_qkv_mlp_proj"),
)
REFINER = "context_embedder.token_refiner.refiner_blocks.0.attn."
HUNYUAN_LAYERS = (
    ("double_blocks.0.img_attn_qkv", IMG_QKV),
    ("double_blocks.0.txt_attn_qkv", TXT_QKV),
    ("double_blocks.0.img_attn_proj", f"{DOUBLE}attn.to_out.0"),
    ("single_blocks.0.linear2", f"{SINGLE}proj_out"),
    ("txt_in.individual_token_refiner.blocks.0.self_attn_qkv", " ".join(f"{REFINER}to_{x}" for x in "qkv")),
)
WAN_LAYERS = (
    ("blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
    ("blocks.0.self_attn.o", "blocks.0.attn1.to_out.0"),
    ("blocks.0.cross_attn.k", "blocks.0.attn2.to_k"),
    ("blocks.0.ffn.0", "blocks.0.ffn.net.0.proj"),
)
OWN = ((IMG_QKV.split()[0], IMG_QKV.split()[0]), (TXT_QKV.split()[1], TXT_QKV.split()[1]))


def prefixed(layers: tuple[tuple[str, str], ...], prefix: str, dot: str = ".") -> list[tuple[str, str]]:
    return [(prefix + name.replace(".", dot), ours) for name, ours in layers]


SGM = [
    Written("lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_q", "unet", (ATTN + "to_q",)),
    Written(
        "lora_unet_output_blocks_1_1_transformer_blocks_0_ff_net_0_proj", "unet",
        ("up_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj",)),
    Written(
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_out_0", "unet",
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",)),
]  # fmt: skip
PROCESSOR = [
    Written(f"unet.{ATTN[:-1]}.processor.to_q_lora", "unet", (ATTN + "to_q",), None),
    Written(f"unet.{ATTN[:-1]}.processor.to_out_lora", "unet", (ATTN + "to_out.0",), None),
    Written("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora", "text_encoder",
            ("encoder.layers.0.self_attn.q_proj",), None),
]  # fmt: skip
LAYOUTS = {
    "kohya, with convolutions and a text encoder": (SD, unet("lora_unet_", "_") + encoder("lora_te_", "_"), KOHYA),
    "kohya on SDXL, in the names of its first code": (
        XL, SGM + encoder("lora_te1_", "_") + encoder("lora_te2_", "_", "text_encoder_2"), KOHYA),
    "kohya without alpha": (SD, unet("lora_unet_", "_", alpha=None), KOHYA),
    "LyCORIS DoRA": (SD, unet("lora_unet_", "_", dora=True), KOHYA),
    "LyCORIS DoRA on some layers": (
        SD, unet("lora_unet_", "_", dora=True) + encoder("lora_te_", "_", dora=True)
        + blocks(("lora_unet_mid_block_attentions_0_proj_in", "mid_block.attentions.0.proj_in"), network="unet"),
        KOHYA),
    "LyCORIS DoRA on fused layers": (FLUX, blocks(*prefixed(FLUX_LAYERS, "lora_unet_", "_"), dora=True), KOHYA),
    "peft": (SD, unet("base_model.model.", "."), PEFT),
    "peft DoRA": (SD, unet("unet.", ".", dora=True, alpha=None), PEFT),
    "peft with the name of its adapter": (
        SD, unet("unet.", "."), (".lora_A.default.weight", ".lora_B.default.weight", ".alpha", "")),
    "diffusers": (SD, unet("unet.", ".", alpha=None) + encoder("text_encoder.", ".", alpha=None), PEFT),
    "diffusers, before peft": (
        SD, unet("unet.", ".", alpha=None), (".lora.down.weight", ".lora.up.weight", "", "")),
    "old attention processors": (SD, PROCESSOR, (".down.weight", ".up.weight", "", "")),
    "FLUX by kohya, fused": (
        FLUX, blocks(*prefixed(FLUX_LAYERS, "lora_unet_", "_")) + encoder("lora_te1_", "_"), KOHYA),
    "FLUX in its first names": (FLUX, blocks(*prefixed(FLUX_LAYERS, "diffusion_model.")), PEFT),
    "FLUX by ai-toolkit": (FLUX, blocks(*prefixed(OWN, "transformer."), alpha=None), PEFT),
    "FLUX by OneTrainer": (FLUX, blocks(*prefixed(OWN, "lora_transformer_", "_")), KOHYA),
    "FLUX by XLabs": (
        FLUX,
        blocks(("double_blocks.0.processor.qkv_lora1", IMG_QKV), ("double_blocks.0.processor.qkv_lora2", TXT_QKV),
               ("double_blocks.0.processor.proj_lora1", f"{DOUBLE}attn.to_out.0"), alpha=None),
        (".down.weight", ".up.weight", "", "")),
    "FLUX.2 by ai-toolkit, fused": (FLUX2, blocks(*prefixed(FLUX2_LAYERS, "diffusion_model."), alpha=None), PEFT),
    "FLUX.2 by kohya, fused": (FLUX2, blocks(*prefixed(FLUX2_LAYERS, "lora_unet_", "_")), KOHYA),
    "HunyuanVideo, fused": (HUNYUAN, blocks(*prefixed(HUNYUAN_LAYERS, "transformer."), alpha=None), PEFT),
    "HunyuanVideo by diffusion-pipe": (HUNYUAN, blocks(*prefixed(HUNYUAN_LAYERS, "diffusion_model.")), PEFT),
    "Wan in its first names": (WAN, blocks(*prefixed(WAN_LAYERS, "diffusion_model.")), PEFT),
    "Wan by musubi": (WAN, blocks(*prefixed(WAN_LAYERS, "lora_unet_", "_")), KOHYA),
    "Qwen-Image by musubi": (QWEN, blocks(*prefixed(OWN, "lora_unet_", "_")), KOHYA),
    "LTX by ai-toolkit": (
        LTX, blocks(*prefixed(((f"{DOUBLE}attn1.to_q",) * 2, (f"{DOUBLE}ff.net.2",) * 2), "diffusion_model.")), PEFT),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_in_any_layout_has_the_effect_that_is_merged_by_hand(layout, tmp_path):
    name, layers, ends = LAYOUTS[layout]
    file = tmp_path / "theirs.safetensors"
    merged = write_and_merge(name, file, layers, ends)
    pipe = build(name)
    notes = install_lora(pipe, tiny.config(name, "unused", lora=str(file))).notes
    assert_same_effect(pipe, merged)
    assert not [note for note in notes if "not applied" in note]


def apply_file(tmp_path: Path, tensors: Mapping[str, Tensor], name: str = SD, **metadata: str) -> tuple[Any, Any]:
    """(the pipeline with these tensors as its LoRA, what loading said)."""
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "x.safetensors", metadata)
    pipe = build(name)
    return pipe, install_lora(pipe, tiny.config(name, "unused", lora=str(tmp_path / "x.safetensors"))).notes


def pair_of(layer: str, inputs: int = 16, outputs: int = 16, rank: int = 2) -> dict[str, Tensor]:
    return {f"{layer}.lora_A.weight": torch.ones(rank, inputs), f"{layer}.lora_B.weight": torch.ones(outputs, rank)}


ONE = pair_of(f"unet.{ATTN}to_q")


def test_every_key_that_is_not_applied_is_named_with_the_reason(tmp_path):
    more = pair_of(f"unet.{ATTN}to_out.0") | pair_of("unet.extra_block.to_q") | pair_of("text_encoder_3.layers.0.q")
    extra = {"bundle_emb.word.string_to_param": torch.ones(4), "unet.conv_norm_out.w_norm": torch.ones(8)}
    pipe, notes = apply_file(tmp_path, ONE | more | extra)
    assert set(lora_layers(pipe.unet)) == {ATTN + "to_q", ATTN + "to_out.0"}
    told = " ".join(notes)
    assert "applied: 2 layers of the unet" in told
    assert "2 keys, which belong to no LoRA (bundle_emb.word.string_to_param, unet.conv_norm_out.w_norm)" in told
    assert "2 keys, for layers that this StableDiffusionPipeline has not (unet.extra_block.to_q" in told
    assert "2 keys, for a text_encoder_3 on which diffusers loads no LoRA here" in told


def test_one_layer_that_a_converter_does_not_know_does_not_cost_the_others(tmp_path):
    theirs = {
        k: v
        for n in ("img_attn_proj", "odd_layer", "txt_attn_proj")
        for k, v in pair_of(f"lora_unet_double_blocks_0_{n}").items()
    }
    theirs = {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in theirs.items()}
    pipe, notes = apply_file(tmp_path, theirs, FLUX)
    assert set(lora_layers(pipe.transformer)) == {f"{DOUBLE}attn.to_out.0", f"{DOUBLE}attn.to_add_out"}
    assert any("not applied: 2 keys" in note and "odd_layer" in note for note in notes)


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"unet.r": 2, "unet.lora_alpha": 6}, 3.0),
        ({"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {f"^{ATTN}to_q": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.use_rslora": True}, 4 / 2**0.5),
    ],
)
def test_alpha_is_read_from_what_diffusers_writes_beside_the_tensors(metadata, scale, tmp_path):
    pipe, _ = apply_file(tmp_path, ONE, lora_adapter_metadata=json.dumps(metadata))
    assert pipe.unet.get_submodule(ATTN + "to_q").scaling == pytest.approx({"lora_0": scale})


def test_a_folder_of_peft_is_taken_with_the_alpha_beside_its_weights(tmp_path):
    save_file(pair_of(f"base_model.model.{ATTN}to_q"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3.0}))
    pipe = build(SD)
    install_lora(pipe, tiny.config(SD, "unused", lora=str(tmp_path)))
    assert pipe.unet.get_submodule(ATTN + "to_q").scaling == {"lora_0": 1.5}


def test_a_change_of_biases_is_applied_too(tmp_path):
    layer = "blocks.0.self_attn.q"
    theirs = pair_of(f"diffusion_model.{layer}", 24, 24) | {f"diffusion_model.{layer}.diff_b": torch.full((24,), 0.5)}
    pipe, _ = apply_file(tmp_path, theirs, WAN)
    part, x = pipe.transformer.get_submodule("blocks.0.attn1.to_q"), torch.randn(1, 24)
    wanted = part.get_base_layer()(x) + 2 * x.sum() + 0.5
    torch.testing.assert_close(part(x), wanted, rtol=1e-4, atol=1e-4)


HEAD = f"unet.{ATTN}to_q"
NAN = ONE[f"{HEAD}.lora_A.weight"] * float("nan")
DOWN, UP = f"{HEAD}.lora_down.weight", f"{HEAD}.lora_up.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({f"{HEAD}.lora_A.weight": NAN}, "values that are not finite"),
        ({f"{HEAD}.alpha": torch.tensor(0.0)}, "is 0, so the layer has no effect"),
        ({f"{HEAD}.alpha": torch.tensor(-4.0)}, "is -4, which is no strength"),
        ({f"{HEAD}.alpha": torch.tensor(float("nan"))}, "is nan, which is no strength"),
        ({f"{HEAD}.alpha": torch.ones(2)}, "alpha is one number"),
        ({f"{HEAD}.lora_B.weight": torch.ones(16, 3)}, "ranks differ: 2 and 3"),
        ({f"{HEAD}.lora_B.weight": None}, "only one of its two matrices"),
        ({f"{HEAD}.lora_A.weight": torch.ones(2, 16, dtype=torch.int32)}, "of type I32"),
        ({f"{HEAD}.lora_A.weight": torch.ones(2)}, "has the shape"),
        ({DOWN: torch.ones(2, 16), UP: torch.ones(16, 2)}, "a second down of its layer"),
        ({f"{HEAD}.dora_scale": torch.ones(7)}, "has the shape"),
        ({f"{HEAD}.dora_scale": torch.ones(1, 16)}, "norms of inputs"),
        ({f"{HEAD}.hada_w1_a": torch.ones(2, 2)}, "is LoHa, not LoRA"),
        ({f"{HEAD}.lokr_w1": torch.ones(2, 2)}, "is LoKr, not LoRA"),
        ({f"{HEAD}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "Tucker core"),
        ({f"{HEAD}.lora_A.other.weight": torch.ones(2, 16), f"{HEAD}.lora_A.weight": None}, "holds several LoRAs"),
        (pair_of(f"unet.{ATTN}to_k", 48), r"to_k has weights of the shape \[16, 16\].* made for another model"),
        (pair_of("a") | pair_of("b"), "2 of its 3 layers have names that neither this .* nor diffusers' converter"),
    ],
)
def test_a_file_that_is_no_whole_lora_is_refused_in_one_sentence(change, sentence, tmp_path):
    tensors = {key: value for key, value in (ONE | change).items() if value is not None}
    with pytest.raises(BadInput, match=sentence) as caught:
        apply_file(tmp_path, tensors)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def header(value: Any, length: int | None = None, body: bytes = b"") -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


FLOAT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        header(b"{}", 2**63),
        header(b"{", 10**9),
        header(b"{nope"),
        header(b"\xff\xfe{}"),
        header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        header({"a": FLOAT, "b": FLOAT}, body=b"\x00" * 4),
        header({"a": FLOAT | {"data_offsets": [4, 8]}}, body=b"\x00" * 8),
        header({"a": FLOAT | {"shape": [-1]}}, body=b"\x00" * 4),
        header({"a": FLOAT | {"shape": [2**40]}}, body=b"\x00" * 4),
        header({"a": FLOAT | {"dtype": "F99"}}, body=b"\x00" * 4),
        header({"a": FLOAT}, body=b"\x00" * 2),
        header({"__metadata__": {"x": 3}, "a": FLOAT}, body=b"\x00" * 4),
        header([]),
        b"PK\x03\x04" + b"\x00" * 40,
        b"\x80\x02}q\x00." + b"\x00" * 40,
    ],
    ids=range(17),
)
def test_a_malformed_header_is_refused_in_one_sentence(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_lora_file(tmp_path / "x.safetensors")
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400 and any(w in said for w in ("empty", "safetensors"))


def test_metadata_that_is_no_json_is_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="its metadata lora_adapter_metadata: not valid JSON"):
        apply_file(tmp_path, ONE, lora_adapter_metadata="{")
