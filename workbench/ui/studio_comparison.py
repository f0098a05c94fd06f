"""A comparison from the page: requested, checked before anything loads, made by the job queue, watched while it is
made."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pipelines
from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput
from workbench.core.schema import build_dataclass
from workbench.core.types import Media
from workbench.engine import compare, run
from workbench.engine.plan import check_disk, plan_run
from workbench.methods import METHODS
from workbench.runs import config, store
from workbench.runs import prompts as data
from workbench.runs.plan import Plan
from workbench.runs.progress import Progress, score_samples
from workbench.ui import contestant_choices, input_uploads, prompt_choices, run_processes
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.context import AppContext
from workbench.ui.jobs import Job
from workbench.ui.limits import SLOTS

# the most that a page may ask for
MAX_SAMPLES, MAX_CALLS, MAX_SEED = 128, 4096, 2**53
MAX_SETTING = 1e6  # no setting of a method is larger
PROMPTS_OF_LINK = 6  # prompts that a link to trainings begins with
MAX_PREVIEWS = 6  # samples of a contestant that are previewed


def build_config(request: ComparisonRequest, context: AppContext) -> config.RunConfig:
    """Raises BadInput for whatever is not known here or absurd."""
    runs, rewards = context.runs, contestant_choices.check_weights(request.rewards)
    for name, maximum in (("seed", MAX_SEED), ("seeds", MAX_SAMPLES), ("calls", MAX_CALLS), ("batch", MAX_SAMPLES)):
        _check_whole_number(name, getattr(request, name), maximum, minimum=0 if name in ("seed", "calls") else 1)
    watch = (
        contestant_choices.default_watch(request.pipeline, list(rewards), runs)
        if request.watch is None
        else request.watch
    )
    blocks = contestant_choices.read_contestants(request.contestants, runs)
    pipeline = contestant_choices.find_pipeline(request.pipeline, runs)
    watched = [contestant_choices.check_reward_name(name) for name in watch]
    repos = {request.pipeline: pipeline} | {name: b["pipeline"] for name, b in blocks.items() if "pipeline" in b}
    taken = {name: contestant_choices.inputs_of(repo) for name, repo in repos.items()}
    judges = [*rewards, *watched]
    prompts = prompt_choices.choose_prompts(request.prompts, input_uploads.wanted_inputs(taken, judges), runs)
    if (samples := prompts.count * request.seeds) > MAX_SAMPLES:
        raise BadInput(
            f"{prompts.count} prompts x {request.seeds} seeds are {samples} samples; from here at most {MAX_SAMPLES}"
        )
    input_uploads.check_inputs(request.inputs, prompts.inputs, taken, judges, runs)
    run_config = config.RunConfig(
        pipeline,
        rewards,
        input_uploads.join_inputs(prompts.source, request.inputs),
        contestants=_fit_contestants(blocks, pipeline, request.calls),
        watch=watched or None,
        name="studio",
        seed=int(request.seed),
        samples_per_prompt=int(request.seeds),
        limit=prompts.limit,
        batch=int(request.batch),
        curve=True,
    )
    return config.check_config(run_config)


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


class PipelineCache:
    """Loads as pipelines.load does, and keeps the last one: the next comparison begins at once."""

    def __init__(self):
        self._cached: tuple[Any, Any] | None = None

    def __call__(self, source: Any, **options: Any) -> Any:
        key = (source, options)
        if self._cached is None or self._cached[0] != key:
            self._cached = None  # one in memory at a time
            self._cached = (key, pipelines.load(source, **options))
        return self._cached[1]


@dataclass(eq=False)
class ContestantProgress:
    """One contestant while it works."""

    name: str
    steps: int  # denoiser calls that it will make, all samples together, guided ones counted once
    pipeline: str
    state: str = "waiting"  # waiting, working, done, failed, stopped, not begun
    rows: int = 0  # that went through the denoiser so far
    started_at: float = 0.0
    ended_at: float = 0.0
    mean_reward: float | None = None  # of what it delivered
    reward: float | None = None  # the newest it said
    frames: dict[int, Media] = field(default_factory=dict)  # sample -> its newest media
    preview_updates: int = 0  # times that the frames changed
    note: str = ""


class LiveComparison:
    """A comparison while it is made: filled by the job queue's thread, read by whoever watches."""

    def __init__(self, plan: Plan):
        self.plan, self.key, self.job = plan, secrets.token_hex(8), None
        self.folder: store.RunFolder | None = None
        repos = config.pipeline_labels(plan.config)
        self.contestants = {n: ContestantProgress(n, plan.denoiser_calls(n), repos[n]) for n in plan.methods}
        self._policy, self._nfe_at_start, self._rows_per_step = None, 0, {}

    def make_job(
        self, runs: Path, load: PipelineCache, folder: store.RunFolder | None = None
    ) -> Callable[[threading.Event], Iterator[LiveComparison]]:
        """The work for the job queue, in a new run folder or the given one."""

        def load_counted(*args: Any, **options: Any) -> Any:
            self._policy = None  # or the last one would be in memory beside it
            self._policy = load(*args, **options)
            self._nfe_at_start = self._policy.nfe
            return self._policy

        def run_comparison(stop: threading.Event) -> Iterator[LiveComparison]:
            run_config = dataclasses.asdict(self.plan.config)
            self.folder = folder or store.RunFolder.open(runs, self.plan.config.name, run_config, fresh=True)
            plan = dataclasses.replace(self.plan, command=f"workbench run {self.folder.path}")
            self._begin_next()
            try:
                yield self
                for progress in run.execute_run(plan, self.folder, stop, load_counted):
                    self._take_progress(progress)
                    yield self
            finally:
                self._close_unfinished()

        return run_comparison

    def _begin_next(self) -> None:
        part = next((p for p in self.contestants.values() if p.state == "waiting"), None)
        if part:
            part.state, part.started_at = "working", time.monotonic()

    def _take_progress(self, p: Progress) -> None:
        if p.phase == "message":
            return
        part = self.contestants[p.contestant]
        part.rows = self._rows_spent()
        if p.failed:
            part.note = p.failed
        elif p.event is not None:
            value = p.event.metrics.get("reward")
            part.reward = part.reward if value is None else float(value)
            self._keep_previews(part, p)
        if p.failed or (p.batch == p.batches - 1 and (p.event is None or p.event.final)):
            self._finish_contestant(part, "failed" if p.failed else "done")

    def _keep_previews(self, part: ContestantProgress, p: Progress) -> None:
        if p.event.media is None:
            return
        first = p.batch * self.plan.config.batch
        for b, row in enumerate(range(first, first + len(p.event.prompts))):
            if row in self.preview_rows:
                part.frames[row] = dataclasses.replace(p.event.media[b], data=p.event.media.data[[b]].detach().cpu())
        part.preview_updates += 1

    def _finish_contestant(self, part: ContestantProgress, state: str) -> None:
        part.state, part.ended_at = state, time.monotonic()
        if part.rows and part.steps:
            self._rows_per_step[part.pipeline] = max(1, round(part.rows / part.steps))
        self._nfe_at_start = self._policy.nfe if self._policy is not None else 0
        scores = [
            s["scores"] for e in self.folder.events() if e["contestant"] == part.name for s in e.get("samples", ())
        ]
        part.mean_reward = mean_reward(scores, self.plan.reward.weights)
        self._begin_next()

    def _close_unfinished(self) -> None:
        for part in self.contestants.values():
            if part.state in ("waiting", "working"):
                part.rows, part.ended_at = self._rows_spent() if part.state == "working" else 0, time.monotonic()
                part.state = "stopped" if part.state == "working" else "not begun"
        self._policy = None  # a pipeline is held by who loads it alone

    def _rows_spent(self) -> int:
        return self._policy.nfe - self._nfe_at_start if self._policy is not None else 0

    @property
    def preview_rows(self) -> list[int]:
        """Which samples are shown on the way: the first of each prompt."""
        return [n for n, row in enumerate(self.plan.rows) if row[2] == 0][:MAX_PREVIEWS]

    def count_rows(self, part: ContestantProgress) -> tuple[int, int]:
        """(rows that went through the denoiser, about how many there will be)."""
        rows = self._rows_spent() if part.state == "working" else part.rows
        factor = max(self._rows_per_step.get(part.pipeline, 1), -(-rows // part.steps) if part.steps else 1)
        return rows, rows if part.state in ("done", "failed") else part.steps * factor

    def estimate_seconds(self, part: ContestantProgress) -> tuple[float, float | None]:
        """(at work so far, about how long it will still take, None while nothing is known)."""
        if not part.started_at:
            return 0.0, None
        seconds = (part.ended_at or time.monotonic()) - part.started_at
        rows, total = self.count_rows(part)
        return seconds, None if part.ended_at or not rows else seconds * max(0, total - rows) / rows


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
        live = LiveComparison(plan)
        live.job = self.context.jobs.submit(
            ", ".join(plan.methods), live.make_job(self.context.runs, self.load, folder)
        )
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

    def read_request(self, folder: store.RunFolder) -> ComparisonRequest:
        """What a stored comparison was asked, if this page may ask it again. Raises BadInput."""
        stored = build_dataclass(config.RunConfig, folder.read().get("config"), "run.json")
        names_by_source = {repo: name for name, repo in contestant_choices.list_pipelines(self.context.runs).items()}
        rewards = plain_weights(stored.reward)
        watch = [stored.watch] if isinstance(stored.watch, str) else list(stored.watch or ())
        has_settings = isinstance(stored.watch, Mapping) and any(
            isinstance(v, Mapping) and v for v in stored.watch.values()
        )
        is_plain = pipeline_label(stored.pipeline) in names_by_source and not stored.train and stored.contestants
        is_plain = is_plain and not has_settings
        if not is_plain or not rewards:
            raise BadInput("this run uses what a page can't ask for; repeat it with: workbench run FOLDER")
        lines = contestant_choices.format_lines(stored.contestants, self.context.runs)
        pipeline = names_by_source[pipeline_label(stored.pipeline)]
        prompts, inputs = prompt_choices.ask_again(stored, folder, self.context.runs)
        return ComparisonRequest(
            prompts, pipeline, lines, rewards, watch, stored.seed, stored.samples_per_prompt, 0, stored.batch, inputs
        )

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
        refusal = "there is no comparison of this name here: the link is mistyped, or of another machine"
        return run_processes.find_run(self.context.runs, name, refusal)

    def list_running(self) -> dict[str, LiveComparison]:
        """Run folder's name -> the comparison that is made in it now."""
        return {v.folder.path.name: v for v in self.live.values() if v.folder is not None and not v.job.is_over}

    def stop(self, key: Any) -> Job | None:
        """By the key of the comparison or its run folder's name; None when there is nothing to stop."""
        live = self.live.get(key) or self.list_running().get(key) if isinstance(key, str) else None
        if live is None or live.job.is_over:
            return None
        self.context.jobs.stop(live.job)
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


def mean_reward(scores: Sequence[Mapping[str, float | None]], weights: Mapping[str, float]) -> float | None:
    """The mean weighted sum over samples; None where there is none."""
    complete = [s for s in scores if weights and all(s.get(n) is not None for n in weights)]
    return sum(w * s[n] for s in complete for n, w in weights.items()) / len(complete) if complete else None
