"""A comparison from the page: asked for, checked before anything loads, made at the desk, watched while it is made."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pipelines
from workbench.core.schema import build
from workbench.core.types import BadInput, Media
from workbench.engine import compare, run
from workbench.methods import METHODS
from workbench.runs import config, store
from workbench.runs import prompts as data
from workbench.ui import contestant_choices
from workbench.ui.context import Place
from workbench.ui.jobs import Job

PROMPTS, LETTERS, SAMPLES, CALLS, SEED = 32, 1000, 128, 4096, 2**53  # the most that a page may ask for
LARGE = 1e6  # no setting of a method is larger
FIRST = 6  # prompts that a link to trainings begins with
SHOWN = 6  # samples of a contestant that are previewed


@dataclass(frozen=True)
class Asked:
    """What a person, or a program, asks for."""

    prompts: Sequence[str] | str  # themselves, or the name of a list in configs/prompts
    pipeline: str
    contestants: Sequence[str]  # lines; see contestants.py
    rewards: Mapping[str, float]  # optimised: name -> weight
    watch: Sequence[str] | None = None  # held out; None: whoever can look on
    seed: int = 0
    seeds: int = 1  # noises per prompt
    calls: int = 0  # denoiser calls a sample to which every method is fitted; 0: as their settings say
    batch: int = 16  # samples made at once


def wanted(asked: Asked, place: Place) -> config.RunConfig:
    """Raises BadInput for whatever is not known here or absurd."""
    runs, rewards = place.runs, contestant_choices.mix(asked.rewards)
    for name, most in (("seed", SEED), ("seeds", SAMPLES), ("calls", CALLS), ("batch", SAMPLES)):
        _whole(name, getattr(asked, name), most, least=0 if name in ("seed", "calls") else 1)
    prompts = _prompts(asked.prompts)
    if (samples := len(prompts) * asked.seeds) > SAMPLES:
        raise BadInput(
            f"{len(prompts)} prompts x {asked.seeds} seeds are {samples} samples; from here at most {SAMPLES}"
        )
    watch = contestant_choices.watched(asked.pipeline, list(rewards), runs) if asked.watch is None else asked.watch
    blocks = contestant_choices.read(asked.contestants, runs)
    home = contestant_choices.source(asked.pipeline, runs)
    made = config.RunConfig(
        home,
        rewards,
        list(prompts),
        contestants=_fitted(blocks, home, asked.calls),
        watch=[contestant_choices.known(name) for name in watch] or None,
        name="studio",
        seed=int(asked.seed),
        seeds=int(asked.seeds),
        batch=int(asked.batch),
        curve=True,
    )
    return config.check(made)


def _whole(name: str, value: Any, most: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or not least <= value <= most or value != int(value):  # fmt: skip
        raise BadInput(f"{name}: a whole number from {least} to {most:,}, not {str(value)[:40]}")


def _prompts(given: Sequence[str] | str) -> tuple[str, ...]:
    if isinstance(given, str):
        if given not in contestant_choices.lists():
            raise BadInput(f"prompts: there is no list of this name; known: {', '.join(contestant_choices.lists())}")
        return data.prompts(given)[:PROMPTS]
    found = data.prompts([line.replace("\0", "") for line in given], "prompts: write at least one;")
    if len(found) > PROMPTS:
        raise BadInput(f"prompts: {len(found)} are too many to look at; from here at most {PROMPTS}")
    if (longest := max(map(len, found))) > LETTERS:
        raise BadInput(f"prompts: one has {longest:,} letters; at most {LETTERS:,}")
    return found


def _fitted(blocks: Mapping[str, dict], home: str, calls: int) -> dict[str, dict]:
    """Every method at the same number of denoiser calls, where that was asked for; none beyond what a page allows."""
    out = {}
    for name, block in blocks.items():
        settings = {k: v for k, v in block.items() if k not in ("name", "pipeline", "lora")}
        method = build(METHODS[block["name"]], settings, f"contestants.{name}")
        for key, value in vars(method).items():
            if isinstance(value, (int, float)) and abs(value) > LARGE:
                raise BadInput(f"contestants.{name}.{key}: {value:.3g} is too large; at most {LARGE:.0e} from here")
        steps = pipelines.read(block.get("pipeline", home)).steps
        if calls and method.scales:
            method = compare.fit(method, steps, int(calls), name)
            block = block | {method.scales: getattr(method, method.scales)}
        if (spent := method.calls(steps)) > max(CALLS, steps):
            raise BadInput(
                f"contestants.{name}: would make {spent:,.0f} denoiser calls a sample; from here at most {CALLS:,}"
            )
        out[name] = block
    return out


class Loaded:
    """Loads as pipelines.load does, and keeps the last one: the next comparison begins at once."""

    def __init__(self):
        self._kept: tuple[Any, Any] | None = None

    def __call__(self, source: Any, **how: Any):
        key = (source, how)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # one in memory at a time
            self._kept = (key, pipelines.load(source, **how))
        return self._kept[1]


@dataclass(eq=False)
class Working:
    """One contestant while it works."""

    name: str
    steps: int  # denoiser calls that it will make, all samples together, guided ones counted once
    pipeline: str
    state: str = "waiting"  # waiting, working, done, failed, stopped, not begun
    rows: int = 0  # that went through the denoiser so far
    began: float = 0.0
    ended: float = 0.0
    level: float | None = None  # mean reward of what it delivered
    reward: float | None = None  # the newest it said
    frames: dict[int, Media] = field(default_factory=dict)  # sample -> its newest media
    turns: int = 0  # times that the frames changed
    note: str = ""


class Live:
    """A comparison while it is made: filled by the desk's thread, read by whoever watches."""

    def __init__(self, plan: run.Plan):
        self.plan, self.key, self.job = plan, secrets.token_hex(8), None
        self.folder: store.RunFolder | None = None
        repos = config.repos(plan.config)
        self.parts = {n: Working(n, plan.calls(n), repos[n]) for n in plan.methods}
        self._policy, self._mark, self._guided = None, 0, {}

    def work(self, runs, load: Loaded, folder: store.RunFolder | None = None):
        """What the desk does."""

        def loading(*args, **how):
            self._policy = None  # or the last one would be in memory beside it
            self._policy = load(*args, **how)
            self._mark = self._policy.nfe
            return self._policy

        def at(stop: threading.Event) -> Iterator[Live]:
            kept = dataclasses.asdict(self.plan.config)
            self.folder = folder or store.RunFolder.open(runs, self.plan.config.name, kept, fresh=True)
            plan = dataclasses.replace(self.plan, command=f"workbench run {self.folder.path}")
            self._next()
            try:
                yield self
                for progress in run.execute(plan, self.folder, stop, loading):
                    self._take(progress)
                    yield self
            finally:
                self._end()

        return at

    def _next(self) -> None:
        part = next((p for p in self.parts.values() if p.state == "waiting"), None)
        if part:
            part.state, part.began = "working", time.monotonic()

    def _take(self, p: run.Progress) -> None:
        part = self.parts[p.contestant]
        part.rows = self._spent()
        if p.failed:
            part.note = p.failed
        elif p.event is not None:
            value = p.event.metrics.get("reward")
            part.reward = part.reward if value is None else float(value)
            self._look(part, p)
        if p.failed or (p.batch == p.batches - 1 and (p.event is None or p.event.final)):
            self._over(part, "failed" if p.failed else "done")

    def _look(self, part: Working, p: run.Progress) -> None:
        if p.event.media is None:
            return
        first = p.batch * self.plan.config.batch
        for b, row in enumerate(range(first, first + len(p.event.prompts))):
            if row in self.previewed:
                part.frames[row] = dataclasses.replace(p.event.media[b], data=p.event.media.data[[b]].detach().cpu())
        part.turns += 1

    def _over(self, part: Working, state: str) -> None:
        part.state, part.ended = state, time.monotonic()
        if part.rows and part.steps:
            self._guided[part.pipeline] = max(1, round(part.rows / part.steps))
        self._mark = self._policy.nfe if self._policy is not None else 0
        made = [s["scores"] for e in self.folder.events() if e["contestant"] == part.name for s in e.get("samples", ())]
        part.level = level(made, self.plan.reward.weights)
        self._next()

    def _end(self) -> None:
        for part in self.parts.values():
            if part.state in ("waiting", "working"):
                part.rows, part.ended = self._spent() if part.state == "working" else 0, time.monotonic()
                part.state = "stopped" if part.state == "working" else "not begun"
        self._policy = None  # a pipeline is held by who loads it alone

    def _spent(self) -> int:
        return self._policy.nfe - self._mark if self._policy is not None else 0

    @property
    def previewed(self) -> list[int]:
        """Which samples are shown on the way: the first of each prompt."""
        return [n for n, row in enumerate(self.plan.rows) if row[2] == 0][:SHOWN]

    def rows_of(self, part: Working) -> tuple[int, int]:
        """(rows that went through the denoiser, about how many there will be)."""
        done = self._spent() if part.state == "working" else part.rows
        factor = max(self._guided.get(part.pipeline, 1), -(-done // part.steps) if part.steps else 1)
        return done, done if part.state in ("done", "failed") else part.steps * factor

    def seconds_of(self, part: Working) -> tuple[float, float | None]:
        """(at work so far, about how long it will still take, None while nothing is known)."""
        if not part.began:
            return 0.0, None
        took = (part.ended or time.monotonic()) - part.began
        done, of = self.rows_of(part)
        return took, None if part.ended or not done else took * max(0, of - done) / done


class Bench:
    """The comparisons of one app: those at work, and those in the runs folder."""

    def __init__(self, place: Place):
        self.place, self.load, self.live = place, Loaded(), {}

    def start(self, asked: Asked) -> Live:
        """Raises BadInput before anything loads."""
        return self.begin(wanted(asked, self.place))

    def begin(self, wish: config.RunConfig, folder: store.RunFolder | None = None) -> Live:
        plan = run.plan(wish)
        run.room(plan, self.place.runs)
        live = Live(plan)
        live.job = self.place.desk.submit(", ".join(plan.methods), live.work(self.place.runs, self.load, folder))
        self.live = {k: v for k, v in self.live.items() if not v.job.over} | {live.key: live}
        return live

    def again(self, name: str, seed: int | None = None) -> Live:
        """The comparison of that run folder once more; one that was stopped goes on, unless it gets another seed."""
        folder = self.find(name)
        asked = self.asked(folder)
        wish = wanted(asked if seed is None else dataclasses.replace(asked, seed=seed), self.place)
        record = folder.read()
        same = record.get("config") == dataclasses.asdict(wish)
        goes_on = same and record.get("status") in ("stopped", "running") and name not in self.busy()
        return self.begin(wish, folder if goes_on else None)

    def asked(self, folder: store.RunFolder) -> Asked:
        """What a stored comparison was asked, if this page may ask it again. Raises BadInput."""
        kept = build(config.RunConfig, folder.read().get("config"), "run.json")
        homes = {repo: name for name, repo in contestant_choices.sources(self.place.runs).items()}
        rewards = mixture(kept.reward)
        watch = [kept.watch] if isinstance(kept.watch, str) else list(kept.watch or ())
        plain = kept.pipeline in homes and not kept.train and kept.contestants
        if not plain or not rewards:
            raise BadInput("this run uses what a page can't ask for; repeat it with: workbench run FOLDER")
        lines = contestant_choices.lines_of(kept.contestants, self.place.runs)
        home, prompts = homes[kept.pipeline], kept.prompts
        if isinstance(prompts, str) and Path(prompts).stem in contestant_choices.lists():
            prompts = Path(prompts).stem
        return Asked(prompts, home, lines, rewards, watch, kept.seed, kept.seeds, batch=kept.batch)

    def trainings(self, names: str) -> Asked:
        """The base and these trainings, `run:NAME,run:NAME/CONTESTANT`, on the first prompts that the first of them was judged
        on. Raises BadInput."""
        chosen = [name.strip() for name in names.split(",")]
        known = contestant_choices.trained(self.place.runs)
        if not 1 <= len(chosen) < contestant_choices.SLOTS or not set(chosen) <= known.keys():
            raise BadInput("there are no such trainings here: the link is mistyped, or of another machine")
        kept = build(
            config.RunConfig, self.find(chosen[0].removeprefix("run:").split("/")[0]).read()["config"], "run.json"
        )
        homes = {repo: name for name, repo in contestant_choices.sources(self.place.runs).items()}
        if kept.pipeline not in homes:
            raise BadInput("these trainings started from a pipeline that is not configured here")
        prompts = data.prompts(kept.test or kept.prompts)[:FIRST]
        lines = ["sample", *(f"sample@{name}" for name in chosen)]
        return Asked(prompts, homes[kept.pipeline], lines, mixture(kept.reward) or {}, seed=kept.seed)

    def find(self, name: Any) -> store.RunFolder:
        """The run folder of this very name among those that there are: what was typed never becomes a path. Raises BadInput."""
        for folder in store.folders(self.place.runs):
            if folder.path.name == name:
                return folder
        raise BadInput("there is no comparison of this name here: the link is mistyped, or of another machine")

    def busy(self) -> dict[str, Live]:
        """Run folder's name -> the comparison that is made in it now."""
        return {v.folder.path.name: v for v in self.live.values() if v.folder is not None and not v.job.over}

    def stop(self, key: Any) -> Job | None:
        """By the key of the comparison or its run folder's name; None when there is nothing to stop."""
        live = self.live.get(key) or self.busy().get(key) if isinstance(key, str) else None
        if live is None or live.job.over:
            return None
        self.place.desk.stop(live.job)
        return live.job

    def warm(self, asked: Asked) -> None:
        """Load what the first comparison will need, before anyone asks."""

        def at(stop: threading.Event) -> Iterator[None]:
            wish = wanted(asked, self.place)
            plan = run.plan(wish)
            policy = self.load(
                next(iter(plan.pipelines.values())), device=wish.device, dtype=wish.dtype, attention=wish.attention
            )
            policy.stop = stop
            yield None
            seeds, prompts = [r[3] for r in plan.rows], [r[1] for r in plan.rows]
            z = policy.noise(seeds).requires_grad_()
            made = policy.sample(prompts, seeds=seeds, noise=z, grad=policy.steps).media
            plan.reward(media=made, prompts=prompts).sum().backward()
            run.judge(plan, made.detach(), prompts)

        self.place.desk.submit("warming up", at)


def mixture(reward: Any) -> dict[str, float]:
    """Name -> weight of a stored run's reward, where it is a plain sum; else nothing."""
    if isinstance(reward, str):
        return {reward: 1.0}
    plain = isinstance(reward, Mapping) and all(isinstance(w, (int, float)) for w in reward.values())
    return dict(reward) if plain else {}


def level(scores: Sequence[Mapping[str, float | None]], weights: Mapping[str, float]) -> float | None:
    """The mean weighted sum over samples; None where there is none."""
    whole = [s for s in scores if weights and all(s.get(n) is not None for n in weights)]
    return sum(w * s[n] for s in whole for n, w in weights.items()) / len(whole) if whole else None
