"""Pipelines that diffusers no longer tends, brought up to the libraries of today."""

from __future__ import annotations

from typing import Any


def patch_pipeline(pipe: Any) -> Any:
    """The same pipeline. MusicLDM wants of its CLAP the pooled text as transformers 4 returned it, bare; transformers
    5 wraps it, and the pipeline's own call breaks."""
    clap: Any = getattr(pipe, "text_encoder", None)
    if type(pipe).__name__ != "MusicLDMPipeline" or "get_text_features" in vars(clap):
        return pipe
    original = clap.get_text_features

    def get_text_features(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        return getattr(output, "pooler_output", output)

    clap.get_text_features = get_text_features
    return pipe
