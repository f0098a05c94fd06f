"""From votes to a better model and back to votes: what was preferred is learnt, a model is trained on it, and people
are asked, blind, whether it helped.

A round has five steps, each of which is kept in RUNS/loops/NAME/loop.json once it is done, so that the same command
goes on: votes, a taste learnt from them, a training, a follow-up study of base and tuned samples on held-out prompts,
and its result. Where people vote, a round waits for them at the first step and at the last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pipelines
from rewards import build_reward
from rewards.people import tastes
from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_yaml
from workbench.core.schema import build_dataclass
from workbench.core.text import quote_value
from workbench.core.types import Count, Natural, NonNegative
from workbench.engine.plan import check_disk, plan_run
from workbench.feedback import learn, loop_votes, studies, vote_training, votes
from workbench.feedback.loop_votes import VoteSource
from workbench.feedback.simulated_voter import simulate_votes
from workbench.feedback.vote_training import BASE, TUNED, Method, VoteTraining
from workbench.feedback.votes import Vote
from workbench.runs import config as configs
from workbench.runs import store
from workbench.runs.plan import Plan
from workbench.runs.registry import all_rewards

FOLDER, FILE = "loops", "loop.json"
FEWEST_VOTES = 10  # without a tie, below which nothing is held out, so nothing is known of a taste
Execute = Callable[[Plan, store.RunFolder], None]


@dataclass(frozen=True)
class LoopSettings:
    """What a loop is asked to do."""

    name: str
    study: str = ""  # whose votes the first round learns from
    runs: tuple[str, ...] = ()  # or the runs on whose samples they were cast
    pipeline: str = ""  # to train; "": the one that made what was voted on
    prompts: str = ""  # without votes: a list whose prompts are sampled twice each and voted on
    method: Method = "dpo"
    rounds: Count = 1
    test: str = ""  # held-out prompts; "": those of the starter pack
    watch: tuple[str, ...] = ()  # held-out judges
    votes: Count = 200  # of a round whose pairs the loop makes
    pairs: Count = 80  # of a follow-up
    simulate: str = ""  # the hidden taste of a simulated voter: a reward, or a block of them in YAML
    noise: NonNegative = 0.25  # of that voter, over the root mean square of the taste's differences
    shuffle: bool = False  # control: votes are dealt out to other pairs
    encoder: str = ""  # through which the taste is learnt
    seed: Natural = 0
    overrides: tuple[str, ...] = field(default=())  # settings of the training: method.lr=1e-4


def run_loop(runs: Path, settings: LoopSettings, execute: Execute, address: str = "") -> Iterator[str]:
    """Do what can be done, and yield a sentence on each step. execute: works on a planned run until it is done or
    stopped. address: of the app, for links. Raises BadInput."""
    yield from Loop(runs, settings, execute, address).advance()


class Loop:
    """A loop and how far it is. `state` is {"settings", "rounds": [{step: what came of it}]}."""

    def __init__(self, runs: Path, settings: LoopSettings, execute: Execute, address: str = ""):
        self.runs, self.settings, self.execute, self.address = runs, check_settings(settings), execute, address
        self.folder = runs / FOLDER / settings.name
        self.state = self._read_state()
        self.taste = (
            build_reward(parse_yaml(settings.simulate, "--simulate"), all_rewards(), "--simulate")
            if settings.simulate
            else None
        )

    def advance(self) -> Iterator[str]:
        """All steps that can be done now."""
        for number in range(1, self.settings.rounds + 1):
            if len(self.state["rounds"]) < number:
                self.state["rounds"].append({})
            yield from self._advance_round(number, self.state["rounds"][number - 1])
            if "result" not in self.state["rounds"][number - 1]:
                return

    def _advance_round(self, number: int, record: dict[str, Any]) -> Iterator[str]:
        where = f"round {number}: "
        if "result" in record:
            yield where + loop_votes.describe_win_rate(record["result"])
            return
        if "run" not in record:
            if "source" not in record:
                yield from self._find_source(number, record)
            if "source" not in record:
                yield where + "the samples to vote on are not finished; the same command goes on"
                return
            if (vote_list := self._read_votes(record)) is None:
                yield where + self._ask_for_votes(record["source"]["study"])
                return
            yield from self._learn_taste(number, record, vote_list)
            yield from self._train(number, record, vote_list)
            if "run" not in record:
                yield where + "the training is not finished; the same command goes on"
                return
        if "follow_up" not in record:
            name = f"{self.settings.name}-{number}-after"
            record["follow_up"] = follow_up(self.runs, record["run"], name, 1 if self.taste else 3).name
            self._write_state()
        yield from self._judge(number, record)

    def _find_source(self, number: int, record: dict[str, Any]) -> Iterator[str]:
        """The votes that a round learns from: those that are named, or of a study of samples made for it."""
        settings = self.settings
        if number == 1 and not settings.prompts:
            source = VoteSource(settings.study, settings.runs)
            if self.taste and settings.study:
                count = simulate_votes(self.runs, settings.study, self.taste, settings.noise, settings.seed)
                yield f"round 1: {count} simulated votes in the study {settings.study}"
            elif self.taste:
                study = make_study(self.runs, f"{settings.name}-{number}", settings.runs, 1)
                simulate_votes(self.runs, study.name, self.taste, settings.noise, settings.seed, settings.votes)
                source = VoteSource(study.name)
        else:
            run = record.get("pairs_run") or self._sample_pairs(number, record)
            if not run:
                return
            study = make_study(self.runs, f"{settings.name}-{number}", (run,), 1)
            source = VoteSource(study.name)
            if self.taste:
                count = simulate_votes(
                    self.runs, study.name, self.taste, settings.noise, settings.seed + number, settings.votes
                )
                yield f"round {number}: {count} simulated votes on two samples each of {self._pipeline_of(number)}"
        record["source"] = dataclasses.asdict(source)
        self._write_state()

    def _sample_pairs(self, number: int, record: dict[str, Any]) -> str:
        """The folder of a run with two samples of the model for each prompt; "" where it was stopped."""
        prompts = vote_training.read_test(self.settings.prompts, pipelines.read_config(str(self._pipeline_of(number))))
        per_prompt = -(-self.settings.votes // len(prompts))
        values = {
            "name": f"{self.settings.name}-{number}-pairs",
            "pipeline": str(self._pipeline_of(number)),
            "contestants": {"one": "sample", "two": {"name": "sample", "draw": 1}},
            "reward": self._onlooker(),
            "prompts": self.settings.prompts,
            "samples_per_prompt": per_prompt,
            "limit": -(-self.settings.votes // per_prompt),
            "batch": 32,
            "seed": self.settings.seed + number,
        }
        run = self._execute(configs.check_config(build_dataclass(configs.RunConfig, values, "loop")))
        record["pairs_run"] = run
        self._write_state()
        return run

    def _onlooker(self) -> dict[str, Any]:
        """What scores samples that nothing is optimised for: a run names a reward."""
        modality = pipelines.read_config(str(self._pipeline_of(1))).modality
        return {"image": {"sharpness": 1.0}, "video": {"motion": 1.0}, "audio": {"loudness": 1.0}}[modality]

    def _read_votes(self, record: Mapping[str, Any]) -> list[Vote] | None:
        """The votes to learn from; None where there are too few so far."""
        source = build_dataclass(VoteSource, record["source"], "loop")
        if source.study and not votes.standing_votes(
            self.runs, study=studies.find_study(self.runs, source.study).number
        ):
            return None
        vote_list = source.read(self.runs)
        if source.study and sum(v.choice in ("left", "right") for v in vote_list) < FEWEST_VOTES:
            return None
        return loop_votes.shuffle_choices(vote_list, self.settings.seed) if self.settings.shuffle else vote_list

    def _learn_taste(self, number: int, record: dict[str, Any], vote_list: Sequence[Vote]) -> Iterator[str]:
        if "taste" not in record:
            settings = self.settings
            name = f"{settings.name}-{number}"
            source = str(build_dataclass(VoteSource, record["source"], "loop")) + ", shuffled" * settings.shuffle
            learnt = learn.learn_named(vote_list, self.runs, name, settings.encoder, source)
            record["taste"] = {key: learnt[key] for key in ("name", "better", "told", "report", "control")}
            self._write_state()
        yield f"round {number}: taste:{record['taste']['name']} is {record['taste']['told'][0]}"
        if self.settings.method == "reward" and not record["taste"]["better"] and not self.settings.shuffle:
            raise BadInput(
                f"taste:{record['taste']['name']} is not shown to be better than chance, so nothing is trained by it; "
                "vote more, or take --method dpo, which learns from the pairs themselves"
            )

    def _train(self, number: int, record: dict[str, Any], vote_list: Sequence[Vote]) -> Iterator[str]:
        settings = self.settings
        folder = self.runs / tastes.FOLDER / record["taste"]["name"]
        block = tastes.taste_block(folder) | ({} if record["taste"]["better"] else {"unproven": True})
        pipeline = str(self._pipeline_of(number, vote_list))
        training = VoteTraining(
            f"{settings.name}-{number}-tuned",
            settings.method,
            pipeline,
            {tastes.taste_label(folder.name): block},
            settings.test or vote_training.suggest_test(self._base_pipeline(vote_list)),
            settings.watch,
            settings.pairs,
            settings.seed,
            settings.overrides,
        )
        config = vote_training.write_training(vote_list, self.runs, self.folder / str(number), training)
        file = self.folder / str(number) / "config.yaml"
        yield f"round {number}: {settings.method} on {len(vote_list)} votes, from {pipeline}; {file}"
        if run := self._execute(config):
            record["run"] = run
            self._write_state()

    def _judge(self, number: int, record: dict[str, Any]) -> Iterator[str]:
        where, study = f"round {number}: ", record["follow_up"]
        if self.taste:
            simulate_votes(self.runs, study, self.taste, self.settings.noise, self.settings.seed + 100 * number)
        try:
            result = judge_follow_up(self.runs, study)
        except BadInput:
            yield where + self._ask_for_votes(study)
            return
        record["judges"] = read_judges(self.runs / record["run"])
        if self.taste or studies.find_study(self.runs, study).closed:
            record["result"] = result
        self._write_state()
        yield where + loop_votes.describe_win_rate(result)
        yield from (f"{where}{judge}: {gain}, paired with the base" for judge, gain in record["judges"].items())
        if "result" not in record:
            yield f"{where}more votes: {self._link(study)}; it counts once you close it: workbench study close {study}"

    def _pipeline_of(self, number: int, vote_list: Sequence[Vote] = ()) -> Path | str:
        """What a round trains: the base, or what the round before has trained."""
        if number > 1:
            return self.runs / self.state["rounds"][number - 2]["run"]
        return self._base_pipeline(vote_list)

    def _base_pipeline(self, vote_list: Sequence[Vote]) -> str:
        return self.settings.pipeline or loop_votes.find_pipeline(vote_list)

    def _execute(self, config: configs.RunConfig) -> str:
        """The folder of the run once it is done, "" where it was stopped. Raises BadInput where it failed."""
        plan = plan_run(config)
        check_disk(plan, self.runs)
        folder = store.RunFolder.open(self.runs, config.name, dataclasses.asdict(config))
        self.execute(plan, folder)
        status = folder.read().get("status")
        if status == "failed":
            raise BadInput(f"{folder.path}: the run failed; its report says why")
        return folder.path.name if status == "done" else ""

    def _ask_for_votes(self, study: str) -> str:
        return f"people vote at {self._link(study)}; afterwards the same command goes on"

    def _link(self, study: str) -> str:
        return f"{self.address}/vote/{study}" if self.address else f"/vote/{study} of: workbench app --runs {self.runs}"

    def _read_state(self) -> dict[str, Any]:
        training = json.loads(json.dumps(dataclasses.asdict(self.settings)))
        state = store.RunFolder(self.folder).read(FILE)
        if state and {**state["settings"], "rounds": 0} != {**training, "rounds": 0}:
            raise BadInput(f"{self.folder}: a loop of this name was asked for something else; take another --name")
        return {"settings": training, "rounds": state.get("rounds", [])}

    def _write_state(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        store.RunFolder(self.folder).write(FILE, self.state)


def check_settings(settings: LoopSettings) -> LoopSettings:
    """The settings themselves. Raises BadInput for what no loop can do."""
    if not studies.NAME.fullmatch(settings.name) or len(settings.name) > 40:
        raise BadInput(
            f"name: {quote_value(settings.name)} can't name a loop; use up to 40 small letters, digits and '-'"
        )
    if sum(map(bool, (settings.study, settings.runs, settings.prompts))) != 1:
        raise BadInput("name what was voted on, by --study or --runs, or samples to vote on: --pipeline with --prompts")
    if settings.prompts and not settings.pipeline:
        raise BadInput("--prompts: name the pipeline that is to make samples of them: --pipeline")
    if settings.rounds > 1 and not (settings.simulate and settings.prompts):
        raise BadInput(
            "--rounds: later rounds sample and vote anew, which only a simulated voter does at once (--simulate, with "
            "--pipeline and --prompts); else begin a loop with what this one has trained: --pipeline RUN --prompts LIST"
        )
    return settings


def make_study(runs: Path, name: str, folders: Sequence[str], votes_per_pair: int) -> studies.Study:
    """The study of this name, made unless it is there."""
    existing = {study.name: study for study in studies.list_studies(runs)}
    if name not in existing:
        settings = {"name": name, "runs": tuple(folders), "votes_per_pair": votes_per_pair}
        existing[name] = studies.create_study(runs, settings)[0]
    return existing[name]


def follow_up(runs: Path, run: str, name: str, votes_per_pair: int = 3) -> studies.Study:
    """The study that asks, blind, whether a training on votes helped: base against tuned on its held-out prompts."""
    existing = {study.name: study for study in studies.list_studies(runs)}
    if name in existing:
        return existing[name]
    settings = {"name": name, "runs": (run,), "contestants": (BASE, TUNED), "votes_per_pair": votes_per_pair}
    return studies.create_study(runs, settings)[0]


def judge_follow_up(runs: Path, study: str) -> dict[str, Any]:
    """What a follow-up's votes say so far (loop_votes.measure_win_rate). Raises BadInput without any."""
    return loop_votes.measure_win_rate(VoteSource(study).read(runs), TUNED)


def read_judges(run: Path) -> dict[str, str]:
    """Reward -> the mean gain of tuned over base on held-out prompts, paired by sample, with its 95 % interval where
    the prompts are enough for one, of a finished training."""
    tuned = next((c for c in store.RunFolder(run).read("summary.json")["contestants"] if c["name"] == TUNED), {})
    gains = {}
    for name, part in tuned.get("versus_base", {}).items():
        interval = f" [{part['ci95'][0]:+.3f}, {part['ci95'][1]:+.3f}]" if part["ci95"] else ""
        gains[name] = f"{part['mean']:+.3f}{interval}"
    return gains


def name_loop(settings: Mapping[str, Any]) -> str:
    """A name for a loop that was given none: of what it learns from."""
    text = settings.get("study") or Path((settings.get("runs") or ("",))[0]).name or settings.get("pipeline") or "loop"
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:4]
    words = "".join(c if c.isalnum() else "-" for c in Path(str(text)).name.lower()).strip("-")[:30].strip("-")
    return f"{words}-{digest}"


def with_name(settings: LoopSettings) -> LoopSettings:
    """The settings, named."""
    return settings if settings.name else replace(settings, name=name_loop(dataclasses.asdict(settings)))
