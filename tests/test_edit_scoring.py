"""Sources of files that are scored, and of the samples of a run whose rewards compare with them."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from edit_fixtures import CLIP, edit
from judge_server import completion, greys

import workbench
from rewards.baseline import BaselineScores
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.io import media as media_files
from workbench.core.types import Media
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.evaluation import scoring
from workbench.runs import config, run_inputs, store

# Files that are scored


@pytest.fixture
def edits(tmp_path):
    """Two results, their sources under the same names, and half masks."""
    for folder, levels in (("out", (0.2, 0.4)), ("in", (0.3, 0.8))):
        (tmp_path / folder).mkdir()
        for name, value in zip("ab", levels, strict=True):
            media_files.write_media(greys(value), tmp_path / folder / name)
    mask = torch.zeros(1, 3, 8, 8)
    mask[..., 4:] = 1
    media_files.write_media(Media(mask, "image"), tmp_path / "mask")
    return tmp_path


OWN = [-0.01, -0.16]  # of a from a, of b from b


def unchanged(edits, **how) -> list[float]:
    rows = scoring.score_files([edits / "out"], ["unchanged"], **how)
    assert not any(row["error"] for row in rows), rows
    return [row["unchanged"] for row in rows]


def test_files_meet_their_sources_by_name_by_order_or_all_the_same_one(edits):
    assert unchanged(edits, source=edits / "in") == pytest.approx(OWN, abs=0.004)
    (edits / "in" / "a.png").rename(edits / "in" / "x.png")  # after b: in their order
    crossed = [-(0.6**2), -(0.1**2)]
    assert unchanged(edits, source=edits / "in") == pytest.approx(crossed, abs=0.006)
    assert unchanged(edits, source=edits / "in" / "b.png") == pytest.approx([-(0.6**2), -(0.4**2)], abs=0.006)


def test_a_prompt_file_says_what_each_file_was_made_from(edits):
    rows = [
        {"prompt": "darker", "file_name": "out/b.png", "source": "in/b.png", "mask": "mask.png"},
        {"prompt": "darker", "file_name": "out/a.png", "source": "in/a.png", "mask": "mask.png"},
    ]
    path = edits / "edits.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    scores = scoring.score_files([edits / "out"], ["unchanged", "background"], prompts=str(path))
    assert [row["prompt"] for row in scores] == ["darker", "darker"]
    assert [row["background"] for row in scores] == pytest.approx(OWN, abs=0.004)
    path.write_text("\n".join(json.dumps({**row, "file_name": None}) for row in rows[::-1]))
    assert unchanged(edits, prompts=str(path)) == pytest.approx(OWN, abs=0.004), "without names, in order"


def test_a_source_that_cannot_be_read_costs_its_row(edits):
    (edits / "in" / "a.png").write_bytes(b"no picture")
    rows = [{"prompt": "p", "source": f"in/{name}.png"} for name in "ab"]
    (edits / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = scoring.score_files([edits / "out"], ["unchanged"], prompts=str(edits / "edits.jsonl"))
    assert first["unchanged"] is None and "edits.jsonl, line 1" in first["error"]
    assert second["unchanged"] == pytest.approx(OWN[1], abs=0.004) and not second["error"]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "needs the source of .*a.png; give --source FILE, or --prompts FILE.jsonl with a key `source`"),
        ({"source": "in/a.png", "prompts": "edits.jsonl"}, "both say the sources"),
        ({"source": "nowhere.png"}, "nowhere.png: no such file"),
        ({"source": "three"}, "three holds 3 media for 2 files, and none is called like 'a.png'"),
        ({"prompts": "edits.jsonl", "prompt": "p"}, "both say the prompts"),
        ({"prompts": "three.jsonl"}, "3 rows for 2 files; say which belongs to which in a column `file_name`"),
        ({"prompts": "named.jsonl"}, "no row of .*named.jsonl has the file_name a.png"),
    ],
)
def test_what_does_not_say_the_sources_is_one_sentence(edits, how, says):
    (edits / "three").mkdir()
    for name in "xyz":
        media_files.write_media(greys(0.5), edits / "three" / name)
    row = {"prompt": "p", "source": str(edits / "in" / "a.png")}
    lines = {"edits": [row], "three": [{**row, "prompt": p} for p in "pqr"], "named": [{**row, "file_name": "z.png"}]}
    for name, part in lines.items():
        (edits / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    places = {key: value if key == "prompt" else edits / value for key, value in how.items()}
    places |= {"prompts": str(places["prompts"])} if "prompts" in places else {}
    with pytest.raises(BadInput, match=says):
        scoring.score_files([edits / "out"], ["unchanged"], **places)


def test_a_source_that_no_reward_compares_with_is_refused(edits):
    with pytest.raises(BadInput, match="none of these rewards compares with a source"):
        scoring.score_files([edits / "out"], ["brightness"], source=edits / "in")


def test_the_command_takes_sources_and_says_what_is_missing(edits, capsys):
    command = ["score", str(edits / "out"), "--reward", "unchanged"]
    assert cli.main([*command, "--source", str(edits / "in"), "--json"]) == 0
    assert [r["unchanged"] for r in json.loads(capsys.readouterr().out)] == pytest.approx(OWN, abs=0.004)
    assert cli.main(command) == 2
    assert "--source FILE" in capsys.readouterr().err


def test_a_runs_own_samples_need_no_sources_named(edits):
    """A file remembers the digests of what it was made from, and the run's folder keeps these."""
    prompt = edit("darker", source=torch.full((3, 8, 8), 0.6))
    run_inputs.store_inputs(edits / "run", [prompt])
    folder = edits / "run" / "media" / "base"
    folder.mkdir(parents=True)
    meta = {"prompt": "darker", **run_inputs.record_inputs(prompt)}
    path = media_files.write_media(greys(0.2), folder / "0000-0", meta=meta)
    (row,) = scoring.score_files([path], ["unchanged"])
    assert row["unchanged"] == pytest.approx(-(0.4**2), abs=0.005) and row["prompt"] == "darker"
    (same,) = workbench.score(str(path), "unchanged")
    assert same["unchanged"] == pytest.approx(row["unchanged"], abs=1e-6)


def test_python_scores_edits_by_sources_or_by_prompts_with_inputs(edits):
    media, sources = greys(0.2, 0.4), greys(0.3, 0.8)
    rows = workbench.score(media, "unchanged", sources=sources)
    assert [row["unchanged"] for row in rows] == pytest.approx(OWN, abs=0.004)
    prompts = [{"prompt": "p", "source": edits / "in" / f"{n}.png", "mask": edits / "mask.png"} for n in "ab"]
    rows = workbench.score(media, ["background"], prompts=prompts)
    assert [row["background"] for row in rows] == pytest.approx(OWN, abs=0.004)
    with pytest.raises(BadInput, match="reward unchanged needs the source of every sample; give sources="):
        workbench.score(media, "unchanged")
    with pytest.raises(BadInput, match="sources: 3 for 2 media"):
        workbench.score(media, "unchanged", sources=greys(0.1, 0.2, 0.3))
    with pytest.raises(BadInput, match="unknown key 'sorce'; did you mean 'source'"):
        workbench.score(media, "unchanged", prompts=[{"sorce": 1}] * 2)


# In a run


def plan_edits(folder, **change):
    """Two pictures and one text, on a pipeline that makes its samples from the text alone."""
    levels = {"dark.png": 0.1, "light.png": 0.9}
    for name, value in levels.items():
        media_files.write_media(greys(value, size=64), folder / name.removesuffix(".png"))
    lines = [json.dumps({"prompt": "a red circle", "source": name}) for name in levels]
    (folder / "edits.jsonl").write_text("\n".join(lines))
    block = {"pipeline": "starter-image", "prompts": str(folder / "edits.jsonl"), "name": "edits"}
    block |= {"contestants": {"base": "sample", "best_of_n": {"n": 2}}, "reward": "unchanged", "samples_per_prompt": 2}
    return plan_run(config.check_config(config.build_dataclass(config.RunConfig, block | change, "test")))


def test_a_run_scores_each_sample_by_its_own_source_and_pairs_against_the_base(tmp_path, serve):
    server = serve(lambda body, n: completion("Winner: 1"))
    identity = {"reward": "identity", "model": "starter:image/clip"}
    pairs = {"reward": "judge_pairs", "url": server.url, "model": "judge"}
    plan = plan_edits(tmp_path, watch={"identity": identity, "pairs": pairs})
    folder = store.RunFolder.open(tmp_path / "runs", "edits", dataclasses.asdict(plan.config), fresh=True)
    for _ in run.execute_run(plan, folder):
        pass
    samples = {e["contestant"]: e["samples"] for e in folder.events() if e.get("final")}
    assert set(samples) == {"base", "best_of_n"}
    for sample in itertools.chain(*samples.values()):
        x = media_files.read_media(folder.path / sample["file"]).data
        level = (0.1, 0.9)[sample["index"]]
        assert sample["scores"]["unchanged"] == pytest.approx(-(x - level).square().mean().item(), abs=0.005)
    means = {name: sum(s["scores"]["unchanged"] for s in rows) for name, rows in samples.items()}
    assert means["best_of_n"] >= means["base"]
    assert all(s["scores"]["pairs"] == 0.5 for rows in samples.values() for s in rows), "first or second, both orders"
    assert 4 <= len(server.bodies) <= 8, "two a pair, one where both are the same picture, none of the base alone"
    base = BaselineScores.read(folder.path)
    by_source = [base.for_prompt("unchanged", prompt).tolist() for prompt in dict.fromkeys(r[1] for r in plan.rows)]
    assert sum(by_source, []) == pytest.approx([s["scores"]["unchanged"] for s in samples["base"]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": ["a red circle"]}, "reward unchanged compares with the source of an edit"),
        ({"reward": "background"}, "prompts: reward background compares with a mask, and no prompt comes with one"),
        ({"watch": ["first_frame"]}, "first_frame judges video"),
        ({"watch": {"d": {"reward": "directional_clip", "model": "starter:image/clip", "captions": "CAPTIONS"}}},
         "has no line for the prompt 'a red circle' with its source"),
        ({"watch": {"p": {"reward": "judge_pairs", "url": "URL", "model": "judge"}}, "contestants": {"base": "sample"}},
         "reward unchanged|watch: p compares contestants with the first one, and this run has no other"),
        ({"watch": {"l": {"reward": "leave_one_out", "of": {"vendi": {"model": "starter:image/clip"}}}}},
         "watch: l compares the samples of one prompt, which says nothing of how contestants differ"),
    ],
)  # fmt: skip
def test_a_run_whose_rewards_cannot_work_is_refused_before_weights_load(tmp_path, serve, change, says):
    (tmp_path / "captions.jsonl").write_text(json.dumps({"prompt": "another", "source_prompt": "a"}))
    words = json.dumps(change).replace("CAPTIONS", str(tmp_path / "captions.jsonl")).replace("URL", serve().url)
    with pytest.raises(BadInput, match=says):
        plan_edits(tmp_path, **json.loads(words))


def test_a_source_of_another_kind_is_refused_before_weights_load(tmp_path):
    media_files.write_media(CLIP, tmp_path / "clip")
    row = {"prompt": "a red circle", "source": "clip.apng"}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadInput, match="reward unchanged can't compare image with a source that is video"):
        plan_edits(tmp_path, prompts=str(tmp_path / "clips.jsonl"))
