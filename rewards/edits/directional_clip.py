"""Whether a picture changed as its text did: directional CLIP similarity."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.edits.sources import check_sources
from rewards.encoders import image_text
from rewards.encoders.frozen_reward import EncoderReward
from rewards.encoders.preprocess import media_pixels
from workbench.core.errors import BadInput
from workbench.core.inputs import FileInput, prompt_inputs
from workbench.core.io.parsing import parse_json, read_text
from workbench.core.text import one_line
from workbench.core.types import Media, RewardSpec

Captions = Mapping[tuple[str, str], tuple[str, str]]  # (prompt, digest of its source or "") -> before, after


@dataclass(frozen=True)
class DirectionalCLIP(EncoderReward):
    """The cosine of the change from source to picture and the change of the text, both in a CLIP or SigLIP model
    (StyleGAN-NADA, arXiv:2108.00946, Eq. 2; the edits' metric of InstructPix2Pix, arXiv:2211.09800).

    The text changes from a caption of the source to a caption of the result. An instruction is neither, so give both by
    `captions`: a .jsonl, which may be the run's own prompt file, with the keys `prompt`, `source` (where one
    instruction belongs to several), `source_prompt` and `target_prompt` (the prompt itself where it is missing).
    Without such a file the prompt counts as the caption of the result, and `source_prompt` as that of every source.

    A picture without any change has no direction, and scores 0.
    """

    model: str = "openai/clip-vit-large-patch14"  # see rewards/encoders/image_text.py for the forms
    captions: str = ""  # a .jsonl with captions before and after
    source_prompt: str = "photo"  # what all sources show, where there are no `captions`

    spec = RewardSpec(
        "directional_clip",
        "ViT-L-14",
        frozenset({"image"}),
        differentiable=True,
        needs=frozenset({"prompt", "source"}),
        typical=(0.0, 0.3),
        paper="arXiv:2211.09800",
        weights="openai/clip-vit-large-patch14",
        licence="MIT",
        bounds=(-1.0, 1.0),
    )

    def __post_init__(self):
        changes: dict = {}
        if self.model != type(self).model:
            changes = {"version": self.model, "typical": None, "weights": self.model, "licence": ""}
        if self.captions:  # told apart by their content
            digest = hashlib.sha256(repr(sorted(self._read_captions().items())).encode()).hexdigest()[:8]
            changes["version"] = f"{changes.get('version', self.spec.version)} captions={digest}"
        object.__setattr__(self, "spec", replace(self.spec, **changes))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises BadInput for a prompt without captions."""
        for prompt in prompts:
            self._find_captions(prompt)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x, sources = media_pixels(self.spec, media, prompts), check_sources(self.spec, media, references)
        encoder, pairs = self.load(x.device), [self._find_captions(p) for p in prompts]
        with torch.no_grad():
            old = encoder.embed_images(media_pixels(self.spec, sources, prompts))
        image = encoder.embed_images(x, checkpoint=self.checkpoint) - old  # [B,D]
        before, after = (encoder.embed_texts(texts) for texts in zip(*pairs, strict=True))
        return (F.normalize(image, dim=1) * F.normalize(after - before, dim=1)).sum(1)

    def score(self, loaded: image_text.ImageTextEncoder, x: Tensor, prompts: Sequence[str]) -> Tensor:
        raise NotImplementedError("the change of a picture can't be seen in the picture alone")

    def _find_captions(self, prompt: str) -> tuple[str, str]:
        """Captions before and after. Raises BadInput."""
        if not self.captions:
            return self.source_prompt, str(prompt)
        captions, source = self._read_captions(), prompt_inputs(prompt).get("source")
        keys = [(str(prompt), source.digest if source else ""), (str(prompt), "")]
        if not (pair := next((captions[key] for key in keys if key in captions), None)):
            raise BadInput(
                f"captions: {self.captions} has no line for the prompt {one_line(prompt, 60)!r} with its source"
            )
        return pair

    def _read_captions(self) -> Captions:
        path = Path(self.captions).expanduser()
        if path.suffix.lower() != ".jsonl":
            raise BadInput(f"captions: {path}: give a .jsonl with the keys prompt, source_prompt and target_prompt")
        try:
            stamp = path.stat()
        except OSError as error:
            raise BadInput(f"captions: {path}: can't be read ({error.strerror})") from None
        return _parse_captions(path, (stamp.st_mtime_ns, stamp.st_size))


@functools.lru_cache(8)
def _parse_captions(path: Path, stamp: tuple[int, int]) -> Captions:
    captions: dict[tuple[str, str], tuple[str, str]] = {}
    for n, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"captions: {path}, line {n}"
        row = parse_json(line, where)
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "source_prompt")):
            raise BadInput(f"{where}: needs texts under the keys prompt and source_prompt")
        after = row.get("target_prompt", row["prompt"])
        source = row.get("source")
        if not isinstance(after, str) or not isinstance(source, str | None):
            raise BadInput(f"{where}: target_prompt is a text and source a file")
        key = (row["prompt"].strip(), FileInput.at(path.parent / source).digest if source else "")
        if captions.setdefault(key, (row["source_prompt"], after)) != (row["source_prompt"], after):
            raise BadInput(f"{where}: the same prompt has other captions above; tell them apart by `source`")
    if not captions:
        raise BadInput(f"captions: {path} has no line in it")
    return captions
