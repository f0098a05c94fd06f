"""The media of a run against the digests in its log: what was deleted, swapped or cut short since it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from workbench.core.io import media
from workbench.core.io.parsing import one_line
from workbench.runs.store import RunFolder


def find_damage(folder: RunFolder) -> dict[tuple[str, int], str]:
    """(contestant, batch) -> what is wrong with the first damaged file of each finished batch, as a clause."""
    damage = {}
    for event in folder.events():
        if event.get("final") and (clause := _batch_damage(folder.path, event)):
            damage[event["contestant"], event["batch"]] = clause
    return damage


def count_media(folder: RunFolder) -> int:
    """How many media the log of a run names."""
    return sum(bool(s.get("file")) for e in folder.events() if e.get("final") for s in e["samples"])


def _batch_damage(run: Path, event: Mapping) -> str:
    files = [(s["file"], s.get("sha256")) for s in event["samples"] if s.get("file")]
    latents = next((s["latents"] for s in event["samples"] if s.get("latents")), None)
    files += [(latents, event["latents_sha256"])] if latents and "latents_sha256" in event else []
    clauses = (file_damage(run, str(file), digest) for file, digest in files)
    return next(filter(None, clauses), "")


def file_damage(run: Path, file: str, digest: str | None) -> str:
    """What is wrong with a file that a run's log names, as a clause; "" where nothing is. digest: its SHA-256, None in
    old logs, which then need only have the file."""
    path = (run / file).resolve()
    name = one_line(file, 120)
    if not path.is_relative_to(run.resolve()):
        return f"{name} lies outside of the run folder"
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size == 0:
        return f"{name} is empty"
    if digest is not None and media.file_digest(path) != digest:
        return f"{name} is not the file that was stored"
    return ""
