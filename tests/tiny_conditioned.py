"""Tiny pipelines that make pictures from a source, a mask, a control image or a reference, besides a prompt.

Importing this adds them to what `tiny.build`, `tiny.save`, `tiny.config` and `tiny.policy` know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers as d
import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as qwen_edit_file
import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as qwen_edit_plus_file
import safetensors.torch
import tiny
import tiny_image as image
import torch
import transformers as t
from tiny import BAD, CLIP16, SQUARE, TINY, Tiny
from tiny_parts import BYTES, PLAIN_KL, UNET, clip_vision, ids, kl

from workbench.core.inputs import MediaInput
from workbench.core.types import Media, Prompt

ENCODERS = ("image_encoder", "feature_extractor")  # which some classes don't have
OF_SDXL = dict(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64)
SMALL = dict(height=8, width=8)


def unet(channels: int = 4, text: int = 16, **settings: Any) -> Any:
    sizes = {**UNET, "in_channels": channels}
    return d.UNet2DConditionModel(**sizes, cross_attention_dim=text, attention_head_dim=4, **settings)


def sd(channels: int = 4) -> dict[str, Any]:
    return {**image.stable_diffusion(), "unet": unet(channels)}


def sdxl(channels: int = 4) -> dict[str, Any]:
    return {**image.sdxl(), "unet": unet(channels, 32, **OF_SDXL)}


def sd3(channels: int = 4, layers: int = 1) -> dict[str, Any]:
    parts = image.sd3()
    parts["transformer"] = d.SD3Transformer2DModel(
        **own_settings(parts["transformer"], in_channels=channels, out_channels=channels, num_layers=layers)
    )
    if channels != 4:
        parts["vae"] = kl(latents=channels, **PLAIN_KL)
    return parts


def flux(channels: int = 4) -> dict[str, Any]:
    parts = image.flux()
    parts["transformer"] = d.FluxTransformer2DModel(
        **own_settings(parts["transformer"], in_channels=channels, out_channels=4)
    )
    return parts


def flux2_klein() -> dict[str, Any]:
    """Flux2 Klein with an autoencoder that makes 8 x 8 latents of 64 pixels, the smallest source that it takes."""
    parts = image.flux2_klein()
    changes = dict.fromkeys(("block_out_channels", "down_block_types", "up_block_types"))
    changes = {name: tuple(parts["vae"].config[name]) * 4 for name in changes}
    return {**parts, "vae": d.AutoencoderKLFlux2(**own_settings(parts["vae"], **changes))}


def flux2() -> dict[str, Any]:
    """FLUX.2: Mistral reads the prompt, with a processor for its pictures; guidance is an embedding."""
    parts = flux2_klein()
    special = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    vocab = ids("<|endoftext|>", *special, *BYTES)
    tokens = t.Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=special)
    template = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    pictures = t.PixtralImageProcessor()
    heads = dict(num_hidden_layers=2, num_attention_heads=2, head_dim=8, hidden_size=16, intermediate_size=16)
    config = t.Mistral3Config(
        text_config=t.MistralConfig(**heads, num_key_value_heads=2, vocab_size=len(tokens)),
        vision_config=t.PixtralVisionConfig(**heads, image_size=16, patch_size=8),
        image_token_index=tokens.convert_tokens_to_ids("[IMG]"),
    )
    return parts | dict(
        transformer=d.Flux2Transformer2DModel(**own_settings(parts["transformer"], guidance_embeds=True)),
        text_encoder=t.Mistral3ForConditionalGeneration(config),
        tokenizer=t.PixtralProcessor(image_processor=pictures, tokenizer=tokens, chat_template=template),
    )


def own_settings(network: Any, **changes: Any) -> dict[str, Any]:
    """What a network was made with. (`from_config` would drop changes of what was left at its default.)"""
    return {name: value for name, value in network.config.items() if not name.startswith("_")} | changes


def without_encoders(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name not in ENCODERS}


def with_controlnet(parts: dict[str, Any]) -> dict[str, Any]:
    controlnet = d.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8, 8))
    return {**parts, "controlnet": controlnet}


def sd3_controlnet() -> dict[str, Any]:
    parts = sd3(layers=2)  # what it adds to the last block is not used
    names = set(d.SD3ControlNetModel.__init__.__annotations__) & set(parts["transformer"].config)
    settings = {name: value for name, value in own_settings(parts["transformer"]).items() if name in names}
    return {**parts, "controlnet": d.SD3ControlNetModel(**{**settings, "num_layers": 1})}


def flux_controlnet() -> dict[str, Any]:
    parts = flux()
    names = set(d.FluxControlNetModel.__init__.__annotations__) & set(parts["transformer"].config)
    settings = {name: value for name, value in own_settings(parts["transformer"]).items() if name in names}
    return {**parts, "controlnet": d.FluxControlNetModel(**settings)}


def qwen_controlnet() -> dict[str, Any]:
    parts = image.qwen_image()
    settings = own_settings(parts["transformer"])
    names = set(d.QwenImageControlNetModel.__init__.__annotations__) & set(settings)
    return {**parts, "controlnet": d.QwenImageControlNetModel(**{k: settings[k] for k in names})}


def save_ip_adapter(folder: Path, seed: int = 0) -> dict[str, Any]:
    """The `ip_adapter` block of a config for the tiny Stable Diffusion, with its files."""
    network, width = unet(), 8
    generator = torch.Generator().manual_seed(seed)
    encoder = clip_vision(width)
    encoder.save_pretrained(folder / "image_encoder")
    shapes = {"image_proj.proj.weight": (4 * 16, width), "image_proj.proj.bias": (4 * 16,)}
    shapes |= {"image_proj.norm.weight": (16,), "image_proj.norm.bias": (16,)}
    attention = [m for name, m in network.named_modules() if name.endswith("attn2")]
    for n, module in enumerate(attention):
        for kind in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * n + 1}.{kind}.weight"] = (module.inner_dim, 16)
    tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors, folder / "ip-adapter.safetensors")
    return {"repo": str(folder), "file": "ip-adapter.safetensors", "encoder": "image_encoder", "scale": 0.6}


def qwen_edit() -> dict[str, Any]:
    """Qwen-Image with the processor and the vision tower of Qwen2.5-VL, which reads the source."""
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    vocab = ids("<|endoftext|>", *special, *BYTES)
    tokens = t.Qwen2Tokenizer(vocab=vocab, merges=[], chat_template=template, additional_special_tokens=special)
    patches = dict(patch_size=4, temporal_patch_size=2, merge_size=2)
    processor = t.Qwen2VLProcessor(
        image_processor=t.Qwen2VLImageProcessor(**patches, min_pixels=64, max_pixels=256),
        tokenizer=tokens,
        video_processor=t.Qwen2VLVideoProcessor(**patches, min_pixels=64, max_pixels=256),
        chat_template=template,
    )
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    rope = dict(rope_scaling=dict(mrope_section=[1, 1, 2], rope_type="default", type="default"), rope_theta=1e6)
    vision = dict(
        depth=1,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        out_hidden_size=16,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        window_size=16,
        fullatt_block_indexes=[0],
    )
    places = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>"}
    numbers = {f"{k}_token_id": tokens.convert_tokens_to_ids(v) for k, v in places.items()}
    numbers["vision_end_token_id"] = tokens.convert_tokens_to_ids("<|vision_end|>")
    config = t.Qwen2_5_VLConfig(
        text_config={**text, **rope, "vocab_size": len(tokens)}, vision_config=vision, **numbers
    )
    encoder = t.Qwen2_5_VLForConditionalGeneration(config)
    return {**image.qwen_image(), "text_encoder": encoder, "tokenizer": tokens, "processor": processor}


for file in (qwen_edit_file, qwen_edit_plus_file):  # they bring each source to a megapixel; here it is 32 x 32
    file.calculate_dimensions = lambda area, ratio, own=file.calculate_dimensions: own(32 * 32, ratio)

TURNED = dict(guidance_scale=5.0, strength=0.6)  # of four steps two or three are taken
MASKED = dict(guidance_scale=5.0, strength=1.0, **SQUARE)
EDIT = dict(guidance_scale=5.0, image_guidance_scale=1.5, **SQUARE)
GUIDED = dict(guidance_scale=5.0, **SQUARE)
OF_FLUX = dict(guidance_scale=3.0, **SMALL, **CLIP16)
OF_QWEN = dict(true_cfg_scale=3.0, max_sequence_length=32, height=32, width=32)
SHORT = dict(prompt_template_encode="{}", prompt_template_encode_start_idx=0)  # its own has a token for each letter
SEEN = dict(SHORT, prompt_template_encode="<|vision_start|><|image_pad|><|vision_end|>{}")
QWEN: dict[str, Any] = dict(text=BAD, guidance="true_cfg_scale", steps=2, fixed=SHORT)
CONDITIONED: dict[str, Tiny] = {
    "StableDiffusionInstructPix2PixPipeline": Tiny(lambda: sd(8), EDIT, BAD, steps=2),
    "StableDiffusionXLInstructPix2PixPipeline": Tiny(lambda: without_encoders(sdxl(8)), EDIT, BAD, steps=2),
    "FluxKontextPipeline": Tiny(flux, dict(true_cfg_scale=2.0, _auto_resize=False, **OF_FLUX), BAD, steps=2),
    "Flux2KleinPipeline:source": Tiny(
        flux2_klein, dict(TINY["Flux2KleinPipeline"].call, height=64, width=64), inputs={"source": "image"}, steps=2
    ),
    "Flux2Pipeline:source": Tiny(
        flux2,
        dict(TINY["Flux2KleinPipeline"].call, height=64, width=64),
        inputs={"source": "image"},
        steps=2,
        fixed=dict(system_message=""),  # its own is longer than the text that its encoder is given here
    ),
    "QwenImageEditPipeline": Tiny(qwen_edit, OF_QWEN, **{**QWEN, "fixed": SEEN}),
    "QwenImageEditPlusPipeline": Tiny(qwen_edit, OF_QWEN, **QWEN),
    "StableDiffusionImg2ImgPipeline": Tiny(sd, TURNED, BAD, steps=4),
    "StableDiffusionXLImg2ImgPipeline": Tiny(sdxl, TURNED, BAD, steps=4),
    "StableDiffusion3Img2ImgPipeline": Tiny(sd3, dict(TURNED, **SQUARE, **CLIP16), BAD, steps=4),
    "FluxImg2ImgPipeline": Tiny(flux, dict(OF_FLUX, strength=0.6), steps=4),
    "QwenImageImg2ImgPipeline": Tiny(image.qwen_image, dict(OF_QWEN, strength=0.6), **{**QWEN, "steps": 4}),
    "SanaSprintImg2ImgPipeline": Tiny(image.sana_sprint, dict(TINY["SanaSprintPipeline"].call, strength=0.6), steps=4),
    "StableDiffusionInpaintPipeline": Tiny(sd, MASKED, BAD, steps=2),
    "StableDiffusionInpaintPipeline:9": Tiny(lambda: sd(9), MASKED, BAD, steps=2),
    "StableDiffusionXLInpaintPipeline": Tiny(sdxl, MASKED, BAD, steps=2),
    "StableDiffusionXLInpaintPipeline:9": Tiny(lambda: sdxl(9), MASKED, BAD, steps=2),
    "StableDiffusion3InpaintPipeline": Tiny(lambda: sd3(16), dict(MASKED, **CLIP16), BAD, steps=2),
    "FluxInpaintPipeline": Tiny(flux, dict(OF_FLUX, strength=1.0), steps=2),
    "QwenImageInpaintPipeline": Tiny(image.qwen_image, dict(OF_QWEN, strength=1.0), **QWEN),
    "FluxFillPipeline": Tiny(lambda: without_encoders(flux(12)), OF_FLUX, steps=2),
    "FluxControlPipeline": Tiny(lambda: without_encoders(flux(8)), OF_FLUX, steps=2),
    "StableDiffusionControlNetPipeline": Tiny(lambda: with_controlnet(sd()), GUIDED, BAD, steps=2),
    "StableDiffusionXLControlNetPipeline": Tiny(lambda: with_controlnet(sdxl()), GUIDED, BAD, steps=2),
    "StableDiffusion3ControlNetPipeline": Tiny(sd3_controlnet, dict(GUIDED, **CLIP16), BAD, steps=2),
    "FluxControlNetPipeline": Tiny(flux_controlnet, OF_FLUX, steps=2),
    "QwenImageControlNetPipeline": Tiny(qwen_controlnet, OF_QWEN, **QWEN),
}
tiny.TABLES.append(CONDITIONED)


def make_prompts(policy: Any, *seeds: int, text: str = "a red cat") -> tuple[str, ...]:
    """One prompt for each seed, of one text, whose inputs are noise of that seed. Masks are the right half."""
    return tuple(policy.conditions.example_prompts((text,), seed=1000 + 10 * seed)[0] for seed in seeds)


def with_input(prompt: Prompt, **pictures: torch.Tensor) -> Prompt:
    """The prompt with these pictures [3,H,W] in place of its own inputs of that name."""
    inputs = {name: MediaInput.of(Media(x[None], "image")) for name, x in pictures.items()}
    return Prompt(str(prompt), {**prompt.inputs, **inputs})
