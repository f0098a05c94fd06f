"""Frozen audio encoders, loaded once however many rewards use them.

A model is named by one string:
    laion/larger_clap_music     a transformers CLAP: hub id or local folder (starter:... where the pack has one)
    laion:FILE                  a checkpoint of laion_clap: a path, or owner/repo/file of the hub
    vggish:FILE                 VGGish's weights as torch saves them (github.com/harritaylor/torchvggish)
    logmel                      mean and deviation of 64 log-mel bands: no weights; knows timbre and level, nothing else
"""

from __future__ import annotations

import functools

import torch

from rewards.encoders import checkpoints, image_text
from rewards.encoders.audio import AudioEncoder, log_mel_encoder
from rewards.encoders.clap import load_clap
from rewards.encoders.starter_clap import MODEL, load_music_clap
from rewards.encoders.vggish import load_vggish


def load_audio_encoder(model: str, device: torch.device | str, dtype: str = "float32") -> AudioEncoder:
    """The one encoder of these arguments. Raises BadInput for an unknown or broken model."""
    return _load_cached(model, image_text.device_key(device), dtype)


@functools.cache
@checkpoints.isolated_load()
def _load_cached(model: str, device: str, dtype: str) -> AudioEncoder:
    kind, _, source = model.partition(":")
    if model == "logmel":
        encoder = log_mel_encoder()
    elif kind == "vggish":
        encoder = load_vggish(source)
    elif model == MODEL:
        encoder = load_music_clap(model)
    else:
        encoder = load_clap(model)
    return _freeze_onto(encoder, device, dtype)


def load_starter_clap(model: str, device: torch.device | str, dtype: str = "float32") -> AudioEncoder:
    """The one text-audio encoder of the music pack, or of a folder that holds one like it. Raises BadInput."""
    return _load_starter_cached(model, image_text.device_key(device), dtype)


@functools.cache
@checkpoints.isolated_load()
def _load_starter_cached(model: str, device: str, dtype: str) -> AudioEncoder:
    return _freeze_onto(load_music_clap(model), device, dtype)


def _freeze_onto(encoder: AudioEncoder, device: str, dtype: str) -> AudioEncoder:
    checkpoints.freeze_module(encoder.net).to(device=device, dtype=getattr(torch, dtype))
    return encoder


def check_audio_encoder(model: str) -> None:
    """Raises BadInput for what can be known to be wrong without loading."""
    kind, _, source = model.partition(":")
    if kind in ("vggish", "laion"):
        checkpoints.check_source(source)
    elif model != "logmel":
        image_text.check_known_model(model)


def release_audio_encoders() -> None:
    """Forget every loaded one."""
    _load_cached.cache_clear()
    _load_starter_cached.cache_clear()
