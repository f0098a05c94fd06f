"""Planning: a run's config becomes a Plan, or a BadInput that says in one sentence why it can't work. No weight
loads."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipelines
from rewards import build_reward
from rewards.compose import NoReward, WeightedReward
from workbench.core.errors import BadInput
from workbench.core.schema import build_dataclass
from workbench.engine import import_media, input_checks
from workbench.engine.reward_checks import check_group_reward, check_inputs, check_modality, check_set_reward
from workbench.engine.user_objects import UserObjects
from workbench.methods import METHODS, name_of, trains_weights
from workbench.runs import config as configs
from workbench.runs import preference_data, prompts, stages, train_config, training_sizes
from workbench.runs.budget import Budget
from workbench.runs.controls import check_exchanged, check_shuffled
from workbench.runs.plan import Plan
from workbench.runs.resolve import name_prompts, resolve_dependencies, with_prompts
from workbench.training import training_runs

EXAMPLES = "python benchmarks/dragon.py --references data --made-by starter-music-good"  # makes data/music
FREE_MB = 64  # that must be free on the disk of the runs


def plan_run(config: configs.RunConfig, command: str = "", objects: UserObjects | None = None) -> Plan:
    """The plan of a run, whose config may name Python objects by their labels in `objects`.

    Raises BadInput, in one sentence, for every fault that can be seen without loading weights.
    """
    objects = objects or UserObjects()
    if config.stages is not None:
        return plan_stages(config, command, objects)
    if configs.is_import(config):
        return import_media.plan_import(config, command, *build_rewards(config, objects.reward_registry()))
    methods = configs.build_methods(config, objects.method_registry())
    budget = build_dataclass(Budget, config.budget, "budget").check_limits() if config.budget is not None else None
    repos = configs.pipeline_labels(config)
    configs_by_name = {repo: objects.read_pipeline(repo) for repo in dict.fromkeys(repos.values())}
    adapters = configs.contestant_loras(config)
    pipeline_configs = {
        name: pipelines.with_lora(configs_by_name[repo], lora.file, lora.weight)
        if (lora := adapters.get(name))
        else configs_by_name[repo]
        for name, repo in repos.items()
    }
    placements = [
        objects.check_pipeline(repo, pipeline, device=config.device, dtype=config.dtype, attention=config.attention)
        for repo, pipeline in configs_by_name.items()
    ]
    if len({p.modality for p in configs_by_name.values()}) > 1:
        modalities = ", ".join(f"{repo} makes {p.modality}" for repo, p in configs_by_name.items())
        raise BadInput(f"contestants: they can't be compared, for {modalities}")
    reward, watch = build_rewards(config, objects.reward_registry())
    if optimised_too := set(reward.rewards) & set(watch.rewards if watch else ()):
        raise BadInput(
            f"watch: {', '.join(sorted(optimised_too))} is optimised by this run, so it can't be held out too"
        )
    for part in (reward, watch) if watch else (reward,):
        for repo, pipeline in configs_by_name.items():
            check_modality(part, repo, pipeline.modality)
    own_rewards = {
        name: reward.change_weights(weights, f"contestants.{name}.reward")
        for name, weights in configs.contestant_weights(config).items()
    }
    check_requirements(methods, pipeline_configs, {name: own_rewards.get(name, reward) for name in methods})
    check_set_reward(config, methods, reward)
    check_group_reward(config, reward, watch, methods)
    for method in methods.values():
        resolve_dependencies(method)
    rewards = reward.rewards | (watch.rewards if watch else {})
    sources = {"prompts": config.prompts, "test": config.test, **name_prompts(methods)}
    training = any(map(trains_weights, methods.values()))
    limits = {"prompts": 0 if training else config.limit, "test": config.limit}
    prompt_lists = input_checks.read_prompt_lists(sources, configs_by_name, rewards, limits)
    methods = with_prompts(methods, prompt_lists)
    prompt_list = prompt_lists["prompts"].prompts
    modality = next(iter(configs_by_name.values())).modality
    check_inputs(rewards, modality, (p for part in prompt_lists.values() for p in part.prompts))
    pairs = read_pairs(config, methods, configs_by_name)
    if not training and (config.train is not None or config.test is not None):
        raise BadInput(f"{'train' if config.train is not None else 'test'}: no contestant of this run is trained")
    test_prompts = prompt_lists.get("test", prompt_lists["prompts"]).prompts
    rows = prompts.sample_rows(test_prompts[: config.limit or None], config.seed, config.samples_per_prompt)
    if config.control == "shuffled":
        check_shuffled(reward, (row[1] for row in rows))
    if config.control == "shuffled_inputs":
        if training:
            raise BadInput(
                "control: shuffled_inputs judges what is there and trains nothing; name a finished training's run "
                "folder as the pipeline"
            )
        check_exchanged(row[1] for row in rows)
    for part in (reward, watch) if watch else (reward,):
        part.check_combination([r[1] for r in rows])
    checks = [
        *(
            f"pipeline {repo}: {pipeline.modality}, {pipeline.steps} step(s), "
            f"on {device} in {str(dtype).removeprefix('torch.')}, attention {kernels}"
            for (repo, pipeline), (device, dtype, kernels) in zip(configs_by_name.items(), placements, strict=True)
        ),
        *(
            f"pipeline {repo}: {line}"
            for repo, pipeline in configs_by_name.items()
            for line in ([] if repo in objects.pipelines else pipelines.describe_loading(pipeline))
        ),
        *describe_loras(pipeline_configs),
        *training_sizes.export_warnings(pipeline_configs),
        f"optimised: {', '.join(reward.rewards) or 'nothing'}; "
        f"held out: {', '.join(watch.rewards) if watch else 'nothing'}",
        f"{len({r[1] for r in rows})} prompts x {config.samples_per_prompt} seed(s) = {len(rows)} samples in batches "
        f"of {config.batch}",
        *input_checks.describe_lists(prompt_lists, configs_by_name),
    ]
    if budget:
        checks.append(
            f"at most {budget} a sample; a contestant that is cut delivers the best it has, in mid-chain a prediction, "
            "marked as such"
        )
    planned = Plan(
        config, methods, pipeline_configs, reward, watch, rows, checks, command, budget, own_rewards, pairs=pairs
    )
    return plan_training(planned, prompt_list) if training else planned


def plan_training(plan: Plan, prompt_list: Sequence[str]) -> Plan:
    """The plan with settings and prompts of its training. Raises BadInput."""
    config, methods = plan.config, {n: plan.methods[n] for n in plan.trained_contestants}
    for name, method in methods.items():
        if plan.pipelines[name].lora and method.sampler() is not None:
            raise BadInput(
                f"contestants.{name}: {name_of(method)} trains a LoRA beside the generator, which must have none of "
                "its own; train it on the base"
            )
    if plan.budget is not None:
        raise BadInput(
            "budget: is what a sample may cost without training; a training is bounded by train.rounds and "
            "train.minutes"
        )
    recipe = train_config.read_train_config(
        config.train, methods, list(plan.watch.rewards) if plan.watch else [], list(plan.reward.rewards)
    )
    for name, method in methods.items():
        check_training(replace(plan, train_config=recipe), name, method)
    if plan.pairs is None:
        train, held_out, set_apart = train_config.split_prompts(prompt_list, recipe, config.seed)
    else:  # pairs have prompts of their own, so any of the run's prompts are held out
        train, sources = (), plan.pairs.list_sources()
        held_out, set_apart = train_config.hold_out_prompts(prompt_list, recipe, config.seed, sources)
    for name, method in methods.items():
        try:
            resolve_dependencies(method).check_prompts(train)
        except BadInput as error:
            raise BadInput(f"contestants.{name}: {error}") from None
    if config.control == "shuffled" and (len(train) if plan.pairs is None else recipe.prompts_per_round) < 2:
        raise BadInput("control: shuffled prompts need at least two different prompts to train on")
    if config.control == "shuffled" and plan.pairs is None:
        check_shuffled(plan.reward, train)
    for part in (plan.reward, plan.watch) if plan.watch else (plan.reward,):
        part.check_combination([*train, *held_out])
    lines = [
        *plan.checks,
        *(
            f"contestant {name}: starts from {plan.pipelines[name].lora}, merged; its export holds both"
            for name in methods
            if plan.pipelines[name].lora
        ),
        *train_config.describe_training(recipe, held_out, set_apart, train if plan.pairs is None else plan.pairs),
    ]
    trained = replace(plan, train_config=recipe, train_prompts=train, held_out_prompts=held_out)
    for name in methods:
        lines += training_sizes.size_warnings(
            name, training_runs.training_pipeline(trained, name), plan.pipelines[name]
        )
    tested = {row[1] for row in plan.rows}
    if config.test is not None and (repeated := input_checks.count_trained_prompts(tested, trained.trained_sources)):
        lines.append(f"warning: {repeated} of the {len(tested)} test prompts are trained on too")
    if plan.pairs is not None and (left_out := plan.pairs.describe_left_out()):
        lines.append("warning: " * bool(plan.pairs.describe_left_out(faults_only=True)) + f"pairs: {left_out}")
    if config.test is None:
        which = "that they were trained on" if plan.pairs is None else "by which the best weights are picked"
        lines.append(f"warning: no `test` prompts are named, so the trained are judged on prompts {which}")
    return replace(trained, checks=lines)


def check_training(plan: Plan, name: str, method: Any) -> None:
    """Raises BadInput where the method can't train with its pipeline, LoRA or reward."""
    pipeline, lora = training_runs.training_pipeline(plan, name), train_config.lora_config(plan.train_config)
    where = {key: getattr(plan.config, key) for key in ("device", "dtype", "attention")}
    axes = resolve_dependencies(method).dial_axes(plan.reward_of(name))
    pipelines.plan_loading(pipeline, **where, train={"lora": lora, "shard": plan.train_config.shard, "axes": axes})
    if axes and plan.config.control != "none":
        raise BadInput(f"control: {name} is told scores, which it can't turn round; say method.shuffle: true")
    try:
        method.check(pipeline, plan.reward_of(name), lora)
    except BadInput as error:
        raise BadInput(f"contestants.{name}: {error}") from None


def read_pairs(
    config: configs.RunConfig, methods: Mapping[str, Any], pipeline_configs: Mapping[str, pipelines.PipelineConfig]
) -> preference_data.PreferencePairs | None:
    """The preference pairs of a run, with their labels read; None without a `pairs` block. Raises BadInput."""
    if config.pairs is None:
        return None
    trained = {name: method for name, method in methods.items() if trains_weights(method)}
    pair_methods = [name for name, cls in METHODS.items() if cls.learns_from_pairs]
    if not trained:
        raise BadInput("pairs: no contestant of this run is trained")
    for name, method in trained.items():
        if not method.learns_from_pairs:
            raise BadInput(
                f"pairs: {name} learns from samples of its own, not from pairs; these can: {', '.join(pair_methods)}"
            )
    for repo, pipeline in pipeline_configs.items():
        if pipelines.has_vocoder(pipeline):
            raise BadInput(
                f"pairs: {repo} makes its sounds by a vocoder, which can't be turned back into latents; train by a "
                "reward that was learnt from them: docs/loop.md"
            )
    pairs = build_dataclass(preference_data.PreferencePairs, {"seed": config.seed, **config.pairs}, "pairs")
    pairs = pairs.with_inputs(input_checks.wanted_inputs(pipeline_configs.values(), ()))
    pairs.check()
    pairs.read_ahead()
    return pairs


def plan_stages(config: configs.RunConfig, command: str, objects: UserObjects) -> Plan:
    """The plan of a training in stages, with two contestants: "base", and "staged", which is trained in all stages.
    Raises BadInput."""
    staged = stages.read_stages(config.stages, dataclasses.asdict(config), config.seed)
    block, tasks = dict(config.train or {}), []
    if unwanted := sorted({"rounds", "best", "accumulate"} & set(block)):
        raise BadInput(
            f"train.{unwanted[0]}: a training in stages has none; each stage says its `rounds`, the last weights stay"
        )
    for n, stage in enumerate(staged.stages):
        inherited = {key: getattr(stage, key) for key in stages.INHERITED}
        try:
            task_config = replace(config, stages=None, train={**block, "rounds": stage.rounds}, **inherited)
            task = plan_run(task_config, objects=objects)
        except BadInput as error:
            raise BadInput(f"stages[{n}] ({stage.name}): {error}") from None
        (name,) = task.trained_contestants or [""]
        method = task.methods[name] if name else None
        has_dials = method is not None and resolve_dependencies(method).dial_axes(task.reward)
        if method is None or method.sampler() or method.delivered_copy or has_dials:
            raise BadInput(
                f"stages[{n}] ({stage.name}): its method leaves no weights that another stage could go on from"
            )
        test_prompts = tuple(dict.fromkeys(row[1] for row in task.rows))
        rewards = task.reward.rewards | (task.watch.rewards if task.watch else {})
        train_prompts = input_checks.read_prompt_lists({"prompts": stage.prompts}, task.pipelines, rewards)["prompts"]
        tasks.append(replace(task, train_prompts=train_prompts.prompts, held_out_prompts=test_prompts))
    prompts_source = config.prompts if config.test is None else config.test
    contestants = {"base": "sample", "staged": "sample"}
    config_of_samples = replace(
        config, stages=None, method=None, contestants=contestants, prompts=prompts_source, test=None, train=None
    )
    sampling_plan = plan_run(config_of_samples, command, objects)
    pipeline_configs = {
        s.name: t.pipelines[t.trained_contestants[0]] for s, t in zip(staged.stages, tasks, strict=True)
    }
    kinds = {name: describe_weights(p) for name, p in pipeline_configs.items()}
    stages.check_same_weights(staged, kinds)
    if describe_weights(sampling_plan.pipelines["staged"]) != kinds[staged.stages[0].name]:
        raise BadInput(
            f"pipeline: {pipelines.pipeline_label(config.pipeline)} has other weights than the stages train; name "
            "theirs"
        )
    methods = sampling_plan.methods | {"staged": tasks[-1].methods[tasks[-1].trained_contestants[0]]}
    recipe = replace(tasks[0].train_config, rounds=len(staged), eval_every=0, best="last")
    lines = [*sampling_plan.checks]
    for n, (stage, task) in enumerate(zip(staged.stages, tasks, strict=True), 1):
        how = f"{name_of(task.methods[task.trained_contestants[0]])}, paid by {', '.join(task.reward.rewards)}"
        share = f", {stage.rehearse:.0%} of them of earlier stages" if stage.rehearse else ""
        lines.append(
            f"stage {n}, {stage.name}: {stage.rounds} rounds of {recipe.prompts_per_round} prompts by {how}{share}; "
            f"{len(task.train_prompts)} prompts to train on, {len(task.held_out_prompts)} to be judged on after each "
            "stage"
        )
    for name, pipeline in pipeline_configs.items():
        lines += training_sizes.size_warnings(f"staged, in stage {name},", pipeline, sampling_plan.pipelines["staged"])
    train = tuple(dict.fromkeys(p for task in tasks for p in task.train_prompts))
    return replace(
        sampling_plan,
        config=config,
        methods=methods,
        train_config=recipe,
        stages=staged,
        tasks=tasks,
        train_prompts=train,
        checks=lines,
    )


def describe_weights(pipeline: pipelines.PipelineConfig) -> tuple[str, str]:
    """(repository, classes and settings that load it): pipelines for which these are equal can share a LoRA."""
    return pipeline.repo, " ".join(map(str, filter(None, (pipeline.pipeline, pipeline.scheduler, pipeline.components))))


def describe_loras(pipeline_configs: Mapping[str, pipelines.PipelineConfig]) -> list[str]:
    """What is applied of each contestant's LoRA file, as far as it is known without weights. Raises BadInput."""
    return [
        f"{'warning: ' if 'not applied' in note else ''}contestant {name}: LoRA {note}"
        for name, pipeline in pipeline_configs.items()
        if pipeline.lora
        for note in pipelines.plan_lora(pipeline)
    ]


def check_requirements(
    methods: Mapping[str, Any], pipeline_configs: Mapping[str, Any], rewards: Mapping[str, WeightedReward]
) -> None:
    """Raises BadInput for a method that needs what its pipeline or its reward does not provide; all by contestant."""
    for name, method in methods.items():
        reward = rewards[name]
        provided = {"latents", "reward"} | ({"differentiable"} if reward.spec.differentiable else set())
        if unmet := method.needs - provided - pipeline_configs[name].provides:
            without_gradient = [n for n, r in reward.rewards.items() if not r.spec.differentiable]
            because = (
                f"; {', '.join(without_gradient)} has no gradient"
                if "differentiable" in unmet and without_gradient
                else ""
            )
            raise BadInput(
                f"contestant {name} needs what this run does not provide: {', '.join(sorted(unmet))}{because}"
            )


def build_rewards(
    config: configs.RunConfig, registry: Mapping[str, Any]
) -> tuple[WeightedReward, WeightedReward | None]:
    """(the optimised reward, the held-out rewards or None). Raises BadInput."""
    try:
        watch = build_watched(config.watch, registry) if config.watch else None
        return build_reward(config.reward, registry) if config.reward else NoReward(), watch
    except BadInput as error:
        ours = "reference: data/music" in str(error)
        raise BadInput(f"{error}; the starter pack's are made by: {EXAMPLES}") if ours else error from None


def build_watched(block: Mapping[str, Any] | Sequence[str] | str, registry: Mapping[str, Any]) -> WeightedReward:
    """The held-out rewards of a `watch` block. As they are not added up, some may score samples and others sets. Raises
    BadInput."""
    names = [block] if isinstance(block, str) else [*block]
    if len(names) == 1 or len(set(names)) < len(names) or {"shape", "combine"} & set(names):
        return build_reward(block, registry, where="watch")
    settings = block if isinstance(block, Mapping) else dict.fromkeys(names, 1.0)
    first, *others = (build_reward({n: settings[n]}, registry, where="watch") for n in names)
    for part in others:
        first.rewards |= part.rewards
        first.weights |= part.weights
    return first


def check_disk(plan: Plan, runs: Path) -> None:
    """Raises BadInput when the disk of `runs` has no room for what the run will write."""
    disk_folder = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    sides = [p.call.get("height", 1024) * p.call.get("width", 1024) for p in plan.pipelines.values()]
    need = len(plan.rows) * sum(sides) * 3 / 2**20 if plan.modality == "image" else 0
    need += 4 * input_checks.total_input_mb(row[1] for row in plan.rows)  # which are written as they are
    free = shutil.disk_usage(disk_folder).free / 2**20
    if free < FREE_MB:
        raise BadInput(
            f"{disk_folder}: only {free:.0f} MB free on this disk, at least {FREE_MB} are needed; use --runs"
        )
    if free < need / 4:  # PNG of real pictures is rarely smaller than a quarter of the raw size
        raise BadInput(f"{disk_folder}: {free:.0f} MB free, about {need:.0f} MB of pictures to write; use --runs")


def weights_mb(plan: Plan) -> float:
    """MB of the pipelines' weights in local folders; 0 when they are on the hub."""
    folders = {p.folder for p in plan.pipelines.values() if p.folder}
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*.safetensors")) / 2**20
