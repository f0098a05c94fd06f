"""The prompt of a media file without a list of prompts: a text beside it, or what the program that made it wrote into
it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.core.io.embedded_prompts import read_embedded_prompt
from workbench.core.io.parsing import read_text


def find_prompt(path: Path, story: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """(prompt, where it stands: `a.txt`, `the file (ComfyUI)`; "" for what the workbench made) of a media file; ("",
    "") where there is none.

    A text in a file of its name with .txt comes first: a person wrote it. story: what `inspect_media` has read of the
    workbench's own metadata, so that such a file is not opened again. Raises BadInput for a text or a medium that
    can't be read, and for one whose graph has several prompts.
    """
    beside = path.with_suffix(".txt")
    if beside.is_file() and (text := " ".join(read_text(beside).split())):
        return text, beside.name
    if isinstance(own := (story or {}).get("prompt"), str) and own.strip():
        return own.strip(), ""
    if (prompt := read_embedded_prompt(path)) is None:
        return "", ""
    return prompt.text, {"workbench": "", "": "the file"}.get(prompt.program, f"the file ({prompt.program})")
