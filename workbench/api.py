"""The workbench from Python: `import workbench as w`, then `w.align`, `w.compare`, `w.train`, `w.score`, `w.load`,
`w.read_run`.

Wherever a pipeline is named, a loaded diffusers pipeline (or what `load` gave) will do; wherever a reward, any callable
`(media, prompts) -> scores`; wherever a method, an instance. What can't work is refused by a BadInput of one sentence
before weights load, as on the command line, and the same driver does the work.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipelines
from pipelines.user_pipeline import UserPipeline, override_config
from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.core.types import Media, Method, Modality, Reward
from workbench.engine import compare as comparing
from workbench.engine import plan as planning
from workbench.engine.alignment import Alignment, align_in_memory
from workbench.engine.function_reward import ALL, FunctionReward
from workbench.engine.progress_bar import delayed_bar
from workbench.engine.python_calls import (
    check_former_names,
    describe_argument,
    folder_of_runs,
    plan_objects,
    quiet_libraries,
    read_prompts,
    run_in_folder,
    split_settings,
)
from workbench.engine.run_results import Comparison, Run, read_run_folder
from workbench.engine.score_media import collect_items, compare_folders, score_items, with_prompts
from workbench.engine.user_objects import UserObjects
from workbench.methods import find_method, trains_weights
from workbench.methods.common.method import short_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    PipelineLike = str | Path | Mapping[str, Any] | pipelines.PipelineConfig | pipelines.Policy | DiffusionPipeline
    Scorer = Callable[[Media, Sequence[str]], Any]
    RewardLike = str | Reward | Scorer | Mapping[Any, Any] | Sequence[str | Scorer]
    MethodLike = str | Method | Mapping[str, Any]
    PromptsLike = str | Path | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]

__all__ = ["align", "compare", "load", "read_run", "reward", "score", "train"]


def load(
    pipeline: PipelineLike, *, device: str = "auto", dtype: str = "auto", attention: str = "auto", **overrides: Any
) -> pipelines.Policy:
    """A diffusers pipeline as a Policy, to sample it, or to take single denoising steps with their gradients.

    Args:
        pipeline: a name (`workbench list pipelines`), {"name": "flux-dev", "steps": 8}, a folder, a YAML file, the
            folder of a training run, or a diffusers pipeline that you have loaded. The last is used where it is: frozen
            and in eval mode until the Policy is gone, then as it was.
        device: auto, cpu, cuda, cuda:1.
        dtype: fp32, bf16, fp16; auto is fp32 on a CPU, else the config's, usually bf16.
        attention: auto, sdpa, xformers, flash.
        overrides: fields of pipelines.PipelineConfig, such as `steps=4` or `call={"guidance_scale": 2.0}`.

    Returns:
        A Policy: `policy.sample(["a red circle"], seeds=[0]).media.data` is [1,3,H,W] in [0,1]. `align` and `compare`
        take it in the place of a name, and nothing is loaded twice.

    Raises BadInput for an unknown name, field, device or dtype.

    Source: pipelines/policy.py, pipelines/loading.py, pipelines/user_pipeline.py.
    """
    if isinstance(pipeline, pipelines.Policy):
        raise BadInput("load: this is a loaded Policy already; use it as it is")
    with quiet_libraries():
        if isinstance(pipeline, (str, Path, Mapping, pipelines.PipelineConfig)):
            config = override_config(pipelines.read_config(pipeline), overrides)
            return pipelines.load(config, device=device, dtype=dtype, attention=attention)
        borrowed = UserPipeline(pipeline, **overrides)
        policy = borrowed.as_policy(device=device, dtype=dtype, attention=attention)
        weakref.finalize(policy, borrowed.restore)
        return policy


def reward(
    function: Scorer,
    *,
    name: str | None = None,
    differentiable: bool = False,
    modalities: Collection[Modality] = ALL,
    typical: tuple[float, float] | None = None,
) -> Reward:
    """A callable as a reward, with more said of it; a bare callable is taken as one that has no gradient.

    Args:
        function: called with a Media of B rows and a list of B prompts. `media.data` is image [B,3,H,W] or video
            [B,T,3,H,W] in [0,1], or audio [B,C,L] in [-1,1]; `media.modality`, `media.rate`. Returns B finite numbers,
            HIGHER IS BETTER: a tensor [B], an array or a list.
        name: in tables [the function's own].
        differentiable: whether its scores carry a gradient to `media.data`; methods such as reno and draft need one.
        modalities: what it judges, of image, video, audio [all].
        typical: (low, high) of its scores, for the alarm of reward hacking.

    Raises BadInput, while it is used, for scores that are not B finite numbers, or lost the gradient that was promised.

    Source: workbench/engine/function_reward.py; a reward as a class: docs/extending.md.
    """
    if not callable(function):
        raise BadInput(f"reward: expected a callable (media, prompts) -> scores, got {function!r:.60}")
    if unknown := set(modalities) - ALL:
        raise BadInput(f"reward: unknown modality {min(unknown)!r}; {suggest_nearest(str(min(unknown)), ALL)}")
    name = name or getattr(function, "__name__", type(function).__name__).replace("<lambda>", "lambda")
    return FunctionReward(function, name=name, differentiable=differentiable, modalities=modalities, typical=typical)


def align(
    pipeline: PipelineLike,
    method: MethodLike = "reno",
    *,
    reward: RewardLike,
    prompts: PromptsLike,
    watch: RewardLike | None = None,
    seed: int = 0,
    samples_per_prompt: int = 1,
    batch: int = 16,
    budget: Mapping[str, float] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Alignment:
    """Samples of a frozen pipeline that please a reward, by a method that trains nothing. Writes no file.

        w.align("starter-image", "reno", reward="starter_clip", prompts=["a red circle"], iterations=20)

    Args:
        pipeline: as in `load`, or what that returned.
        method: a name (`workbench list methods`), `package.module:Class`, or a Method instance.
        reward: what is optimised: a name (`workbench list rewards`), a callable, {name or callable: weight}, or a list.
        prompts: a list of P texts, or the name of a file. What comes with inputs (docs/inputs.md) is written
            {"prompt": text, "source": path, PIL picture or Media}.
        watch: rewards that only judge and are never optimised, written like `reward`.
        seed: everything random follows from it.
        samples_per_prompt: K noises for each prompt.
        batch: samples made at once.
        budget: what a sample may cost: {"nfe": 400} rows through the denoiser, or {"seconds": 60}.
        device, dtype, attention: as in `load`.
        progress: a bar on stderr once the work has taken two seconds.
        settings: of the method.

    Returns:
        An Alignment of N = P K samples, prompt by prompt: `.media` (image [N,3,H,W], video [N,T,3,H,W] in [0,1], audio
        [N,C,L] in [-1,1]), `.scores` (name -> [N], higher is better), `.latents` ([N,*latent] or None), `.prompts`,
        `.seeds`, `.cost` (rows, seconds, MB), `.table()`, `.save(folder)`.

    Raises BadInput for unknown names and settings (it names the nearest), for a reward of another modality or without
    the gradient that the method needs, and for a method that trains (use `train`). What the method or a reward raise
    while they work goes through.

    Source: workbench/engine/alignment.py; the methods, one file a paper: workbench/methods/inference; docs/methods.md.
    """
    check_former_names(settings, "align")
    objects = UserObjects()
    block = objects.method_block(method, settings)
    name = short_name(block["name"])
    if trains_weights(find_method(block["name"], objects.method_registry())):
        raise BadInput(
            f"align: {name} trains weights; use train({describe_argument(pipeline)}, {name!r}, ...), "
            "or a method without training"
        )
    values: dict[str, Any] = {"prompts": read_prompts(prompts), "budget": budget, "seed": seed, "batch": batch}
    values |= {
        "samples_per_prompt": samples_per_prompt,
        "device": device,
        "dtype": dtype,
        "attention": attention,
        "contestants": {name: block},
    }
    try:
        with quiet_libraries(), delayed_bar(progress) as bar:
            plan = plan_objects(values, objects, pipeline, reward, watch, "align")

            def show_event(number: int, event: Any) -> None:
                score = event.metrics.get("reward")
                note = f"step {event.step}" + (f" · reward {score:.3f}" if score is not None else "")
                bar.update(name, number + event.final, plan.batch_count, note)

            return align_in_memory(plan, name, objects.load, show_event)
    finally:
        objects.restore()


def compare(
    contestants: Sequence[Any] | Mapping[str, Any],
    *,
    reward: RewardLike,
    prompts: PromptsLike,
    pipeline: PipelineLike | None = None,
    watch: RewardLike | None = None,
    calls: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    samples_per_prompt: int = 1,
    limit: int = 0,
    batch: int = 16,
    runs: str | Path | None = None,
    name: str = "compare",
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    progress: bool = True,
) -> Comparison:
    """Contestants on the same prompts, seeds and budget, under every reward; base and best-of-n are always among them.

        pandas.DataFrame(w.compare(["reno", "fk"], pipeline="starter-image-teacher", reward="starter_clip",
                                   watch=["oracle"], prompts="starter-image-test", limit=24, calls=32))

    Args:
        contestants: a list, or a mapping from the name in the table. Each is a method (a name, {name: {setting:
            value}}, an instance), a pipeline (a name, a loaded one), either as `method@pipeline` or (method, pipeline),
            or a run (its folder, or what `train` returned).
        pipeline: of the base and of methods that name none [the first one named].
        calls: denoiser calls a sample, a guided one counted once; each method's own measure of effort is fitted to it.
        seconds: of a sample; who is cut delivers the best so far.
        limit: only the first prompts; 0 for all.
        runs: a folder in which the run is kept, with its report; without it nothing stays on disk.
        name: of the run folder.
        The others as in `align`.

    Returns:
        A list of dicts, one a contestant: `contestant`, `method`, `pipeline`, for each reward its mean over samples and
        the ends of its 95 % interval over prompts (`_low`, `_high`; from six prompts on), `wins` against the base in
        [0,1], `diversity`, denoiser rows (`nfe`), `seconds`, `peak_mb`; `failed` where one broke. `.summary` has all of
        it, `.grid` is a PNG, `.run` the kept run.

    Raises BadInput as `align` does, and for a budget in which a method can't work.

    Source: workbench/engine/compare.py, workbench/evaluation/summary.py; docs/methods.md, docs/trust.md.
    """
    objects = UserObjects()
    if calls is not None and calls < 1:
        raise BadInput(f"compare.calls: {calls} leaves nothing to work with; give 1 or more")
    try:
        with quiet_libraries():
            base = None if pipeline is None else objects.name_pipeline(pipeline)
            base, blocks = comparing.contestant_blocks(
                contestants, base, calls, timed=seconds is not None, objects=objects
            )
            values: dict[str, Any] = {
                "prompts": read_prompts(prompts, runs),
                "contestants": blocks,
                "name": name,
                "limit": limit,
            }
            values |= {"seed": seed, "samples_per_prompt": samples_per_prompt, "batch": batch}
            values |= {"device": device, "dtype": dtype, "attention": attention}
            values |= {"curve": runs is not None, "budget": None if seconds is None else {"seconds": seconds}}
            plan = plan_objects(values, objects, base, reward, watch, "compare")
            with folder_of_runs(runs) as folder:
                run = run_in_folder(plan, objects, folder, True, progress)
                grid = run.path / "grid.png"
                picture = grid.read_bytes() if grid.is_file() else b""
                return Comparison(run.summary, picture, run if runs is not None else None)
    finally:
        objects.restore()


def train(
    pipeline: PipelineLike,
    method: MethodLike = "nft",
    *,
    reward: RewardLike,
    prompts: PromptsLike,
    test: PromptsLike | None = None,
    watch: RewardLike | None = None,
    train: Mapping[str, Any] | None = None,
    seed: int = 0,
    samples_per_prompt: int = 1,
    limit: int = 0,
    batch: int = 16,
    runs: str | Path = "runs",
    name: str | None = None,
    new: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Fine-tune a pipeline to please a reward, export what was learnt, and judge it beside the base, in a run folder.

        run = w.train("starter-image-base", "nft", reward="starter_clip", watch=["oracle"], rounds=40,
                      prompts="starter-image-train", test="starter-image-test", lora={"rank": 16})

    Args:
        pipeline: as in `align`; a loaded one is first saved into `runs`/pipelines, and is not touched.
        prompts: to train on.
        test: to be judged on [those of `prompts`].
        train: settings of the training whose names the method has too.
        limit: only the first test prompts; 0 for all.
        runs: where the run folder goes.
        name: of the run folder [the method's].
        new: start afresh even if an unfinished run of the same settings could go on.
        settings: of the method (`group=8`, `lr=1e-3`) and of the training, the fields of
            workbench.runs.train_config.TrainConfig (`rounds`, `prompts_per_round`, `minutes`, `lora={"rank": 16}`,
            ...). What both have is the method's.
        The others as in `align`.

    Returns:
        A Run: `.table()`, `.samples()`, `.media(contestant)` (as `.media` of `align`), `.summary`, `.path`, `.report`,
        `.export(folder)`. Checkpoints make it safe to interrupt: the same call goes on.

    Raises BadInput as `align` does, and for a method that trains nothing; RuntimeError when the training broke.

    Source: workbench/training/trainer.py; the methods, one file a paper: workbench/methods/training; docs/training.md.
    """
    check_former_names(settings, "train")
    objects = UserObjects()
    method_settings, recipe = split_settings(method, settings, objects)
    block = objects.method_block(method, method_settings)
    label = short_name(block["name"])
    if not trains_weights(find_method(block["name"], objects.method_registry())):
        raise BadInput(f"train: {label} trains nothing; use align({describe_argument(pipeline)}, {label!r}, ...)")
    source = objects.name_pipeline(pipeline)
    values: dict[str, Any] = {
        "prompts": read_prompts(prompts, runs),
        "seed": seed,
        "batch": batch,
        "name": name or label,
        "limit": limit,
    }
    values |= {"test": None if test is None else read_prompts(test, runs), "samples_per_prompt": samples_per_prompt}
    values |= {"train": {**recipe, **(train or {})}, "device": device, "dtype": dtype, "attention": attention}
    values |= {"contestants": {"base": "sample", label: block}}
    with quiet_libraries():
        saved = objects.save_pipelines(Path(runs) / "pipelines")
        plan = plan_objects(values, objects, saved.get(source, source), reward, watch, "train")
        planning.check_disk(plan, Path(runs))
        return run_in_folder(plan, objects, Path(runs), new, progress)


def score(
    media: Any,
    reward: RewardLike,
    prompts: str | Sequence[str | Mapping[str, Any]] | None = None,
    sources: Any = None,
    against: str | Path | None = None,
    pair: str = "",
) -> list[dict[str, Any]]:
    """What rewards say of media, whoever made them.

        w.score("pictures/", ["starter_clip", "brightness"], prompts="a red circle")
        w.score("results/ours", "clip", against="results/theirs", pair="prompt")

    Args:
        media: a file or folder (pictures, clips, sounds), a PIL picture, a tensor [3,H,W] or [N,3,H,W] in [0,1], a
            Media, what `align` returned, or a list of these.
        reward: as in `align`.
        prompts: one for all, or one for each [of `align`; of files those in metadata.jsonl, beside or inside them].
            {"prompt": text, "mask": file} is one that comes with inputs.
        sources: what the media were made from, for rewards of edits: one for all, or one for each, in any form of
            `media` [what the prompts come with].
        against, pair: another folder, and how files are paired: "prompt", "name", "order" [where that is clear].

    Returns:
        With `against`, a dict for each reward: `difference`, `wins`, means, `pairs` (docs/own-media.md). Else
        a list of dicts, one a sample, for pandas: `file` (its number where there is none), `prompt`, a float for each
        reward, unweighted and higher is better; NaN where it can't judge. A reward of whole sets has the score of them
        all in every row. A file of a folder that can't be read has NaN and an `error`; files are read one by one.

    Raises BadInput for a named file that can't be read, a folder of which none can, a reward of another modality, or
    one that needs a prompt or a source where there is none.

    Source: workbench/engine/score_media.py; every reward's range and unit: docs/rewards.md.
    """
    objects = UserObjects()
    rewards = planning.build_watched(objects.name_rewards(reward, "reward"), objects.reward_registry()).rewards
    with quiet_libraries():
        if against is not None:
            return compare_folders(media, against, rewards, pair, prompts, sources)
        items = collect_items(media, sources)
        return score_items(items, rewards, with_prompts(items, prompts))


def read_run(folder: str | Path) -> Run:
    """A run that `train`, `compare(runs=...)` or the command line has left, as `train` returns it.

    Args:
        folder: a run folder, such as runs/20260101-120000-nft.

    Raises BadInput for what is none.

    Source: workbench/engine/run_results.py; the files of a run folder: docs/training.md.
    """
    return read_run_folder(folder)
