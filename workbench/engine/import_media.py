"""Runs of media that were made elsewhere: planned by what belongs together, and stored as they are, never encoded
again. All that follows (report, votes, pairs to learn from) is as for any run."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines import PipelineConfig
from rewards.compose import WeightedReward
from workbench.core.errors import BadInput
from workbench.core.finite import find_finite_rows
from workbench.core.inputs import input_needs, prompt_inputs
from workbench.core.io import media
from workbench.core.types import Media
from workbench.engine import reward_checks
from workbench.engine.pairwise_watch import score_against_first
from workbench.runs import config as configs
from workbench.runs import imported_media, prompts, run_inputs, store
from workbench.runs.budget import Cost
from workbench.runs.media_folders import list_media_rows
from workbench.runs.media_pairing import knows_prompts, pair_media
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress, json_number, score_samples
from workbench.runs.prompt_inputs import measure_file

NO_PROMPT = "give metadata.jsonl (file_name, prompt), a text beside each file, or --prompts FILE"
NOT_LINKED = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)  # what a disk says that can't link
UNUSED = ("test", "pairs", "train", "budget", "method", "stages")  # settings that only what is sampled has use for


def plan_import(config: configs.RunConfig, command: str, reward: WeightedReward, watch: WeightedReward | None) -> Plan:
    """The plan of a run whose contestants are folders of media. Raises BadInput for what can't be paired, and for a
    reward that needs what is not known of the media."""
    for key in UNUSED:
        if getattr(config, key) is not None:
            raise BadInput(f"{key}: nothing is sampled or trained in a run of imported media; leave it out")
    if config.control != "none":
        raise BadInput("control: nothing is sampled in a run of imported media; leave it out")
    if config.pipeline not in ("", imported_media.PIPELINE):
        raise BadInput("pipeline: nothing is sampled in a run of imported media; leave it out")
    methods = configs.build_methods(config, {})
    prompt_file = None
    if config.prompts:
        if not isinstance(config.prompts, str):
            raise BadInput("prompts: of imported media are in a file; name it")
        prompt_file = prompts.find_prompt_file(config.prompts, "prompts")
    folders = {}
    for name, method in methods.items():
        try:
            folders[name] = list_media_rows(method.media, prompt_file)
        except BadInput as error:
            raise BadInput(f"contestants.{name}: {error}") from None
    pairing = pair_media(folders, config.pair)
    paired = [row for row in pairing.rows if not config.limit or row.index < config.limit]
    modality = next(iter(folders.values())).modality
    texts = [row.prompt for row in paired]
    for part in (reward, watch) if watch else (reward,):
        reward_checks.check_modality(part, "this import", modality)
        for label, judge in part.rewards.items():
            if "prompt" in judge.spec.needs and not knows_prompts(pairing):
                raise BadInput(f"reward {label}: reads prompts, and not every file has one; {NO_PROMPT}")
            for name in input_needs(judge.spec):
                if incomplete := [p for p in texts if name not in prompt_inputs(p)]:
                    raise BadInput(
                        f"reward {label}: compares with the {name} of each sample, and {len(incomplete)} of "
                        f"{len(texts)} have none; give metadata.jsonl with a column {name}"
                    )
        reward_checks.check_inputs(part.rewards, modality, texts)
    reward_checks.check_group_reward(config, reward, watch, methods)
    samples_per_prompt = max(row.k for row in paired) + 1
    config = dataclasses.replace(config, pipeline=imported_media.PIPELINE, samples_per_prompt=samples_per_prompt)
    media_kind = PipelineConfig("", imported_media.PIPELINE, steps=1, modality=modality)  # type: ignore[arg-type]
    checks = [f"{name}: {note}" for name, folder in folders.items() for note in folder.notes] + [*pairing.notes]
    judges = [*reward.rewards, *(watch.rewards if watch else ())]
    checks.append(f"scored by: {', '.join(judges)}" if judges else "scored by nothing; people vote")
    return Plan(
        config,
        methods,
        dict.fromkeys(methods, media_kind),
        reward,
        watch,
        [(row.index, row.prompt, row.k, row.k) for row in paired],
        checks,
        command,
        imported={name: [row.files[n].path for row in paired] for n, name in enumerate(methods)},
    )


def store_imported(
    plan: Plan, folder: store.RunFolder, names: Sequence[str], finished: set, stop: threading.Event
) -> Iterator[Progress]:
    """Link or copy the media of these contestants into the run and score them, batch by batch."""
    size, was_linked = plan.config.batch, True
    for name in names:
        for number in range(plan.batch_count):
            if stop.is_set():
                return
            if (name, number) not in finished:
                places = slice(number * size, (number + 1) * size)
                rows, paths = plan.rows[places], plan.imported[name][places]
                samples, is_linked = _store_batch(plan, folder, name, rows, paths)
                if was_linked and not is_linked and not plan.config.copy_media:
                    was_linked = False
                    note = f"{paths[0].parent} is on a disk from which files can't be linked, so they are copied"
                    yield Progress(name, number, plan.batch_count, phase="message", note=note)
                entry = {"contestant": name, "batch": number, "step": 0, "metrics": {}, "rows": len(rows)}
                folder.append_event(entry | {"cost": dataclasses.asdict(Cost()), "final": True, "samples": samples})
            yield Progress(name, number, plan.batch_count)


def _store_batch(
    plan: Plan, folder: store.RunFolder, name: str, rows: Sequence[tuple], paths: Sequence[Path]
) -> tuple[list[dict], bool]:
    """(rows for the log, whether all files were linked). A file that can't be read costs its own row."""
    samples: list[dict[str, Any]] = []
    readable: dict[tuple, list[tuple[int, Media]]] = {}  # by shape, which are scored together
    is_linked = True
    (folder.path / "media" / name).mkdir(parents=True, exist_ok=True)
    for n, ((index, prompt, k, seed), path) in enumerate(zip(rows, paths, strict=True)):
        sample = {"index": index, "prompt": prompt, **run_inputs.record_inputs(prompt), "k": k, "seed": seed}
        sample |= {"category": None, "scores": {}, "file": None, "sha256": None, "latents": None, "origin": path.name}
        samples.append(sample)
        try:
            content = media.read_media(path)
            if not bool(find_finite_rows(content).all()):
                raise BadInput(f"{path}: its values are not finite")
        except BadInput as error:
            sample["reason"] = str(error)
            continue
        target = folder.path / "media" / name / f"{index:04d}-{k}{_suffix(path, content)}"
        digest = measure_file(path, decode=False).digest  # known since the plan was made
        is_linked = place_file(path, target, digest, copy=plan.config.copy_media) and is_linked
        sample |= {"file": target.relative_to(folder.path).as_posix(), "sha256": digest}
        readable.setdefault((content.data.shape, content.rate), []).append((n, content))
    for group in readable.values():
        places, content = [n for n, _ in group], Media.cat([row for _, row in group])
        texts = [samples[n]["prompt"] for n in places]
        scores = score_samples(plan, content, texts)
        scores |= score_against_first(plan, folder, name, [rows[n] for n in places], content, texts)
        for at, n in enumerate(places):
            samples[n]["scores"] = {reward: json_number(values[at]) for reward, values in scores.items()}
    _fill_scores(plan, samples)
    return samples, is_linked


def _fill_scores(plan: Plan, samples: Sequence[dict]) -> None:
    """No score of every reward for what can't be read, and the categories of an oracle."""
    judges = plan.reward.rewards | (plan.watch.rewards if plan.watch else {})
    names = [name for name, judge in judges.items() if judge.spec.scope != "set"]
    for sample in samples:
        sample["scores"] = dict.fromkeys(names) | sample["scores"]
    if oracle := judges.get("oracle"):
        categories = oracle.categories([sample["prompt"] for sample in samples])  # type: ignore[attr-defined]
        for sample, category in zip(samples, categories, strict=True):
            sample["category"] = category


def _suffix(path: Path, content: Media) -> str:
    """Of the file's format, by which browsers know it; its own where that is one of the format."""
    kind = media.known_format(path)
    if kind.name == "PNG":
        return media.SUFFIX_BY_MODALITY[content.modality]
    return path.suffix.lower() if path.suffix.lower() in kind.suffixes else kind.suffixes[0]


def place_file(source: Path, target: Path, digest: str, *, copy: bool) -> bool:
    """Put a file into a run, by a hard link, or by a copy where that is asked for or the disk can't link; returns
    whether it was linked. A linked file takes no room, and stays when the folder that it came from is deleted."""
    if not copy:
        temp = target.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            os.link(source.resolve(), temp)
            os.replace(temp, target)
            temp.unlink(missing_ok=True)  # of two names of one file, replacing does nothing
            return True
        except OSError as error:
            if error.errno not in NOT_LINKED:
                raise
    run_inputs.copy_file(source, target, digest)
    return False


def contestants_of(places: Sequence[str]) -> dict[str, dict[str, str]]:
    """Contestants for a run's config, of folders of media and of runs, whose contestants enter each by itself: name ->
    {"media": folder}. `NAME=FOLDER` names one. Raises BadInput for what is neither."""
    sources: list[tuple[str, Path]] = []
    for place in places:
        name, equals, path = place.partition("=")
        if not equals or Path(place).exists():
            name, path = "", place
        folder = Path(path).expanduser()
        if (folder / "run.json").is_file():
            run = store.RunFolder(folder)
            who = list(dict.fromkeys(e["contestant"] for e in run.events() if e.get("final")))
            if not who:
                raise BadInput(f"{folder}: this run has made no samples yet")
            sources += [(f"{name or _run_name(run)}-{c}", folder / "media" / c) for c in who]
        else:
            sources.append((name or _label(folder), folder))
    names = [name for name, _ in sources]
    if len(set(names)) < len(names):  # results/a/out and results/b/out
        names = [
            f"{_label(folder.parent)}-{name}" if names.count(name) > 1 else name
            for name, (_, folder) in zip(names, sources, strict=True)
        ]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{repeated[0]}: two folders have this name; name them: first=FOLDER second=FOLDER")
    return {name: {"media": str(folder)} for name, (_, folder) in zip(names, sources, strict=True)}


def _run_name(run: store.RunFolder) -> str:
    return str(run.read().get("name") or run.path.name)


def _label(folder: Path) -> str:
    """A folder's name, in the letters that a contestant's may have."""
    name = "".join(c if c.isalnum() and c.isascii() or c in "._-" else "-" for c in folder.resolve().name).strip("-.")
    return name or "media"
