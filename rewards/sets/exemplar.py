"""Sets in an embedding: what judges a batch as a set, and reference sets of examples (DRAGON, arXiv:2504.15217).

`reference` is a folder of pictures, one picture, or text: a .txt file (or a folder of them) with an example a line,
seen by the text tower, so that a reward for pictures can be written down. Texts and pictures lie apart in such a space
("modality gap"): a distance between the two ranks batches, but its size is mostly the gap.

A reference is embedded once. Its rows, or its moments, are kept in WORKBENCH_CACHE (~/.cache/media-alignment-workbench)
under a hash of the examples' content and of the model's weights, so neither a changed file nor a retrained model is
answered with stale numbers. One process looks at a reference once: it is not noticed to change under a run.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.encoders import image_text
from rewards.encoders.preprocess import media_pixels
from rewards.sets.moments import Moments, finite_rows
from workbench.core.errors import BadInput
from workbench.core.io import folders, image
from workbench.core.io.parsing import read_text, split_lines
from workbench.core.paths import write_atomic
from workbench.core.types import Count, Media, Modality, RewardSpec

log = logging.getLogger(__name__)
IMAGE_AND_VIDEO: frozenset[Modality] = frozenset({"image", "video"})
BATCH, BATCH_VALUES = 64, 1 << 26  # examples embedded at once, and their values


@runtime_checkable
class Embedder(Protocol):
    """Media as points of a space. Hashable, equal when interchangeable; weights load on first use."""

    modalities: frozenset[Modality]
    suffixes: frozenset[str]  # of files that are no media, and that `read` reads all the same

    def __call__(self, media: Media) -> Tensor: ...  # float32 [B,D], graph attached, row b depends on media[b] alone

    def texts(self, lines: Sequence[str], device: torch.device) -> Tensor: ...  # [N,D]; BadInput without a text tower

    def read(self, path: Path) -> Media: ...  # one row; BadInput names the file

    def load(self, device: torch.device) -> None: ...  # the weights, now

    def fingerprint(self, device: torch.device) -> str: ...  # changes with the weights

    def check(self) -> None: ...  # BadInput for what is wrong before anything loads


@dataclass(frozen=True)
class PictureEmbedder:
    """Unit vectors of a CLIP or SigLIP model; a clip is the direction of its frames' mean."""

    model: str
    dtype: str = "float32"
    checkpoint: bool = field(default=False, repr=False)  # changes no embedding, so it is not in a cache's key

    modalities = IMAGE_AND_VIDEO
    suffixes = frozenset[str]()

    def __call__(self, media: Media) -> Tensor:
        x = media_pixels(RewardSpec(self.model, "", IMAGE_AND_VIDEO, True), media, ())
        rows = self._encoder(x.device).embed_images(x.flatten(0, -4), checkpoint=self.checkpoint)  # [B*T,D]
        return rows if media.modality == "image" else F.normalize(rows.view(*x.shape[:2], -1).mean(1), dim=1)

    def texts(self, lines: Sequence[str], device: torch.device) -> Tensor:
        return self._encoder(device).embed_texts(lines)

    def read(self, path: Path) -> Media:
        return Media(image.read_image(path)[None], "image")

    def load(self, device: torch.device) -> None:
        self._encoder(device)

    def fingerprint(self, device: torch.device) -> str:
        return _hash_weights(self._encoder(device))

    def check(self) -> None:
        image_text.check_encoder(self.model)

    def _encoder(self, device: torch.device | str) -> image_text.ImageTextEncoder:
        return image_text.load_encoder(self.model, device, self.dtype)


_HASHED: WeakKeyDictionary[image_text.ImageTextEncoder, str] = WeakKeyDictionary()


def _hash_weights(encoder: image_text.ImageTextEncoder) -> str:
    """A hash of an encoder's weights and of how it looks at pictures."""
    if encoder not in _HASHED:
        digest = hashlib.blake2b(repr(encoder.view).encode(), digest_size=16)
        for name, value in encoder.net.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        _HASHED[encoder] = digest.hexdigest()
    return _HASHED[encoder]


def list_examples(reference: str, embedder: Embedder) -> folders.Listing:
    """The example files that `reference` stands for, all media, by their content, or all text; and what else is there.

    Raises BadInput for nothing there, nothing readable there, or both kinds.
    """
    root = Path(reference).expanduser()
    if not root.exists():
        raise BadInput(f"reference: {root} does not exist; give a folder of examples or a .txt of one a line")
    files = folders.list_files(root) if root.is_dir() else [root]
    media = [p for p in files if _is_example(p, embedder)]
    texts = [p for p in files if p.suffix.lower() == ".txt" and p not in media]
    if bool(media) == bool(texts):
        content = f"both media and text ({media[0].name}, {texts[0].name})" if media else "no examples"
        raise BadInput(f"reference: {root} holds {content}; it takes {_example_kind(embedder)}, or .txt")
    chosen = media or texts
    return folders.Listing(tuple(chosen), tuple(p for p in files if p not in set(chosen)))


def _example_kind(embedder: Embedder) -> str:
    return "pictures" if "image" in embedder.modalities else "sounds"


def _is_example(path: Path, embedder: Embedder) -> bool:
    if (modality := folders.modality_of(path)) is None:
        return path.suffix.lower() in embedder.suffixes
    return modality == ("image" if "image" in embedder.modalities else "audio")


def embed_examples(files: Sequence[Path], embedder: Embedder, device: torch.device) -> Iterator[Tensor]:
    """The examples in chunks [<=64,D], never all in memory. Raises BadInput for a file that can't be read."""
    if files[0].suffix.lower() == ".txt":
        lines = (line.strip() for path in files for line in split_lines(read_text(path)) if line.strip())
        while chunk := list(itertools.islice(lines, BATCH)):
            yield embedder.texts(chunk, device)
        return
    for batch in batch_alike(embedder.read(path) for path in files):
        yield embedder(replace(batch, data=batch.data.to(device)))


def batch_alike(rows: Iterable[Media]) -> Iterator[Media]:
    """Neighbours of equal shape and rate in batches, of which each holds at most BATCH rows and about BATCH_VALUES."""
    for (shape, _), group in itertools.groupby(rows, key=lambda m: (m.data.shape, m.rate)):
        while chunk := list(itertools.islice(group, max(min(BATCH, BATCH_VALUES // max(shape.numel(), 1)), 1))):
            yield Media.cat(chunk)


@torch.no_grad()
def load_examples(reference: str, embedder: Embedder, device: torch.device, keeps: str) -> Tensor | Moments:
    """A reference's `rows` [N,D] or its `moments`, embedded now or taken from the cache."""
    files = list_examples(reference, embedder).files
    digest = hashlib.sha256(f"{keeps} {embedder!r} {embedder.fingerprint(device)}".encode())
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    path = _cache_folder() / f"{digest.hexdigest()[:40]}.safetensors"
    if path.is_file():
        state = safetensors.torch.load_file(path, device=str(device))
    else:
        state = _embedding_state(embed_examples(files, embedder, device), keeps)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, safetensors.torch.save({k: v.cpu().contiguous() for k, v in state.items()}))
    if keeps == "rows":
        return state["rows"]
    return Moments(int(state["count"]), state["mean"], state["scatter"])


def _cache_folder() -> Path:
    return Path(os.environ.get("WORKBENCH_CACHE") or "~/.cache/media-alignment-workbench").expanduser() / "exemplars"


def _embedding_state(parts: Iterator[Tensor], keeps: str) -> dict[str, Tensor]:
    if keeps == "rows":
        return {"rows": torch.cat(list(parts))}
    m = Moments.from_chunks(parts)
    return {"count": torch.tensor(m.count), "mean": m.mean, "scatter": m.scatter}


@dataclass(frozen=True)
class SetReward:
    """A batch judged as a set in an embedding; a subclass says how, in `score_rows`.

    Samples that can't be embedded (NaN) are left out of the set; a set too small to judge is NaN.
    """

    model: str | Embedder = (
        "openai/clip-vit-large-patch14"  # see rewards/encoders/image_text.py for the forms; or an Embedder
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the backbone; statistics are float64
    checkpoint: bool = False  # recompute in the backward pass: activations are held for that moment only

    spec: ClassVar[RewardSpec]

    def __post_init__(self):
        changes = {"modalities": self.embedder.modalities, "version": f"{self.spec.version} {self.model}"}
        object.__setattr__(self, "spec", replace(self.spec, **changes))

    @property
    def embedder(self) -> Embedder:
        return PictureEmbedder(self.model, self.dtype, self.checkpoint) if isinstance(self.model, str) else self.model

    def check(self) -> None:
        """Raises BadInput for what can be known to be wrong before anything loads."""
        self.embedder.check()

    def load(self, device: torch.device | str = "cpu") -> None:
        self.embedder.load(torch.device(image_text.device_key(device)))

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = self.features(media)
        return self.score_rows(finite_rows(x), self.target(references, x.device)).to(x.device, torch.float32)

    def features(self, media: Media) -> Tensor:
        """float32 [B,D], graph attached. Raises BadInput for a modality that this reward does not judge."""
        if media.modality not in self.spec.modalities:
            modalities = " and ".join(sorted(self.spec.modalities))
            raise BadInput(f"{self.spec.name} judges {modalities}, not {media.modality}")
        return self.embedder(media)

    def target(self, references: Media | None, device: torch.device) -> Any:
        """What `score_rows` compares the set with, if anything."""

    def score_rows(self, x: Tensor, target: Any) -> Tensor:
        """float64 [] from x [N,D], finite."""
        raise NotImplementedError


@dataclass(frozen=True)
class ReferenceReward(SetReward):
    """A batch compared with a set of examples, which a subclass turns into what it needs in `prepare`."""

    reference: str = ""  # folder, picture or .txt of examples; without it, the call's `references` are the set

    keeps: ClassVar[str] = "rows"  # of the examples: rows, or moments
    min_examples: ClassVar[int] = 2  # finite examples that a reference needs

    def __post_init__(self):
        super().__post_init__()
        if self.reference:
            object.__setattr__(self, "spec", replace(self.spec, needs=self.spec.needs - {"reference"}))

    def check(self) -> None:
        super().check()
        if self.reference:
            left_out = list_examples(self.reference, self.embedder).left_out_sentence(_example_kind(self.embedder))
            if left_out:
                log.warning("reference %s: %s", self.reference, left_out)

    def load(self, device: torch.device | str = "cpu") -> None:
        """The model, and the reference if one is named, onto `device` now instead of on first use."""
        super().load(device)
        if self.reference:
            _load_target(self, torch.device(image_text.device_key(device)))

    def target(self, references: Media | None, device: torch.device) -> Any:
        """The named reference, else `references`. Raises BadInput when there is neither."""
        if self.reference:
            return _load_target(self, device)
        if references is None:
            raise BadInput(f"{self.spec.name} compares with a set: set `reference` to a folder of examples or a .txt")
        with torch.no_grad():
            return self.prepare(self.features(replace(references, data=references.data.to(device))))

    def prepare(self, embedded: Any) -> Any:
        """Rows [N,D], or Moments, as `score_rows` wants them."""
        return finite_rows(embedded)


@functools.lru_cache(32)
def _load_target(reward: ReferenceReward, device: torch.device) -> Any:
    embedded = load_examples(reward.reference, reward.embedder, device, reward.keeps)
    count = embedded.count if isinstance(embedded, Moments) else len(finite_rows(embedded))
    if count < reward.min_examples:
        raise BadInput(
            f"reference: {reward.reference} has {count} examples; {reward.spec.name} needs {reward.min_examples}"
        )
    with torch.no_grad():
        return reward.prepare(embedded)


@dataclass(frozen=True)
class Exemplar(ReferenceReward):
    """How near each sample lies to a set of examples: DRAGON's instance-to-distribution reward.

    by `mean`: cosine to the examples' mean; `nearest`: minus the mean distance to the k nearest examples, which follows
    a set of several kinds. Both forget the batch: with diversity, take frechet, kad or cmmd through leave_one_out.
    """

    by: Literal["mean", "nearest"] = "mean"
    k: Count = 1  # examples, for `nearest`

    spec = RewardSpec(
        "exemplar", "1", IMAGE_AND_VIDEO, differentiable=True, needs=frozenset({"reference"}), paper="arXiv:2504.15217"
    )

    @property
    def min_examples(self) -> int:
        return self.k if self.by == "nearest" else 1

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = self.features(media)
        target = self.target(references, x.device)
        if len(target) < self.min_examples:
            return x.sum(1) * 0 + torch.nan
        return self.score_rows(x.to(target), target).to(x.device, torch.float32)

    def score_rows(self, x: Tensor, target: Tensor) -> Tensor:
        """[B] of x [B,D] and examples [N,D]."""
        if self.by == "mean":
            return F.cosine_similarity(x, target.mean(0)[None])
        distances = torch.cdist(x, target, compute_mode="donot_use_mm_for_euclid_dist")
        return -distances.topk(self.k, largest=False).values.mean(1)
