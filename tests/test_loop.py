"""The loop: votes become a taste and a training, and people, or a voter whose taste is known, are asked whether it
helped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from reward_fixtures import small_settings
from train_fixtures import PIPELINE
from vote_fixtures import cast_many_votes, write_run

from rewards import build_reward
from workbench import cli
from workbench.core.errors import BadInput
from workbench.feedback import loop, loop_votes, simulated_voter, studies, vote_training, votes
from workbench.feedback.loop_votes import VoteSource
from workbench.runs import store
from workbench.ui.context import AppContext
from workbench.ui.jobs import JobQueue
from workbench.ui.widgets import loop_work, standings

SMALL = ["train.rounds=1", "train.prompts_per_round=2", "train.eval_prompts=1", "train.lora={rank: 2, alpha: 4}",
         "contestants.tuned.levels_per_sample=1", "batch=8"]  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """A small pipeline, prompts to vote on and held-out ones, one of which is among the others."""
    (tmp_path / "free.yaml").write_text(yaml.safe_dump({**PIPELINE, "steps": 2}))
    colours = ("red", "blue", "green", "white", "yellow", "purple")
    (tmp_path / "train.txt").write_text("\n".join(f"a {c} circle" for c in colours))
    (tmp_path / "test.txt").write_text("\n".join(["a red circle", *(f"a {c} square" for c in colours[:4])]))
    return tmp_path


def test_a_simulated_taste_goes_round_once_and_leaves_every_artefact(place, capsys):
    """Votes, taste with card, config, run, follow-up, result; and a second call repeats nothing."""
    runs = place / "runs"
    options = {"folder": runs, "name": "round", "pipeline": place / "free.yaml", "prompts": place / "train.txt",
               "test": place / "test.txt", "votes": 12, "pairs": 4, "simulate": "{colourfulness: 1.0}",
               "encoder": small_settings("clip")["model"]}  # fmt: skip
    command = ["loop", *(word for k, v in options.items() for word in (f"--{k}", str(v))), "--json", *SMALL]
    assert cli.main(command) == 0
    state = json.loads(capsys.readouterr().out)
    (done,) = state["rounds"]
    home, tuned = runs / "loops" / "round" / "1", runs / done["run"]
    assert {"card.md", "head.json", "head.safetensors", "votes.jsonl"} <= {
        p.name for p in (runs / "learned" / "round-1").iterdir()
    }
    assert done["taste"]["report"]["votes"] == 12 and done["taste"]["control"]["votes"] == 12
    written = (home / "config.yaml").read_text()
    assert vote_training.digest_file(home / "pairs.jsonl") in written and yaml.safe_load(written)["pairs"]
    asked = [json.loads(line)["prompt"] for line in (home / "test.jsonl").read_text().splitlines()]
    assert len(asked) == 4 and "a red circle" not in asked, "what was voted on is held out by nobody"
    record = store.RunFolder(tuned).read()
    assert record["status"] == "done" and str(home / "pairs.jsonl") in json.dumps(record["inputs"]["pairs"])
    assert (tuned / "export" / "pytorch_lora_weights.safetensors").is_file()
    assert done["result"]["votes"] == 4 and 0 <= done["result"]["low"] <= done["result"]["high"] <= 1
    assert done["judges"], "what held-out judges say stands beside it"
    folders, cast = sorted(runs.iterdir()), len(votes.standing_votes(runs))
    assert cli.main(command) == 0 and sorted(runs.iterdir()) == folders and len(votes.standing_votes(runs)) == cast
    assert cli.main([*command, "--shuffle"]) == 2 and "take another --name" in capsys.readouterr().err


def test_without_a_simulated_voter_a_loop_asks_people_and_goes_on_once_they_have_voted(tmp_path):
    write_run(tmp_path, names=("base", "reno"), pipeline="starter-image-base")
    study = loop.make_study(tmp_path, "mine", [p.parent.name for p in tmp_path.glob("*/run.json")], 1)
    settings = loop.LoopSettings("people", study="mine")
    steps = [*loop.run_loop(tmp_path, settings, lambda plan, folder: None, "http://x:1")]
    assert steps == ["round 1: people vote at http://x:1/vote/mine; afterwards the same command goes on"]
    simulated_voter.simulate_votes(tmp_path, "mine", build_reward("brightness"), limit=12)
    seen = []
    steps = [*loop.run_loop(tmp_path, settings, lambda plan, folder: seen.append(plan))]
    assert steps[-1] == "round 1: the training is not finished; the same command goes on" and study.name == "mine"
    (plan,) = seen
    assert plan.pairs.check() == 12 and list(plan.reward.rewards) == ["taste-people-1"]
    assert not any(row[1].endswith("red circles") for row in plan.rows), "the prompts that were voted on"


def test_a_known_taste_votes_as_it_says_and_noise_makes_it_err(tmp_path):
    write_run(tmp_path, names=("base", "reno"))
    (run,) = (p.parent.name for p in tmp_path.glob("*/run.json"))
    shares = []
    for n, noise in enumerate((0.0, 50.0)):
        loop.make_study(tmp_path, f"study-{n}", (run,), 1)
        assert simulated_voter.simulate_votes(tmp_path, f"study-{n}", build_reward("brightness"), noise) == 12
        shares.append(loop_votes.measure_win_rate(VoteSource(f"study-{n}").read(tmp_path), "reno")["accuracy"])
    assert shares[0] == 1.0 and 0.1 < shares[1] < 0.9, "reno's pictures are the brighter ones"
    some = VoteSource("study-0").read(tmp_path)
    mixed = loop_votes.shuffle_choices(some)
    assert sorted(v.choice for v in mixed) == sorted(v.choice for v in some) and mixed != some
    ties = [v.__class__(**{**vars(v), "choice": "tie"}) for v in some]
    result = loop_votes.measure_win_rate(ties, "reno")
    assert (result["accuracy"], result["votes"]) == (0.5, 12) and result["low"] < 0.5 < result["high"]
    assert loop_votes.describe_win_rate(result).startswith("no difference is shown: tuned won 50 %")
    assert np.isclose(loop_votes.measure_win_rate(some, "base")["accuracy"], 0.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "No Such"}, "can't name a loop"),
        ({"study": ""}, "name what was voted on"),
        ({"study": "", "prompts": "starter-image-train"}, "name the pipeline"),
        ({"rounds": 2}, "only a simulated voter does at once"),
        ({"study": "none"}, "there is no study 'none'"),
        ({"study": "", "runs": ("none",)}, "there is no run 'none'"),
        ({"simulate": "brightnes"}, "did you mean 'brightness'"),
    ],
)
def test_what_no_loop_can_do_is_one_sentence(tmp_path, change, says):
    write_run(tmp_path, names=("base", "reno"))
    settings = loop.LoopSettings(**({"name": "x", "study": "mine"} | change))
    with pytest.raises(BadInput, match=says):
        list(loop.run_loop(tmp_path, settings, lambda plan, folder: None))


def test_the_pages_buttons_queue_a_training_on_the_votes_and_ask_whether_it_helped(tmp_path, monkeypatch):
    context = AppContext(tmp_path / "runs", tmp_path / "temp", JobQueue())
    write_run(context.runs, names=("base", "reno"), pipeline="starter-image-base")
    cast_many_votes(context.runs, 60, {"base": -3.0, "reno": 3.0})
    queued = []
    monkeypatch.setattr(loop_work.run_queue, "submit_run", lambda context, folder: queued.append(folder))
    some = standings.Selection().read_votes(context)
    *_, told = loop_work.train_on_votes(context, some, "kto", "", "the leaderboard's votes")
    (folder,) = queued
    assert "better than chance" in told[0] and folder.path.name in told[1]
    config = folder.read()["config"]
    assert config["contestants"]["tuned"]["name"] == "kto" and Path(config["pairs"]["files"]).is_file()
    assert loop_work.list_trainings(context) == [folder.path.name]
    assert loop_work.describe_training(context, folder.path.name)[0].endswith("queued: waits for its turn")
    with pytest.raises(BadInput, match="not done yet"):
        loop_work.ask_follow_up(context, folder.path.name)
    with pytest.raises(BadInput, match="choose a training of the list"):
        loop_work.ask_follow_up(context, "../elsewhere")
    with pytest.raises(BadInput, match="no vote with these filters"):
        list(loop_work.train_on_votes(context, [], "dpo", "", ""))
    with pytest.raises(BadInput, match="choose one of the lists"):
        list(loop_work.train_on_votes(context, some, "dpo", "/etc/passwd", ""))
    write_run(context.runs, f"{folder.path.name[16:]}", names=("base", "tuned"))
    done = next(p.parent for p in context.runs.glob("*tuned/run.json") if json.loads(p.read_text())["status"] == "done")
    home = store.RunFolder(context.runs / "loops" / folder.path.name[16:].removesuffix("-tuned"))
    state = home.read(loop.FILE)
    home.write(loop.FILE, state | {"rounds": [state["rounds"][0] | {"run": done.name}]})
    (done / "summary.json").write_text(json.dumps({"contestants": [{"name": "tuned", "versus_base": {}}]}))
    study = loop_work.ask_follow_up(context, done.name)
    assert studies.find_study(context.runs, study).contestants == ("base", "tuned")
    assert "nobody was asked yet" in loop_work.describe_training(context, done.name)[-1]
    simulated_voter.simulate_votes(context.runs, study, build_reward("brightness"))
    assert loop_work.describe_training(context, done.name)[0].startswith("it helped: tuned won 100 %")
