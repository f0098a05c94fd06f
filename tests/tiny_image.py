"""Components of tiny text-to-image pipelines."""

from __future__ import annotations

from typing import Any

import diffusers as d
import transformers as t
from tiny_parts import (
    PLAIN_KL,
    UNCHECKED,
    UNET,
    VP,
    clip,
    clip_tokens,
    gemma_tokens,
    kl,
    qwen3,
    qwen_tokens,
    t5,
    t5_tokens,
)


def stable_diffusion(scheduler: Any = None, **unet: Any) -> dict[str, Any]:
    return dict(
        unet=d.UNet2DConditionModel(**UNET, cross_attention_dim=16, attention_head_dim=4, **unet),
        vae=kl(),
        text_encoder=clip(),
        tokenizer=clip_tokens(),
        scheduler=scheduler or d.DDIMScheduler(**VP, set_alpha_to_one=False, steps_offset=1),
        **UNCHECKED,
    )


def sdxl() -> dict[str, Any]:
    extra = dict(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64)
    return dict(
        unet=d.UNet2DConditionModel(**UNET, cross_attention_dim=32, attention_head_dim=4, **extra),
        vae=kl(),
        text_encoder=clip(),
        text_encoder_2=clip(projected=True),
        tokenizer=clip_tokens(),
        tokenizer_2=clip_tokens(),
        scheduler=d.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        image_encoder=None,
        feature_extractor=None,
    )


def pixart() -> dict[str, Any]:
    return dict(
        transformer=d.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=16,
            cross_attention_dim=16,
            out_channels=8,
        ),
        vae=kl(),
        scheduler=d.DDIMScheduler(**VP),
        text_encoder=t5(),
        tokenizer=t5_tokens(),
    )


def sd3() -> dict[str, Any]:
    return dict(
        transformer=d.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            out_channels=4,
        ),
        vae=kl(**PLAIN_KL),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **{f"text_encoder{n}": clip(projected=True) for n in ("", "_2")},
        text_encoder_3=t5(32),
        **{f"tokenizer{n}": clip_tokens() for n in ("", "_2")},
        tokenizer_3=t5_tokens(),
        image_encoder=None,
        feature_extractor=None,
    )


def flux() -> dict[str, Any]:
    return dict(
        transformer=d.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 4, 8],
        ),
        vae=kl(latents=1, levels=1, **PLAIN_KL),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        text_encoder=clip(),
        text_encoder_2=t5(),
        tokenizer=clip_tokens(),
        tokenizer_2=t5_tokens(),
        image_encoder=None,
        feature_extractor=None,
    )


def flux2_klein() -> dict[str, Any]:
    return dict(
        transformer=d.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=16,
            timestep_guidance_channels=16,
            axes_dims_rope=[4, 4, 4, 4],
            guidance_embeds=False,
        ),
        vae=d.AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(4,),
            layers_per_block=1,
            latent_channels=1,
            norm_num_groups=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        text_encoder=qwen3(t.Qwen3ForCausalLM),
        tokenizer=qwen_tokens(),
    )


def sana(scheduler: Any = None, **transformer: Any) -> dict[str, Any]:
    blocks = dict.fromkeys(("encoder_block_types", "decoder_block_types"), ("ResBlock", "EfficientViTBlock"))
    widths = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8))
    scales = dict.fromkeys(("encoder_qkv_multiscales", "decoder_qkv_multiscales"), ((), (5,)))
    layers = dict(encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), attention_head_dim=2)
    heads = dict(num_attention_heads=2, attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4)
    gemma = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    return dict(
        transformer=d.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=8,
            **heads,
            **transformer,
        ),
        vae=d.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
            **blocks,
            **widths,
            **scales,
            **layers,
        ),
        scheduler=scheduler or d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=t.Gemma2Model(t.Gemma2Config(vocab_size=32, num_key_value_heads=2, **gemma)),
        tokenizer=gemma_tokens(),
    )


def sana_sprint() -> dict[str, Any]:
    return sana(d.SCMScheduler(), qk_norm="rms_norm_across_heads", guidance_embeds=True)


def lcm() -> dict[str, Any]:
    return stable_diffusion(d.LCMScheduler(**VP, set_alpha_to_one=False), time_cond_proj_dim=16)


def qwen_image() -> dict[str, Any]:
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    rope = dict(rope_scaling=dict(mrope_section=[1, 1, 2], rope_type="default", type="default"), rope_theta=1e6)
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16)
    tokens = dict(vision_end_token_id=1, vision_start_token_id=2, vision_token_id=0)
    return dict(
        transformer=d.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=d.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        text_encoder=t.Qwen2_5_VLForConditionalGeneration(
            t.Qwen2_5_VLConfig(text_config={**text, **rope, "vocab_size": 259}, vision_config=vision, **tokens)
        ),
        tokenizer=qwen_tokens(),
    )


def z_image() -> dict[str, Any]:
    return dict(
        transformer=d.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            qk_norm=True,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        vae=kl(shift_factor=0.1, scaling_factor=0.4),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        text_encoder=qwen3(t.Qwen3Model),
        tokenizer=qwen_tokens(),
    )
