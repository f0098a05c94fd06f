"""Trainings that don't draw samples round by round, as runs: from pairs, from a subject's pictures, into noise; and in
stages."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
import yaml
from train_fixtures import NFT, PIPELINE, asked, folder_of, go, planned, same, stopped, told, weights

from workbench import cli
from workbench.commands.run_progress import stop_on_signal
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Media, PairBatch
from workbench.engine.plan import plan_run
from workbench.methods import HyperNoise, name_of
from workbench.runs import config, store
from workbench.training import training_runs

DPO = {"name": "dpo", "beta": 5.0, "levels_per_sample": 1, "lr": 1e-3}
RPO = {"name": "rpo", "validate_every": 1, "validation_samples": 1, "samples_per_prompt": 1, "lr": 1e-3, "patience": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture(scope="module")
def pictures(home):
    """Four pictures, and votes on them: the lighter wins. One vote says of nobody that they won."""
    place = home / "pictures"
    place.mkdir()
    for n in range(4):
        media.write_media(Media(torch.full((1, 3, 32, 32), 0.2 + 0.2 * n), "image"), place / f"{n}.png")
    rows = [
        {"prompt": f"shade {n}", "a_path": f"{n}.png", "b_path": f"{n + 1}.png", "winner": "b", "voter": "x"}
        for n in range(3)
    ]
    rows.append(rows[0] | {"winner": "?"})
    (place / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paired(home, pictures):
    """An undisturbed run on pairs: (what was asked, plan, folder)."""
    given = dict(
        method=DPO, pairs={"files": str(pictures / "votes.jsonl")}, train={"rounds": 2, "eval_every": 0}, limit=1
    )
    plan = planned(home, **given)
    folder = folder_of(plan, home / "paired")
    go(plan, folder)
    return given, plan, folder


def test_a_run_learns_from_pairs_and_says_so(paired):
    _, plan, folder = paired
    assert (
        plan.train_prompts == ()
        and len(plan.held_out_prompts) == 2
        and "3 pairs to learn from" in " ".join(plan.checks)
    )
    rounds = told(folder, "train")
    assert all(0 <= r["agrees"] <= 1 and r["grad_norm"] > 0 and "reward" not in r for r in rounds)
    taught = folder.read("summary.json")["contestants"][1]["training"]
    assert taught["samples"] == training_runs.training_samples(plan, "dpo") == 2 * 2 * 2 and taught["reward_calls"] == 0
    assert taught["nfe"] == plan.denoiser_calls("dpo") - 3 * len(plan.rows), "nothing was sampled to be learnt from"
    assert "3 preference pairs" in (card := (folder.path / "export" / "README.md").read_text())
    left_out = f"1 pair is left out: {plan.pairs.files}, line 4: `winner` must be a, b or tie, got '?'"
    assert taught["warnings"] == [f"{left_out}."] and left_out in card and any(left_out in line for line in plan.checks)


@pytest.mark.parametrize("control", ["negated", "shuffled"])
def test_a_control_turns_the_pairs_round_or_gives_them_each_others_prompts(home, pictures, control):
    from workbench.training.trainer import Batches

    class Under:
        batches_done, memory, distributed = 0, {}, type("", (), {"size": (3, 32, 32), "rate": 0.0})

        def __init__(self, plan):
            self.plan, self.train_config = plan, plan.train_config

    given = {"method": DPO, "pairs": {"files": str(pictures / "votes.jsonl")}}
    plain, turned = (Batches(Under(planned(home, control=c, **given))).pair_batch(0) for c in ("none", control))
    assert isinstance(plain, PairBatch)
    if control == "negated":
        assert torch.equal(plain.winners.data, turned.losers.data) and plain.prompts == turned.prompts
    else:
        assert torch.equal(plain.winners.data, turned.winners.data) and plain.prompts == turned.prompts[::-1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": NFT}, "nft learns from samples of its own.*these can: dpo, kto"),
        ({"pairs": {"files": "nowhere.parquet"}}, "nowhere.parquet is no .parquet, .jsonl"),
        ({"pairs": {"file": "x"}}, "did you mean 'files'"),
        ({"method": "sample"}, "no contestant of this run is trained"),
        ({"pairs": None, "method": RPO | {"references": "nowhere"}}, "no folder with pictures"),
        ({"pairs": None, "method": RPO}, "'references' is missing"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_before_weights_load(home, pictures, change, sentence):
    with pytest.raises(BadInput, match=sentence):
        planned(home, **({"method": DPO, "pairs": {"files": str(pictures / "votes.jsonl")}} | change))


# --- stop_on_signal
# --------------------------------------------------------------------------------------------------------


def test_the_first_signal_asks_to_stop_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for first, second in ((signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
        with pytest.raises(KeyboardInterrupt), stop_on_signal() as stop:
            os.kill(os.getpid(), first)
            assert stop.is_set()
            os.kill(os.getpid(), second)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_training_that_is_asked_to_stop_saves_says_so_and_goes_on_to_the_same_bits(
    home, paired, tmp_path, monkeypatch, capsys
):
    from workbench.training.trainer import Trainer

    given, _, whole = paired
    path = tmp_path / "asked.yaml"
    path.write_text(yaml.safe_dump(asked(home, **given)))
    record_round = Trainer.record_round

    def signalled(self, event, meter):
        os.kill(os.getpid(), signal.SIGTERM)
        record_round(self, event, meter)

    command = ["run", str(path), "--runs", str(tmp_path / "runs")]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "record_round", signalled)
        assert cli.main(command) == 130
    assert "goes on from here" in capsys.readouterr().err
    (folder,) = store.list_run_folders(tmp_path / "runs")
    assert folder.read()["status"] == "stopped" and (folder.path / "checkpoints" / "dpo" / "000001.pt").is_file()
    assert cli.main(command) == 0 and folder.read()["status"] == "done"
    same(folder, whole)


# --- a subject, and noise --------------------------------------------------------------------------------------------


def test_rpo_delivers_its_best_copy_and_what_it_remembers_outlives_a_stop(home, pictures, tmp_path):
    method = RPO | {"references": str(pictures), "prompts": ["a red circle"]}
    settings = {"rounds": 3, "prompts_per_round": 1, "eval_every": 0, "best": ""}  # its own validation picks
    plan = planned(home, method=method, train=settings)
    whole, parts = folder_of(plan, tmp_path / "whole"), folder_of(plan, tmp_path / "parts")
    go(plan, whole)
    done = training_runs.checkpoint_store(plan, whole, "rpo").finished_record
    validated = [r["reward"] for r in told(whole, "train")]
    if len(validated) < 3:
        assert "nothing more to do" in done["ended"] and validated[-1] < max(validated)
    stopped(plan, parts, 1)
    go(plan, parts)
    same(parts, whole)
    policy, name, update = training_runs.load_best_policy(plan, whole, "rpo")
    assert name == "best" and update == done["updates"] == len(validated)
    scale = {k: v for k, v in weights(whole).items() if "lora_A" in k}
    key = next(iter(scale))
    kept = policy.adapters.copies["best"][next(k for k in policy.adapters.copies["best"] if "lora_A" in k)]
    assert any(torch.equal(kept, v) for v in scale.values()), key


def test_hypernoise_is_sampled_by_its_correction_in_the_looks_in_the_table_and_in_a_comparison(home, tmp_path, capsys):
    settings = {"rounds": 1, "eval_every": 0, "lora": {"rank": 2, "alpha": 4, "targets": "all"}}
    plan = planned(home, method={"name": "hypernoise", "lr": 1e-2}, train=settings)
    folder = folder_of(plan, tmp_path / "runs")
    go(plan, folder)
    base, made = folder.read("summary.json")["contestants"]
    assert folder.read()["status"] == "done" and made["training"]["updates"] == 1
    assert (base["nfe"], made["nfe"]) == (2 * 3, 2 * 4), "one call more a sample"
    assert made["rewards"]["starter_clip"]["mean"] != base["rewards"]["starter_clip"]["mean"]
    looks = told(folder, "watch")
    assert looks[0]["held starter_clip"] != looks[1]["held starter_clip"]
    assert name_of(training_runs.delivery_method(HyperNoise())) == "corrected"
    ask = ["--reward", "starter_clip", "--prompts", "starter-image-test", "--limit", "1", "--json"]
    code = cli.main(["compare", str(home / "free.yaml"), str(folder.path), *ask, "--runs", str(tmp_path / "compared")])
    row = json.loads(capsys.readouterr().out)["contestants"][-1]
    assert code == 0 and row["method"] == "corrected" and row["nfe"] == 4


# --- stages ----------------------------------------------------------------------------------------------------------

TWO = [
    {"name": "bright", "rounds": 1, "reward": "starter_clip"},
    {"name": "right", "rounds": 2, "reward": "oracle_soft", "watch": ["starter_clip"], "rehearse": 0.5, "method": DPO},
]


def staged(home, stages=TWO, train=None):
    """Planned as `workbench run` does it."""
    (home / "free.yaml").write_text(yaml.safe_dump(PIPELINE))
    (home / "guided.yaml").write_text(yaml.safe_dump(PIPELINE | {"steps": 2, "call": {"guidance_scale": 3.0}}))
    told = {"pipeline": str(home / "free.yaml"), "method": NFT, "reward": "starter_clip", "watch": ["oracle"]}
    told |= {"prompts": "starter-image-train", "test": "starter-image-test", "limit": 2, "batch": 4, "name": "staged"}
    block = {"prompts_per_round": 2, "save_every": 1, "ema": 0.5, "lora": {"rank": 2, "alpha": 4}} | (train or {})
    told |= {"stages": stages, "train": block}
    return plan_run(config.check_config(config.build_dataclass(config.RunConfig, told, "test")))


def test_stages_train_one_model_judge_every_task_after_each_and_go_on_where_they_were(home, tmp_path):
    """Two tasks on two pipelines of the same weights, with two methods; half of the second stage's rounds rehearse the
    first."""
    second = TWO[1] | {"pipeline": str(home / "guided.yaml"), "method": DPO | {"group": 2}}
    plan = staged(home, [TWO[0], second])
    whole, parts = folder_of(plan, tmp_path / "whole"), folder_of(plan, tmp_path / "parts")
    go(plan, whole)
    summary = whole.read("summary.json")
    stages = summary["stages"]
    assert stages["tasks"] == ["bright", "right"] and stages["after"] == ["", "bright", "right"]
    for kind, judges in (("reward", ["reward"] * 2), ("held out", ["oracle", "starter_clip"])):
        rows = torch.tensor(stages[kind]["scores"], dtype=torch.float64)
        assert stages[kind]["judges"] == judges and rows.shape == (3, 2)
        torch.testing.assert_close(torch.tensor(stages[kind]["gained"]).double(), rows.diff(dim=0), atol=3e-6, rtol=0)
    trained = [[k.split()[0] for k in r if k.endswith("grad_norm")] for r in told(whole, "train")]
    assert trained == [["bright"], ["right"], ["bright"]], "the second of its two rounds is the first task's"
    assert summary["contestants"][1]["training"]["updates"] == 3 and whole.read()["status"] == "done"
    assert "What each stage brought" in (whole.path / "report.html").read_text()
    assert not any(torch.equal(a, torch.zeros_like(a)) for a in weights(whole).values())
    for after in (2, 4):  # at the end of the first stage, before all is judged; and in the second
        stopped(plan, parts, after)
        assert parts.read()["status"] == "stopped"
    go(plan, parts)
    same(parts, whole)
    assert parts.read("summary.json")["stages"] == stages


@pytest.mark.parametrize(
    ("stages", "train", "sentence"),
    [
        ([TWO[0], {"name": "b", "rounds": 1, "pipeline": "starter-image"}], None, "can't be carried into the other"),
        (
            [{"name": "a", "rounds": 1, "method": "sample"}],
            None,
            r"stages\[0\] \(a\): train: no contestant of this run is trained",
        ),
        (
            [{"name": "a", "rounds": 1, "method": "hypernoise"}],
            {"lora": {"rank": 2, "targets": "all"}},
            "leaves no weights that another",
        ),
        (
            [{"name": "a", "rounds": 1, "method": "draft", "reward": "oracle", "watch": []}],
            None,
            r"\(a\): .*no gradient",
        ),
        ([{"name": "a", "rounds": 1}], {"rounds": 3}, "train.rounds: a training in stages"),
        ([{"name": "a", "rounds": 1, "methd": "nft"}], None, "did you mean 'method'"),
    ],
)
def test_stages_that_cannot_work_are_refused_in_a_sentence_before_weights_load(home, stages, train, sentence):
    with pytest.raises(BadInput, match=sentence) as error:
        staged(home, stages, train)
    assert "\n" not in str(error.value)
