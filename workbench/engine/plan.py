"""A run that was asked for becomes a plan, or one sentence that says why it can't work: before any weight loads."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pipelines
from rewards import compose
from workbench.core.schema import build
from workbench.core.types import BadInput, derive
from workbench.methods import METHODS, name_of, trains
from workbench.runs import config as configs
from workbench.runs import preference_data, prompts, stages, train_config
from workbench.runs.budget import Budget
from workbench.runs.registry import judges
from workbench.runs.resolve import supplied
from workbench.training import training_runs

EXAMPLES = "python benchmarks/dragon.py --references data --made-by starter-music-good"  # makes data/music
FREE_MB = 64  # kept free on the disk of the runs, on top of what a run will write


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check that needs no weights."""

    config: configs.RunConfig
    methods: Mapping[str, Any]  # contestant -> method
    pipelines: Mapping[str, Any]  # contestant -> pipelines.PipelineConfig
    reward: compose.Weighted  # optimised
    watch: compose.Weighted | None  # held out
    rows: Sequence[tuple[int, str, int, int]]  # (position, prompt, k, noise seed), one a sample
    checks: Sequence[str]
    command: str = ""  # what repeats it
    budget: Budget | None = None
    recipe: recipe.Recipe | None = None  # of the methods that train
    train: Sequence[str] = ()  # prompts that they train on
    held: Sequence[str] = ()  # prompts that are watched meanwhile
    pairs: preference_data.Pairs | None = None  # what they learn from in place of samples
    stages: stages.Stages | None = None  # trainings one after the other,
    tasks: Sequence[Plan] = ()  # and a plan for each; `held` are the prompts that it is judged on

    @property
    def trained(self) -> list[str]:
        """The contestants that are trained first."""
        return [name for name, method in self.methods.items() if trains(method)]

    @property
    def modality(self) -> str:
        return next(iter(self.pipelines.values())).modality

    @property
    def batches(self) -> int:
        return -(-len(self.rows) // self.config.batch)

    def calls(self, name: str) -> int:
        """Denoiser calls that contestant `name` will make, CFG pairs counted once."""
        method, steps = self.methods[name], self.pipelines[name].steps
        if not trains(method):
            return method.calls(steps) * len(self.rows)
        if self.tasks:
            return sum(task.calls(task.trained[0]) for task in self.tasks)
        if self.pairs is not None:  # nothing is sampled
            pair = replace(method, group=2).calls(steps) - 2 * steps
            return pair * self.recipe.prompts * self.recipe.batches + steps * len(self.rows)
        return method.calls(steps) * self.recipe.prompts * self.recipe.batches + steps * len(self.rows)


def plan(config: configs.RunConfig, command: str = "") -> Plan:
    """Raises BadInput, in one sentence, for whatever can be known to fail."""
    if config.stages is not None:
        return in_stages(config, command)
    methods = configs.contestants(config, METHODS)
    budget = build(Budget, config.budget, "budget").checked() if config.budget is not None else None
    repos = configs.repos(config)
    read = {repo: pipelines.read(repo) for repo in dict.fromkeys(repos.values())}
    adapters = configs.loras(config)
    made = {name: pipelines.adapted(read[repo], adapters.get(name)) for name, repo in repos.items()}
    where = [
        pipelines.preflight(pipeline, device=config.device, dtype=config.dtype, attention=config.attention)
        for pipeline in read.values()
    ]
    if len({p.modality for p in read.values()}) > 1:
        told = ", ".join(f"{repo} makes {p.modality}" for repo, p in read.items())
        raise BadInput(f"contestants: they can't be compared, for {told}")
    reward, watch = rewards_of(config)
    if twice := set(reward.rewards) & set(watch.rewards if watch else ()):
        raise BadInput(f"watch: {', '.join(sorted(twice))} is optimised by this run, so it can't be held out too")
    for part in (reward, watch) if watch else (reward,):
        for repo, pipeline in read.items():
            fits(part, repo, pipeline.modality)
    able(methods, made, reward)
    whole(config, methods, reward)
    grouped(config, reward, watch, methods)
    for method in methods.values():
        supplied(method)
    pairs = paired(config, methods, next(iter(read.values())).modality)
    found = prompts.prompts(config.prompts)
    training = any(map(trains, methods.values()))
    if not training and (config.train is not None or config.test is not None):
        raise BadInput(f"{'train' if config.train is not None else 'test'}: no contestant of this run is trained")
    judged = found if config.test is None else prompts.prompts(config.test, "test")
    rows = prompts.items(judged[: config.limit or None], config.seed, config.seeds)
    if config.control == "shuffled" and len({r[1] for r in rows}) < 2:
        raise BadInput("control: shuffled prompts need at least two different prompts")
    for part in (reward, watch) if watch else (reward,):
        part.check_own([r[1] for r in rows])
    checks = [
        *(
            f"pipeline {repo}: {pipeline.modality}, {pipeline.steps} step(s), "
            f"on {device} in {str(dtype).removeprefix('torch.')}, attention {kernels}"
            for (repo, pipeline), (device, dtype, kernels) in zip(read.items(), where, strict=True)
        ),
        f"optimised: {', '.join(reward.rewards)}; held out: {', '.join(watch.rewards) if watch else 'nothing'}",
        f"{len({r[1] for r in rows})} prompts x {config.seeds} seed(s) = {len(rows)} samples in batches of {config.batch}",
    ]
    if budget:
        checks.append(
            f"at most {budget} a sample; a contestant that is cut delivers the best it has, in mid-chain a prediction, marked as such"
        )
    planned = Plan(config, methods, made, reward, watch, rows, checks, command, budget, pairs=pairs)
    return to_train(planned, found) if training else planned


def to_train(plan: Plan, found: Sequence[str]) -> Plan:
    """The plan with what its training needs. Raises BadInput."""
    config, methods = plan.config, {n: plan.methods[n] for n in plan.trained}
    for name in methods:
        if plan.pipelines[name].lora:
            raise BadInput(
                f"contestants.{name}: training on top of a LoRA is not possible; export it merged and train on that"
            )
    if plan.budget is not None:
        raise BadInput(
            "budget: is what a sample may cost without training; a training is bounded by train.updates and train.minutes"
        )
    asked = train_config.read(
        config.train, methods, list(plan.watch.rewards) if plan.watch else [], list(plan.reward.rewards)
    )
    for name, method in methods.items():
        trainable(replace(plan, recipe=asked), name, method)
    train, held, apart = train_config.setting_apart(found, asked, config.seed)
    if plan.pairs is not None:  # which bring prompts of their own: all of these may be watched
        train, held, apart = (), tuple(sorted(found, key=lambda p: derive(config.seed, "held", p))[: asked.held]), True
    if config.control == "shuffled" and (len(train) if plan.pairs is None else asked.prompts) < 2:
        raise BadInput("control: shuffled prompts need at least two different prompts to train on")
    for part in (plan.reward, plan.watch) if plan.watch else (plan.reward,):
        part.check_own([*train, *held])
    lines = [*plan.checks, *train_config.told(asked, held, apart, train if plan.pairs is None else plan.pairs)]
    if config.test is not None and plan.pairs is None and (seen := trained_on(plan.rows, train)):
        lines.append(f"warning: {seen} of the {len({row[1] for row in plan.rows})} test prompts are trained on too")
    if config.test is None:
        known = "that they were trained on" if plan.pairs is None else "by which the best weights are picked"
        lines.append(f"warning: no `test` prompts are named, so the trained are judged on prompts {known}")
    return replace(plan, recipe=asked, train=train, held=held, checks=lines)


def trained_on(rows: Sequence[tuple], train: Sequence[str]) -> int:
    """How many of the prompts that are judged in the end are among those to train on."""
    return len({row[1] for row in rows} & set(train))


def trainable(plan: Plan, name: str, method: Any) -> None:
    """Raises BadInput where the pipeline as it trains, its LoRA or the reward are not what the method can work with."""
    pipeline, lora = training_runs.while_training(plan, name), train_config.adapter(plan.recipe)
    where = {key: getattr(plan.config, key) for key in ("device", "dtype", "attention")}
    pipelines.preflight(pipeline, **where, train={"lora": lora, "shard": plan.recipe.shard})
    if hasattr(method, "check"):
        try:
            method.check(pipeline, plan.reward, lora)
        except BadInput as error:
            raise BadInput(f"contestants.{name}: {error}") from None


def paired(config: configs.RunConfig, methods: Mapping[str, Any], modality: str) -> preference_data.Pairs | None:
    """The pairs that a run learns from, their labels read. Raises BadInput."""
    if config.pairs is None:
        return None
    trained = {name: method for name, method in methods.items() if trains(method)}
    able_to = [name for name, cls in METHODS.items() if getattr(cls, "pairs", False)]
    if not trained:
        raise BadInput("pairs: no contestant of this run is trained")
    for name, method in trained.items():
        if not getattr(method, "pairs", False):
            raise BadInput(
                f"pairs: {name} learns from samples of its own, not from pairs; these can: {', '.join(able_to)}"
            )
    if modality == "audio":
        raise BadInput("pairs: sounds can't be turned back into latents, so there is nothing to learn from them")
    found = build(preference_data.Pairs, {"seed": config.seed, **config.pairs}, "pairs")
    found.check()
    return found


def in_stages(config: configs.RunConfig, command: str) -> Plan:
    """The plan of a training in stages: its contestants are the base and what has gone through them all. Raises BadInput."""
    found = stages.read(config.stages, dataclasses.asdict(config), config.seed)
    block, tasks = dict(config.train or {}), []
    if odd := sorted({"updates", "best", "accumulate"} & set(block)):
        raise BadInput(
            f"train.{odd[0]}: a training in stages has none; each stage says its `updates`, the last weights stay"
        )
    for n, stage in enumerate(found.stages):
        own = {key: getattr(stage, key) for key in stages.INHERITED}
        try:
            task = plan(replace(config, stages=None, train={**block, "updates": stage.updates}, **own))
        except BadInput as error:
            raise BadInput(f"stages[{n}] ({stage.name}): {error}") from None
        (name,) = task.trained or [""]
        if not name or hasattr(task.methods[name], "delivers") or hasattr(task.methods[name], "result"):
            raise BadInput(
                f"stages[{n}] ({stage.name}): its method leaves no weights that another stage could go on from"
            )
        held = tuple(dict.fromkeys(row[1] for row in task.rows))
        tasks.append(replace(task, train=prompts.prompts(stage.prompts), held=held))
    judged = config.prompts if config.test is None else config.test
    both = {"base": "sample", "staged": "sample"}
    whole = plan(
        replace(config, stages=None, method=None, contestants=both, prompts=judged, test=None, train=None), command
    )
    made = {"staged": whole.pipelines["staged"]} | {
        s.pipeline: t.pipelines[t.trained[0]] for s, t in zip(found.stages, tasks, strict=True)
    }
    kinds = {
        name: (p.repo, " ".join(map(str, filter(None, (p.pipeline, p.scheduler, p.components)))))
        for name, p in made.items()
    }
    stages.same_weights(found, kinds)
    if kinds["staged"] != kinds[found.stages[0].pipeline]:
        raise BadInput(f"pipeline: {config.pipeline} has other weights than the stages train; name theirs")
    methods = whole.methods | {"staged": tasks[-1].methods[tasks[-1].trained[0]]}
    asked = replace(tasks[0].recipe, updates=len(found), evaluate=0, best="last")
    lines = [*whole.checks]
    for n, (stage, task) in enumerate(zip(found.stages, tasks, strict=True), 1):
        how = f"{name_of(task.methods[task.trained[0]])}, paid by {', '.join(task.reward.rewards)}"
        share = f", {stage.rehearse:.0%} of them of earlier stages" if stage.rehearse else ""
        lines.append(
            f"stage {n}, {stage.name}: {stage.updates} rounds of {asked.prompts} prompts by {how}{share}; "
            f"{len(task.train)} prompts to train on, {len(task.held)} to be judged on after each stage"
        )
    train = tuple(dict.fromkeys(p for task in tasks for p in task.train))
    return replace(
        whole, config=config, methods=methods, recipe=asked, stages=found, tasks=tasks, train=train, checks=lines
    )


def able(methods: Mapping[str, Any], made: Mapping[str, Any], reward: compose.Weighted) -> None:
    """Raises BadInput for a method that needs what its pipeline or the reward does not provide."""
    provided = {"latents", "reward"} | ({"differentiable"} if reward.spec.differentiable else set())
    for name, method in methods.items():
        if missing := method.needs - provided - made[name].provides:
            dull = [n for n, r in reward.rewards.items() if not r.spec.differentiable]
            because = f"; {', '.join(dull)} has no gradient" if "differentiable" in missing and dull else ""
            raise BadInput(
                f"contestant {name} needs what this run does not provide: {', '.join(sorted(missing))}{because}"
            )


def rewards_of(config: configs.RunConfig) -> tuple[compose.Weighted, compose.Weighted | None]:
    """What is optimised, and what is held out. Raises BadInput."""
    try:
        return compose.from_config(config.reward, judges()), held_out(config.watch) if config.watch else None
    except BadInput as error:
        ours = "reference: data/music" in str(error)
        raise BadInput(f"{error}; the starter pack's are made by: {EXAMPLES}") if ours else error from None


def held_out(block: Mapping[str, Any] | Sequence[str] | str) -> compose.Weighted:
    """Judges of samples and of sets may watch side by side, for nobody adds them up."""
    names = [block] if isinstance(block, str) else [*block]
    if len(names) == 1 or len(set(names)) < len(names) or {"shape", "combine"} & set(names):
        return compose.from_config(block, judges(), where="watch")
    settings = block if isinstance(block, Mapping) else dict.fromkeys(names, 1.0)
    first, *rest = (compose.from_config({n: settings[n]}, judges(), where="watch") for n in names)
    for part in rest:
        first.rewards |= part.rewards
        first.weights |= part.weights
    return first


def whole(config: configs.RunConfig, methods: Mapping[str, Any], reward: compose.Weighted) -> None:
    """Raises BadInput for a reward of whole sets, unless all that optimise it learn from sets, and a control is one."""
    if reward.spec.scope != "set":
        return
    if config.control == "shuffled" and "prompt" not in reward.spec.needs:
        raise BadInput(
            f"control: shuffled prompts are all the same to {reward.spec.name}, which reads none; use: negated"
        )
    (name, *_), able_to = reward.rewards, [n for n, cls in METHODS.items() if getattr(cls, "sets", False)]
    for contestant, method in methods.items():
        if "reward" in method.needs and not getattr(method, "sets", False):
            raise BadInput(
                f"reward {name} judges whole sets, and contestant {contestant} needs a score of each sample; "
                f"{', '.join(able_to)} learns from sets, and leave_one_out: {{of: {name}}} gives each sample its credit"
            )


def fits(part: compose.Weighted, repo: str, modality: str) -> None:
    """Raises BadInput for a reward of another modality, or one that asks for more than a sample and its prompt: no
    method here makes a prompt's samples in one call, or from a source picture."""
    for name, judge in part.rewards.items():
        if modality not in judge.spec.modalities:
            raise BadInput(
                f"reward {name} judges {' and '.join(sorted(judge.spec.modalities))}, "
                f"but {repo} makes {modality}; see: workbench list rewards"
            )
        if "source" in judge.spec.needs:
            raise BadInput(
                f"reward {name} compares with the source of an edit, and these samples are made from nothing"
            )


def grouped(
    config: configs.RunConfig, reward: compose.Weighted, watch: compose.Weighted | None, methods: Mapping[str, Any]
) -> None:
    """Raises BadInput for a reward that compares the samples of one prompt, unless all that optimise it score a prompt's
    samples in one call: methods that train on groups."""
    held = {watch.spec.name: watch.spec} | {n: r.spec for n, r in watch.rewards.items()} if watch else {}
    if odd := [n for n, spec in held.items() if spec.scope == "group"]:
        raise BadInput(
            f"watch: {odd[0]} compares the samples of one prompt, which says nothing of how contestants differ"
        )
    if reward.spec.scope != "group":
        return
    within = [n for n, r in reward.rewards.items() if r.spec.scope == "group"]
    if within and (config.seeds < 2 or config.batch % config.seeds):
        raise BadInput(
            f"reward {within[0]} compares the samples of one prompt: set seeds to 2 or more, and batch to a multiple of it"
        )
    alone = [n for n, m in methods.items() if "reward" in m.needs and not (trains(m) and getattr(m, "group", 1) > 1)]
    if alone or not any("reward" in m.needs for m in methods.values()):
        raise BadInput(
            f"reward {reward.spec.name} compares the samples of one prompt in one call, and "
            + (f"contestant {alone[0]}" if alone else "no contestant of this run")
            + (" makes them one at a time" if alone else " makes a prompt's samples together")
        )


def room(plan: Plan, runs: Path) -> None:
    """Raises BadInput when the disk of `runs` has no room for what the run will write."""
    there = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    sides = [p.call.get("height", 1024) * p.call.get("width", 1024) for p in plan.pipelines.values()]
    need = len(plan.rows) * sum(sides) * 3 / 2**20 if plan.modality == "image" else 0
    free = shutil.disk_usage(there).free / 2**20
    if free < FREE_MB:
        raise BadInput(f"{there}: only {free:.0f} MB free on this disk, at least {FREE_MB} are needed; use --runs")
    if free < need / 4:  # PNG of real pictures is rarely smaller than a quarter of the raw size
        raise BadInput(f"{there}: {free:.0f} MB free, about {need:.0f} MB of pictures to write; use --runs")


def weights_mb(plan: Plan) -> float:
    """What the pipelines' weights take on this disk; 0 when they are on the hub."""
    folders = {p.folder for p in plan.pipelines.values() if p.folder}
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*.safetensors")) / 2**20
