"""Trainings as runs: driven, watched, stopped, resumed, exported, judged, on the embedded starter pack."""

from __future__ import annotations

import json

import pytest
import torch
import train_fixtures as tiny
import yaml
from safetensors.torch import load_file
from train_fixtures import GRPO, SDE, folder_of, go, planned, same, stopped, told, weights

import pipelines
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.engine import extension
from workbench.runs import checkpoints, train_config
from workbench.tools import hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def calm(home):
    """An undisturbed run: (plan, folder, what was said)."""
    plan = planned(home)
    folder = folder_of(plan, home / "calm")
    return plan, folder, go(plan, folder)


def test_a_training_is_a_run_like_any_other(calm):
    plan, folder, said = calm
    summary = folder.read("summary.json")
    base, nft = summary["contestants"]
    assert folder.read()["status"] == "done" and [base["name"], nft["name"]] == ["base", "nft"]
    assert nft["rewards"]["starter_clip"]["optimised"] and not nft["rewards"]["oracle"]["optimised"]
    assert nft["samples"] == base["samples"] == 2 and nft["nfe"] == base["nfe"], "made at the same cost as the base's"
    taught = nft["training"]
    assert taught["updates"] == 4 and taught["samples"] == taught["reward_calls"] == 4 * 2 * 2
    assert taught["nfe"] > 0 and taught["seconds"] > 0 and taught["peak_mb"] > 0
    assert {"report.html", "grid.png"} <= {p.name for p in folder.path.iterdir()}
    assert [p.batch for p in said if p.phase == "train"] == [1, 2, 3, 4]
    assert all(p.event.media is not None and p.folder == folder.path for p in said if p.phase == "train")
    assert taught["alarm"] == "" and taught["warnings"] == [], "a control: an honest training"


def test_the_log_has_every_round_and_every_look_at_the_watched_prompts(calm):
    plan, folder, _ = calm
    rounds, looks = told(folder, "train"), told(folder, "watch")
    assert [r["step"] for r in rounds] == [1, 2, 3, 4] and [w["step"] for w in looks] == [0, 2, 4]
    assert all({"reward", "grad_norm", "loss", "lr"} <= set(r) for r in rounds)
    assert looks[0]["distance"] == 0 < looks[1]["distance"]
    assert all({"held starter_clip", "held oracle", "held diversity"} <= set(w) for w in looks)
    shown = sorted((folder.path / "samples" / "nft").glob("*/*.png"))
    assert len(shown) == 3 * 2 and media.read_meta(shown[0])["prompt"] in plan.held_out_prompts


def test_watched_prompts_are_never_trained_on_and_test_prompts_never_watched(calm):
    plan, folder, _ = calm
    drawn = {
        p for n in range(50) for p in train_config.training_batch(plan.train_prompts, plan.train_config, 0, n).prompts
    }
    assert not drawn & set(plan.held_out_prompts) and len(plan.held_out_prompts) == 2 and len(drawn) > 50
    assert not set(plan.held_out_prompts) & {r[1] for r in plan.rows}


def test_the_exported_run_is_a_pipeline_that_makes_the_pictures_of_the_table(calm, home):
    """By its folder, and by its LoRA file beside the base."""
    plan, folder, _ = calm
    event = next(e for e in folder.events() if e["contestant"] == "nft" and e.get("final"))
    prompts, seeds = [s["prompt"] for s in event["samples"]], [s["seed"] for s in event["samples"]]
    made = torch.cat([media.read_media(folder.path / s["file"]).data for s in event["samples"]])
    file = folder.path / "export" / "pytorch_lora_weights.safetensors"
    for config in (
        pipelines.read_config(folder.path),
        pipelines.with_lora(pipelines.read_config(str(home / "free.yaml")), str(file)),
    ):
        got = pipelines.load(config, device="cpu").sample(prompts, seeds=seeds).media
        assert torch.equal(media.quantise_media(got).data, made)
    base = pipelines.load(str(home / "free.yaml"), device="cpu").sample(prompts, seeds=seeds).media
    assert not torch.equal(media.quantise_media(base).data, made)


def test_a_trained_run_is_a_contestant_anywhere(calm, home, capsys):
    _, folder, _ = calm
    ask = ["--reward", "starter_clip", "--prompts", "starter-image-test", "--limit", "1", "--calls", "3"]
    ask += ["--runs", str(home / "compared"), "--json"]
    code = cli.main(["compare", str(home / "free.yaml"), str(folder.path), *ask])
    summary = json.loads(capsys.readouterr().out)
    assert code == 0 and {c["pipeline"] for c in summary["contestants"]} == {str(home / "free.yaml"), str(folder.path)}
    assert len({c["rewards"]["starter_clip"]["mean"] for c in summary["contestants"]}) == 2


def test_the_card_says_what_was_trained_on_what_judged_by_whom_and_how_to_repeat_it(calm):
    plan, folder, _ = calm
    card = (folder.path / "export" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == "starter:image/teacher" and "nft" in head["tags"]
    for said in (
        "starter_clip 1: optimised",
        "oracle 1: held out",
        "4 rounds",
        "seed 0",
        "over prompts, 1 of the 2 were trained on too",
    ):
        assert said in card, said
    assert (folder.path / "export" / "grid.png").is_file()


def test_export_writes_the_weights_again_on_demand(calm, tmp_path, capsys):
    plan, folder, _ = calm
    assert cli.main(["export", str(folder.path), "--out", str(tmp_path / "again"), "--merged", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = {f.rpartition("/")[2] for f in rows["files"]}
    assert {
        "pytorch_lora_weights.safetensors",
        "README.md",
        "export.json",
        "diffusion_pytorch_model.safetensors",
    } <= names
    from safetensors.torch import load_file

    mine = load_file(tmp_path / "again" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(mine[k], v) for k, v in weights(folder).items())
    assert cli.main(["export", str(folder.path), "--out", str(tmp_path / "again")]) == 2
    assert "never written over" in capsys.readouterr().err
    with pytest.raises(BadInput, match="offline|refused|hub|mode|resolve|onnect"):
        hub.push_export(tmp_path / "again", "nobody/nothing")


def test_the_weights_of_a_round_are_a_pipeline_once_they_are_exported(calm, capsys):
    _, folder, _ = calm
    checkpoint = folder.path / "checkpoints" / "nft" / "000003"
    with pytest.raises(BadInput, match="before it is exported, by: workbench export .* --contestant nft --round 3"):
        pipelines.read_config(str(checkpoint))
    with pytest.raises(BadInput, match="no such checkpoint; those of rounds 3, 4 are there"):
        pipelines.read_config(str(checkpoint.with_name("000001.pt")))
    assert cli.main(["export", str(folder.path), "--round", "1"]) == 2
    assert "no checkpoint of round 1 is kept; these are: nft 3, 4" in capsys.readouterr().err
    assert cli.main(["export", str(folder.path), "--round", "3", "--contestant", "nft"]) == 0
    exported = pipelines.read_config(str(checkpoint)).lora
    assert exported.endswith("export-nft-round-3")
    last, third = (load_file(f"{path}/pytorch_lora_weights.safetensors") for path in (folder.path / "export", exported))
    assert last.keys() == third.keys() and any(not torch.equal(last[key], third[key]) for key in last)


def test_an_export_that_was_not_pushed_is_pushed_by_the_same_command(calm, tmp_path, capsys):
    """The hub is out of reach here; what counts is that the export is neither refused nor made again."""
    _, folder, _ = calm
    command = ["export", str(folder.path), "--out", str(tmp_path / "mine"), "--push", "nobody/nothing"]
    made = []
    for _ in range(2):
        assert cli.main(command) == 2 and f"exported to {tmp_path / 'mine'}" in capsys.readouterr().err
        made.append({p: p.stat().st_mtime_ns for p in (tmp_path / "mine").rglob("*")})
    assert made[0] == made[1] and made[0]
    assert cli.main([*command, "--comfy"]) == 2 and "never written over" in capsys.readouterr().err
    (tmp_path / "theirs").mkdir()
    assert cli.main([*command[:3], str(tmp_path / "theirs"), *command[4:]]) == 2
    assert "never written over" in capsys.readouterr().err


def test_a_stopped_training_goes_on_to_the_bits_of_an_undisturbed_one_even_from_an_older_checkpoint(calm, tmp_path):
    """Stopped twice, then its newest checkpoint is damaged, which is said; each time another policy is loaded."""
    plan, whole, _ = calm
    folder = folder_of(plan, tmp_path)
    for after in (1, 3):
        stopped(plan, folder, after)
    assert folder.read()["status"] == "stopped" and "failed" in folder.read("summary.json")["contestants"][1]
    file = folder.path / "checkpoints" / "nft" / "000003.pt"
    file.write_bytes(file.read_bytes()[:1000])
    said = go(plan, folder)
    assert any("checkpoint 3 is damaged or unfinished; going on from 2" in p.note for p in said)
    same(folder, whole)
    steps = [r["grad_norm"] for r in told(whole, "train")]
    assert len(set(steps)) == len(steps), "a control: rounds differ, so a repeated or skipped one would be seen"


def test_more_rounds_go_on_in_the_same_run_to_the_bits_of_a_training_that_had_them_at_first(calm, home, tmp_path):
    longer, whole, _ = calm
    folder = folder_of(planned(home, train={"rounds": 2}), tmp_path)
    go(planned(home, train={"rounds": 2}), folder)
    base, earlier = (event for event in folder.events() if event.get("final"))
    assert extension.open_run(longer, tmp_path) == folder.path and not (folder.path / "export").exists()
    said = go(longer, folder)
    assert any("goes on from round 2 of this run: it has 4 rounds, and was to have 2" in p.note for p in said)
    same(folder, whole)
    assert folder.read()["config"]["train"]["rounds"] == 4 and folder.read()["status"] == "done"
    finals = [event for event in folder.events() if event.get("final")]
    assert finals[0] == base and finals[1]["contestant"] == "nft" and finals[1]["samples"] != earlier["samples"]
    assert (folder.path / "export-2-rounds").is_dir()
    assert "after round 4." in (folder.path / "export" / "README.md").read_text()


def test_what_a_method_decides_by_the_number_of_a_round_goes_on_counting(home, tmp_path):
    """The window of MixGRPO, which moves with each round here; with an average of the weights and rates that change."""
    settings = {"rounds": 2, "eval_every": 0, "policy": SDE, "ema": 0.5, "warmup": 2, "decay": 0.5}
    plan = planned(home, method=GRPO, train=settings)
    whole, parts = folder_of(plan, tmp_path / "whole"), folder_of(plan, tmp_path / "parts")
    go(plan, whole)
    stopped(plan, parts, 1)
    go(plan, parts)
    same(parts, whole)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_checkpoints_are_the_last_few_and_the_best(tmp_path):
    shelf = checkpoints.CheckpointStore(tmp_path / "shelf", keep_last=2)
    for n in range(5):
        shelf.save(n, {"n": n})
        if n == 1:
            shelf.mark_best(n, score=0.5)
    assert list(shelf) == [1, 3, 4] and shelf.best_record == {"update": 1, "score": 0.5}
    assert shelf.load_newest() == (4, {"n": 4}, [])


@pytest.mark.parametrize("how", ["cut off", "changed", "no digest", "another's digest"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, how):
    shelf = checkpoints.CheckpointStore(tmp_path / "shelf", keep_last=3)
    for n in (2, 4):
        shelf.save(n, {"n": n, "x": torch.arange(n)})
    file, digest = tmp_path / "shelf" / "000004.pt", tmp_path / "shelf" / "000004.json"
    data = file.read_bytes()
    if how == "cut off":
        file.write_bytes(data[:-7])
    elif how == "changed":
        file.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    elif how == "no digest":
        digest.unlink()
    else:
        digest.write_text((tmp_path / "shelf" / "000002.json").read_text())
    update, state, damaged = shelf.load_newest()
    assert (update, damaged) == (2, [4]) and torch.equal(state["x"], torch.arange(2))


def test_a_dry_run_says_what_a_training_draws_and_takes(calm, home, capsys):
    path = home / "dry.yaml"
    path.write_text(yaml.safe_dump(tiny.asked(home, train={"rounds": 8}, test=None)))
    assert cli.main(["run", str(path), "--runs", str(home / "calm"), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    row = told["contestants"][1]
    spent = calm[1].read("summary.json")["contestants"][1]["training"]
    assert row["samples"] == 8 * 2 * 2 and row["seconds"] == pytest.approx(2 * spent["seconds"], abs=0.1)
    assert row["peak_mb"] == spent["peak_mb"] and any("trained on" in c for c in told["checks"])


def test_rates_rise_and_fall_as_the_recipe_says():
    plan = train_config.TrainConfig(rounds=10, warmup=2, decay=0.5)
    assert [round(train_config.learning_rate_factor(plan, n), 2) for n in range(10)] == [
        0.5,
        1,
        1,
        1,
        1,
        1,
        0.8,
        0.6,
        0.4,
        0.2,
    ]
    gathered = train_config.TrainConfig(rounds=3, accumulate=2, warmup=2)  # updates count, not what gathers into them
    assert [train_config.learning_rate_factor(gathered, n) for n in range(6)] == [0.5, 0.5, 1, 1, 1, 1]


def test_the_shuffled_and_negated_controls_turn_a_trainings_reward_round(calm, home):
    from workbench.evaluation.set_rewards import TrainingReward

    plan, *_ = calm
    picture = media.Media(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "image")

    class Alone:
        def score_rows(self, some, n):
            return some([*range(n)])

    def judged(control):
        asked = planned(home, control=control)
        return TrainingReward(asked.reward, Alone(), asked.config, asked.train_prompts)(
            media=picture, prompts=asked.train_prompts[:2]
        )

    plain, negated, shuffled = (judged(c) for c in ("none", "negated", "shuffled"))
    assert torch.equal(plain, -negated) and not torch.allclose(plain, shuffled)


def test_a_lora_from_elsewhere_is_put_on_whole_or_refused_in_a_sentence(home, tmp_path):
    from safetensors.torch import save_file

    base = pipelines.read_config(str(home / "free.yaml"))
    (tmp_path / "pickled.bin").write_bytes(b"\x80\x04")
    save_file({"unet.x.weight": torch.zeros(2, 2)}, tmp_path / "none.safetensors")
    pair = {"lora_A.weight": torch.zeros(2, 7), "lora_B.weight": torch.zeros(7, 2)}
    save_file({f"unet.elsewhere.to_q.{k}": v for k, v in pair.items()}, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-5])
    for name, sentence in (
        ("pickled.bin", "never loaded"),
        ("none.safetensors", "belongs to no LoRA"),
        ("torn.safetensors", "broken or cut short"),
    ):
        with pytest.raises(BadInput, match=sentence):
            pipelines.with_lora(base, str(tmp_path / name))
    with pytest.raises(BadInput, match="1 of its 1 layers have names that neither this"):
        pipelines.load(pipelines.with_lora(base, str(tmp_path / "other.safetensors")), device="cpu")
