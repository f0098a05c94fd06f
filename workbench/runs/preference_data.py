"""Preference pairs of media, in an order that seed and position determine: which of a file's pairs are used, and which
are left out and counted. What is in the files: preference_files.py.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from workbench.core.errors import BadInput
from workbench.core.io import folders, media
from workbench.core.io.resampling import resample_audio
from workbench.core.text import quote_value
from workbench.core.types import Media, Natural, NonNegative, PairBatch, derive_seed
from workbench.runs.preference_files import (
    READERS,
    TIE,
    Block,
    Comparison,
    PairReader,
    digest_inputs,
    named_media,
    read_blocks,
)
from workbench.runs.prompt_inputs import MAIN

log = logging.getLogger(__name__)
GAP_SIZE = 64  # side at which two media are compared for `min_gap`
READ_AHEAD = 256  # pairs whose media are read before a run begins, to say which can't be used
NAMED = 3  # pairs that a sentence names
LeftOut = tuple[int, int, int, int]  # block, row and sides of a pair that can't be used


@dataclass(frozen=True)
class PreferencePairs:
    """Preference pairs of a file, a folder of them or a list: positions 0, 1, ... without end, in shuffled epochs.

    The same files, seed and position give the same pair, so a position is all that a resumed run needs. Epochs are
    shuffled by blocks, and inside them: what is read from a large file lies together. A pair that can't be used, as its
    row or its media are broken or its media are the same, is left out: the next one stands in its place.
    """

    files: str | list  # .parquet, .jsonl, .csv or .tsv, or folders of them
    ties: Literal["drop", "keep"] = "drop"  # kept ones get a random winner: they only pull towards the reference
    min_gap: NonNegative = 0.0  # leave out pairs that differ by less: root mean square of pixels in [0,1], at 64 x 64
    strict: bool = False  # a pair that can't be used ends the run, rather than being left out and counted
    seed: Natural = 0
    inputs: tuple[str, ...] = field(default=(), init=False)  # see `with_inputs`

    def with_inputs(self, names: Iterable[str]) -> PreferencePairs:
        """The pairs with prompts that come with these inputs (source, mask, ...), from columns of their names."""
        pairs = replace(self)
        object.__setattr__(pairs, "inputs", tuple(names))
        return pairs

    def check(self) -> int:
        """The number of pairs per epoch. Raises BadInput, naming file and row, for faults visible without reading
        media, if there is no pair at all, or `strict`."""
        return len(self)

    def __len__(self) -> int:
        return sum(len(block.choices) for block in self._blocks)

    def input_files(self) -> list[Path]:
        """The files of pairs, and the media that they name, as far as these exist."""
        files = self._files()
        media_paths = {path for file in files for path in named_media(file, self.inputs)}
        return files + sorted(
            path for path in media_paths if os.path.isfile(path)
        )  # no error for a name of 5,000 letters

    def list_sources(self) -> frozenset[str]:
        """What the media of the pairs were made from (prompt_inputs.prompt_source); none for pairs without inputs."""
        name = next((name for name in MAIN if name in self.inputs), None)
        return (
            frozenset(f"\0{digest}" for file in self._files() for digest in digest_inputs(file, name))
            if name
            else frozenset()
        )

    def __getitem__(self, position: int) -> tuple[str, Media, Media]:
        """Prompt, winner and loser, one row each. Raises BadInput, naming file and row, where READ_AHEAD pairs in a row
        can't be used, or, if `strict`, this one."""
        return self._get(position, None)

    def _get(self, position: int, size: Sequence[int] | None, rate: float = 0.0) -> tuple[str, Media, Media]:
        epoch, first = divmod(position, len(self))
        count = min(READ_AHEAD, len(self))
        for step in range(count):
            key, choice = self._find(epoch, (first + step) % len(self))
            if (pair := self._read_usable(key, choice, size, rate)) is None:
                continue
            prompt, a, b, is_tie = pair
            winner = choice.winner
            if is_tie or winner == TIE:
                winner = derive_seed(self.seed, "coin", position) % 2
            return (prompt, b, a) if winner else (prompt, a, b)
        raise BadInput(f"pairs: {count:,} in a row can't be used; {self.describe_left_out()}")

    def read_ahead(self) -> None:
        """Read the media of the first pairs, so that `describe_left_out` tells of those that can't be used. Raises
        BadInput where none can, or, if `strict`, one can't."""
        if not sum(self._read_usable(*self._find(0, n)) is not None for n in range(min(READ_AHEAD, len(self)))):
            raise BadInput(f"pairs: none can be used; {self.describe_left_out()}")

    def describe_left_out(self, faults_only: bool = False) -> str:
        """How many pairs are known that can't be used, with the first by name, and how many that `min_gap` leaves out
        unless `faults_only`; a clause, "" for none."""
        reasons = [sentence for block in self._blocks for sentence in block.left_out]
        reasons += filter(None, self.left_out.values())
        near = 0 if faults_only else sum(not reason for reason in self.left_out.values())
        clauses = []
        if count := len(reasons):
            more = f"; and {count - NAMED:,} more" if count > NAMED else ""
            verb = "pair is" if count == 1 else "pairs are"
            clauses.append(f"{count:,} {verb} left out: {'; '.join(reasons[:NAMED])}{more}")
        if near:
            clauses.append(f"{near:,} of the pairs that were read differ by less than {self.min_gap:g} (min_gap)")
        return "; ".join(clauses)

    @cached_property
    def left_out(self) -> dict[LeftOut, str]:
        """Pairs whose media are not used, as far as they have been read -> a sentence on what is wrong with them, ""
        for those that `min_gap` leaves out. A checkpoint keeps it."""
        return {}

    def batch(self, position: int, count: int, size: Sequence[int], rate: float = 0.0) -> PairBatch:
        """The `count` pairs from `position` on, with media fitted to a policy's `size`, (3,H,W), (T,3,H,W) or (C,L),
        and sounds to its `rate`."""
        pairs = [self._get(n, size, rate) for n in range(position, position + count)]
        winners, losers = Media.cat([winner for _, winner, _ in pairs]), Media.cat([loser for *_, loser in pairs])
        seeds = tuple(derive_seed(self.seed, "pair", n) for n in range(position, position + count))
        return PairBatch(tuple(prompt for prompt, *_ in pairs), seeds, winners, losers)

    def batches(self, count: int, size: Sequence[int], position: int = 0) -> Iterator[PairBatch]:
        """Batches of `count` pairs from `position` on, without end."""
        while True:
            yield self.batch(position, count, size)
            position += count

    def _find(self, epoch: int, index: int) -> tuple[LeftOut, Comparison]:
        """The pair at an index of an epoch, and its key."""
        order = _shuffled_order(len(self._blocks), derive_seed(self.seed, "blocks", epoch))
        starts = _block_starts([len(self._blocks[b].choices) for b in order])
        n = bisect_right(starts, index) - 1
        block = order[n]
        inside = _shuffled_order(len(self._blocks[block].choices), derive_seed(self.seed, "rows", epoch, block))
        choice = self._blocks[block].choices[inside[index - starts[n]]]
        return (block, choice.row, *choice.sides), choice

    def _read_usable(
        self, key: LeftOut, choice: Comparison, size: Sequence[int] | None = None, rate: float = 0.0
    ) -> tuple[str, Media, Media, bool] | None:
        """Prompt, both media, fitted to a policy's size, and whether they are the same; None for a pair that is left
        out. Raises BadInput for it if `strict`."""
        if key in self.left_out:
            return None
        try:
            prompt, a, b = self._load_block(key[0])(choice)
            is_tie = a.data.shape == b.data.shape and torch.equal(a.data, b.data)
            if is_tie and self.ties == "drop":
                raise BadInput(f"{choice.where}: both media are the same")
            if self.min_gap and measure_gap(a, b) < self.min_gap:
                self.left_out[key] = ""
                return None
            if size is not None:
                a, b = _fit_pair(a, b, size, rate, choice.where)
        except BadInput as error:
            if self.strict:
                raise
            self.left_out[key] = str(error)
            return None
        return prompt, a, b, is_tie

    def _files(self) -> list[Path]:
        names = [self.files] if isinstance(self.files, str) else self.files
        if odd := [name for name in names if not isinstance(name, str)]:
            raise BadInput(f"pairs.files: expected names of files, got {quote_value(odd[0])}")
        return [file for name in names for file in _list_files(Path(name).expanduser())]

    @cached_property
    def _blocks(self) -> list[Block]:
        blocks = [self._without_ties(block) for file in self._files() for block in read_blocks(file, self.inputs)]
        faults = [sentence for block in blocks for sentence in block.left_out]
        if faults and self.strict:
            raise BadInput(faults[0])
        if not any(block.choices for block in blocks):
            names = self.files if isinstance(self.files, str) else ", ".join(map(str, self.files))
            why = f"; {len(faults):,} can't be used: {'; '.join(faults[:NAMED])}" if faults else ""
            raise BadInput(f"pairs: no pair with a winner in {names}{why}")
        empty = [block.left_out for block in blocks if not block.choices]
        first, *others = [block for block in blocks if block.choices]
        return [replace(first, left_out=sum(empty, first.left_out)), *others]

    def _without_ties(self, block: Block) -> Block:
        choices = tuple(c for c in block.choices if c.winner != TIE or self.ties == "keep")
        return replace(block, choices=choices)

    @cached_property
    def _load_block(self) -> Callable[[int], PairReader]:
        return lru_cache(maxsize=2)(lambda block: self._blocks[block].load())


def _fit_pair(a: Media, b: Media, size: Sequence[int], rate: float, where: str) -> tuple[Media, Media]:
    try:
        return fit_to_size(a, size, rate), fit_to_size(b, size, rate)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def measure_gap(a: Media, b: Media) -> float:
    """The root mean square of the difference of two pictures, or of clips over the shorter's frames, scaled to cover
    64 x 64 and cut to its middle; of the samples of two sounds. Infinite for media of two kinds."""
    if a.modality != b.modality:
        return float("inf")
    if a.modality == "audio":
        size: tuple[int, ...] = (1, min(a.data.shape[2], b.data.shape[2]))
    else:
        frames = (min(a.data.shape[1], b.data.shape[1]),) if a.modality == "video" else ()
        size = (*frames, 3, GAP_SIZE, GAP_SIZE)
    return (fit_to_size(a, size).data - fit_to_size(b, size).data).square().mean().sqrt().item()


def fit_to_size(media: Media, size: Sequence[int], rate: float = 0.0) -> Media:
    """Media fitted to a policy's size. (3,H,W) or (T,3,H,W): scaled to cover it and centre-cropped, the first T frames
    of a clip. (C,L): at `rate` (0: their own), the first L samples, zero-padded; channels copied, or averaged.

    Raises BadInput for media of another kind than is wanted, and for a clip that is too short.
    """
    modality, clip = {2: "audio", 3: "image", 4: "video"}[len(size)], len(size) == 4
    kinds = {"audio": "sounds", "image": "pictures", "video": "clips"}
    if media.modality != modality:
        raise BadInput(f"{kinds[media.modality]} were found where this pipeline makes {kinds[modality]}")
    if modality == "audio":
        if rate and media.rate != rate:
            media = replace(media, data=resample_audio(media.data, media.rate, round(rate)), rate=rate)
        x = media.data if media.data.shape[1] == size[0] else media.data.mean(1, keepdim=True).expand(-1, size[0], -1)
        return replace(media, data=F.pad(x, (0, max(size[1] - x.shape[2], 0)))[..., : size[1]])
    x, (height, width) = media.data, size[-2:]
    if clip and x.shape[1] < size[0]:
        raise BadInput(f"a clip of {x.shape[1]} frames was found where this pipeline makes {size[0]}")
    x = x[:, : size[0]] if clip else x
    scale = max(height / x.shape[-2], width / x.shape[-1])
    h, w = max(height, round(x.shape[-2] * scale)), max(width, round(x.shape[-1] * scale))
    frames = x.flatten(0, -4)
    if (h, w) != x.shape[-2:]:
        frames = F.interpolate(frames, (h, w), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, x0 = (h - height) // 2, (w - width) // 2
    cut = frames[..., top : top + height, x0 : x0 + width]
    return replace(media, data=cut.reshape(*x.shape[:-2], height, width))


def read_references(folder: str) -> Callable[[Sequence[int]], Media]:
    """The pictures of a folder, by name, as a function: size (3,H,W) -> Media [N,3,H,W]. Raises BadInput where there
    are none."""
    place = Path(folder).expanduser()
    listing = folders.select_modality(folders.list_files(place) if place.is_dir() else [], "image")
    paths = listing.files
    if listing.left_out:
        log.warning("references %s: %s", folder, listing.left_out_sentence("pictures"))
    if not paths:
        raise BadInput(f"references: {folder} is no folder with pictures in it")
    return lambda size: Media.cat([fit_to_size(media.read_media(p), size) for p in paths])


def _shuffled_order(n: int, seed: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def _block_starts(lengths: Sequence[int]) -> list[int]:
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts


def _list_files(path: Path) -> list[Path]:
    files = sorted(p for p in path.glob("*") if p.suffix.lower() in READERS) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() not in READERS or not files[0].is_file():
        *suffixes, last = READERS
        raise BadInput(f"pairs: {path} is no {', '.join(suffixes)} or {last} file, nor a folder of them")
    return files
