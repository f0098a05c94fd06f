"""Components of tiny text-to-video pipelines."""

from __future__ import annotations

from typing import Any

import diffusers as d
import transformers as t
from tiny_parts import (
    UNET,
    VP,
    byt5_tokens,
    clip,
    clip_tokens,
    kl,
    qwen_text,
    qwen_tokens,
    t5,
    t5_tokens,
    word_tokens,
)


def wan() -> dict[str, Any]:
    return dict(
        transformer=d.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=32,
        ),
        vae=d.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        scheduler=d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        text_encoder=t5(),
        tokenizer=t5_tokens(),
        transformer_2=None,
    )


def ltx() -> dict[str, Any]:
    decoder = {
        f"{side}{key}": value
        for side in ("", "decoder_")
        for key, value in {
            "block_out_channels": (8,) * 4,
            "layers_per_block": (1,) * 5,
            "spatio_temporal_scaling": (True, True, False, False),
        }.items()
    }
    return dict(
        transformer=d.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=16,
        ),
        vae=d.AutoencoderKLLTXVideo(
            latent_channels=8,
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
            **decoder,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5(),
        tokenizer=t5_tokens(),
    )


def cogvideox() -> dict[str, Any]:
    return dict(
        transformer=d.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=16,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=16,
        ),
        vae=d.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8,) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ),
        scheduler=d.CogVideoXDDIMScheduler(),
        text_encoder=t5(),
        tokenizer=t5_tokens(),
    )


def wan_22() -> dict[str, Any]:
    """Two experts: one for the noisier half of the way, one for the rest."""
    parts = wan()
    parts["transformer_2"] = d.WanTransformer3DModel.from_config(parts["transformer"].config)
    return parts | {"boundary_ratio": 0.9}


def text_to_video() -> dict[str, Any]:
    """ModelScope's, which lays the frames of its states into the batch."""
    return dict(
        unet=d.UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        vae=kl(),
        scheduler=d.DDIMScheduler(**VP, set_alpha_to_one=False, steps_offset=1),
        text_encoder=clip(),
        tokenizer=clip_tokens(),
    )


def animatediff() -> dict[str, Any]:
    return dict(
        unet=d.UNet2DConditionModel(**{**UNET, "cross_attention_dim": 16, "attention_head_dim": 4}),
        motion_adapter=d.MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_norm_num_groups=4,
            motion_num_attention_heads=2,
        ),
        vae=kl(),
        scheduler=d.DDIMScheduler(**VP, set_alpha_to_one=False, steps_offset=1),
        text_encoder=clip(),
        tokenizer=clip_tokens(),
        feature_extractor=None,
        image_encoder=None,
    )


def hunyuan_video() -> dict[str, Any]:
    text = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=3)
    return dict(
        transformer=d.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=(2, 4, 4),
        ),
        vae=d.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8,) * 4,
            layers_per_block=1,
            norm_num_groups=4,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=t.LlamaModel(t.LlamaConfig(**text)),
        tokenizer=word_tokens(),
        text_encoder_2=clip(positions=77),
        tokenizer_2=clip_tokens(),
    )


def hunyuan_video_15() -> dict[str, Any]:
    """Its guidance is a part of the pipeline, not an argument of its call, and its autoencoder decodes one clip at a
    time."""
    vae = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    vae.enable_slicing()
    return dict(
        transformer=d.HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=16,
            text_embed_2_dim=16,
            image_embed_dim=12,
            rope_axes_dim=(2, 2, 4),
            target_size=16,
            task_type="t2v",
        ),
        vae=vae,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=qwen_text(),
        tokenizer=qwen_tokens(),
        text_encoder_2=t5(),
        tokenizer_2=byt5_tokens(),
        guider=d.ClassifierFreeGuidance(guidance_scale=3.0),
    )
