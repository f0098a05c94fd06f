"""What has to come with the prompts of a run: the inputs that its pipelines and rewards take."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pipelines import PipelineConfig
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs, prompt_inputs
from workbench.core.text import quote_value, shorten_path
from workbench.core.types import Reward
from workbench.runs import prompts
from workbench.runs.prompt_inputs import (
    PromptList,
    count_frames,
    describe_inputs,
    input_bytes,
    label_input,
    prompt_source,
)

WORDS = {"audio": "audio", "waveform": "audio", "video": "video", "image": "image"}  # in an argument's name -> modality


def wanted_inputs(pipelines: Iterable[PipelineConfig], rewards: Iterable[Reward]) -> dict[str, str]:
    """Input that one of these takes with each prompt -> its modality, "" where it may be any."""
    modalities: dict[str, str] = {}
    for pipeline in pipelines:
        for name, argument in pipeline.inputs.items():
            modality = argument_modality(pipeline, argument)
            modalities[name] = modality if modalities.get(name, modality) == modality else ""
    return modalities | {name: "" for reward in rewards for name in input_needs(reward.spec) if name not in modalities}


def read_prompt_lists(
    sources: Mapping[str, prompts.Source | None],
    pipelines: Mapping[str, PipelineConfig],
    rewards: Mapping[str, Reward],
    limits: Mapping[str, int] | None = None,
) -> dict[str, PromptList]:
    """where -> prompts of the sources that a run names, with the inputs that its pipelines and rewards take. limits:
    how many are needed. Raises BadInput for a prompt that comes without one of these, for a clip that is too short, and
    as `take_prompts` does."""
    lists = prompts.read_prompt_lists(sources, wanted_inputs(pipelines.values(), rewards.values()), limits)
    _check_presence(pipelines, rewards, lists)
    for label, pipeline in pipelines.items():
        _check_lengths(label, pipeline, lists)
    return lists


def argument_modality(pipeline: PipelineConfig, argument: str) -> str:
    """What an argument of a pipeline's call takes, by its name; "" where the name does not say it."""
    if pipeline.modality == "audio":
        return "audio"
    return next((modality for word, modality in WORDS.items() if word in argument), "")


def _check_presence(
    pipelines: Mapping[str, PipelineConfig], rewards: Mapping[str, Reward], lists: Mapping[str, PromptList]
) -> None:
    """Raises BadInput, naming the place, for a prompt that comes without what a pipeline or reward takes."""
    for label, pipeline in pipelines.items():
        for name in pipeline.inputs:
            _check_input(f"pipeline {label} makes its samples from", name, lists)
    for label, reward in rewards.items():
        for name in input_needs(reward.spec):
            if name == "source" and not any(p.inputs for p in pipelines.values()) and _is_absent(name, lists):
                raise BadInput(
                    f"reward {label} compares with the source of an edit, and these samples are made from nothing"
                )
            _check_input(f"reward {label} compares with", name, lists)


def _check_lengths(label: str, pipeline: PipelineConfig, lists: Mapping[str, PromptList]) -> None:
    """Raises BadInput for a clip of fewer frames than the pipeline takes, as far as both are known before it loads."""
    frames = pipeline.input_size[0] if len(pipeline.input_size) == 3 else pipeline.call.get("num_frames")
    names = [n for n, argument in pipeline.inputs.items() if argument_modality(pipeline, argument) == "video"]
    for where, name, prompt in ((w, n, p) for n in names if frames for w, part in lists.items() for p in part.prompts):
        length = count_frames(prompt_inputs(prompt)[name])
        if length is not None and length < frames:
            place = shorten_path(lists[where].places[prompt])
            raise BadInput(
                f"{where}: {place}: {name}: a clip of {length} frames is too short for {label}, which takes {frames}"
            )


def _is_absent(name: str, lists: Mapping[str, PromptList]) -> bool:
    return all(len(part.prompts_without(name)) == len(part.prompts) for part in lists.values())


def _check_input(taker: str, name: str, lists: Mapping[str, PromptList]) -> None:
    for where, part in lists.items():
        incomplete = part.prompts_without(name)
        if incomplete and len(incomplete) == len(part.prompts):
            way_out = part.hints.get(name, f"give a .jsonl or .csv with a column `{name}` of files")
            raise BadInput(f"{where}: {taker} {label_input(name)}, and no prompt comes with one; {way_out}")
        if incomplete:
            location = shorten_path(part.places[incomplete[0]])
            raise BadInput(
                f"{where}: {location}: {quote_value(str(incomplete[0]))} comes without {label_input(name)}; {taker} one"
            )


def describe_lists(lists: Mapping[str, PromptList], pipelines: Mapping[str, PipelineConfig]) -> list[str]:
    """Sentences for the checks of a plan: what comes with the prompts, and which pipelines don't take it."""
    lines = [f"{where}: {words}" for where, part in lists.items() if (words := describe_inputs(part.prompts))]
    coming = {name for part in lists.values() for prompt in part.prompts for name in prompt_inputs(prompt)}
    for label, pipeline in pipelines.items():
        if coming and (unused := sorted(coming - set(pipeline.inputs))):
            labels = " and ".join(map(label_input, unused))
            lines.append(f"warning: pipeline {label} does not take {labels}, and makes its samples without")
    return lines + [f"{where}: {part.unused}" for where, part in lists.items() if part.unused]


def count_trained_prompts(tested: Iterable[str], trained: Collection[str]) -> int:
    """How many of the tested prompts are made from what is trained on (Plan.trained_sources)."""
    return sum(prompt_source(prompt) in trained for prompt in set(tested))


def total_input_mb(tested: Iterable[str]) -> float:
    """MB of the inputs of these prompts, which a run keeps."""
    values = {value.digest: value for prompt in set(tested) for value in prompt_inputs(prompt).values()}
    return sum(map(input_bytes, values.values())) / 2**20
