"""Sets of sounds in the space of a model that hears: FAD, KAD, Vendi and examples, for whole batches and song by song.

The distances are those of frechet.py, mmd.py and vendi.py; here is what their rows are. `rows: songs` makes one row of
each sound, the mean of its windows; `rows: windows` takes every window of every sound as a row, as FAD's tools do. With
song_set the windows of one sound are the set: FAD per song (arXiv:2311.01616), which DRAGON (arXiv:2504.15217) optimises.
`reference` may be text, one description a line, where the model reads: music by written example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rewards.encoders import audio as ears
from rewards.encoders.audio_frontend import AUDIO, mono
from rewards.sets.exemplar import Exemplar, ReferenceReward
from rewards.sets.frechet import Frechet
from rewards.sets.mmd import KAD
from rewards.sets.moments import Moments, finite
from rewards.sets.vendi import Vendi
from workbench.core.io import audio as sounds
from workbench.core.types import BadInput, Media, NonNegative, Reward, RewardSpec

Rows = Literal["windows", "songs"]
CLAP = "laion/larger_clap_music"
_HASHED: WeakKeyDictionary[ears.Ear, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class Sounds:
    """Sounds as points of a hearing model's space, an Embedder: [B,D], or with `pooled` all windows of all sounds."""

    model: str = CLAP  # see rewards/encoders/audio.py for the forms
    dtype: str = "float32"
    window: float = 0.0  # seconds; 0: the model's own
    hop: float = 0.0
    pooled: bool = False
    checkpoint: bool = field(default=False, repr=False)  # changes no embedding, so it is not in a cache's key

    modalities = AUDIO
    suffixes = sounds.SUFFIXES

    def __call__(self, media: Media) -> Tensor:
        found = self.windows(media)
        return found.flatten(0, 1) if self.pooled else self.ear(media.data.device).mean(found)

    def windows(self, media: Media) -> Tensor:
        """float32 [B,W,D], graph attached."""
        x = mono(RewardSpec(self.model, "", AUDIO, True), media, ())
        return self.ear(x.device).windows(x, media.rate, self.window, self.hop, self.checkpoint)

    def texts(self, lines: Sequence[str], device: torch.device) -> Tensor:
        return self.ear(device).texts(lines)

    def read(self, path: Path) -> Media:
        data, rate, _ = sounds.read(path)
        return Media(data[None], "audio", rate)

    def load(self, device: torch.device) -> None:
        self.ear(device)

    def fingerprint(self, device: torch.device) -> str:
        ear = self.ear(device)
        if ear not in _HASHED:
            digest = hashlib.blake2b(ear.view.encode(), digest_size=16)
            for name, value in ear.net.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            _HASHED[ear] = digest.hexdigest()
        return _HASHED[ear]

    def check(self) -> None:
        ears.check(self.model)

    def ear(self, device: torch.device | str) -> ears.Ear:
        return ears.load(self.model, device, self.dtype)


@dataclass(frozen=True)
class Heard:
    """The settings of a set reward on sounds, before the reward itself among the bases."""

    model: str = CLAP  # see rewards/encoders/audio.py for the forms
    window: NonNegative = 0.0  # seconds of a window, at most the model's own, which 0 stands for
    hop: NonNegative = 0.0  # seconds from one window to the next; 0: the model's own, scaled with the window

    rows: ClassVar[Rows] = "songs"

    @property
    def embedder(self) -> Sounds:
        return Sounds(self.model, self.dtype, self.window, self.hop, self.rows == "windows", self.checkpoint)


@dataclass(frozen=True)
class Windowed(Heard):
    """A set reward whose rows may be windows. Those of one sound stay together, so that credit can be given to sounds."""

    rows: Rows = "windows"  # every window of every sound is a row of the set, or one row for each sound

    def features(self, media: Media) -> Tensor:
        """float32 [B,D], or [B,W*D]: the windows of a sound side by side."""
        if self.rows == "songs":
            return super().features(media)
        self._accept(media)
        return self.embedder.windows(media).flatten(1)

    def windows(self, media: Media) -> Tensor:
        """float32 [B,W,D]."""
        self._accept(media)
        return self.embedder.windows(media)

    def _accept(self, media: Media) -> None:
        if media.modality != "audio":
            raise BadInput(f"{self.spec.name} judges audio, not {media.modality}")

    def prepare(self, found: Any) -> Any:
        return super().prepare(found if isinstance(found, Moments) else self._points(found))

    def of(self, x: Tensor, target: Any) -> Tensor:
        return super().of(self._points(x), target)

    def _points(self, x: Tensor) -> Tensor:
        """[N,D], one row a window, of [B,W*D]."""
        return x.reshape(-1, self.embedder.ear(x.device).width)


REFERENCE = frozenset({"reference"})


@dataclass(frozen=True)
class FAD(Windowed, Frechet):
    """Minus the Fréchet audio distance between the batch and a reference set (arXiv:1812.08466).

    Never compare it across encoders, windows or numbers of rows: `infinity` removes the last of these dependences.
    """

    spec = RewardSpec("fad", "1", AUDIO, True, scope="set", needs=REFERENCE, paper="arXiv:1812.08466")


@dataclass(frozen=True)
class AudioKAD(Windowed, KAD):
    """Minus the kernel audio distance, 100 MMD^2 with a Gaussian kernel (arXiv:2502.15602); unbiased, so for small sets."""

    spec = RewardSpec("audio_kad", "1", AUDIO, True, scope="set", needs=REFERENCE, paper="arXiv:2502.15602")

    def witness(self, x: Tensor, target: Any) -> Tensor:
        """[n]: the mean credit of a sound's windows."""
        return super().witness(self._points(x), target).view(len(x), -1).mean(1)


@dataclass(frozen=True)
class AudioVendi(Windowed, Vendi):
    """The effective number of different sounds in the batch. Noise is diverse too: pair it with a reward of quality."""

    rows: Rows = "songs"

    spec = RewardSpec("audio_vendi", "1", AUDIO, True, scope="set", paper="arXiv:2210.02410")

    def prepare(self, found: Any) -> Any:
        return None


@dataclass(frozen=True)
class AudioExemplar(Heard, Exemplar):
    """How near each sound lies to a set of examples, sounds or written descriptions: DRAGON's instance reward."""

    spec = RewardSpec("audio_exemplar", "1", AUDIO, True, needs=REFERENCE, paper="arXiv:2504.15217")


@dataclass(frozen=True)
class SongSet:
    """A set reward of every sound by itself, its windows the set: FAD per song with {fad: {reference: music/}}.

    A sound needs two windows to have a spread; of short ones make `window` short. What has fewer is NaN.
    """

    of: Any  # fad, audio_kad or audio_vendi: its name, a block with settings, or an instance

    spec = RewardSpec("song_set", "1", AUDIO, differentiable=True, paper="arXiv:2504.15217")

    def __post_init__(self):
        from rewards.compose import from_config  # it builds on the registry that names this class

        of = self.of if isinstance(self.of, Reward) else _only(from_config(self.of, where="song_set.of"))
        if not isinstance(of, Windowed):
            raise BadInput(
                f"song_set.of: {of.spec.name} does not judge windows of sounds; take fad, audio_kad, audio_vendi"
            )
        own = {"needs": of.spec.needs, "version": f"{of.spec.name} {of.spec.version} {of.window:g} {of.hop:g}"}
        object.__setattr__(self, "of", replace(of, rows="windows"))
        object.__setattr__(self, "spec", replace(self.spec, **own))

    def check(self) -> None:
        self.of.check()

    def load(self, device: torch.device | str = "cpu") -> None:
        self.of.load(device)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        songs = self.of.windows(media)  # [B,W,D]
        target = self.of.target(references, songs.device) if isinstance(self.of, ReferenceReward) else None
        scores = [self._one(song, target) for song in songs]
        return torch.stack(scores).to(songs.device, torch.float32)

    def _one(self, song: Tensor, target: Any) -> Tensor:
        rows = finite(song)
        return self.of.of(rows, target) if len(rows) == len(song) > 1 else (song * 0).sum().double() + torch.nan


def _only(weighted: Any) -> Reward:
    if len(weighted.rewards) != 1 or list(weighted.weights.values()) != [1.0]:
        raise BadInput("song_set.of: takes one set reward, without a weight; add further ones beside song_set")
    return next(iter(weighted.rewards.values()))
