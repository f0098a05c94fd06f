"""A comparison from the page: requested, checked before anything loads, made by the job queue, watched while it is
made."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pipelines
from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput
from workbench.core.schema import build_dataclass
from workbench.engine import compare
from workbench.engine.plan import check_disk, plan_run
from workbench.methods import METHODS, name_of
from workbench.report.formatting import count_things
from workbench.runs import config, store
from workbench.runs import prompts as data
from workbench.runs.plan import Plan
from workbench.runs.progress import score_samples
from workbench.ui import contestant_choices, input_uploads, prompt_choices, reward_offers, run_processes
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.context import AppContext
from workbench.ui.jobs import Job
from workbench.ui.limits import SLOTS
from workbench.ui.live_comparison import LiveComparison, PipelineCache, format_duration

# the most that a page may ask for
MAX_SAMPLES, MAX_CALLS, MAX_SEED = 20_000, 4096, 2**53
MAX_SEEDS, MAX_BATCH = 1024, 1024
MAX_SETTING = 1e6  # no setting of a method is larger
PROMPTS_OF_LINK = 6  # prompts that a link to trainings begins with


def build_config(request: ComparisonRequest, context: AppContext) -> config.RunConfig:
    """Raises BadInput for whatever is not known here or absurd."""
    runs, rewards = context.runs, reward_offers.check_weights(request.rewards, context.runs)
    numbers = {"seed": MAX_SEED, "seeds": MAX_SEEDS, "calls": MAX_CALLS, "batch": MAX_BATCH, "limit": MAX_SAMPLES}
    for name, maximum in numbers.items():
        minimum = 1 if name in ("seeds", "batch") else 0
        _check_whole_number(name, getattr(request, name), maximum, minimum)
    home_config = contestant_choices.read_pipeline(request.pipeline, runs)
    watch = reward_offers.default_watch(home_config, list(rewards), runs) if request.watch is None else request.watch
    blocks = contestant_choices.read_contestants(request.contestants, runs)
    pipeline = contestant_choices.find_pipeline(request.pipeline, runs)
    watched = [reward_offers.check_reward_name(name, runs) for name in watch]
    if optimised_too := [name for name in watched if name in rewards]:
        raise BadInput(f"watch: {optimised_too[0]} is optimised by this comparison, so it can't be held out too")
    repos = {request.pipeline: pipeline} | {name: b["pipeline"] for name, b in blocks.items() if "pipeline" in b}
    taken = {name: contestant_choices.inputs_of(repo) for name, repo in repos.items()}
    judges = [*rewards, *watched]
    wanted = input_uploads.wanted_inputs(taken, judges)
    prompts = prompt_choices.choose_prompts(request.prompts, wanted, runs, int(request.limit))
    if (samples := prompts.count * request.seeds) > MAX_SAMPLES:
        raise BadInput(
            f"{prompts.count:,} prompts x {request.seeds} seeds are {samples:,} samples; from here at most "
            f"{MAX_SAMPLES:,}: use workbench run"
        )
    input_uploads.check_inputs(request.inputs, prompts.inputs, taken, judges, runs)
    run_config = config.RunConfig(
        pipeline,
        reward_offers.reward_blocks(rewards, runs),
        input_uploads.join_inputs(prompts.texts, request.inputs) if request.inputs else prompts.source,
        contestants=_fit_contestants(blocks, pipeline, request.calls),
        watch=reward_offers.watch_blocks(watched, runs),
        name="studio",
        seed=int(request.seed),
        samples_per_prompt=int(request.seeds),
        limit=prompts.limit if not request.inputs else 0,
        batch=int(request.batch),
        curve=True,
    )
    return config.check_config(run_config)


def describe_cost(plan: Plan, runs: Path) -> str:
    """How much a comparison is, in one sentence: samples, denoiser calls, and about how long they take as finished runs
    of this folder tell."""
    pipeline, prompts = pipeline_label(plan.config.pipeline), len({row[0] for row in plan.rows})
    pace, labels = store.seconds_per_call(runs, pipeline), config.pipeline_labels(plan.config)
    calls = {name: plan.denoiser_calls(name) for name in plan.methods}
    known_seconds = {n: c * pace[name_of(plan.methods[n])] for n, c in calls.items()
             if labels[n] == pipeline and name_of(plan.methods[n]) in pace}  # fmt: skip
    words = f"{count_things(prompts, 'prompt')} × {count_things(plan.config.samples_per_prompt, 'seed')}"
    words += f", {count_things(len(calls), 'contestant')}: {sum(calls.values()):,} denoiser calls"
    if unknown := [name for name in calls if name not in known_seconds]:
        words += f"; no finished run tells yet how long {', '.join(unknown)} takes"
    if known_seconds:
        words += f"; {'the others ' if unknown else ''}about {format_duration(sum(known_seconds.values()))}"
    return words + "."


def _check_whole_number(name: str, value: Any, maximum: int, minimum: int) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if not is_number or not minimum <= value <= maximum or value != int(value):
        raise BadInput(f"{name}: a whole number from {minimum} to {maximum:,}, not {str(value)[:40]}")


def _fit_contestants(blocks: Mapping[str, dict], pipeline: str, calls: int) -> dict[str, dict]:
    """Every method at the same number of denoiser calls, where that was asked for; none beyond what a page allows."""
    fitted_blocks = {}
    for name, block in blocks.items():
        settings = {k: v for k, v in block.items() if k not in ("name", "pipeline", "lora")}
        method = build_dataclass(METHODS[block["name"]], settings, f"contestants.{name}")
        for key, value in vars(method).items():
            if isinstance(value, (int, float)) and abs(value) > MAX_SETTING:
                raise BadInput(
                    f"contestants.{name}.{key}: {value:.3g} is too large; at most {MAX_SETTING:.0e} from here"
                )
        steps = pipelines.read_config(block.get("pipeline", pipeline)).steps
        if calls and method.scales:
            method = compare.fit_to_budget(method, steps, int(calls), name)
            block = block | {method.scales: getattr(method, method.scales)}
        if (method_calls := method.calls(steps)) > max(MAX_CALLS, steps):
            raise BadInput(
                f"contestants.{name}: would make {method_calls:,.0f} denoiser calls a sample; "
                f"from here at most {MAX_CALLS:,}"
            )
        fitted_blocks[name] = block
    return fitted_blocks


class ComparisonManager:
    """The comparisons of one app: those at work, and those in the runs folder."""

    def __init__(self, context: AppContext):
        self.context, self.load, self.live = context, PipelineCache(), {}

    def start(self, request: ComparisonRequest) -> LiveComparison:
        """Raises BadInput before anything loads."""
        return self.submit_config(build_config(request, self.context))

    def submit_config(self, run_config: config.RunConfig, folder: store.RunFolder | None = None) -> LiveComparison:
        plan = plan_run(run_config)
        check_disk(plan, self.context.runs)
        settings = dataclasses.asdict(plan.config)
        reserved = folder or store.RunFolder.open(self.context.runs, plan.config.name, settings, fresh=True)
        live = LiveComparison(plan, reserved)
        try:
            saved = {"run": reserved.path.name, "config": settings}
            live.job = self.context.jobs.submit(", ".join(plan.methods), live.make_job(self.load), saved=saved)
        except BadInput:
            live.drop_reserved()
            raise
        for earlier in (v for v in self.live.values() if v.job.is_over):
            earlier.drop_reserved()
        self.live = {k: v for k, v in self.live.items() if not v.job.is_over} | {live.key: live}
        return live

    def repeat_run(self, name: str, seed: int | None = None) -> LiveComparison:
        """The comparison of that run folder once more; one that was stopped goes on, unless it gets another seed."""
        folder = self.find_folder(name)
        request = self.read_request(folder)
        run_config = build_config(request if seed is None else dataclasses.replace(request, seed=seed), self.context)
        record = folder.read()
        stored = build_dataclass(config.RunConfig, record.get("config"), "run.json")
        is_same = store.dump_json(dataclasses.asdict(stored)) == store.dump_json(dataclasses.asdict(run_config))
        goes_on = is_same and record.get("status") in ("stopped", "running") and name not in self.list_running()
        return self.submit_config(run_config, folder if goes_on else None)

    def read_request(self, folder: store.RunFolder, stored: config.RunConfig | None = None) -> ComparisonRequest:
        """What a comparison was asked, if this page may ask it again: a stored one, or one with this config that is yet
        to begin. Raises BadInput."""
        stored = stored or build_dataclass(config.RunConfig, folder.read().get("config"), "run.json")
        names_by_source = {repo: name for name, repo in contestant_choices.list_pipelines(self.context.runs).items()}
        rewards = plain_weights(self._restore_names(stored.reward))
        watched = self._restore_names(stored.watch)
        watch = [watched] if isinstance(watched, str) else list(watched or ())
        has_settings = isinstance(watched, Mapping) and any(isinstance(v, Mapping) and v for v in watched.values())
        is_plain = pipeline_label(stored.pipeline) in names_by_source and not stored.train and stored.contestants
        is_plain = is_plain and not has_settings and not stored.grid
        if not is_plain or not rewards:
            raise BadInput("this run uses what a page can't ask for; repeat it with: workbench run FOLDER")
        lines = contestant_choices.format_lines(stored.contestants, self.context.runs)
        pipeline = names_by_source[pipeline_label(stored.pipeline)]
        prompts, inputs, limit = prompt_choices.ask_again(stored, folder, self.context.runs)
        numbers = (stored.seed, stored.samples_per_prompt, 0, stored.batch)
        return ComparisonRequest(prompts, pipeline, lines, rewards, watch, *numbers, inputs, limit)

    def _restore_names(self, rewards: Any) -> Any:
        """The rewards of a stored run under the names that the page has for them."""
        if not isinstance(rewards, Mapping):
            return rewards
        return dict(reward_offers.restore_name(label, block, self.context.runs) for label, block in rewards.items())

    def request_for_trainings(self, names: str) -> ComparisonRequest:
        """The base and these trainings, `run:NAME,run:NAME/CONTESTANT`, on the first prompts that the first of them was
        judged on. Raises BadInput."""
        chosen = [name.strip() for name in names.split(",")]
        trained = contestant_choices.list_trained(self.context.runs)
        if not 1 <= len(chosen) < SLOTS or not set(chosen) <= trained.keys():
            raise BadInput("there are no such trainings here: the link is mistyped, or of another machine")
        folder = self.find_folder(chosen[0].removeprefix("run:").split("/")[0])
        stored = build_dataclass(config.RunConfig, folder.read()["config"], "run.json")
        names_by_source = {repo: name for name, repo in contestant_choices.list_pipelines(self.context.runs).items()}
        if pipeline_label(stored.pipeline) not in names_by_source:
            raise BadInput("these trainings started from a pipeline that is not configured here")
        pipeline, inputs = names_by_source[pipeline_label(stored.pipeline)], {}
        if contestant_choices.list_inputs(pipeline, self.context.runs):
            samples = (s for e in folder.events() if e.get("final") for s in e["samples"])
            prompts, inputs = input_uploads.first_inputs(samples, folder.path, self.context.runs)
        else:
            prompts = list(data.read_prompts(stored.test or stored.prompts))
        lines = ["sample", *(f"sample@{name}" for name in chosen)]
        rewards = plain_weights(stored.reward)
        return ComparisonRequest(prompts[:PROMPTS_OF_LINK], pipeline, lines, rewards, seed=stored.seed, inputs=inputs)

    def find_folder(self, name: Any) -> store.RunFolder:
        """The folder of a stored comparison. Raises BadInput."""
        if name in {folder.path.name for folder in store.list_claimed(self.context.runs)}:
            raise BadInput("this comparison waited for its turn when the app ended, and had not begun; compare again")
        refusal = "there is no comparison of this name here: the link is mistyped, or of another machine"
        return run_processes.find_run(self.context.runs, name, refusal)

    def list_running(self) -> dict[str, LiveComparison]:
        """Run folder's name -> the comparison that is made in it now, or waits for its turn."""
        return {v.reserved.path.name: v for v in self.live.values() if not v.job.is_over}

    def stop(self, key: Any) -> Job | None:
        """By the key of the comparison or its run folder's name; None when there is nothing to stop."""
        live = self.live.get(key) or self.list_running().get(key) if isinstance(key, str) else None
        if live is None or live.job.is_over:
            return None
        self.context.jobs.stop(live.job)
        if live.job.is_over:  # it waited
            live.drop_reserved()
        return live.job

    def warm_up(self, request: ComparisonRequest) -> None:
        """Load what the first comparison will need, before anyone asks."""

        def load_and_sample(stop: threading.Event) -> Iterator[None]:
            run_config = build_config(request, self.context)
            plan = plan_run(run_config)
            policy = self.load(
                next(iter(plan.pipelines.values())),
                device=run_config.device,
                dtype=run_config.dtype,
                attention=run_config.attention,
            )
            policy.stop = stop
            yield None
            seeds, prompts = [r[3] for r in plan.rows], [r[1] for r in plan.rows]
            z = policy.noise(seeds).requires_grad_()
            sampled = policy.sample(prompts, seeds=seeds, noise=z, grad=policy.steps).media
            plan.reward(media=sampled, prompts=prompts).sum().backward()
            score_samples(plan, sampled.detach(), prompts)

        self.context.jobs.submit("warming up", load_and_sample)


def plain_weights(reward: Any) -> dict[str, float]:
    """Name -> weight of a stored run's reward, where it is a plain sum without further settings; else nothing."""
    if isinstance(reward, str):
        return {reward: 1.0}
    weights = reward if isinstance(reward, Mapping) else {}
    weights = {name: _plain_weight(value) for name, value in weights.items()}
    return {} if None in weights.values() else weights


def _plain_weight(value: Any) -> float | None:
    """The weight that a reward's block says: a number, {} (as `workbench compare` writes it) or {weight: 2}; None where
    it has further settings."""
    if isinstance(value, Mapping):
        value = value.get("weight", 1.0) if not value.keys() - {"weight"} else None
    return value if isinstance(value, int | float) else None
