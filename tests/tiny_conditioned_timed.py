"""Tiny pipelines that make clips and sounds from a source: a first frame, another sound, a voice to sing with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as d
import tiny_audio as audio
import tiny_video as video
import transformers as t
from tiny import BAD, CLIP16, SQUARE, TABLES, TINY, Tiny
from tiny_conditioned import own_settings
from tiny_parts import clip, clip_tokens


def wan(two: bool = False, **transformer: Any) -> dict[str, Any]:
    """Wan 2.2 without a picture encoder: the first frame is in the channels that its denoiser gets."""
    parts = video.wan()
    settings = own_settings(parts["transformer"], **{"in_channels": 4 + 4 + 4, **transformer})
    parts["transformer"] = d.WanTransformer3DModel(**settings)
    parts |= dict(image_encoder=None, image_processor=None)
    if two:
        parts |= dict(transformer_2=d.WanTransformer3DModel(**settings), boundary_ratio=0.9)
    return parts


def wan_21() -> dict[str, Any]:
    """Wan 2.1 between two frames (FLF2V): its denoiser attends to what CLIP sees in both, too."""
    return wan(image_dim=8, added_kv_proj_dim=24, pos_embed_seq_len=10) | dict(
        image_encoder=clip_vision(), image_processor=clip_pictures()
    )


def wan_5b() -> dict[str, Any]:
    """Wan 2.2 TI2V 5B: the first frame lies in the first latent frame, which is given time 0."""
    return wan(in_channels=4) | dict(expand_timesteps=True)


def wan_of_clips() -> dict[str, Any]:
    parts = video.wan()
    del parts["transformer_2"]
    return parts


def cogvideox() -> dict[str, Any]:
    parts = video.cogvideox()
    settings = own_settings(parts["transformer"], in_channels=8)
    return parts | dict(transformer=d.CogVideoXTransformer3DModel(**settings))


def hunyuan_video_15() -> dict[str, Any]:
    parts = video.hunyuan_video_15()
    settings = own_settings(parts["transformer"], task_type="i2v")
    encoder = t.SiglipVisionConfig(
        hidden_size=12, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    return parts | dict(
        transformer=d.HunyuanVideo15Transformer3DModel(**settings),
        image_encoder=t.SiglipVisionModel(encoder),
        feature_extractor=t.SiglipImageProcessor(size=SQUARE),
    )


def hunyuan_video() -> dict[str, Any]:
    """HunyuanVideo: Llava reads the first frame with the prompt, and the first latent frame is kept as it is given."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    parts = video.hunyuan_video()
    settings = own_settings(parts["transformer"], image_condition_type="token_replace")
    text = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=3)
    words = ("<pad>", "<unk>", "<image>", "<|end_header_id|>", "a", "red", "cat", "two", "dogs", "bad")
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    llava = t.LlavaConfig(
        vision_config=clip_vision().config,
        text_config=t.LlamaConfig(**text),
        image_token_index=words.index("<image>"),
        vision_feature_layer=-1,
        pad_token_id=0,
    )
    return parts | dict(
        transformer=d.HunyuanVideoTransformer3DModel(**settings),
        text_encoder=t.LlavaForConditionalGeneration(llava),
        tokenizer=t.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="right", model_max_length=64
        ),
        text_encoder_2=clip(positions=77),
        tokenizer_2=clip_tokens(),
        image_processor=clip_pictures(),
    )


def clip_vision() -> Any:
    settings = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, projection_dim=8)
    return t.CLIPVisionModel(t.CLIPVisionConfig(image_size=16, patch_size=8, **settings))


def clip_pictures() -> Any:
    return t.CLIPImageProcessor(crop_size=16, size=16)


def stable_audio() -> dict[str, Any]:
    """With little noise over the source: at the class's own 500 it would not be heard."""
    scheduler = d.CosineDPMSolverMultistepScheduler(sigma_schedule="exponential", sigma_max=2.0)
    return audio.stable_audio() | dict(scheduler=scheduler)


def stable_audio_3(inpaints: bool = False) -> dict[str, Any]:
    parts = audio.stable_audio_3()
    if inpaints:  # mask and masked source: 1 + 8 channels
        settings = own_settings(parts["transformer"], local_add_cond_dim=9)
        parts["transformer"] = d.StableAudio3DiTModel(**settings)
    return parts


def louder(*parts: Any, by: float) -> None:
    """Larger weights, so that what comes out depends on what goes in: what tiny encoders make of all sounds is else
    nearly the same."""
    for part in parts:
        for p in part.parameters():
            if p.dim() > 1:
                p.data.mul_(by)


def louder_inpainting(pipe: Any) -> None:
    louder(pipe.vae.encoder, *(block.to_local_embed for block in pipe.transformer.transformer_blocks), by=3.0)


SOURCE_CLIP = dict(source="video")
CLIP = dict(num_frames=5, **SQUARE, **CLIP16)
SONG = dict(audio_duration=4.0, max_text_length=64, guidance_scale=1.0)
RATE = 4.0  # samples a second, of the tiny autoencoders
READ_BY_LLAVA = "a <image> <|end_header_id|> <|end_header_id|> {} end start assistant <|end_header_id|>"
HUNYUAN = dict(guidance_scale=6.0, true_cfg_scale=3.0, num_frames=5, **SQUARE, **CLIP16) | dict(
    image_embed_interleave=2,
    prompt_template=dict(template=READ_BY_LLAVA, crop_start=4, image_emb_start=1, image_emb_end=5, image_emb_len=4),
)


def ace(call: dict[str, Any], **inputs: str) -> Tiny:
    def extend(pipe: Any) -> None:
        louder(pipe.audio_tokenizer, pipe.audio_token_detokenizer, pipe.condition_encoder.timbre_encoder, by=4.0)

    return Tiny(audio.ace_step, SONG | call, dict(lyrics="la la"), inputs=inputs, rate=RATE, extend=extend)


def timed(parts: Callable[[], dict[str, Any]], call: dict[str, Any], **settings: Any) -> Tiny:
    return Tiny(parts, call, **{"text": BAD, **settings})


CONDITIONED_TIMED: dict[str, Tiny] = {
    "WanImageToVideoPipeline": timed(
        wan_21, dict(guidance_scale=4.0, **CLIP), inputs=dict(first="image", last="last_image")
    ),
    "WanImageToVideoPipeline:2.2": timed(lambda: wan(two=True), dict(guidance_scale=4.0, guidance_scale_2=3.0, **CLIP)),
    "WanImageToVideoPipeline:5b": timed(wan_5b, dict(guidance_scale=4.0, **CLIP)),
    "LTXImageToVideoPipeline": timed(video.ltx, TINY["LTXPipeline"].call),
    "LTXConditionPipeline": timed(video.ltx, TINY["LTXPipeline"].call | dict(image_cond_noise_scale=0.0)),
    "CogVideoXImageToVideoPipeline": timed(cogvideox, TINY["CogVideoXPipeline"].call),
    "HunyuanVideoImageToVideoPipeline": timed(hunyuan_video, HUNYUAN),
    "HunyuanVideo15ImageToVideoPipeline": timed(
        hunyuan_video_15, dict(num_frames=5), guidance="", fixed=TINY["HunyuanVideo15Pipeline"].fixed
    ),
    "CogVideoXVideoToVideoPipeline": timed(
        video.cogvideox,
        dict(guidance_scale=5.0, strength=0.7, **SQUARE, **CLIP16),
        inputs=SOURCE_CLIP,
        input_size=[9, 16, 16],
        steps=5,
    ),
    "WanVideoToVideoPipeline": timed(
        wan_of_clips,
        dict(guidance_scale=5.0, strength=0.7, **SQUARE, **CLIP16),
        inputs=SOURCE_CLIP,
        input_size=[5, 16, 16],
        steps=5,
    ),
    "StableAudioPipeline:source": timed(
        stable_audio, dict(guidance_scale=3.0), inputs=dict(source="initial_audio_waveforms"), rate=RATE
    ),
    "StableAudio3AudioToAudioPipeline": timed(
        stable_audio_3,
        dict(duration=1.0, init_noise_level=0.6, logsnr_min=-0.7),
        text={},
        guidance="",
        rate=16.0,
        extend=lambda pipe: louder(pipe.vae, by=2.0),
    ),
    "StableAudio3InpaintPipeline": timed(
        lambda: stable_audio_3(inpaints=True),
        dict(duration=1.0, mask_start_seconds=0.25, mask_end_seconds=0.75),
        text={},
        guidance="",
        rate=16.0,
        extend=louder_inpainting,
    ),
    "AceStepPipeline:repaint": ace(
        dict(task_type="repaint", repainting_start=1.0, repainting_end=3.0), source="src_audio"
    ),
    "AceStepPipeline:cover": ace(dict(task_type="cover"), source="src_audio"),
    "AceStepPipeline:cover+reference": ace(dict(task_type="cover"), source="src_audio", reference="reference_audio"),
}
TABLES.append(CONDITIONED_TIMED)
