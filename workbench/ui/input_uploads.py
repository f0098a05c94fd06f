"""What samples are to be made from, as somebody uploaded or painted it: kept among the runs under the digest of its
content, so that the same file is the same input, whenever and from whomever it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops

from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, input_needs
from workbench.core.io import image as pictures
from workbench.core.io import media
from workbench.core.paths import write_atomic
from workbench.core.types import Media
from workbench.report.sample_inputs import input_title
from workbench.runs.prompt_inputs import measure_file
from workbench.runs.registry import all_rewards
from workbench.runs.run_inputs import find_input
from workbench.ui import uploads
from workbench.ui.context import AppContext
from workbench.ui.limits import COVERED, MEDIA_WORDS

FOLDER = "inputs"  # in the folder of runs


def accept_input(path: str | Path, name: str, kind: str, temp: Path) -> uploads.Upload:
    """A private copy of an upload, read to its end. Raises BadInput for what can't be this input; kind: its modality,
    "" for any."""
    upload = uploads.accept_upload(path, temp)
    if kind and upload.modality != kind:
        raise BadInput(
            f"{upload.name}: is {MEDIA_WORDS[upload.modality]}, and the {input_title(name)} is {MEDIA_WORDS[kind]}"
        )
    uploads.read_upload(upload)
    return upload


def keep_inputs(
    files: Mapping[str, Any], sketch: Mapping | None, kinds: Mapping[str, str], context: AppContext
) -> dict:
    """Name -> path of what was given, kept among the runs. files: name -> uploaded path or None; sketch: what was
    painted as the mask; both count only where `kinds` has their name. Raises BadInput."""
    kept_files = {}
    for name in (n for n in NAMES if n in kinds and files.get(n)):
        upload = accept_input(files[name], name, kinds[name], context.temp)
        kept_files[name] = keep_bytes(upload.path.read_bytes(), upload.path.suffix, context.runs)
    if "mask" in kinds and (painted := read_sketch(sketch)) is not None:
        if "mask" in kept_files:
            raise BadInput("mask: it is painted and given as a file; take one of them away")
        covered = next((kept_files[name] for name in COVERED if name in kept_files), None)
        size = measure_file(Path(covered), decode=False).size if covered else None
        painted = painted.resize(size or painted.size, Image.Resampling.NEAREST)
        pixels = torch.from_numpy(np.asarray(painted) > 127).float()
        mask = Media(pixels.expand(1, 3, -1, -1), "image")
        kept_files["mask"] = keep_bytes(media.encode_png(mask), ".png", context.runs)
    return kept_files


def read_sketch(sketch: Mapping | None) -> Image.Image | None:
    """What was painted, as one channel: 255 where there is paint; None where there is none. Raises BadInput."""
    painted = None
    for path in (sketch or {}).get("layers") or ():
        with pictures.decoding("mask", "picture"), pictures.open_picture(path, uploads.page_budget(), "mask") as image:
            paint = image.convert("RGBA").getchannel("A")
        painted = paint if painted is None else ImageChops.lighter(painted, paint.resize(painted.size))
    return painted if painted is not None and painted.getbbox() else None


def keep_file(path: Path, runs: Path) -> str:
    """The path of a file's copy that is kept among the runs."""
    return str(path) if path.parent == runs / FOLDER else keep_bytes(path.read_bytes(), path.suffix, runs)


def keep_bytes(content: bytes, suffix: str, runs: Path) -> str:
    """The same of a file's content."""
    path = runs / FOLDER / f"{hashlib.sha256(content).hexdigest()}{suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    return str(path)


def wanted_inputs(kinds_by_pipeline: Mapping[str, Mapping[str, str]], rewards: Iterable[str]) -> dict[str, str]:
    """What one of these pipelines or rewards takes with each prompt -> its modality, "" where it may be any."""
    needs = {name: "" for reward in rewards for name in input_needs(all_rewards()[reward].spec)}
    return needs | {name: kind for kinds in kinds_by_pipeline.values() for name, kind in kinds.items()}


def check_inputs(
    inputs: Mapping[str, str],
    listed: Collection[str],
    kinds_by_pipeline: Mapping[str, Mapping[str, str]],
    rewards: Iterable[str],
    runs: Path,
) -> None:
    """Raises BadInput for a comparison that lacks what its pipelines or rewards take, for what none of them takes or
    the chosen list comes with, and for a file that no page has kept. listed: what comes with each prompt of the list;
    kinds_by_pipeline: pipeline -> what it takes, the comparison's own first."""
    needs = {name: input_needs(all_rewards()[name].spec) for name in rewards}
    if inputs and listed:
        raise BadInput(
            f"{input_title(next(iter(inputs)))}: is given, and the prompts of the list come with files of their own; "
            "take it away, or choose the prompts above in place of the list"
        )
    home_pipeline, kinds = next(iter(kinds_by_pipeline.items()))
    for pipeline, input_kinds in kinds_by_pipeline.items():
        if missing_inputs := [name for name in input_kinds if name not in inputs and name not in listed]:
            title = input_title(missing_inputs[0])
            way_out = "choose a list whose prompts have one" if listed else "give one"
            raise BadInput(
                f"{title}: {pipeline} makes its samples from {MEDIA_WORDS[input_kinds[missing_inputs[0]]]} as their "
                f"{title}; {way_out}, or choose another pipeline"
            )
    for reward, names in needs.items():
        if missing_inputs := [name for name in names if name not in inputs and name not in listed]:
            title = input_title(missing_inputs[0])
            origin = f"from no {title}" if kinds else "from nothing but prompts"
            raise BadInput(
                f"rewards: {reward} compares with the {title} of a sample, and {home_pipeline} makes its samples "
                f"{origin}; choose a pipeline that takes a {title}, or another reward"
            )
    wanted_kinds = wanted_inputs(kinds_by_pipeline, needs)
    for name, path in inputs.items():
        if name not in wanted_kinds:
            raise BadInput(f"{input_title(name)}: nothing in this comparison takes one; leave it out")
        if Path(path).parent != runs / FOLDER or not Path(path).is_file():
            raise BadInput(f"{input_title(name)}: its file is gone; give it again")


def join_inputs(prompts: Any, inputs: Mapping[str, str]) -> Any:
    """Prompts as a run's config names them; texts each with these inputs."""
    return [{"prompt": prompt, **inputs} for prompt in prompts] if inputs else prompts


def first_inputs(samples: Iterable[Mapping], folder: Path, runs: Path) -> tuple[list[str], dict[str, str]]:
    """(prompts, inputs) of the first sample of a run's log and of those that were made from the same; the files are
    kept for a page. Raises BadInput for one that is gone."""
    samples = list(samples)
    digests = samples[0].get("inputs") or {} if samples else {}
    inputs = {}
    for name, digest in digests.items():
        if (stored := find_input(folder, digest)) is None:
            raise BadInput(f"the {input_title(name)} that these trainings were judged with is gone from {folder.name}")
        inputs[name] = keep_file(stored, runs)
    prompts = dict.fromkeys(str(s["prompt"]) for s in samples if (s.get("inputs") or {}) == digests)
    return list(prompts), inputs
