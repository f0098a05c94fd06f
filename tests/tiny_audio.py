"""Components of tiny text-to-audio pipelines."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch
import transformers as t
from diffusers.pipelines.ace_step import modeling_ace_step as ace
from tiny_parts import (
    UNET,
    VP,
    gemma_tokens,
    kl,
    oobleck,
    qwen3,
    qwen_tokens,
    roberta_tokens,
    t5,
    t5_tokens,
)

LOUD = 0.2  # a vocoder whose sounds are loud enough to be heard


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
                initializer_range=LOUD,
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


def musicldm() -> dict[str, Any]:
    parts = audioldm2()
    previous = ("vae", "scheduler", "text_encoder", "tokenizer", "feature_extractor", "vocoder")
    labels = dict(class_embed_type="simple_projection", class_embeddings_concat=True)
    sizes = dict(cross_attention_dim=(8, 16), projection_class_embeddings_input_dim=8)
    net = d.UNet2DConditionModel(**{**UNET, **sizes, **labels})
    return {name: parts[name] for name in previous} | {"unet": net}


def longcat() -> dict[str, Any]:
    net = d.LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=1, dit_heads=2, dit_text_dim=16, latent_dim=4, text_conv=False
    )
    torch.nn.init.normal_(net.proj_out.weight)  # it starts at zero
    return dict(
        transformer=net,
        vae=d.LongCatAudioDiTVae(
            channels=4, c_mults=[1, 2], strides=[2], latent_dim=4, encoder_latent_dim=8, downsampling_ratio=2, scale=0.1
        ),
        text_encoder=t.UMT5EncoderModel(
            t.UMT5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1)
        ),
        tokenizer=t5_tokens(),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
    )


def stable_audio_3() -> dict[str, Any]:
    text = t.models.t5gemma.configuration_t5gemma.T5GemmaModuleConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=64,
        layer_types=["full_attention"],
    ).to_dict()
    return dict(
        transformer=d.StableAudio3DiTModel(
            io_channels=8,
            embed_dim=16,
            depth=1,
            num_heads=2,
            cond_token_dim=16,
            global_cond_dim=16,
            local_add_cond_dim=5,
            timestep_features_dim=16,
            ff_mult=2,
            num_memory_tokens=3,
            use_differential_attention=False,
        ),
        vae=d.AutoencoderSAME(
            audio_channels=2,
            patch_size=2,
            encoder_channels=8,
            encoder_c_mults=(2,),
            encoder_strides=(2,),
            encoder_transformer_depths=(1,),
            latent_dim=8,
            use_differential_attention=False,
            dim_heads=4,
            ff_mult=2,
            sampling_rate=16,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        text_encoder=t.T5GemmaEncoderModel(t.T5GemmaConfig(encoder=text, decoder=text, is_encoder_decoder=False)),
        tokenizer=gemma_tokens(),
        duration_embedder=d.StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
    )
