"""The sources that a reward of edits is called with."""

from __future__ import annotations

from dataclasses import replace

from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec


def check_sources(spec: RewardSpec, media: Media, references: Media | None) -> Media:
    """The sources, one a sample, on the samples' device. Raises BadInput where there are none, and ValueError for
    another number."""
    if references is None:
        raise BadInput(f"{spec.name} compares with what was edited: give a source with each prompt, or `references`")
    if len(references) != len(media):
        raise ValueError(f"{spec.name} needs a source a sample: {len(references)} for {len(media)} samples")
    return replace(references, data=references.data.detach().to(media.data.device))
