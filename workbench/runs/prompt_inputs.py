"""What comes with the prompts of a run: pictures, masks, clips and sounds that a file or list of prompts names.

A file is checked before any weight loads: that it is there, what it holds, how large it is, and of the first READ_AHEAD
pictures also that they can be decoded. A path is relative to the file of prompts; one that leads elsewhere is read too,
and the plan says so, for what a run's samples are made from is copied into its folder.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, FileInput, MediaInput, prompt_inputs
from workbench.core.io import formats, media, video
from workbench.core.io import image as pictures
from workbench.core.io.budget import Budget
from workbench.core.text import one_line, quote_value, shorten_path
from workbench.core.types import Input, Media, Prompt
from workbench.runs.prompt_files import FILE_NAME, LIST, METADATA, Embedded, PromptTable

MAX_NAMES = 5000  # of a folder, among which one that is missing is looked for
COLOURFUL = 0.2  # by which the channels of a mask may differ, as JPEG lets them
READ_AHEAD = 256  # pictures of one list that are decoded before a run begins; of more, headers are read
NOUNS = {"image": "a picture", "video": "a clip", "audio": "a sound"}
MAIN = ("source", "first", "control", "audio", "reference", "last", "mask")  # by which prompts are kept apart
LABELS = {"control": "a control image", "first": "a first frame", "last": "a last frame", "audio": "a sound"}
OTHER_COLUMNS = {  # input -> what data sets and other programs call its column
    "source": {"image", "input_image", "init_image", "source_image", "original_image", "image_path", "input",
               "original", "picture", "img", "video"},
    "mask": {"mask_image", "mask_path", "inpaint_mask"},
    "first": {"image", "first_frame", "first_image", "start_image", "image_path"},
    "last": {"last_frame", "last_image", "end_image", "tail_image"},
    "control": {"control_image", "conditioning_image", "conditioning", "hint", "pose", "depth"},
    "reference": {"reference_image", "ref", "ref_image", "style_image", "subject", "ip_adapter_image"},
    "audio": {"sound", "audio_path", "audio_file"},
}  # fmt: skip
ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]+:/|data:)", re.I)  # of a Path, too, which has one slash
SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class PromptList:
    """The distinct prompts of a list or file, with their inputs."""

    prompts: tuple[str, ...]
    places: Mapping[str, str]  # prompt -> where it stands, for sentences
    unused: str = ""  # what of the list or file plays no part, or is to be known; "" for nothing
    hints: Mapping[str, str] = field(default_factory=dict)  # input -> how a list that seems to have it would say so

    def prompts_without(self, name: str) -> list[str]:
        """The prompts that come without this input."""
        return [prompt for prompt in self.prompts if name not in prompt_inputs(prompt)]


def take_prompts(
    table: PromptTable, modalities: Mapping[str, str], where: str = "prompts", limit: int = 0
) -> PromptList:
    """The prompts of a table with those of their inputs that are wanted; other columns play no part.

    modalities: name of an input that is wanted -> its modality, "" for any; limit: how many prompts are needed, 0 for
    all: files of further ones are not opened. Raises BadInput, naming the place, for a file that can't be one, for a
    mask of another size than its source, and for a prompt from Python with an input that nobody wants.
    """
    columns = input_columns(table.columns, modalities)
    distinct: dict[str, str] = {}
    outside: set[str] = set()
    repeated, empty, decoded = table.repeated, table.empty, 0
    for n, (text, location) in enumerate(zip(table.prompts, table.places, strict=True)):
        if columns and limit and len(distinct) >= limit:
            break
        inputs = dict(prompt_inputs(text))
        if unwanted := [name for name in inputs if name not in modalities]:
            raise BadInput(
                f"{where}: {location}: {quote_value(str(text))} comes with {label_input(unwanted[0])}, and no pipeline "
                "or reward of this run takes one; leave it out, or name a pipeline that does"
            )
        cells = {name: value for name, column in columns.items() if not is_blank(value := table.columns[column][n])}
        try:
            for name, value in {**inputs, **cells}.items():
                inputs[name] = open_input(value, name, modalities[name], table.folder, decode=decoded < READ_AHEAD)
                decoded += 1
            check_mask(inputs)
        except BadInput as error:
            raise BadInput(f"{where}: {shorten_path(location)}: {error}") from None
        paths = [value.path for name in cells if isinstance(value := inputs[name], FileInput)]
        outside |= {path for path in paths if table.name != LIST and not _is_inside(table.folder, path)}
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
    hint = suggest_columns([*unused, *columns], table.name)
    return PromptList(tuple(distinct), distinct, one_line("; ".join(sentences)), hint)


def is_blank(value: Any) -> bool:
    """Whether a cell of a column of files is empty."""
    return value is None or (isinstance(value, str) and not value.strip())


def suggest_columns(columns: Collection[str], name: str) -> dict[str, str]:
    """Input -> a sentence on the column that seems to hold it, under a name that is not ours, or on the one that the
    metadata of a folder lacks."""
    hints = {}
    for input_name, others in OTHER_COLUMNS.items():
        if input_name in columns:
            continue
        others_there = [column for column in columns if column in others]
        others_there += difflib.get_close_matches(input_name, set(columns) - set(NAMES), 1, 0.75)
        if others_there:
            hints[input_name] = f"call its column {quote_value(others_there[0])} `{input_name}`"
        elif Path(name).name in METADATA and FILE_NAME not in columns:
            hints[input_name] = f"name the file of each row in a column `{FILE_NAME}`"
    return hints


def input_columns(named: Collection[str], modalities: Mapping[str, str]) -> dict[str, str]:
    """Wanted input -> the column of those `named` that has its files. `file_name` is what samples are made from in the
    first place, where no other column says that."""
    columns = {name: name for name in NAMES if name in modalities and name in named}
    mains = [name for name in MAIN if name in modalities and name not in ("mask", "reference")]
    if FILE_NAME in named and mains and not any(name in named for name in mains):
        columns[mains[0]] = FILE_NAME
    return columns


def open_input(value: Any, name: str, modality: str, folder: Path, *, decode: bool = True) -> Input:
    """The input that a value is or names: a path relative to `folder`, an Input, Media of one row, or a PIL picture.
    Raises BadInput for what can't be read, and for another modality than is wanted ("": any)."""
    if isinstance(value, Embedded):
        raise BadInput(
            f"{name}: the table holds the file itself, and only names of files are read; write each to a file, and "
            "name it in a .jsonl"
        )
    if isinstance(value, str | Path):
        path = locate_file(value, folder, name)
        facts = measure_file(path, decode=decode)
        _check_modality(facts.modality, name, modality, str(value))
        if name == "mask" and decode and facts.modality == "image":
            with pictures.decoding(path, "picture"), pictures.open_picture(path, Budget()) as image:
                _check_opaque(image, shorten_path(path))
            _check_white(media.read_media(path).data[0], shorten_path(path), is_used=bool(modality))
        return FileInput(str(path), facts.digest)
    if hasattr(value, "getbands"):  # PIL
        if name == "mask":
            _check_opaque(value, "the picture")
        value = Media(pictures.image_to_tensor(value)[0][None], "image")
    if isinstance(value, Media):
        _check_modality(value.modality, name, modality, "what is given")
        if name == "mask" and value.modality == "image" and value.data.isfinite().all():
            _check_white(value.data[0], "the picture", is_used=bool(modality))
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


def locate_file(value: str | Path, folder: Path, name: str) -> Path:
    """The file that a path in a list means: relative to `folder`; spaces around it and ~ count only where there is such
    a file. Raises BadInput for an address."""
    path, text = folder / value, str(value).strip()
    if os.path.lexists(path):
        return path
    if ADDRESS.match(text):
        raise BadInput(f"{name}: {shorten_path(value)} is an address; save the file, and give its name")
    return Path(text).expanduser() if text.startswith("~/") else folder / text


def _is_inside(folder: Path, path: str) -> bool:
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))


@dataclass(frozen=True)
class FileFacts:
    """What is known of a media file without keeping its content."""

    digest: str
    modality: str
    size: tuple[int, int] | None  # (width, height) of a picture as it is shown
    frames: int | None = None  # of a clip, where its header says it


def measure_file(path: Path, *, decode: bool) -> FileFacts:
    """The facts of a media file; a picture is also decoded if `decode`. Raises BadInput for one that is missing, empty,
    cut short or beyond the budget, and for what is no medium."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", error)
        nearest = _suggest_file(path) if isinstance(error, FileNotFoundError) else ""
        way_out = nearest or "give a picture, a clip or a sound"
        raise BadInput(f"{shorten_path(path)}: {reason}; {way_out}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder; name a file in it" if stat.S_ISDIR(status.st_mode) else "no ordinary file; name one"
        raise BadInput(f"{shorten_path(path)}: is {kind}")
    marks = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return _measure_cached(str(path), *marks, decode)


def _suggest_file(path: Path) -> str:
    """Which file of the folder may be meant; "" for none."""
    try:
        names = [entry.name for entry in itertools.islice(os.scandir(path.parent), MAX_NAMES)]
    except (OSError, ValueError):
        return ""
    by_case = [name for name in names if name.lower() == path.name.lower()]
    by_stem = {Path(name).stem: name for name in names}  # a common suffix makes no two names alike
    nearest = by_case or [by_stem[stem] for stem in difflib.get_close_matches(path.stem, by_stem, 1, 0.8)]
    return f"did you mean {quote_value(nearest[0])}?" if nearest else ""


@functools.lru_cache(65536)  # an app plans the same prompts again and again, and a list may be long
def _measure_cached(name: str, size: int, mtime: int, ctime: int, inode: int, decode: bool) -> FileFacts:
    path, budget = Path(name), Budget()
    modality, kind = media.measure_media(path, budget), media.known_format(path)
    if formats.is_cut_short(path, kind):
        raise BadInput(f"{shorten_path(path)}: can't be read as {NOUNS[modality]}; the file is broken or cut short")
    shape = frames = None
    if kind.reader == "picture":
        with pictures.decoding(path, "picture"), pictures.open_picture(path, budget) as image:
            has_header = decode or kind is not formats.PNG or "exif" in image.info  # else Pillow decodes to look for it
            is_sideways = has_header and image.getexif().get(pictures.ORIENTATION) in SIDEWAYS
            shape, frames = image.size[::-1] if is_sideways else image.size, getattr(image, "n_frames", 1)
            if decode:
                image.load()
    elif modality == "video":
        with pictures.decoding(path, "clip"), video.open_stream(path, "video") as (_, stream):
            frames = stream.frames or None
    return FileFacts(media.file_digest(path), modality, shape, frames)


def check_mask(inputs: Mapping[str, Input]) -> None:
    """Raises BadInput for a mask of another size than what it covers."""
    covered = next((inputs[name] for name in ("source", "first", "control") if name in inputs), None)
    if covered is None or "mask" not in inputs:
        return
    sizes = [_picture_size(value) for value in (inputs["mask"], covered)]
    if None not in sizes and sizes[0] != sizes[1]:
        words = [f"{width} x {height}" for width, height in filter(None, sizes)]
        raise BadInput(f"the mask is {words[0]} and the picture that it covers {words[1]}; give one size")


def _check_opaque(image: Any, label: str) -> None:
    """Raises BadInput for a PIL picture with transparent places, of which it isn't clear whether they are white."""
    alpha = image.convert("RGBA").getchannel("A").histogram() if image.has_transparency_data else [0]
    if any(alpha[:255]):
        raise BadInput(
            f"mask: {label} has transparent places; save it as a picture that is white where something is made anew, "
            "and black elsewhere"
        )


def _check_white(pixels: Tensor, label: str, *, is_used: bool) -> None:
    """Raises BadInput for a mask [3,H,W] in [0,1] with colours, and for one without white. One that is all black, by
    which nothing would be made, is refused only if a pipeline is to use it: a reward may read that nothing changed."""
    if float((pixels.amax(0) - pixels.amin(0)).max()) > COLOURFUL:
        raise BadInput(
            f"mask: {label} has colours, and a mask is white where something is made anew and black elsewhere"
        )
    if float(pixels.mean(0).max()) < 0.5 and (is_used or pixels.any()):
        brightest = f"its brightest value is {float(pixels.max()) * 255:.0f} of 255"
        raise BadInput(
            f"mask: {label} has no white ({brightest}), so nothing would be made anew; make the places white that are "
            "to change"
        )


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


def count_frames(value: Input) -> int | None:
    """Of a clip; None where its file does not say it without being read."""
    return (
        measure_file(Path(value.path), decode=False).frames
        if isinstance(value, FileInput)
        else value.read().data.shape[1]
    )


def input_bytes(value: Input) -> int:
    """About how many bytes an input takes on the disk."""
    if isinstance(value, FileInput):
        return os.path.getsize(value.path) if os.path.isfile(value.path) else 0
    return value.read().data.numel()


def prompt_source(prompt: str) -> str:
    """What a sample of the prompt is made from in the first place, as a key: the digest of the first of its inputs in
    MAIN; of a prompt without inputs, the prompt."""
    inputs = prompt_inputs(prompt)
    return next((f"\0{inputs[name].digest}" for name in MAIN if name in inputs), str(prompt))
