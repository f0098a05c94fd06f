"""Rewards of whole sets in runs: what is planned and what refused, what is said of a set and how surely, and DRAGON
driven, watched, stopped, resumed, summed up and shown like any other training."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from mixture_policy import Value
from rich.console import Console
from set_fixtures import Flat, drawn, save
from train_fixtures import folder_of, go, planned, told
from training_toys import gaussian_policy, one

from rewards.sets.frechet import Frechet, fit_normal
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.paths import CONFIGS
from workbench.core.types import Media
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.evaluation import set_rewards
from workbench.methods.training.dragon import DRAGON
from workbench.report import pages, tables
from workbench.runs import config
from workbench.training import monitoring, training_runs

MINIATURES = sorted((CONFIGS / "runs" / "dragon").glob("*.yaml"))
CLIP = "starter:image/clip"
REFERENCE = 0.5 + 1.2 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(9)).double()


@dataclass(frozen=True)
class Match(Frechet):
    """Minus the Fréchet distance to REFERENCE."""

    def target(self, references, device):
        return fit_normal(REFERENCE)


class Opaque:
    """A set reward of somebody else: nothing but a call."""

    def __init__(self, inner):
        self.inner, self.spec = inner, inner.spec

    def __call__(self, *, media, prompts, references=None):
        return self.inner(media=media, prompts=prompts)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_every_reward_of_the_experiment_is_planned_where_its_examples_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "music").mkdir(parents=True)
    (tmp_path / "data" / "music.txt").write_text("major legato rising low flute then falling high bell march\n" * 2)
    sound = Media(torch.linspace(-0.5, 0.5, 16000)[None, None], "audio", 16000.0)
    media.write_media(sound, tmp_path / "data" / "music" / "0000.wav")
    scopes = {}
    for path in MINIATURES:
        plan = plan_run(config.read_run_config(path))
        assert plan.trained_contestants == ["dragon"] and plan.held_out_prompts and "oracle" in plan.watch.rewards, (
            path.stem
        )
        scopes[path.stem] = plan.reward.spec.scope
    assert len(scopes) == 17 and sum(scope == "set" for scope in scopes.values()) == 7
    assert scopes["fad-clap"] == "set" and scopes["song-fad-clap"] == "sample"
    assert {"base", "nft", "grpo", "dpo", "dragon"} == set(plan_run(config.read_run_config("music-train")).methods)


@pytest.mark.parametrize("name", ["fad-clap", "song-fad-gated", "exemplar-text"])
def test_without_its_examples_a_config_says_how_they_are_made(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="data/music.*made by: python benchmarks/dragon.py --references data"):
        plan_run(config.read_run_config(f"dragon/{name}"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("dragon")
    save(drawn("a red circle", 6), place / "examples")
    return place


def blocks(home) -> dict:
    """What a small training from a set reward differs in from train_fixtures' usual one."""
    return {
        "method": {"name": "dragon", "objective": "dpo", "lr": 1e-3, "levels_per_sample": 1},
        "reward": {"frechet": {"model": CLIP, "reference": str(home / "examples")}},
        "watch": {"oracle": 1, "vendi": {"model": CLIP}},
        "limit": 8,
        "train": {"eval_prompts": 8, "rounds": 2, "eval_every": 0, "save_every": 1, "prompts_per_round": 3},
    }


def test_a_method_that_needs_a_score_of_each_sample_is_refused_a_reward_of_whole_sets(home):
    with pytest.raises(BadInput, match="frechet judges whole sets, and contestant nft .*dragon learns from sets"):
        planned(home, **blocks(home) | {"method": {"name": "nft", "group": 4}})
    with pytest.raises(BadInput, match="contestant best_of_n needs a score of each sample"):
        planned(home, **blocks(home) | {"method": {"name": "best_of_n", "n": 2}})
    with pytest.raises(BadInput, match="shuffled prompts are all the same to frechet"):
        planned(home, **blocks(home) | {"control": "shuffled"})
    mixed = {"frechet": {"model": CLIP, "reference": str(home / "examples")}, "starter_clip": 1.0}
    with pytest.raises(BadInput, match="can't be added to scores of single samples"):
        planned(home, **blocks(home) | {"reward": mixed})


def test_judges_of_samples_and_of_sets_watch_side_by_side_and_those_of_groups_do_not(home):
    plan = planned(home, **blocks(home) | {"watch": ["oracle", "starter_clip"]})
    assert [*plan.watch.rewards] == ["oracle", "starter_clip"]
    plan = planned(home, **blocks(home))
    assert [*plan.watch.rewards] == ["oracle", "vendi"] and [*set_rewards.set_rewards_of(plan)] == ["frechet", "vendi"]
    group = {"oracle": 1, "leave_one_out": {"of": {"vendi": {"model": CLIP}}}}
    with pytest.raises(BadInput, match="watch: leave_one_out compares the samples of one prompt"):
        planned(home, **blocks(home) | {"watch": group})


# --- what is said of a set -------------------------------------------------------------------------------------------


def answers(seed: int, prompts: int = 40) -> tuple[Media, Media, list[str]]:
    """Two contestants' samples in the plane, two a prompt and alike within prompts; the second one's lie nearer to
    REFERENCE."""
    g = torch.Generator().manual_seed(seed)
    prompt, own = torch.randn(prompts, 1, 2, generator=g), torch.randn(prompts, 2, 2, generator=g)
    x = (0.6 * prompt + 0.8 * own).flatten(0, 1)
    y = 1.05 * x + 0.1 + 0.2 * torch.randn(x.shape, generator=g)
    says = [f"p{n // 2}" for n in range(2 * prompts)]
    return *(Media(z.view(-1, 1, 1, 2).expand(-1, 3, -1, -1), "image") for z in (x, y)), says


def test_nineteen_in_twenty_intervals_of_a_set_reward_hold_what_they_should():
    """Of 120 repetitions: those of the value, and the narrower ones of the paired difference."""
    reward, found = Match(model=Flat(2)), []
    for seed in range(120):
        x, y, prompts = answers(seed)
        base, now = (set_rewards.score_set(reward, made, prompts, 50) for made in (x, y))
        found.append([now.value, *now.estimate()["ci95"], now.estimate(base)["mean"], *now.estimate(base)["ci95"]])
    found = torch.tensor(found)
    for value, low, high in (found[:, :3].T, found[:, 3:].T):
        held = ((low <= value.mean()) & (value.mean() <= high)).double().mean()
        assert 0.88 <= held <= 0.99, held
        assert 0.8 < (high - low).mean() / (2 * 1.96 * value.std()) < 1.25
    assert found[:, 5].min() > found[:, 4].min() > 0, "the second is nearer in each of them"
    assert (found[:, 5] - found[:, 4]).mean() < 0.4 * (found[:, 2] - found[:, 1]).mean()


def test_a_prompts_samples_go_to_one_half_together_and_everyone_gets_the_same_halves():
    seen = []

    class Seen(Match):
        def score_rows(self, x, target):
            seen.append(sorted(x[:, 0].tolist()))
            return super().score_rows(x, target)

    x, _, prompts = answers(0)
    for _ in range(2):
        set_rewards.score_set(Seen(model=Flat(2)), x, prompts, 5)
    assert seen[:6] == seen[6:] and [len(rows) for rows in seen[:6]] == [40] * 5 + [80]
    for rows in seen[:5]:  # the halves come first, the whole last
        chosen = [n for n, v in enumerate(x.data[:, 0, 0, 0].double().tolist()) if v in rows]
        assert len(chosen) == 40 and chosen[::2] == [n - 1 for n in chosen[1::2]] and not chosen[0] % 2


def test_a_set_that_halves_say_nothing_of_has_a_value_and_no_interval():
    reward, (x, _, prompts) = Match(model=Flat(2)), answers(0)
    few = set_rewards.score_set(reward, x[list(range(14))], prompts[:14])
    outside = set_rewards.score_set(Opaque(reward), x, prompts)
    for found in (few, outside):
        assert found.halves == () and found.estimate()["ci95"] is None and found.estimate()["mean"] < 0
    assert outside.value == pytest.approx(set_rewards.score_set(reward, x, prompts).value, rel=1e-5)
    parts = [x[list(range(n, n + 16))] for n in range(0, 80, 16)]
    assert set_rewards.score_set(reward, iter(parts), prompts) == set_rewards.score_set(reward, x, prompts)
    blind = set_rewards.score_set(reward, x[[0]], prompts[:1]).estimate()
    assert blind["mean"] is None and blind["ci95"] is None


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calm(home):
    plan = planned(home, **blocks(home))
    folder = folder_of(plan, home / "calm")
    return plan, folder, go(plan, folder)


def test_the_summary_has_one_number_for_a_set_and_it_is_that_of_the_files(calm):
    plan, folder, _ = calm
    summary, made = folder.read("summary.json"), pages.collect_samples(folder.events())
    assert folder.read()["status"] == "done"
    for c in summary["contestants"]:
        rows = [made[c["name"]][key] for key in sorted(made[c["name"]])]
        assert all({"oracle"} == set(s["scores"]) for s in rows), "no sample has a score of its own"
        whole = Media.cat([media.read_media(folder.path / s["file"]) for s in rows])
        for name, reward in set_rewards.set_rewards_of(plan).items():
            value = float(reward(media=whole, prompts=[s["prompt"] for s in rows]))
            e = c["rewards"][name]
            assert e["mean"] == pytest.approx(value, rel=1e-4) and e["n"] == 8 and e["set"]
            assert e["ci95"][0] < e["mean"] < e["ci95"][1]
    base, dragon = summary["contestants"]
    assert dragon["rewards"]["frechet"]["optimised"] and not base["rewards"]["frechet"]["optimised"]
    gain = dragon["rewards"]["frechet"]["mean"] - base["rewards"]["frechet"]["mean"]
    assert dragon["versus_base"]["frechet"]["mean"] == pytest.approx(gain, abs=1e-6)
    assert set(dragon["wins"]) == {"oracle"} and dragon["training"]["reward_calls"] == 2 * 3 * 2


def test_the_looks_tell_the_reward_of_the_watched_set(calm):
    plan, folder, said = calm
    looks = told(folder, "watch")
    assert [w["step"] for w in looks] == [0, 2]
    assert all(w["held reward"] == pytest.approx(w["held frechet"], abs=1e-5) and w["held vendi"] > 1 for w in looks)
    assert looks[0]["held frechet"] != looks[1]["held frechet"]
    kept = sorted((folder.path / "samples" / "dragon" / "000000").glob("*.png"))
    assert set(media.read_meta(kept[0])["scores"]) == {"oracle"}
    assert [p.event.metrics["good"] > p.event.metrics["bad"] for p in said if p.phase == "train"] == [True, True]


def test_a_stopped_training_from_sets_goes_on_to_the_same_end(calm, home):
    plan, whole, _ = calm
    folder, stop = folder_of(plan, home / "stopped"), threading.Event()
    for p in run.execute_run(plan, folder, stop):
        if p.phase == "train":
            stop.set()
    assert (
        folder.read()["status"] == "stopped"
        and training_runs.checkpoint_store(plan, folder, "dragon").load_newest()[0] == 1
    )
    go(plan, folder)
    assert folder.read()["status"] == "done"
    assert told(folder, "watch") == told(whole, "watch") and told(folder, "train") == told(whole, "train")
    parts = [f.read("summary.json")["contestants"][1] for f in (folder, whole)]
    assert parts[0]["rewards"] == parts[1]["rewards"] and parts[0]["versus_base"] == parts[1]["versus_base"]


def test_the_report_and_the_table_say_what_is_of_a_set(calm):
    _, folder, _ = calm
    page = (folder.path / "report.html").read_text()
    assert "vendi, frechet: one score of all pictures as a set" in page
    assert "the optimised reward" not in page, "no picture has one"
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables.console_table(folder.read("summary.json")))
    shown = console.export_text()
    assert "vendi and frechet: one score of all samples as a set" in shown and "*" in shown


# --- the alarm -------------------------------------------------------------------------------------------------------


def rows(whole: float, halves: list[float], oracle: float) -> list[dict]:
    def row(n: int, k: int) -> dict:
        scores = {"frechet": whole, "vendi": 2.0, "oracle": oracle}
        half = {"frechet": halves[(2 * n + k) % len(halves)], "vendi": 1.5}
        return {
            "index": n,
            "k": k,
            "category": None,
            "reward": whole,
            "diversity": 0.3,
            "scores": scores,
            "halves": half,
        }

    return [row(n, k) for n in range(10) for k in range(2)]


def test_the_alarm_hears_a_set_reward_rise_only_when_it_rose_for_sure(home):
    plan = planned(home, **blocks(home))
    base = rows(-3.0, [-3.2, -2.8], oracle=0.9)
    sure, unsure = rows(-2.0, [-2.2, -1.8], oracle=0.7), rows(-2.0, [-0.2, -4.8], oracle=0.7)
    numbers, alarm = monitoring.compare_to_base(plan, "dragon", base, sure)
    assert "dragon raised frechet, which it optimised, while oracle fell" in alarm
    assert numbers["held frechet"] == numbers["held reward"] == -2.0
    assert monitoring.compare_to_base(plan, "dragon", base, unsure)[1] is None
    gone = rows(-2.0, [-0.2, -4.8], oracle=0.2)
    assert "oracle, held out, fell from 0.9 to 0.2" in monitoring.compare_to_base(plan, "dragon", base, gone)[1]
    assert monitoring.compare_to_base(plan, "dragon", base, rows(-2.0, [-2.2, -1.8], oracle=0.9))[1] is None
    assert monitoring.compare_to_base(plan, "dragon", base, base)[1] is None
    plan.train_config.__dict__["best"] = "frechet"
    metric = monitoring.selection_metric(plan, plan.methods["dragon"])
    assert monitoring.selection_score(metric, sure, sure, 4) == -2.0


# --- noise levels ----------------------------------------------------------------------------------------------------


def test_skipped_levels_are_those_of_the_noisy_end_and_share_is_of_the_rest():
    met = []
    for skip, share in ((0, 1), (0.375, 1), (0.375, 0.6), (0, 0.5), (1, 1)):
        policy, method = (
            gaussian_policy(steps=8),
            DRAGON(objective="dpo", beta=2.0, schedule_skip=skip, schedule_fraction=share),
        )
        plain, seen = policy.noised, []
        policy.noised = lambda x, i, eps, plain=plain, seen=seen: (seen.append(i), plain(x, i, eps))[1]
        one(method, Value(), policy=policy)
        assert policy.nfe == 2 * method.calls(8)
        met.append(sorted(set(seen)))
    assert met == [[*range(8)], [3, 4, 5, 6, 7], [3, 4, 5], [0, 1, 2, 3], [7]]
