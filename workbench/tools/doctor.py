"""What works on this machine: each row is seen to work just now, or says why it doesn't."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from workbench.core.types import BadInput, Media, Reward, RewardSpec
from workbench.runs.registry import judges, own
from workbench.tools.test_media import ANYONE, STARTER, Specimens

KINDS = {"image": "pictures", "video": "clips", "audio": "sounds"}
SAME = 1e-6  # relative: scores nearer to each other than this are one score


def examine(runs: Path) -> list[dict]:
    """Rows of `what`, `state` (ok, missing, broken) and `detail`."""
    rows = []
    for check in (_python, _packages, _devices, _attention, _disk, _starter, _rewards):
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
    for name, extra in (("xformers", "gpu"), ("bitsandbytes", "gpu"), ("av", "film"), ("wandb", "track")):
        try:  # not find_spec: a folder of this name, such as the one that wandb logs into, looks like a module to it
            yield name, "ok", version(name)
        except PackageNotFoundError:
            yield name, "missing", f"optional; pip install 'media-alignment-workbench[{extra}]'"


def _devices(runs: Path) -> Iterator[tuple]:
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
    """One batch of each of its kinds of media is made for real."""
    import pipelines
    from workbench.runs import prompts as data

    for name in ("starter-image", "starter-music", "starter-video"):
        try:
            policy = pipelines.load(name, device="cpu")
            prompts = data.prompts(f"{name}-test")[:4]
            media = policy.sample(prompts, seeds=range(len(prompts))).media
        except (BadInput, FileNotFoundError) as error:
            yield name, "broken", str(error)
            continue
        whole, made = bool(media.data.isfinite().all()), f"{len(media)} {KINDS[media.modality]}"
        yield (name, "ok", f"{made} made") if whole else (name, "broken", f"{made} came out NaN")


def _rewards(runs: Path) -> Iterator[tuple]:
    """Every reward whose weights are on this machine scores media of which it is known how they compare."""
    import transformers

    from rewards import release

    transformers.utils.logging.disable_progress_bar()
    for name, cls in judges().items():
        yield (f"reward {name}", *verdict(cls))
        release()


def verdict(cls: type) -> tuple[str, str]:
    """(state, detail) of one reward: `missing` when it isn't installed here, `broken` when it fails, gives every sample
    the same score, or likes media no better with their own prompts than with each other's, examples no better than waste.

    A judge's weights lie on a server: it is `missing` when none answers, or none with its model.
    """
    from rewards import Judge, configured

    asked = issubclass(cls, Judge)
    here = [] if asked else repositories(cls.spec, str(getattr(cls, "model", "")))
    if absent := [repo for repo in here if not installed(repo)]:
        return "missing", f"weights not on this machine, fetched when first used: {', '.join(absent)}"
    try:
        reward = configured(cls, {}, cls.spec.name)
        if hasattr(reward, "check"):
            reward.check()
    except (BadInput, TypeError) as error:
        return "missing", f"not set up: {error}"
    makers = STARTER if own(cls) else ANYONE
    kinds = [kind for kind in makers if kind in reward.spec.modalities]
    # a formula may be another one for each kind of media; a network or a server sees a clip as pictures too, and takes its time
    seen = [(KINDS[kind], *_seen(reward, makers[kind])) for kind in (kinds[:1] if asked or here else kinds)]
    bad = [row for row in seen if row[1] == "broken"]
    return "broken" if bad else "ok", "; ".join(f"{kind}: {told}" for kind, _, told in bad or seen)


def _seen(reward: Reward, make: Callable[[], Specimens]) -> tuple[str, str]:
    try:
        return examined(reward, make())
    except Exception as error:  # whatever a reward of anyone's may raise is what this row is for
        return "broken", f"{type(error).__name__}: {error}".splitlines()[0]


@torch.no_grad()
def examined(reward: Reward, shown: Specimens) -> tuple[str, str]:
    """What is spoilt may be beyond judgement, NaN; what is exact may not."""
    scores = SCORED[reward.spec.scope](reward, shown)
    found = scores[scores.isfinite()]
    half = len(scores) // 2
    if len(found) < 2 or not scores[:half].isfinite().all():
        return "broken", f"no score for {len(scores) - len(found)} of {len(scores)} test media"
    if found.max() - found.min() <= SAME * found.abs().max():
        return "broken", f"zero variance: gives {found[0].item():g} to everything, good or bad"
    if preference := _preference(reward, shown, scores):
        more, less = preference.values()
        return ("ok" if more > less else "broken"), ", ".join(f"{what} {x:.3f}" for what, x in preference.items())
    of = len(found) if len(found) == len(scores) else f"{len(found)} of {len(scores)}"
    sets = "sets" if reward.spec.scope == "set" else "media"
    return "ok", f"{found.min():.3f} to {found.max():.3f} over {of} test {sets}"


def _preference(reward: Reward, shown: Specimens, scores: torch.Tensor) -> dict[str, float]:
    """The score of what a working reward must like, then of what it must like less; nothing where that is a matter of taste."""
    if reward.spec.scope == "sample" and "prompt" in reward.spec.needs:
        others = _score(reward, shown, shown.exact[:2], [*shown.prompts[::-1]])
        return {"own prompts": scores[:2].mean().item(), "each other's": others.mean().item()}
    if reward.spec.scope != "group" and "reference" in reward.spec.needs:
        half = len(scores) // 2  # of the exact ones every other is a reference itself
        return {"references": scores[:half:2].mean().item(), "spoilt": scores[half:].nanmean().item()}
    return {}


def _samples(reward: Reward, shown: Specimens) -> torch.Tensor:
    return _score(reward, shown, *shown.each(4))


def _group(reward: Reward, shown: Specimens) -> torch.Tensor:
    media, prompts = shown.each(4)
    return _score(reward, shown, media, prompts[:1] * len(prompts))


def _sets(reward: Reward, shown: Specimens) -> torch.Tensor:
    """Of a set of one kind, and of one of none."""
    sets = (shown.exact[::2], shown.spoilt)
    return torch.stack([_score(reward, shown, media, [shown.prompts[0]] * len(media)) for media in sets])


SCORED: dict[str, Callable[[Reward, Specimens], torch.Tensor]] = {"sample": _samples, "group": _group, "set": _sets}


def _score(reward: Reward, shown: Specimens, media: Media, prompts: list[str]) -> torch.Tensor:
    references = None
    if "reference" in reward.spec.needs:
        references = shown.exact[::2]
    elif "source" in reward.spec.needs:  # each was made from its neighbour, which shows what the other prompt says
        references = replace(media, data=media.data.roll(1, 0))
    return reward(media=media, prompts=prompts, references=references)


def repositories(spec: RewardSpec, *more: str) -> list[str]:
    """The hub repositories that a spec's `weights`, which are nothing else or a part of the pack, or `more` names."""
    named = re.split(r"[\s+,]+", spec.weights)
    found = [word for word in named if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", word)]  # the hub's oldest have no owner
    return list(dict.fromkeys([*found, *(word for word in more if re.fullmatch(r"[\w.-]+/[\w.-]+", word))]))


def installed(repo: str) -> bool:
    """Whether the hub's cache holds a snapshot of `repo`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots"
    return folder.is_dir() and any(folder.iterdir())
