"""Real diffusers pipelines, tiny and with random weights: what the seam is tried on, offline, in milliseconds.

`build("FluxPipeline")` makes one, `save` writes it as a folder that pipelines.load reads, `policy` goes the whole way.
Parameters that start as constants are randomised, because a zero output layer makes every replay look exact.
"""

from __future__ import annotations

import string
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers as d
import torch
import transformers as t
from diffusers.pipelines.ace_step import modeling_ace_step as ace
from transformers.convert_slow_tokenizer import bytes_to_unicode

import pipelines
from pipelines.config import MODALITIES

BYTES = tuple(bytes_to_unicode().values())
transformers_quiet = t.logging.set_verbosity_error
PROMPTS, SEEDS = ("a red cat", "two dogs"), (11, 12)


@dataclass(frozen=True)
class Tiny:
    parts: Callable[[], dict[str, Any]]  # components by name
    call: dict[str, Any] = field(default_factory=dict)  # arguments that keep the call short, guidance on
    text: dict[str, str] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    steps: int = 3


def ids(*tokens: str) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def clip_tokens() -> Any:
    vocab = ids("<|startoftext|>", "<|endoftext|>", *BYTES, *(c + "</w>" for c in BYTES))
    return t.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def t5_tokens() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(c, -3.0) for c in string.ascii_lowercase + string.punctuation]
    return t.T5Tokenizer(vocab=pieces + letters, extra_ids=0, model_max_length=16)


def qwen_tokens() -> Any:
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    vocab = ids("<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES)
    special = ["<|im_start|>", "<|im_end|>"]
    return t.Qwen2Tokenizer(vocab=vocab, merges=[], chat_template=template, additional_special_tokens=special)


def gemma_tokens() -> Any:
    vocab = ids("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_lowercase)
    return t.GemmaTokenizer(vocab=vocab, merges=[], model_max_length=64)


def roberta_tokens() -> Any:
    return t.RobertaTokenizer(vocab=ids("<s>", "<pad>", "</s>", "<unk>", "<mask>", *BYTES), merges=[], model_max_length=20)


def clip(projected: bool = False, width: int = 16) -> Any:
    kind = t.CLIPTextModelWithProjection if projected else t.CLIPTextModel
    settings = dict(vocab_size=514, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    special = dict(max_position_embeddings=16, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    return kind(t.CLIPTextConfig(**settings, **special))


def t5(width: int = 16) -> Any:
    return t.T5EncoderModel(t.T5Config(vocab_size=64, d_model=width, d_ff=16, d_kv=8, num_heads=2, num_layers=1))


def qwen3(kind: Any, width: int = 16, vocab: int = 259) -> Any:
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    size = dict(hidden_size=width, intermediate_size=16, num_hidden_layers=2, max_position_embeddings=256)
    return kind(t.Qwen3Config(vocab_size=vocab, **heads, **size))


def kl(latents: int = 4, levels: int = 2, channels: int = 3, **settings: Any) -> Any:
    return d.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latents,
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=2,
        **settings,
    )


UNET = dict(
    block_out_channels=(8, 16),
    layers_per_block=1,
    sample_size=8,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
)
VP = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
UNCHECKED = dict(safety_checker=None, feature_extractor=None, image_encoder=None)
PLAIN_KL = dict(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)


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
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
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
    decoder = {f"{side}{key}": value for side in ("", "decoder_") for key, value in {
        "block_out_channels": (8,) * 4, "layers_per_block": (1,) * 5, "spatio_temporal_scaling": (True, True, False, False)
    }.items()}
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
            t.ClapConfig(text_config={**text, "projection_dim": 8}, audio_config={**audio, **branch, "projection_dim": 8})
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


def oobleck(latents: int) -> Any:
    sizes = dict(encoder_hidden_size=6, decoder_channels=3, downsampling_ratios=[1, 2], channel_multiples=[2, 4])
    return d.AutoencoderOobleck(decoder_input_channels=latents, audio_channels=2, sampling_rate=4, **sizes)


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
        projection_model=d.StableAudioProjectionModel(text_encoder_dim=16, conditioning_dim=4, min_value=0, max_value=32),
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


SQUARE, BAD = dict(height=16, width=16), dict(negative_prompt="bad")
CLIP16 = dict(max_sequence_length=16)
TINY: dict[str, Tiny] = {
    "StableDiffusionPipeline": Tiny(stable_diffusion, dict(guidance_scale=5.0), BAD),
    "StableDiffusionXLPipeline": Tiny(sdxl, dict(guidance_scale=5.0, **SQUARE), BAD),
    "PixArtAlphaPipeline": Tiny(pixart, dict(guidance_scale=5.0, use_resolution_binning=False, **SQUARE)),
    "PixArtSigmaPipeline": Tiny(pixart, dict(guidance_scale=5.0, use_resolution_binning=False, **SQUARE)),
    "StableDiffusion3Pipeline": Tiny(sd3, dict(guidance_scale=5.0, **SQUARE, **CLIP16), BAD),
    "FluxPipeline": Tiny(flux, dict(guidance_scale=3.0, true_cfg_scale=2.0, height=8, width=8, **CLIP16), BAD),
    "Flux2KleinPipeline": Tiny(
        flux2_klein, dict(guidance_scale=4.0, height=8, width=8, max_sequence_length=64, text_encoder_out_layers=(1,))
    ),
    "SanaPipeline": Tiny(sana, dict(guidance_scale=4.0, complex_human_instruction=None, use_resolution_binning=False, **SQUARE, **CLIP16), BAD),
    "SanaSprintPipeline": Tiny(sana_sprint, dict(guidance_scale=4.0, complex_human_instruction=None, use_resolution_binning=False, intermediate_timesteps=None, **SQUARE, **CLIP16)),
    "QwenImagePipeline": Tiny(qwen_image, dict(true_cfg_scale=3.0, **SQUARE, **CLIP16), BAD, guidance="true_cfg_scale"),
    "ZImagePipeline": Tiny(z_image, dict(guidance_scale=3.0, **SQUARE, max_sequence_length=64), BAD),
    "LatentConsistencyModelPipeline": Tiny(lcm, dict(guidance_scale=5.0, **SQUARE)),
    "WanPipeline": Tiny(wan, dict(guidance_scale=5.0, num_frames=5, **SQUARE, **CLIP16), BAD),
    "LTXPipeline": Tiny(ltx, dict(guidance_scale=3.0, num_frames=9, height=32, width=32, **CLIP16), BAD),
    "CogVideoXPipeline": Tiny(cogvideox, dict(guidance_scale=5.0, num_frames=8, **SQUARE, **CLIP16), BAD),
    "AudioLDM2Pipeline": Tiny(audioldm2, dict(guidance_scale=3.0)),
    "StableAudioPipeline": Tiny(stable_audio, dict(guidance_scale=3.0), BAD),
    "AceStepPipeline": Tiny(ace_step, dict(audio_duration=0.4, max_text_length=64), dict(lyrics="la la")),
}


def build(name: str, seed: int = 0) -> Any:
    """The pipeline of that class: frozen, in eval mode, float32."""
    transformers_quiet()
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        parts = TINY[name].parts()
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                randomise(part.eval().requires_grad_(False))
        extra = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        pipe = getattr(d, name)(**parts, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def randomise(module: torch.nn.Module, size: float = 0.05) -> None:
    """Adds noise to parameters that start as a constant."""
    for p in module.parameters():
        if p.is_floating_point() and p.numel() > 1 and p.min() == p.max():
            p.data.add_(size * torch.randn_like(p))


def save(name: str, folder: Path) -> Path:
    build(name).save_pretrained(folder / name, safe_serialization=True)
    return folder / name


def config(name: str, repo: str | Path, **changes: Any) -> pipelines.PipelineConfig:
    tiny, (modality, rate) = TINY[name], MODALITIES[name]
    given = dict(steps=tiny.steps, call=tiny.call, text=tiny.text, guidance=tiny.guidance, modality=modality, rate=rate)
    return pipelines.PipelineConfig(name, str(repo), **{**given, **changes})


def policy(name: str, pipe: Any = None, **changes: Any) -> pipelines.Policy:
    """A Policy straight on the pipeline, without a folder in between."""
    tiny, (modality, rate) = TINY[name], MODALITIES[name]
    given = dict(steps=tiny.steps, call=tiny.call, text=tiny.text, guidance=tiny.guidance, modality=modality, rate=rate)
    return pipelines.Policy(pipe or build(name), **{**given, **changes})
