"""What comes with the prompts of a run: pictures, masks, clips and sounds that a file or list of prompts names.

A file is checked before any weight loads: that it is there, what it holds, how large it is, and of the first READ_AHEAD
pictures also that they can be decoded. A path is relative to the file of prompts; one that leads elsewhere is read too,
and the plan says so, for what a run's samples are made from is copied into its folder.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, FileInput, MediaInput, prompt_inputs
from workbench.core.io import formats, media
from workbench.core.io import image as pictures
from workbench.core.io.budget import Budget
from workbench.core.text import one_line, quote_value, shorten_path
from workbench.core.types import Input, Media, Prompt
from workbench.runs.prompt_files import FILE_NAME, LIST, PromptTable

READ_AHEAD = 256  # pictures of one list that are decoded before a run begins; of more, headers are read
NOUNS = {"image": "a picture", "video": "a clip", "audio": "a sound"}
MAIN = ("source", "first", "control", "audio", "reference", "last", "mask")  # by which prompts are kept apart
LABELS = {"control": "a control image", "first": "a first frame", "last": "a last frame", "audio": "a sound"}
SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class PromptList:
    """The distinct prompts of a list or file, with their inputs."""

    prompts: tuple[str, ...]
    places: Mapping[str, str]  # prompt -> where it stands, for sentences
    unused: str = ""  # what of the list or file plays no part, or is to be known; "" for nothing

    def prompts_without(self, name: str) -> list[str]:
        """The prompts that come without this input."""
        return [prompt for prompt in self.prompts if name not in prompt_inputs(prompt)]


def take_prompts(table: PromptTable, modalities: Mapping[str, str], where: str = "prompts") -> PromptList:
    """The prompts of a table with those of their inputs that are wanted; other columns play no part.

    modalities: name of an input that is wanted -> its modality, "" for any. Raises BadInput, naming the place, for a
    file that can't be one, for a mask of another size than its source, and for a prompt from Python with an input that
    nobody wants.
    """
    columns = _input_columns(table, modalities)
    distinct: dict[str, str] = {}
    outside: set[Path] = set()
    repeated, empty, decoded = table.repeated, table.empty, 0
    for n, (text, location) in enumerate(zip(table.prompts, table.places, strict=True)):
        inputs = dict(prompt_inputs(text))
        if unwanted := [name for name in inputs if name not in modalities]:
            raise BadInput(
                f"{where}: {location}: {quote_value(str(text))} comes with {label_input(unwanted[0])}, and no pipeline "
                "or reward of this run takes one; leave it out, or name a pipeline that does"
            )
        cells = {name: value for name, column in columns.items() if (value := table.columns[column][n])}
        try:
            for name, value in {**inputs, **cells}.items():
                inputs[name] = open_input(value, name, modalities[name], table.folder, decode=decoded < READ_AHEAD)
                decoded += 1
            check_mask(inputs)
        except BadInput as error:
            raise BadInput(f"{where}: {shorten_path(location)}: {error}") from None
        outside |= {table.folder / v for v in cells.values() if table.name != LIST and not _is_inside(table.folder, v)}
        if not text and not inputs:
            empty += 1
            continue
        prompt = Prompt(text, inputs) if inputs else str(text)
        repeated += bool(inputs) and prompt in distinct
        distinct.setdefault(prompt, location)
    if not distinct:
        raise BadInput(f"{where}: {shorten_path(table.name)} has no prompt in it")
    unused = [name for name in table.columns if name not in columns.values()]
    sentences = [
        *table.notes,
        *(f"{count} {word} left out" for count, word in ((repeated, "repeated"), (empty, "empty")) if count),
        *([f"columns not used: {', '.join(unused)}"] if unused else []),
        *(f"{FILE_NAME} is {label_input(name)}" for name, column in columns.items() if column == FILE_NAME),
    ]
    if outside:
        files = "file lies" if len(outside) == 1 else "files lie"
        sentences.append(
            f"{len(outside)} {files} outside of {table.folder}, such as {shorten_path(min(outside))}; the run's folder "
            "gets copies"
        )
    return PromptList(tuple(distinct), distinct, one_line("; ".join(sentences)))


def _input_columns(table: PromptTable, modalities: Mapping[str, str]) -> dict[str, str]:
    """Wanted input -> the column that names its files. `file_name` is what samples are made from in the first place,
    where no other column says that."""
    columns = {name: name for name in NAMES if name in modalities and name in table.columns}
    mains = [name for name in MAIN if name in modalities and name not in ("mask", "reference")]
    if FILE_NAME in table.columns and mains and not any(name in table.columns for name in mains):
        columns[mains[0]] = FILE_NAME
    return columns


def open_input(value: Any, name: str, modality: str, folder: Path, *, decode: bool = True) -> Input:
    """The input that a value is or names: a path relative to `folder`, an Input, Media of one row, or a PIL picture.
    Raises BadInput for what can't be read, and for another modality than is wanted ("": any)."""
    if isinstance(value, str | Path):
        facts = measure_file(folder / value, decode=decode)
        _check_modality(facts.modality, name, modality, str(value))
        return FileInput(str(folder / value), facts.digest)
    if hasattr(value, "getbands"):  # PIL
        value = Media(pictures.image_to_tensor(value)[0][None], "image")
    if isinstance(value, Media):
        _check_modality(value.modality, name, modality, "what is given")
        try:
            return MediaInput.of(value)
        except ValueError as error:
            raise BadInput(f"{name}: {error}") from None
    if isinstance(value, FileInput | MediaInput):
        _check_modality(input_modality(value), name, modality, "what is given")
        return value
    raise BadInput(f"{name}: expected a path, a PIL picture or a Media of one row, got {quote_value(value)}")


def _check_modality(modality: str, name: str, expected: str, label: str) -> None:
    if expected and modality != expected:
        raise BadInput(f"{name}: {shorten_path(label)} is {NOUNS[modality]}, and {NOUNS[expected]} is needed")


def _is_inside(folder: Path, value: str | Path) -> bool:
    return (folder / value).resolve().is_relative_to(folder.resolve())


@dataclass(frozen=True)
class FileFacts:
    """What is known of a media file without keeping its content."""

    digest: str
    modality: str
    size: tuple[int, int] | None  # (width, height) of a picture as it is shown
    bytes: int


def measure_file(path: Path, *, decode: bool) -> FileFacts:
    """The facts of a media file; a picture is also decoded if `decode`. Raises BadInput for one that is missing, empty,
    cut short or beyond the budget, and for what is no medium."""
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", error)
        raise BadInput(f"{shorten_path(path)}: {reason}; give a picture, a clip or a sound") from None
    return _measure_cached(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, decode)


@functools.lru_cache(8192)  # an app plans the same prompts again and again
def _measure_cached(name: str, size: int, mtime: int, ctime: int, inode: int, decode: bool) -> FileFacts:
    path, budget = Path(name), Budget()
    modality, kind = media.measure_media(path, budget), media.known_format(path)
    if formats.is_cut_short(path, kind):
        raise BadInput(f"{shorten_path(path)}: can't be read as {NOUNS[modality]}; the file is broken or cut short")
    shape = None
    if kind.reader == "picture":
        with pictures.decoding(path, "picture"), pictures.open_picture(path, budget) as image:
            has_header = decode or kind is not formats.PNG or "exif" in image.info  # else Pillow decodes to look for it
            is_sideways = has_header and image.getexif().get(pictures.ORIENTATION) in SIDEWAYS
            shape = image.size[::-1] if is_sideways else image.size
            if decode:
                image.load()
    return FileFacts(media.file_digest(path), modality, shape, size)


def check_mask(inputs: Mapping[str, Input]) -> None:
    """Raises BadInput for a mask of another size than what it covers."""
    covered = next((inputs[name] for name in ("source", "first", "control") if name in inputs), None)
    if covered is None or "mask" not in inputs:
        return
    sizes = [_picture_size(value) for value in (inputs["mask"], covered)]
    if None not in sizes and sizes[0] != sizes[1]:
        words = [f"{width} x {height}" for width, height in filter(None, sizes)]
        raise BadInput(f"the mask is {words[0]} and the picture that it covers {words[1]}; give one size")


def _picture_size(value: Input) -> tuple[int, int] | None:
    if isinstance(value, FileInput):
        return measure_file(Path(value.path), decode=False).size
    data = value.read().data
    return (data.shape[-1], data.shape[-2]) if data.dim() >= 4 else None


def label_input(name: str) -> str:
    """An input, as a sentence names it."""
    return LABELS.get(name, f"a {name}")


def describe_inputs(prompts: Collection[str]) -> str:
    """What comes with the prompts, for the checks of a plan; "" for nothing."""
    names = [name for name in NAMES if any(name in prompt_inputs(p) for p in prompts)]
    if not names:
        return ""
    values: dict[str, Input] = {v.digest: v for p in prompts for v in prompt_inputs(p).values()}
    size = sum(input_bytes(value) for value in values.values()) / 2**20
    parts = []
    for name in names:
        digests = [inputs[name].digest for p in prompts if name in (inputs := prompt_inputs(p))]
        share = "each" if len(digests) == len(prompts) else f"{len(digests)} of {len(prompts)}"
        parts.append(f"{share} comes with {label_input(name)} ({len(set(digests))} different)")
    return f"{', '.join(parts)}; {size:.1f} MB"


def input_modality(value: Input) -> str:
    """Whether an input is a picture, a clip or a sound."""
    if isinstance(value, FileInput):
        return measure_file(Path(value.path), decode=False).modality
    return value.read().modality


def input_bytes(value: Input) -> int:
    """About how many bytes an input takes on the disk."""
    if isinstance(value, FileInput):
        return measure_file(Path(value.path), decode=False).bytes
    return value.read().data.numel()


def prompt_source(prompt: str) -> str:
    """What a sample of the prompt is made from in the first place, as a key: the digest of the first of its inputs in
    MAIN; of a prompt without inputs, the prompt."""
    inputs = prompt_inputs(prompt)
    return next((f"\0{inputs[name].digest}" for name in MAIN if name in inputs), str(prompt))
