"""The prompt that a program wrote into a medium: where each program puts it, and in what form.

AUTOMATIC1111, Forge, SD.Next   text `parameters`: the prompt, `Negative prompt: …`, `Steps: …, Seed: …`
Fooocus                         the same, or JSON with `prompt`
SwarmUI                         `parameters`: JSON with `sui_image_params`
ComfyUI                         `prompt` (the graph that ran) and `workflow` (the graph as drawn); comfy_graph.py
InvokeAI                        `invokeai_metadata`: JSON with `positive_prompt`; once `sd-metadata` and `Dream`
NovelAI                         `Comment`: JSON with `prompt`
this workbench                  `workbench`: JSON with `prompt`

PNGs have these as text chunks, JPEG, WebP and AVIF in EXIF, clips and sounds as tags of their container.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from workbench.core.errors import BadInput
from workbench.core.io import comfy_graph, formats
from workbench.core.io import image as pictures
from workbench.core.io.media import NOUNS, known_format
from workbench.core.io.parsing import parse_json

EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
EXIF_TEXTS = (0x010E, 0x010F, 0x0110)  # description, make and model: `workflow:{…}`, `prompt:{…}` of ComfyUI
ENCODINGS = {b"UNICODE\0": ("utf-16-be", "utf-16-le", "utf-8"), b"ASCII\0\0\0": ("utf-8", "latin-1")}  # of a comment
SETTINGS = re.compile(r"^Steps: \d+", re.MULTILINE)  # the line that begins the settings of `parameters`
NEGATIVE = re.compile(r"^Negative prompt:", re.MULTILINE)
SEED = re.compile(r"\bSeed: (\d{1,20})\b")
DREAM = re.compile(r'^"(.*?)"\s+-', re.DOTALL)


@dataclass(frozen=True)
class EmbeddedPrompt:
    """What a medium was made from, by the word of the program that made it."""

    text: str
    program: str
    negative: str = ""
    seed: int | None = None


def read_embedded_prompt(path: Path) -> EmbeddedPrompt | None:
    """The prompt in a media file, None where it has none. Pixels are not decoded.

    Raises BadInput for a file that can't be read, and for one whose graph has several prompts.
    """
    texts = read_texts(path)
    for read in READERS:
        if (prompt := read(texts)) is not None and prompt.text.strip():
            return EmbeddedPrompt(prompt.text.strip(), prompt.program, prompt.negative.strip(), prompt.seed)
    return None


def read_texts(path: Path) -> dict[str, str]:
    """Name -> text, of all that a media file says in words. Raises BadInput for one that can't be read."""
    kind = known_format(path)
    with pictures.decoding(path, NOUNS[kind.reader]):
        return _picture_texts(path, kind) if kind.reader == "picture" else _container_texts(path)


def _picture_texts(path: Path, kind: formats.Format) -> dict[str, str]:
    with Image.open(path, formats=kind.pillow) as image:
        if kind is formats.PNG:
            image.load()  # texts may come after the pixels
        texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
        exif = image.getexif()
        inner = exif.get_ifd(EXIF_IFD)
        comment, scheme = (_decode_comment(inner.get(tag, exif.get(tag))) for tag in (USER_COMMENT, MAKER_NOTE))
        for text in (_decode_comment(exif.get(tag)) for tag in EXIF_TEXTS):
            name, colon, value = text.partition(":")
            if colon and name.lower() in ("prompt", "workflow"):
                texts.setdefault(name.lower(), value)
    if comment:
        texts.setdefault("parameters", comment)
    return texts | ({"fooocus_scheme": scheme} if scheme in ("fooocus", "a1111") else {})


def _decode_comment(value: Any) -> str:
    """The text of an EXIF value; a comment names its encoding in its first eight bytes."""
    if isinstance(value, str):
        return value.strip("\0")
    if not isinstance(value, bytes):
        return ""
    encodings = ENCODINGS.get(value[:8])
    value = value[8:] if encodings else value
    for encoding in encodings or ("utf-8",):
        with contextlib.suppress(UnicodeDecodeError):
            text = value.decode(encoding).strip("\0")
            if encoding != "utf-16-be" or text.isascii() or text.encode("utf-16-le")[:1] != b"\0":
                return text
    return ""


def _container_texts(path: Path) -> dict[str, str]:
    import av

    with av.open(str(path)) as container:
        tags = [container.metadata, *(stream.metadata for stream in container.streams)]
    return {key.lower(): value for part in tags for key, value in part.items()}


def _read_object(text: str | None) -> dict | None:
    """The JSON object that a text is, else None: what stands there may be plain words."""
    if not text or not text.lstrip().startswith("{"):
        return None
    try:
        value = parse_json(text, "metadata", allow_nan=True)
    except BadInput:
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _seed(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, str)) and str(value).isdecimal() else None


def _read_workbench(texts: Mapping[str, str]) -> EmbeddedPrompt | None:
    story = _read_object(texts.get("workbench") or texts.get("comment"))  # of a sound it is the comment
    prompt = _text((story or {}).get("prompt"))
    if story is None or prompt.lstrip().startswith("{"):  # VideoHelperSuite's graph
        return None
    return EmbeddedPrompt(prompt, "workbench", seed=_seed(story.get("seed")))


def _read_invokeai(texts: Mapping[str, str]) -> EmbeddedPrompt | None:
    if (about := _read_object(texts.get("invokeai_metadata"))) is not None:
        negative, seed = _text(about.get("negative_prompt")), _seed(about.get("seed"))
        return EmbeddedPrompt(_text(about.get("positive_prompt")), "InvokeAI", negative, seed)
    if (about := _read_object(texts.get("sd-metadata"))) is not None:
        image = about.get("image")
        parts = image.get("prompt") if isinstance(image, dict) else None
        parts = parts if isinstance(parts, list) else [{"prompt": parts}]
        words = [_text(part.get("prompt")) for part in parts if isinstance(part, dict)]
        return EmbeddedPrompt(" ".join(filter(None, words)), "InvokeAI")
    dream = DREAM.match(texts.get("Dream", "") or texts.get("dream", ""))
    return EmbeddedPrompt(dream[1], "InvokeAI") if dream else None


def _read_parameters(texts: Mapping[str, str]) -> EmbeddedPrompt | None:
    parameters = texts.get("parameters")
    if not parameters:
        return None
    if (about := _read_object(parameters)) is None:
        return _parse_parameters(parameters, "Fooocus" if texts.get("fooocus_scheme") else "AUTOMATIC1111")
    if isinstance(swarm := about.get("sui_image_params"), dict):
        negative, seed = _text(swarm.get("negativeprompt")), _seed(swarm.get("seed"))
        return EmbeddedPrompt(_text(swarm.get("prompt")), "SwarmUI", negative, seed)
    negative, seed = _text(about.get("negative_prompt")), _seed(about.get("seed"))
    return EmbeddedPrompt(_text(about.get("prompt")), "Fooocus", negative, seed)


def _parse_parameters(text: str, program: str) -> EmbeddedPrompt:
    """Prompt, negative prompt and settings, one after another; each may have several lines."""
    settings = [*SETTINGS.finditer(text)]
    words, tail = (text[: settings[-1].start()], text[settings[-1].start() :]) if settings else (text, "")
    negative = [*NEGATIVE.finditer(words)]
    positive = words[: negative[-1].start()] if negative else words
    seed = SEED.search(tail)
    return EmbeddedPrompt(
        positive, program, words[negative[-1].end() :] if negative else "", int(seed[1]) if seed else None
    )


def _read_comfyui(texts: Mapping[str, str]) -> EmbeddedPrompt | None:
    # VideoHelperSuite puts both graphs into one comment
    comment = _read_object(texts.get("comment")) or {}
    ran, drawn = (texts.get(name) or comment.get(name) for name in ("prompt", "workflow"))
    ran, drawn = (_read_object(value) if isinstance(value, str) else value for value in (ran, drawn))
    ran, drawn = (value if isinstance(value, dict) else None for value in (ran, drawn))
    nodes = comfy_graph.read_nodes(ran) if ran else None
    if not nodes and drawn:
        nodes = comfy_graph.convert_workflow(drawn)
    if not nodes:
        return None
    positive, negative, seed = comfy_graph.trace_prompt(nodes)
    return EmbeddedPrompt(positive, "ComfyUI", negative, seed)


def _read_comment(texts: Mapping[str, str]) -> EmbeddedPrompt | None:
    """NovelAI's, whose words for things differ."""
    about = _read_object(texts.get("Comment") or texts.get("comment"))
    if about is None or not isinstance(about.get("prompt"), str):
        return None
    return EmbeddedPrompt(about["prompt"], "NovelAI", _text(about.get("uc")), _seed(about.get("seed")))


def _read_plain(texts: Mapping[str, str]) -> EmbeddedPrompt | None:
    """A text that is called prompt, as Easy Diffusion and scripts write it."""
    prompt = next((texts[name] for name in ("prompt", "Prompt") if texts.get(name)), "")
    if not prompt or prompt.lstrip().startswith("{"):  # a graph that is cut, or has no nodes
        return None
    seed = _seed(texts.get("seed") or texts.get("Seed"))
    return EmbeddedPrompt(prompt, "", texts.get("negative_prompt") or texts.get("Negative Prompt") or "", seed)


READERS: tuple[Callable[[Mapping[str, str]], EmbeddedPrompt | None], ...] = (
    _read_workbench,
    _read_invokeai,
    _read_parameters,
    _read_comfyui,
    _read_comment,
    _read_plain,
)
