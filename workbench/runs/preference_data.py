"""Preference pairs of media, read from files in an order that seed and position determine.

.parquet  as Pick-a-Pic's (arXiv:2305.01569): caption, jpg_0, jpg_1 (bytes), label_0, label_1; a row whose has_label is
          false is left out; or as HPDv2's (arXiv:2306.09341): prompt, image_path and human_preference, two lists, of
          which each pair with different preferences counts
.jsonl    votes as rewards.people.votes reads them: prompt, a_path, b_path, winner

Paths are relative to their file. Labels are read at once, media on access. Rows are counted from 0, lines from 1.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from rewards.people import votes
from workbench.core.errors import BadInput
from workbench.core.io import image as pictures
from workbench.core.io import media
from workbench.core.types import Media, Natural, PairBatch, derive_seed

TIE = -1
PICK, HPD = ("caption", "jpg_0", "jpg_1", "label_0", "label_1"), ("prompt", "image_path", "human_preference")
BLOCK = 1000  # votes that are shuffled together; of a Parquet file, a row group


@dataclass(frozen=True)
class Comparison:
    """One comparison of two media: its place in the file, and which one won."""

    row: int  # in its block
    sides: tuple[int, int]  # the two media
    winner: int  # 0, 1, or TIE
    where: str  # for errors


PairReader = Callable[[Comparison], tuple[str, Media, Media]]  # a comparison's prompt, and its two media, one row each


@dataclass(frozen=True)
class Block:
    """Comparisons whose media are read from the same part of a file."""

    choices: tuple[Comparison, ...]
    load: Callable[[], PairReader]


@dataclass(frozen=True)
class PreferencePairs:
    """Preference pairs of a file, a folder of them or a list: positions 0, 1, ... without end, in shuffled epochs.

    The same files, seed and position give the same pair, so a position is all that a resumed run needs. Epochs are
    shuffled by blocks, and inside them: what is read from a large file lies together.
    """

    files: str | list  # .parquet or .jsonl, or folders of them
    ties: Literal["drop", "keep"] = "drop"  # kept ones get a random winner: they only pull towards the reference
    seed: Natural = 0

    def check(self) -> int:
        """The number of pairs per epoch. Raises BadInput, naming file and row, for faults visible without reading
        media."""
        return len(self)

    def __len__(self) -> int:
        return sum(len(block.choices) for block in self._blocks)

    def __getitem__(self, position: int) -> tuple[str, Media, Media]:
        """Prompt, winner and loser, one row each. Raises BadInput, naming file and row, for media that can't be
        read."""
        epoch, index_in_epoch = divmod(position, len(self))
        order = _shuffled_order(len(self._blocks), derive_seed(self.seed, "blocks", epoch))
        starts = _block_starts([len(self._blocks[b].choices) for b in order])
        n = bisect_right(starts, index_in_epoch) - 1
        block = order[n]
        inside = _shuffled_order(len(self._blocks[block].choices), derive_seed(self.seed, "rows", epoch, block))
        choice = self._blocks[block].choices[inside[index_in_epoch - starts[n]]]
        prompt, a, b = self._load_block(block)(choice)
        winner = choice.winner if choice.winner != TIE else derive_seed(self.seed, "coin", position) % 2
        return (prompt, b, a) if winner else (prompt, a, b)

    def batch(self, position: int, count: int, size: Sequence[int]) -> PairBatch:
        """The `count` pairs from `position` on, with media fitted to a policy's `size`: (3,H,W), (T,3,H,W) or (C,L)."""
        pairs = [self[n] for n in range(position, position + count)]
        winners = Media.cat([fit_to_size(winner, size) for _, winner, _ in pairs])
        losers = Media.cat([fit_to_size(loser, size) for _, _, loser in pairs])
        seeds = tuple(derive_seed(self.seed, "pair", n) for n in range(position, position + count))
        return PairBatch(tuple(prompt for prompt, *_ in pairs), seeds, winners, losers)

    def batches(self, count: int, size: Sequence[int], position: int = 0) -> Iterator[PairBatch]:
        """Batches of `count` pairs from `position` on, without end."""
        while True:
            yield self.batch(position, count, size)
            position += count

    @cached_property
    def _blocks(self) -> list[Block]:
        files = [self.files] if isinstance(self.files, str) else self.files
        blocks = [
            block
            for name in files
            for file in _list_files(Path(name).expanduser())
            for block in _read_blocks(file, self.ties)
        ]
        blocks = [block for block in blocks if block.choices]
        if not blocks:
            raise BadInput(f"pairs: no pair with a winner in {', '.join(map(str, files))}")
        return blocks

    @cached_property
    def _load_block(self) -> Callable[[int], PairReader]:
        return lru_cache(maxsize=2)(lambda block: self._blocks[block].load())


def fit_to_size(media: Media, size: Sequence[int]) -> Media:
    """Media fitted to a policy's size. (3,H,W) or (T,3,H,W): scaled to cover it and centre-cropped, the first T frames
    of a clip. (C,L): the first L samples, zero-padded; channels copied, or averaged.

    Raises BadInput for media of another kind than is wanted, and for a clip that is too short.
    """
    modality, clip = {2: "audio", 3: "image", 4: "video"}[len(size)], len(size) == 4
    kinds = {"audio": "sounds", "image": "pictures", "video": "clips"}
    if media.modality != modality:
        raise BadInput(f"pairs: {kinds[media.modality]} were found where this pipeline makes {kinds[modality]}")
    if modality == "audio":
        x = media.data if media.data.shape[1] == size[0] else media.data.mean(1, keepdim=True).expand(-1, size[0], -1)
        return replace(media, data=F.pad(x, (0, max(size[1] - x.shape[2], 0)))[..., : size[1]])
    x, (height, width) = media.data, size[-2:]
    if clip and x.shape[1] < size[0]:
        raise BadInput(f"pairs: a clip of {x.shape[1]} frames was found where this pipeline makes {size[0]}")
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
    paths = sorted(p for p in Path(folder).expanduser().glob("*") if p.suffix.lower() in pictures.SUFFIXES)
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
    files = sorted(p for p in path.glob("*") if p.suffix in READERS) if path.is_dir() else [path]
    if not files or files[0].suffix not in READERS or not files[0].is_file():
        raise BadInput(f"pairs: {path} is no .parquet or .jsonl file, nor a folder of them")
    return files


def _read_blocks(file: Path, ties: str) -> list[Block]:
    blocks = READERS[file.suffix](file)
    return [replace(b, choices=tuple(c for c in b.choices if c.winner != TIE or ties == "keep")) for b in blocks]


def _read_votes(file: Path) -> list[Block]:
    rows = list(votes.read_rows(file))
    for where, row in rows:
        if "a_path" not in row or "b_path" not in row:
            raise BadInput(f"{where}: a vote on features has no media to learn from; give `a_path` and `b_path`")

    def load(part: list) -> PairReader:
        def show(choice: Comparison) -> tuple[str, Media, Media]:
            row = part[choice.row][1]
            a, b = (_read_file(file.parent / row[f"{side}_path"], choice.where) for side in "ab")
            return row["prompt"], a, b

        return show

    blocks = []
    for low in range(0, len(rows), BLOCK):
        part = rows[low : low + BLOCK]
        chosen = [Comparison(n, (0, 1), {"a": 0, "b": 1}.get(row["winner"], TIE), w) for n, (w, row) in enumerate(part)]
        blocks.append(Block(tuple(chosen), partial(load, part)))
    return blocks


def _read_parquet(file: Path) -> list[Block]:
    try:
        from pyarrow import ArrowException
        from pyarrow import parquet as pq
    except ImportError:
        raise BadInput(f"{file}: reading Parquet needs pyarrow; pip install pyarrow, or give .jsonl") from None
    try:
        table = pq.ParquetFile(file)
        columns = set(table.schema_arrow.names)
        schema = next((s for s in (PICK, HPD) if set(s) <= columns), None)
        if schema is None:
            raise BadInput(
                f"{file}: neither Pick-a-Pic's columns ({', '.join(PICK)}) nor HPDv2's ({', '.join(HPD)}), but "
                f"{', '.join(sorted(columns))}"
            )
        labels = [c for c in ("label_0", "label_1", "has_label") if c in columns] if schema is PICK else list(HPD[1:])
        choose, show = (_pick_comparisons, _pick_media) if schema is PICK else (_hpd_comparisons, _hpd_media)
        blocks, first = [], 0
        for group in range(table.num_row_groups):
            rows = table.read_row_group(group, columns=labels).to_pylist()
            chosen = [c for n, row in enumerate(rows) for c in choose(row, n, f"{file}, row {first + n}")]
            blocks.append(Block(tuple(chosen), _row_group_loader(pq, file, group, list(schema), show)))
            first += len(rows)
        return blocks
    except (OSError, ArrowException) as error:
        raise BadInput(f"{file}: can't be read as Parquet ({str(error).splitlines()[0][:200]})") from None


def _row_group_loader(pq: Any, file: Path, group: int, columns: list[str], show: Callable) -> Callable[[], PairReader]:
    def load() -> PairReader:
        rows = pq.ParquetFile(file).read_row_group(group, columns=columns)
        return lambda choice: show(rows.slice(choice.row, 1).to_pylist()[0], choice, file.parent)

    return load


def _pick_comparisons(row: dict, n: int, where: str) -> list[Comparison]:
    if row.get("has_label") is False:
        return []
    winners = {(1.0, 0.0): 0, (0.0, 1.0): 1, (0.5, 0.5): TIE}
    labels = (row["label_0"], row["label_1"])
    if labels not in winners:
        values = f"label_0 and label_1 are {labels[0]!r} and {labels[1]!r}"
        raise BadInput(f"{where}: {values}; they must be 1 and 0, 0 and 1, or both 0.5")
    return [Comparison(n, (0, 1), winners[labels], where)]


def _hpd_comparisons(row: dict, n: int, where: str) -> list[Comparison]:
    paths, likes = row["image_path"], row["human_preference"]
    if not (isinstance(paths, list) and isinstance(likes, list) and len(paths) == len(likes) > 1 and None not in likes):
        raise BadInput(f"{where}: image_path and human_preference must be lists of the same length, 2 or more")
    return [
        Comparison(n, (i, j), TIE if likes[i] == likes[j] else int(likes[j] > likes[i]), where)
        for i, j in combinations(range(len(likes)), 2)
    ]


def _pick_media(row: dict, choice: Comparison, _: Path) -> tuple[str, Media, Media]:
    prompt = _check_prompt(row["caption"], choice)
    a, b = (_decode_picture(row[f"jpg_{side}"], f"jpg_{side}", choice) for side in choice.sides)
    return prompt, a, b


def _hpd_media(row: dict, choice: Comparison, folder: Path) -> tuple[str, Media, Media]:
    paths = row["image_path"]
    prompt = _check_prompt(row["prompt"], choice)
    a, b = (_read_file(folder / str(paths[side]), choice.where) for side in choice.sides)
    return prompt, a, b


def _check_prompt(text: Any, choice: Comparison) -> str:
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"{choice.where}: the prompt must be a text, got {text!r}")
    return text


def _decode_picture(value: Any, column: str, choice: Comparison) -> Media:
    from PIL import Image

    value = value.get("bytes") if isinstance(value, dict) else value  # the datasets library's form of pictures
    try:
        with Image.open(io.BytesIO(value)) as image:
            return Media(pictures.image_to_tensor(image)[0][None], "image")
    except (*pictures.BROKEN, TypeError, Image.DecompressionBombError):
        raise BadInput(f"{choice.where}: {column} holds no picture that can be read") from None


def _read_file(path: Path, where: str) -> Media:
    try:
        return media.read_media(path)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


READERS = {".parquet": _read_parquet, ".jsonl": _read_votes}
