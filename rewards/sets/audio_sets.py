"""Sets of sounds in the space of an audio encoder: FAD, KAD, Vendi and examples, for whole batches and song by song.

The distances are those of frechet.py, mmd.py and vendi.py; here is what their rows are. `rows: songs` makes one row of
each sound, the mean of its windows; `rows: windows` takes every window of every sound as a row, as FAD's tools do. With
song_set the windows of one sound are the set: FAD per song (arXiv:2311.01616), which DRAGON (arXiv:2504.15217)
optimises. `reference` may be text, one description a line, where the model reads: music by written example.
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

from rewards.compose import WeightedReward
from rewards.encoders.audio import AudioEncoder
from rewards.encoders.audio_frontend import AUDIO, mono_samples
from rewards.encoders.load_audio import check_audio_encoder, load_audio_encoder
from rewards.sets.exemplar import Exemplar, ReferenceReward
from rewards.sets.frechet import Frechet
from rewards.sets.mmd import KAD
from rewards.sets.moments import Moments, finite_rows
from rewards.sets.vendi import Vendi
from workbench.core.errors import BadInput
from workbench.core.io import audio as sounds
from workbench.core.types import Media, NonNegative, Reward, RewardSpec

Rows = Literal["windows", "songs"]
CLAP = "laion/larger_clap_music"
_HASHED: WeakKeyDictionary[AudioEncoder, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class SoundEmbedder:
    """Sounds as points of an audio encoder's space, an Embedder: [B,D], or with `pooled` all windows of all sounds."""

    model: str = CLAP  # see rewards/encoders/load_audio.py for the forms
    dtype: str = "float32"
    window: float = 0.0  # seconds; 0: the model's own
    hop: float = 0.0
    pooled: bool = False
    checkpoint: bool = field(default=False, repr=False)  # changes no embedding, so it is not in a cache's key

    modalities = AUDIO
    suffixes = frozenset[str]()

    def __call__(self, media: Media) -> Tensor:
        features = self.embed_windows(media)
        return features.flatten(0, 1) if self.pooled else self.load_encoder(media.data.device).pool_windows(features)

    def embed_windows(self, media: Media) -> Tensor:
        """float32 [B,W,D], graph attached."""
        x = mono_samples(RewardSpec(self.model, "", AUDIO, True), media, ())
        return self.load_encoder(x.device).embed_windows(x, media.rate, self.window, self.hop, self.checkpoint)

    def texts(self, lines: Sequence[str], device: torch.device) -> Tensor:
        return self.load_encoder(device).embed_texts(lines)

    def read(self, path: Path) -> Media:
        data, rate, _ = sounds.read_sound(path)
        return Media(data[None], "audio", rate)

    def load(self, device: torch.device) -> None:
        self.load_encoder(device)

    def fingerprint(self, device: torch.device) -> str:
        encoder = self.load_encoder(device)
        if encoder not in _HASHED:
            digest = hashlib.blake2b(encoder.view.encode(), digest_size=16)
            for name, value in encoder.net.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            _HASHED[encoder] = digest.hexdigest()
        return _HASHED[encoder]

    def check(self) -> None:
        check_audio_encoder(self.model)

    def load_encoder(self, device: torch.device | str) -> AudioEncoder:
        return load_audio_encoder(self.model, device, self.dtype)


@dataclass(frozen=True)
class AudioSetting:
    """The settings of a set reward on sounds, before the reward itself among the bases."""

    model: str = CLAP  # see rewards/encoders/load_audio.py for the forms
    window: NonNegative = 0.0  # seconds of a window, at most the model's own, which 0 stands for
    hop: NonNegative = 0.0  # seconds from one window to the next; 0: the model's own, scaled with the window

    rows: ClassVar[Rows] = "songs"

    @property
    def embedder(self) -> SoundEmbedder:
        return SoundEmbedder(self.model, self.dtype, self.window, self.hop, self.rows == "windows", self.checkpoint)


@dataclass(frozen=True)
class WindowedReward(AudioSetting):
    """A set reward whose rows may be windows. Those of one sound stay together, so that sounds can be given credit."""

    rows: Rows = "windows"  # every window of every sound is a row of the set, or one row for each sound

    def features(self, media: Media) -> Tensor:
        """float32 [B,D], or [B,W*D]: the windows of a sound side by side."""
        if self.rows == "songs":
            return super().features(media)
        self._check_modality(media)
        return self.embedder.embed_windows(media).flatten(1)

    def embed_windows(self, media: Media) -> Tensor:
        """float32 [B,W,D]."""
        self._check_modality(media)
        return self.embedder.embed_windows(media)

    def _check_modality(self, media: Media) -> None:
        if media.modality != "audio":
            raise BadInput(f"{self.spec.name} judges audio, not {media.modality}")

    def prepare(self, embedded: Any) -> Any:
        return super().prepare(embedded if isinstance(embedded, Moments) else self._window_rows(embedded))

    def score_rows(self, x: Tensor, target: Any) -> Tensor:
        return super().score_rows(self._window_rows(x), target)

    def _window_rows(self, x: Tensor) -> Tensor:
        """[N,D], one row a window, of [B,W*D]."""
        return x.reshape(-1, self.embedder.load_encoder(x.device).width)


REFERENCE = frozenset({"reference"})


@dataclass(frozen=True)
class FAD(WindowedReward, Frechet):
    """Minus the Fréchet audio distance between the batch and a reference set (arXiv:1812.08466).

    Never compare it across encoders, windows or numbers of rows: `infinity` removes the last of these dependences.
    """

    spec = RewardSpec("fad", "1", AUDIO, True, scope="set", needs=REFERENCE, paper="arXiv:1812.08466")


@dataclass(frozen=True)
class AudioKAD(WindowedReward, KAD):
    """Minus the kernel audio distance, 100 MMD^2 with a Gaussian kernel (arXiv:2502.15602); unbiased,
    so for small sets."""

    spec = RewardSpec("audio_kad", "1", AUDIO, True, scope="set", needs=REFERENCE, paper="arXiv:2502.15602")

    def witness(self, x: Tensor, target: Any) -> Tensor:
        """[n]: the mean credit of a sound's windows."""
        return super().witness(self._window_rows(x), target).view(len(x), -1).mean(1)


@dataclass(frozen=True)
class AudioVendi(WindowedReward, Vendi):
    """The effective number of different sounds in the batch. Noise is diverse too: pair it with a reward of quality."""

    rows: Rows = "songs"

    spec = RewardSpec("audio_vendi", "1", AUDIO, True, scope="set", paper="arXiv:2210.02410")

    def prepare(self, embedded: Any) -> Any:
        return None


@dataclass(frozen=True)
class AudioExemplar(AudioSetting, Exemplar):
    """How near each sound lies to a set of examples, sounds or written descriptions: DRAGON's instance reward."""

    spec = RewardSpec("audio_exemplar", "1", AUDIO, True, needs=REFERENCE, paper="arXiv:2504.15217")


@dataclass(frozen=True)
class SongSet:
    """A set reward of every sound by itself, its windows the set: FAD per song with {fad: {reference: music/}}.

    A sound needs two windows to have a spread; of short ones make `window` short. What has fewer is NaN.
    """

    of: Reward  # fad, audio_kad or audio_vendi; in a config its name, or a block with settings

    spec = RewardSpec("song_set", "1", AUDIO, differentiable=True, paper="arXiv:2504.15217")
    nested = ("of",)

    def __post_init__(self):
        of = _only_component(self.of) if isinstance(self.of, WeightedReward) else self.of
        if not isinstance(of, WindowedReward):
            raise BadInput(
                f"song_set.of: {of.spec.name} does not judge windows of sounds; take fad, audio_kad, audio_vendi"
            )
        inherited = {"needs": of.spec.needs, "version": f"{of.spec.name} {of.spec.version} {of.window:g} {of.hop:g}"}
        object.__setattr__(self, "of", replace(of, rows="windows"))
        object.__setattr__(self, "spec", replace(self.spec, **inherited))

    def check(self) -> None:
        self.of.check()

    def load(self, device: torch.device | str = "cpu") -> None:
        self.of.load(device)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        songs = self.of.embed_windows(media)  # [B,W,D]
        target = self.of.target(references, songs.device) if isinstance(self.of, ReferenceReward) else None
        scores = [self._score_song(song, target) for song in songs]
        return torch.stack(scores).to(songs.device, torch.float32)

    def _score_song(self, song: Tensor, target: Any) -> Tensor:
        rows = finite_rows(song)
        return self.of.score_rows(rows, target) if len(rows) == len(song) > 1 else (song * 0).sum().double() + torch.nan


def _only_component(weighted: WeightedReward) -> Reward:
    if len(weighted.rewards) != 1 or list(weighted.weights.values()) != [1.0]:
        raise BadInput("song_set.of: takes one set reward, without a weight; add further ones beside song_set")
    return next(iter(weighted.rewards.values()))
