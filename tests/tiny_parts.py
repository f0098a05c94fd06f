"""Tokenizers, text encoders and autoencoders that several tiny pipelines share: made on the spot, nothing is
downloaded."""

from __future__ import annotations

import string
from typing import Any

import diffusers as d
import transformers as t
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = tuple(bytes_to_unicode().values())


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
    return t.RobertaTokenizer(
        vocab=ids("<s>", "<pad>", "</s>", "<unk>", "<mask>", *BYTES), merges=[], model_max_length=20
    )


def word_tokens() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = ids("<pad>", "<unk>", "a", "red", "cat", "two", "dogs", "bad")
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return t.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", padding_side="right", model_max_length=64
    )


def byt5_tokens() -> Any:
    return t.ByT5Tokenizer(extra_ids=0)


def clip(projected: bool = False, width: int = 16, positions: int = 16) -> Any:
    kind = t.CLIPTextModelWithProjection if projected else t.CLIPTextModel
    settings = dict(vocab_size=514, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    special = dict(
        max_position_embeddings=positions, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    return kind(t.CLIPTextConfig(**settings, **special))


def clip_vision(width: int = 8) -> Any:
    size = dict(hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return t.CLIPVisionModelWithProjection(
        t.CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=width, **size)
    )


def t5(width: int = 16) -> Any:
    return t.T5EncoderModel(t.T5Config(vocab_size=64, d_model=width, d_ff=16, d_kv=8, num_heads=2, num_layers=1))


def qwen3(kind: Any, width: int = 16, vocab: int = 259) -> Any:
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    size = dict(hidden_size=width, intermediate_size=16, num_hidden_layers=2, max_position_embeddings=256)
    return kind(t.Qwen3Config(vocab_size=vocab, **heads, **size))


def qwen_text(width: int = 16) -> Any:
    heads = dict(num_attention_heads=2, num_key_value_heads=2)
    rope = dict(rope_scaling=dict(mrope_section=[1, 1, 2], rope_type="default", type="default"), rope_theta=1e6)
    size = dict(hidden_size=width, intermediate_size=16, num_hidden_layers=3, vocab_size=259)
    return t.Qwen2_5_VLTextModel(t.Qwen2_5_VLTextConfig(**size, **heads, **rope))


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


def oobleck(latents: int) -> Any:
    sizes = dict(
        encoder_hidden_size=2 * latents, decoder_channels=3, downsampling_ratios=[1, 2], channel_multiples=[2, 4]
    )
    return d.AutoencoderOobleck(decoder_input_channels=latents, audio_channels=2, sampling_rate=4, **sizes)


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
