"""What works on this machine: each row is seen to work just now, or says why it doesn't."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .types import BadInput


def examine(runs: Path) -> list[dict]:
    """Rows of `what`, `state` (ok, missing, broken) and `detail`."""
    rows = []
    for check in (_python, _packages, _devices, _attention, _disk, _starter):
        rows += [dict(zip(("what", "state", "detail"), row, strict=True)) for row in check(runs)]
    return rows


def _python(runs: Path) -> Iterator[tuple]:
    cores = os.cpu_count()
    yield "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"


def _packages(runs: Path) -> Iterator[tuple]:
    for name in ("torch", "diffusers", "transformers", "accelerate", "open-clip-torch", "gradio"):
        try:
            yield name, "ok", version(name)
        except PackageNotFoundError:
            yield name, "broken", "not installed; run: make install"
    for name, extra in (("xformers", "gpu"), ("bitsandbytes", "gpu"), ("openai", "judge"), ("wandb", "track")):
        if importlib.util.find_spec(name) is None:
            yield name, "missing", f"optional; pip install 'media-alignment-workbench[{extra}]'"
        else:
            yield name, "ok", version(name)


def _devices(runs: Path) -> Iterator[tuple]:
    import torch

    if not torch.cuda.is_available():
        yield "GPU", "missing", "none that torch can use: the starter pack runs on the CPU, large models will not"
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(n)
        yield f"cuda:{n}", "ok", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor}"


def _attention(runs: Path) -> Iterator[tuple]:
    from pipelines.loading import attention_problem

    for backend in ("sdpa", "xformers", "flash"):
        problem = attention_problem(backend)
        yield f"attention {backend}", "missing" if problem else "ok", problem or "works"


def _disk(runs: Path) -> Iterator[tuple]:
    there = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free / 2**30
    writable = os.access(there, os.W_OK)
    detail = f"{runs}: {free:.1f} GiB free" if writable else f"{there} can't be written to; use --runs DIR"
    yield "runs", "ok" if writable and free > 1 else "broken", detail


def _starter(runs: Path) -> Iterator[tuple]:
    """One picture is made and judged for real, and each starter judge must tell its prompt from another one."""
    from . import data
    from .judges import judges

    try:
        import pipelines

        policy = pipelines.load("starter-image", device="cpu")
        prompts = data.prompts("starter-image-test")[:8]
        media = policy.sample(prompts, seeds=range(len(prompts))).media
    except (BadInput, FileNotFoundError) as error:
        yield "starter pack", "broken", str(error)
        return
    yield "starter pack", "ok", f"{len(prompts)} pictures made"
    for name in ("starter_clip", "oracle"):
        judge = judges()[name]()
        own = judge(media=media, prompts=prompts)
        other = judge(media=media, prompts=prompts[1:] + prompts[:1])
        good = own.nanmean() > other.nanmean()
        detail = f"own prompts {own.nanmean():.2f}, others' prompts {other.nanmean():.2f}"
        yield f"reward {name}", "ok" if good else "broken", detail
