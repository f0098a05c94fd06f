"""Components of tiny text-to-video and text-to-audio pipelines."""

from __future__ import annotations

from typing import Any

import diffusers as d
import transformers as t
from diffusers.pipelines.ace_step import modeling_ace_step as ace
from tiny_parts import UNET, VP, kl, oobleck, qwen3, qwen_tokens, roberta_tokens, t5, t5_tokens


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
            base_dim=3,
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


def audioldm2() -> dict[str, Any]:
    text = dict(vocab_size=261, hidden_size=8, intermediate_size=16, num_attention_heads=1, num_hidden_layers=1)
    audio = dict(spec_size=8, window_size=4, num_mel_bins=8, depths=[1, 1], num_attention_heads=[1, 1], patch_size=2)
    branch = dict(hidden_size=192, patch_stride=2, patch_embed_input_channels=4, num_hidden_layers=1)
    speaker = t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=100, n_positions=99))
    speaker.config.max_new_tokens = 4
    return dict(
        unet=d.AudioLDM2UNet2DConditionModel(**{**UNET, "cross_attention_dim": (8, 16)}),
        vae=kl(channels=1),
        scheduler=d.DDIMScheduler(**VP),
        text_encoder=t.ClapModel(
            t.ClapConfig(
                text_config={**text, "projection_dim": 8},
                audio_config={**audio, **branch, "projection_dim": 8},
                projection_dim=8,
            )
        ),
        tokenizer=roberta_tokens(),
        feature_extractor=t.ClapFeatureExtractor(hop_length=7900),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokens(),
        language_model=speaker,
        projection_model=d.AudioLDM2ProjectionModel(text_encoder_dim=8, text_encoder_1_dim=16, langauge_model_dim=16),
        vocoder=t.SpeechT5HifiGan(
            t.SpeechT5HifiGanConfig(
                model_in_dim=8,
                upsample_initial_channel=16,
                upsample_rates=[2, 2],
                upsample_kernel_sizes=[4, 4],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1, 3]],
                normalize_before=False,
            )
        ),
    )


def stable_audio() -> dict[str, Any]:
    return dict(
        transformer=d.StableAudioDiTModel(
            sample_size=4,
            in_channels=3,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            out_channels=3,
            cross_attention_dim=4,
            time_proj_dim=8,
            global_states_input_dim=8,
            cross_attention_input_dim=4,
        ),
        vae=oobleck(3),
        scheduler=d.CosineDPMSolverMultistepScheduler(sigma_schedule="exponential"),
        text_encoder=t5(),
        tokenizer=t5_tokens(),
        projection_model=d.StableAudioProjectionModel(
            text_encoder_dim=16, conditioning_dim=4, min_value=0, max_value=32
        ),
    )


def ace_step() -> dict[str, Any]:
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    common = dict(hidden_size=16, intermediate_size=16, **heads, sliding_window=16)
    return dict(
        transformer=d.AceStepTransformer1DModel(
            num_hidden_layers=1, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, **common
        ),
        condition_encoder=ace.AceStepConditionEncoder(
            text_hidden_dim=16,
            timbre_hidden_dim=8,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            **common,
        ),
        vae=oobleck(8),
        scheduler=d.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        text_encoder=qwen3(t.Qwen3Model),
        tokenizer=qwen_tokens(),
        audio_tokenizer=ace.AceStepAudioTokenizer(
            audio_acoustic_hidden_dim=8,
            pool_window_size=2,
            fsq_dim=16,
            fsq_input_levels=[4, 4, 4],
            fsq_input_num_quantizers=1,
            num_attention_pooler_hidden_layers=1,
            **common,
        ),
        audio_token_detokenizer=ace.AceStepAudioTokenDetokenizer(
            audio_acoustic_hidden_dim=8, pool_window_size=2, num_attention_pooler_hidden_layers=1, **common
        ),
    )
