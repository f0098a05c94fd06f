"""What works on this machine: each row is tried now, or says why it doesn't work."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from workbench.core.errors import BadInput
from workbench.core.inputs import MediaInput, input_needs, stack_sources
from workbench.core.types import Media, Prompt, Reward, RewardSpec
from workbench.runs.registry import all_rewards, is_starter_reward
from workbench.tools.probe_media import ANIMATION_PROBES, EDIT_PROBES, GENERAL_PROBES, STARTER_PROBES, ProbeMedia

KINDS = {"image": "pictures", "video": "clips", "audio": "sounds"}
TOLERANCE = 1e-6  # relative: scores nearer to each other than this are one score


def examine_machine(runs: Path) -> list[dict]:
    """Rows of `what`, `state` (ok, missing, broken) and `detail`."""
    rows = []
    for check in (
        check_python,
        check_packages,
        check_threads,
        check_devices,
        check_attention,
        check_disk,
        check_starter_pack,
        check_rewards,
    ):
        rows += [dict(zip(("what", "state", "detail"), row, strict=True)) for row in check(runs)]
    return rows


def check_python(runs: Path) -> Iterator[tuple]:
    cores = os.cpu_count()
    yield "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"


def check_packages(runs: Path) -> Iterator[tuple]:
    for name in ("torch", "diffusers", "transformers", "accelerate", "open-clip-torch", "gradio"):
        try:
            yield name, "ok", version(name)
        except PackageNotFoundError:
            yield name, "broken", "not installed; run: make install"
    for name, extra in (
        ("xformers", "gpu"),
        ("bitsandbytes", "gpu"),
        ("gguf", "gguf"),
        ("pyarrow", "parquet"),
        ("wandb", "track"),
    ):
        try:  # not find_spec: a folder of this name, such as the one that wandb logs into, looks like a module to it
            yield name, "ok", version(name)
        except PackageNotFoundError:
            yield name, "missing", f"optional; pip install 'media-alignment-workbench[{extra}]'"


def check_threads(runs: Path) -> Iterator[tuple]:
    from workbench.engine.threads import describe_threads

    yield "threads", "ok", describe_threads()


def check_devices(runs: Path) -> Iterator[tuple]:
    if not torch.cuda.is_available():
        yield "GPU", "missing", "none that torch can use: the starter pack runs on the CPU, large models will not"
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(n)
        yield f"cuda:{n}", "ok", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor}"


def check_attention(runs: Path) -> Iterator[tuple]:
    from pipelines.attention import find_backend_problem

    for backend in ("sdpa", "xformers", "flash"):
        problem = find_backend_problem(backend)
        yield f"attention {backend}", "missing" if problem else "ok", problem or "works"


def check_disk(runs: Path) -> Iterator[tuple]:
    folder = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free / 2**30
    writable = os.access(folder, os.W_OK)
    detail = f"{runs}: {free:.1f} GiB free" if writable else f"{folder} can't be written to; use --runs DIR"
    yield "runs", "ok" if writable and free > 1 else "broken", detail


def check_starter_pack(runs: Path) -> Iterator[tuple]:
    """One batch of each kind of media is generated, by networks whose weights have the fingerprints that were recorded
    when the pack was built."""
    import pipelines
    from pipelines.fingerprint import check_pack_fingerprints
    from pipelines.seams import named_networks
    from workbench.runs import prompts as data

    for name in ("starter-image", "starter-music", "starter-video", "starter-edit", "starter-image-to-video"):
        try:
            policy = pipelines.load(name, device="cpu")
            verified = check_pack_fingerprints(policy.config.folder, named_networks(policy.pipe))
            inputs = dict.fromkeys(policy.config.inputs, "")
            prompts = data.read_prompt_lists({"prompts": f"{name}-test"}, inputs)["prompts"].prompts[:4]
            media = policy.sample(prompts, seeds=range(len(prompts))).media
        except (BadInput, FileNotFoundError) as error:
            yield name, "broken", str(error)
            continue
        is_finite, count = bool(media.data.isfinite().all()), f"{len(media)} {KINDS[media.modality]}"
        weights = f"{verified} networks with the recorded fingerprints" if verified else "weights without a fingerprint"
        yield (name, "ok", f"{count} made by {weights}") if is_finite else (name, "broken", f"{count} came out NaN")


def check_rewards(runs: Path) -> Iterator[tuple]:
    """Every reward whose weights are on this machine scores probe media, whose order of quality is known."""
    import transformers

    from rewards import release_weights

    transformers.utils.logging.disable_progress_bar()
    for name, cls in all_rewards().items():
        yield (f"reward {name}", *examine_reward(cls))
        release_weights()


def examine_reward(cls: type) -> tuple[str, str]:
    """(state, detail) of one reward: `missing` when it isn't installed here; `broken` when it fails, gives every sample
    the same score, scores media no higher with their own prompts than with each other's, or references no higher than
    spoilt media.

    A judge's weights lie on a server: it is `missing` when none answers, or none with its model.
    """
    from rewards import configure_reward
    from rewards.vlm.judge import Judge

    is_judge = issubclass(cls, Judge)
    repos = [] if is_judge else hub_repositories(cls.spec, str(getattr(cls, "model", "")))
    if uncached := [repo for repo in repos if not is_cached(repo)]:
        return "missing", f"weights not on this machine, fetched when first used: {', '.join(uncached)}"
    try:
        reward = configure_reward(cls, {}, cls.spec.name)
        if hasattr(reward, "check"):
            reward.check()
    except (BadInput, TypeError) as error:
        return "missing", f"not set up: {error}"
    makers = STARTER_PROBES if is_starter_reward(cls) else GENERAL_PROBES
    if is_starter_reward(cls) and "source" in reward.spec.needs:
        makers = EDIT_PROBES
    if is_starter_reward(cls) and "first" in reward.spec.needs:
        makers = ANIMATION_PROBES
    kinds = [kind for kind in makers if kind in reward.spec.modalities]
    # a formula may differ between kinds of media; a network or a server takes clips as pictures, and is slow: one kind
    # is enough
    results = [
        (KINDS[kind], *try_scoring(reward, makers[kind])) for kind in (kinds[:1] if is_judge or repos else kinds)
    ]
    broken = [row for row in results if row[1] == "broken"]
    return "broken" if broken else "ok", "; ".join(f"{kind}: {detail}" for kind, _, detail in broken or results)


def try_scoring(reward: Reward, make: Callable[[], ProbeMedia]) -> tuple[str, str]:
    try:
        return score_probes(reward, make())
    except Exception as error:  # any error of a reward is what this row reports
        return "broken", f"{type(error).__name__}: {error}".splitlines()[0]


@torch.no_grad()
def score_probes(reward: Reward, probes: ProbeMedia) -> tuple[str, str]:
    """(state, detail) of a reward's scores of probe media. Spoilt media may score NaN, exact ones may not."""
    scores = SCORERS_BY_SCOPE[reward.spec.scope](reward, probes)
    finite = scores[scores.isfinite()]
    half = len(scores) // 2
    if len(finite) < 2 or not scores[:half].isfinite().all():
        return "broken", f"no score for {len(scores) - len(finite)} of {len(scores)} test media"
    if finite.max() - finite.min() <= TOLERANCE * finite.abs().max():
        return "broken", f"zero variance: gives {finite[0].item():g} to everything, good or bad"
    if preference := measure_preference(reward, probes, scores):
        more, less = preference.values()
        return ("ok" if more > less else "broken"), ", ".join(f"{what} {x:.3f}" for what, x in preference.items())
    scored = len(finite) if len(finite) == len(scores) else f"{len(finite)} of {len(scores)}"
    sets = "sets" if reward.spec.scope == "set" else "media"
    return "ok", f"{finite.min():.3f} to {finite.max():.3f} over {scored} test {sets}"


def measure_preference(reward: Reward, probes: ProbeMedia, scores: torch.Tensor) -> dict[str, float]:
    """Two labelled mean scores, of which a working reward's first is higher; empty where neither must be."""
    if reward.spec.scope == "sample" and "prompt" in reward.spec.needs:
        others = score_media(reward, probes, probes.exact[:2], [*probes.prompts[::-1]])
        return {"own prompts": scores[:2].mean().item(), "each other's": others.mean().item()}
    if reward.spec.scope != "group" and "reference" in reward.spec.needs:
        half = len(scores) // 2  # of the exact ones every other is a reference itself
        return {"references": scores[:half:2].mean().item(), "spoilt": scores[half:].nanmean().item()}
    return {}


def score_samples(reward: Reward, probes: ProbeMedia) -> torch.Tensor:  # [8]: 4 exact, 4 spoilt
    return score_media(reward, probes, *probes.first_pairs(4))


def score_one_group(reward: Reward, probes: ProbeMedia) -> torch.Tensor:  # [8], all of one prompt
    media, prompts = probes.first_pairs(4)
    return score_media(reward, probes, media, prompts[:1] * len(prompts))


def score_two_sets(reward: Reward, probes: ProbeMedia) -> torch.Tensor:
    """[2]: a set of media of one prompt, and a set of spoilt media."""
    sets = (probes.exact[::2], probes.spoilt)
    return torch.stack([score_media(reward, probes, media, [probes.prompts[0]] * len(media)) for media in sets])


SCORERS_BY_SCOPE: dict[str, Callable[[Reward, ProbeMedia], torch.Tensor]] = {
    "sample": score_samples,
    "group": score_one_group,
    "set": score_two_sets,
}


def score_media(reward: Reward, probes: ProbeMedia, media: Media, prompts: list[str]) -> torch.Tensor:
    alone = reward.spec.scope == "sample"  # those that are compared were made from one thing
    others = [probes.source or (media[n - 1] if alone else probes.exact[1]) for n in range(len(prompts))]
    prompts = [probe_prompt(reward, p, other) for p, other in zip(prompts, others, strict=True)]
    references = probes.exact[::2] if "reference" in reward.spec.needs else stack_sources(reward, media, prompts)
    return reward(media=media, prompts=prompts, references=references)


def probe_prompt(reward: Reward, prompt: str, other: Media) -> str:
    """The prompt with what the reward needs besides: another medium as its source; as a mask, the left half; under any
    other name, the first frame of that medium."""
    inputs = {name: MediaInput.of(probe_input(name, other)) for name in input_needs(reward.spec)}
    return Prompt(prompt, inputs) if inputs else prompt


def probe_input(name: str, other: Media) -> Media:
    if name == "source" or other.modality == "audio":
        return other
    picture = other.data.flatten(0, -4)[:1]  # [1,3,H,W]
    if name == "mask":
        picture = (torch.arange(picture.shape[-1]) < picture.shape[-1] // 2).float().expand_as(picture)
    return Media(picture, "image")


def hub_repositories(spec: RewardSpec, *more: str) -> list[str]:
    """The hub repositories named in a spec's `weights` and in `more`."""
    words = re.split(r"[\s+,]+", spec.weights)
    repos = [word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", word)]  # the hub's oldest have no owner
    return list(dict.fromkeys([*repos, *(word for word in more if re.fullmatch(r"[\w.-]+/[\w.-]+", word))]))


def is_cached(repo: str) -> bool:
    """Whether the hub's cache holds a snapshot of `repo`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots"
    return folder.is_dir() and any(folder.iterdir())
