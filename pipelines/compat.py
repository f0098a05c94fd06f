"""Patches for pipelines of diffusers that current versions of other libraries break."""

from __future__ import annotations

from typing import Any


def patch_pipeline(pipe: Any) -> Any:
    """The same pipeline, patched in place. MusicLDM expects its CLAP to return the pooled text features as a tensor, as
    in transformers 4; transformers 5 wraps them in an output object."""
    clap: Any = getattr(pipe, "text_encoder", None)
    if type(pipe).__name__ != "MusicLDMPipeline" or "get_text_features" in vars(clap):
        return pipe
    original = clap.get_text_features

    def get_text_features(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        return getattr(output, "pooler_output", output)

    clap.get_text_features = get_text_features
    return pipe
