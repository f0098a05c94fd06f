"""The workbench from Python: one line each, the same checks and the same samples as a run has, nothing left behind."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import tiny_image
import torch
from PIL import Image

import pipelines
import workbench as w
from workbench.core.errors import BadInput
from workbench.core.io import media as media_files
from workbench.core.paths import ROOT
from workbench.core.types import Event, Media
from workbench.engine import run as driver
from workbench.engine.alignment import Alignment
from workbench.engine.plan import plan_run
from workbench.methods import METHODS, BestOfN, ReNO
from workbench.runs import config, store
from workbench.runs.budget import Cost

PROMPTS = ["a red circle", "a blue square"]
ASKED = {"reward": "starter_clip", "prompts": PROMPTS}
PUBLIC = [name for name in w.__all__ if name not in ("BadInput", "Media")]


def in_python(code: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env=environment())


def environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def policy():
    return w.load("starter-image", device="cpu")


@pytest.fixture
def no_weights(monkeypatch):
    """Whatever would load weights fails the test."""

    def refuse(*args, **settings):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(pipelines, "load", refuse)


# the module


def test_importing_it_is_instant_and_loads_nothing(tmp_path):
    code = (
        "import time; start = time.perf_counter(); import workbench; spent = time.perf_counter() - start; import sys; "
        "print(spent, 'torch' in sys.modules, workbench.__all__ == sorted(workbench.__all__))"
    )
    seconds, torch_loaded, in_order = in_python(code, tmp_path).stdout.split()
    assert float(seconds) < 0.05 and torch_loaded == "False" and in_order == "True"


def test_one_line_aligns_and_prints_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    line = "print(w.align('starter-image', 'reno', reward='starter_clip', prompts=['a red circle'], iterations=5))"
    exec(line, {"w": w})
    (printed,) = capfd.readouterr().out.splitlines()
    assert printed.startswith("<reno on starter-image: 1 image, starter_clip 0.") and "6 denoiser calls" in printed
    assert [*tmp_path.iterdir()] == [], "nothing is left on disk"


def test_names_that_are_not_there_are_no_names():
    assert set(w.__all__) <= set(dir(w))
    with pytest.raises(AttributeError, match="aline"):
        w.aline  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_says_its_errors_and_its_source_and_has_a_type_for_each_parameter(name):
    function = getattr(w, name)
    text, signature = inspect.getdoc(function), inspect.signature(function)
    assert "Raises BadInput" in text and "Source: " in text
    sources = [word.strip(".;,:") for word in text.split("Source: ")[1].split() if "/" in word]
    assert sources and all((ROOT / source.rstrip(",;")).exists() for source in sources), sources
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.kind == parameter.VAR_KEYWORD or parameter.name in text or "others as in `align`" in text


def test_the_page_on_the_functions_has_every_parameter_with_its_default():
    page = " ".join((ROOT / "docs" / "api.md").read_text().split())
    for name in set(PUBLIC) - {"reward", "read_run"}:
        signature = inspect.signature(getattr(w, name))
        plain = signature.replace(
            parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
            return_annotation=signature.empty,
        )
        assert f"{name}{plain}".replace("'", '"') in page, f"{name}{plain}"


# align


def test_what_is_aligned_in_memory_is_what_a_run_writes(tmp_path):
    made = w.align("starter-image", "best_of_n", n=3, watch=["oracle"], samples_per_prompt=2, seed=5, batch=3, **ASKED)
    values = {**ASKED, "pipeline": "starter-image", "contestants": {"best_of_n": {"n": 3}}, "watch": ["oracle"]}
    values |= {"samples_per_prompt": 2, "seed": 5, "batch": 3, "name": "same"}
    plan = plan_run(config.check_config(config.build_dataclass(config.RunConfig, values, "test")))
    folder = store.RunFolder.open(tmp_path, "same", dataclasses.asdict(plan.config))
    for _ in driver.execute_run(plan, folder):
        pass
    samples = [s for e in folder.events() if e.get("final") for s in e["samples"]]
    assert [s["seed"] for s in samples] == list(made.seeds) and [s["prompt"] for s in samples] == list(made.prompts)
    for sample, row in zip(samples, made, strict=True):
        assert torch.equal(media_files.read_media(folder.path / sample["file"]).data, row.media.data)
        assert sample["scores"] == {name: round(value, 6) for name, value in row.scores.items()}
    assert sum(e["cost"]["nfe"] for e in folder.events() if e.get("final")) == made.cost.nfe == 12


def test_an_alignment_holds_tensors_and_shows_itself(policy):
    made = w.align(policy, "reno", iterations=2, watch=["oracle"], samples_per_prompt=2, **ASKED)
    assert made.media.data.shape == (4, 3, 64, 64) and made.latents.shape[0] == 4
    assert {name: tuple(v.shape) for name, v in made.scores.items()} == {"starter_clip": (4,), "oracle": (4,)}
    assert made.prompts == ("a red circle",) * 2 + ("a blue square",) * 2 and len(set(made.seeds)) == 4
    assert made.optimised == ("starter_clip",) and len(made) == len([*made]) == 4 and "\n" not in repr(made)
    assert repr(made[-1]).startswith("<image of 'a blue square'") and made[0]._repr_html_().count("<img") == 1
    html = made._repr_html_()
    assert html.count("<img") == 4 and "a blue square" in html and "starter_clip" in html
    assert made._repr_png_().startswith(b"\x89PNG")
    assert list(pd.DataFrame(made.table()).columns) == ["prompt", "seed", "starter_clip", "oracle"]
    with pytest.raises(IndexError):
        made[4]


def test_an_alignment_saves_itself_once(policy, tmp_path):
    made = w.align(policy, "sample", **ASKED)
    folder = made.save(tmp_path / "new" / "folder")
    assert sorted(p.name for p in folder.iterdir()) == ["0000.png", "0001.png", "latents.safetensors", "samples.json"]
    story = media_files.read_meta(folder / "0001.png")
    assert story["prompt"] == "a blue square" and story["scores"]["starter_clip"] == pytest.approx(
        float(made.scores["starter_clip"][1])
    )
    assert torch.equal(media_files.read_media(folder / "0001.png").data, made.media.data[1:])
    with pytest.raises(BadInput, match="nothing is written over"):
        made.save(folder)


@pytest.mark.parametrize(
    ("media", "element", "suffix"),
    [
        (Media(torch.rand(2, 5, 3, 16, 16), "video", 8.0), "data:image/apng", ".mp4"),
        (Media(torch.rand(2, 1, 8000) - 0.5, "audio", 16000.0), "<audio controls", ".flac"),
    ],
    ids=["video", "audio"],
)
def test_clips_move_and_sounds_play(media, element, suffix, tmp_path):
    scores = {"loudness": torch.tensor([-20.0, float("nan")])}
    made = Alignment("fk", "p", media, scores, None, ("one", "<two>"), (1, 2), Cost())
    html = made._repr_html_()
    assert html.count(element) == 2 and "&lt;two&gt;" in html and made._repr_png_().startswith(b"\x89PNG")
    assert len([*made.save(tmp_path / "lossless").glob("000*")]) == 2
    first, _ = sorted(made.save(tmp_path / "both", compressed=True).glob(f"*{suffix}"))
    copy = media_files.inspect_media(first)
    assert copy.media.modality == media.modality and copy.story["prompt"] == "one"


def test_pictures_have_no_compressed_copy(tmp_path):
    made = Alignment("fk", "p", Media(torch.rand(1, 3, 8, 8), "image"), {}, None, ("one",), (1,), Cost())
    with pytest.raises(BadInput, match="pictures are PNG already"):
        made.save(tmp_path / "new", compressed=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pipeline": "starter-imag"}, "did you mean 'starter-image'"),
        ({"pipeline": 7}, "expected a name, a folder or a diffusers pipeline"),
        ({"method": "renno"}, "did you mean 'reno'"),
        ({"method": "nft"}, "nft trains weights; use train"),
        ({"method": len}, "expected a name or a Method"),
        ({"iteration": 3}, "did you mean 'iterations'"),
        ({"iterations": -1}, "at least 0"),
        ({"reward": "starter_clap"}, "judges audio, but starter-image makes image"),
        ({"reward": "starter_clp"}, "did you mean 'starter_clip'"),
        ({"reward": 3}, "expected a reward's name, a callable"),
        ({"reward": "compressibility"}, "compressibility has no gradient"),
        ({"watch": ["starter_clip"]}, "optimised by this run"),
        ({"prompts": "a red circle"}, r"goes into a list: prompts=\['a red circle'\]"),
        ({"prompts": []}, "has no prompt in it"),
        ({"samples_per_prompt": 0}, "at least 1"),
        ({"seeds": 3}, "samples_per_prompt"),
        ({"device": "cuda:9"}, "can't be used"),
        ({"budget": {"calls": 3}}, "unknown key 'calls'"),
    ],
    ids=str,
)
def test_what_can_t_work_is_one_sentence_before_weights_load(change, sentence, no_weights):
    asked = {"pipeline": "starter-image", "method": "reno", **ASKED} | change
    with pytest.raises(BadInput, match=sentence) as error:
        w.align(asked.pop("pipeline"), asked.pop("method"), **asked)
    assert "\n" not in str(error.value)


def test_a_budget_cuts_and_a_bar_goes_to_stderr(policy, capsys, monkeypatch):
    monkeypatch.setattr("workbench.engine.progress_bar.PATIENCE", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    made = w.align(policy, "best_of_n", n=50, budget={"nfe": 4}, **ASKED)
    assert made.cost.nfe == 8
    said = capsys.readouterr()
    assert said.out == "" and "best_of_n" in said.err


# objects in the place of names


def redness(media, prompts):
    red, green, blue = media.data.unbind(1)
    return (red - (green + blue) / 2).mean((1, 2))


def test_any_callable_is_a_reward(policy):
    made = w.align(policy, BestOfN(n=4), reward=redness, prompts=PROMPTS)
    assert torch.allclose(made.scores["redness"], redness(made.media, None))
    lists = w.align(
        policy, "best_of_n", n=4, reward=lambda media, prompts: redness(media, prompts).tolist(), prompts=PROMPTS
    )
    assert torch.equal(lists.media.data, made.media.data) and list(lists.scores) == ["lambda"]
    both = w.align(policy, "best_of_n", n=2, reward={"mine": redness, "starter_clip": 0.5}, prompts=PROMPTS)
    assert list(both.scores) == ["mine", "starter_clip"]
    listed = w.align(
        policy, "best_of_n", n=2, reward=["starter_clip", redness], watch={"contrast": {}}, prompts=PROMPTS
    )
    assert list(listed.scores) == ["starter_clip", "redness", "contrast"]


def test_a_callable_with_a_gradient_is_climbed(policy):
    red = w.reward(redness, differentiable=True, modalities=["image"])
    base = w.align(policy, "sample", reward=red, prompts=PROMPTS)
    made = w.align(policy, ReNO(), iterations=4, reward={red: 10.0}, prompts=PROMPTS)
    assert (made.scores["redness"] > base.scores["redness"]).all()
    with pytest.raises(BadInput, match="redness has no gradient"):
        w.align(policy, "reno", reward=redness, prompts=PROMPTS)
    with pytest.raises(BadInput, match="mine judges audio"):
        w.align(policy, "sample", reward=w.reward(redness, name="mine", modalities=["audio"]), prompts=PROMPTS)
    with pytest.raises(BadInput, match="did you mean 'image'"):
        w.reward(redness, modalities=["images"])


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (lambda media, prompts: media.data.mean(), r"gave one number for 2 sample\(s\)"),
        (lambda media, prompts: media.data.mean((1, 2)), r"gave a shape of \[2, 64\]"),
        (lambda media, prompts: [1.0], r"gave a shape of \[1\] for 2 sample"),
        (lambda media, prompts: [0.0, float("nan")], r"gave nan for sample 1 of 2 \('a blue square'\)"),
        (lambda media, prompts: "good", "returned str, which is no list of numbers"),
        (lambda media, prompts: None, "returned NoneType, which is no list of numbers"),
    ],
    ids=["scalar", "map", "short", "nan", "text", "none"],
)
def test_scores_that_are_none_are_explained_in_a_sentence(scores, sentence, policy):
    with pytest.raises(BadInput, match=sentence) as error:
        w.align(policy, "best_of_n", n=2, reward=w.reward(scores, name="mine"), prompts=PROMPTS)
    assert str(error.value).startswith("reward mine: ") and "\n" not in str(error.value)


def test_a_promised_gradient_that_is_lost_is_said_and_a_reward_s_own_error_goes_through(policy):
    detached = w.reward(lambda media, prompts: redness(media.detach(), prompts), name="cut", differentiable=True)
    with pytest.raises(BadInput, match="have lost the gradient"):
        w.align(policy, "reno", reward=detached, prompts=PROMPTS)
    with pytest.raises(ZeroDivisionError):
        w.align(policy, "best_of_n", reward=lambda media, prompts: 1 / 0, prompts=PROMPTS)


@dataclass(frozen=True)
class TwoTries:
    """A method from outside: the better of two noises."""

    scale: float = 1.0  # of the second noise

    needs = frozenset({"latents", "reward"})
    scales = ""
    paper = ""

    def calls(self, steps: int) -> int:
        return 2 * steps

    def __call__(self, policy, reward, batches):
        for batch in batches:
            z = policy.noise(batch.seeds)
            media = [policy.sample(batch.prompts, seeds=batch.seeds, noise=k * z).media for k in (1.0, self.scale)]
            scores = torch.stack([reward(media=m, prompts=batch.prompts) for m in media])
            data = torch.where((scores[1] > scores[0]).view(-1, 1, 1, 1), media[1].data, media[0].data)
            yield Event(0, media=Media(data, "image"), prompts=batch.prompts, seeds=batch.seeds, final=True)


def test_a_method_that_no_registry_has_aligns_and_compares(policy):
    made = w.align(policy, TwoTries(scale=0.8), **ASKED)
    assert repr(made).startswith("<TwoTries on starter-image: 2 images") and made.latents is None
    assert w.align(policy, TwoTries, scale=0.8, **ASKED).scores["starter_clip"].equal(made.scores["starter_clip"])
    with pytest.raises(BadInput, match="did you mean 'scale'"):
        w.align(policy, TwoTries(), scales=2.0, **ASKED)
    table = w.compare({"mine": TwoTries(0.8), "same": {"name": "best_of_n", "n": 2}}, pipeline=policy, **ASKED)
    assert [row["contestant"] for row in table] == ["base", "mine", "same"] and table[1][
        "method"
    ] == "test_api:TwoTries"


def test_a_policy_is_not_loaded_again(policy, no_weights):
    assert len(w.align(policy, "sample", **ASKED)) == 2
    assert [row["nfe"] for row in w.compare(["reno"], pipeline=policy, calls=2, **ASKED)] == [2, 4, 4]
    with pytest.raises(BadInput, match="Policy already"):
        w.load(policy)


def state(pipe) -> list:
    modules = [
        module for part in pipe.components.values() if isinstance(part, torch.nn.Module) for module in part.modules()
    ]
    flags = [(module.training, [p.requires_grad for p in module.parameters(recurse=False)]) for module in modules]
    return [
        flags,
        id(pipe.scheduler),
        dict(pipe.config),
        dict(pipe.scheduler.config),
        vars(pipe).get("_progress_bar_config"),
    ]


def test_a_loaded_pipeline_is_used_as_it_is_and_given_back_as_it_was():
    import diffusers

    pipe = diffusers.StableDiffusionPipeline(**tiny_image.stable_diffusion())
    pipe.unet.train(), pipe.vae.eval()
    pipe.text_encoder.requires_grad_(False)
    before, seen = state(pipe), []

    def judged(media, prompts):
        seen.append((pipe.unet.training, any(p.requires_grad for p in pipe.unet.parameters())))
        return redness(media, prompts)

    settings = {"prompts": PROMPTS, "reward": judged}
    made = w.align(w.load(pipe, steps=2, call={"guidance_scale": 1.0}), "best_of_n", n=2, **settings)
    assert made.pipeline == "StableDiffusionPipeline" and len(made) == 2 and made.cost.nfe == 8
    assert seen and set(seen) == {(False, False)}, "frozen while it works"
    import gc

    gc.collect()
    assert state(pipe) == before
    with pytest.raises(ZeroDivisionError):
        w.align(pipe, "sample", reward=lambda media, prompts: 1 / 0, prompts=PROMPTS[:1])
    assert state(pipe) == before
    w.compare([pipe], reward=redness, prompts=PROMPTS[:1])
    assert state(pipe) == before
    with pytest.raises(BadInput, match="the pipeline is on cpu"):
        w.align(pipe, "sample", device="cuda", **settings)
    with pytest.raises(BadInput, match="did you mean 'steps'"):
        w.load(pipe, step=2)
    kind = type("MyPipeline", (diffusers.StableDiffusionPipeline,), {})
    mine = kind(**tiny_image.stable_diffusion())
    with pytest.raises(BadInput, match="what MyPipeline makes is not known"):
        w.load(mine)
    assert w.load(mine, modality="image", steps=2).steps == 2


def test_a_loaded_pipeline_makes_what_its_name_makes():
    named = w.load("starter-image", device="cpu")
    copy = w.load(named.pipe, steps=named.config.steps, call=named.config.call)
    one, other = (w.align(p, "best_of_n", n=2, **ASKED) for p in (named, copy))
    assert torch.equal(one.media.data, other.media.data) and one.scores["starter_clip"].equal(
        other.scores["starter_clip"]
    )


# compare


def test_a_comparison_is_rows_for_pandas_and_leaves_nothing(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = w.compare(["best_of_n", (BestOfN(), policy)], pipeline=policy, watch=["oracle"], calls=3, **ASKED)
    frame = pd.DataFrame(table)
    assert list(frame.contestant) == ["base", "best_of_n"], "one method at one budget is one contestant"
    assert {"method", "pipeline", "starter_clip", "oracle", "nfe", "seconds"} <= set(frame.columns)
    assert table.run is None and table.grid.startswith(b"\x89PNG") and table.summary["prompts"] == 2
    assert table._repr_html_().count("<table") == 1 and [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("contestants", "change", "sentence"),
    [
        (["reno"], {}, "name a pipeline"),
        ("reno", {"pipeline": "starter-image"}, "expected a list of contestants"),
        (["renno@starter-image"], {}, "did you mean 'reno'"),
        ([{"reno": {"iteration": 2}}], {"pipeline": "starter-image"}, "did you mean 'iterations'"),
        (["reno@starter-image"], {"calls": 0}, "leaves nothing to work with"),
        (["reno@starter-image"], {"seconds": -1.0}, "at least 0"),
        ([3], {}, "expected a name, a folder or a diffusers pipeline"),
    ],
)
def test_contestants_that_are_none_are_one_sentence(contestants, change, sentence, no_weights):
    with pytest.raises(BadInput, match=sentence):
        w.compare(contestants, **ASKED, **change)


def test_a_kept_comparison_is_a_run_that_can_be_read_again(policy, tmp_path):
    table = w.compare({"three": {"best_of_n": {"n": 3}}}, pipeline=policy, runs=tmp_path, name="kept", **ASKED)
    run = w.read_run(table.run.path)
    assert run.table() == list(table) and run.contestants == ["base", "three"] and run.status == "done"
    assert run.report.is_file() and "\n" not in repr(run) and run._repr_html_().startswith("<div")
    assert run.media("three").data.shape == (2, 3, 64, 64) and len(run.samples()) == 4
    assert set(run.samples("three")[0]) == {"contestant", "prompt", "k", "seed", "file", "starter_clip"}
    with pytest.raises(BadInput, match="did you mean 'three'"):
        run.media("tree")
    with pytest.raises(BadInput, match="nothing in this run has finished its training"):
        run.export()
    with pytest.raises(BadInput, match="is no run folder"):
        w.read_run(tmp_path)
    assert [row["contestant"] for row in w.compare([run], pipeline="starter-image", **ASKED)][:2] == ["base", "three"]


# score


def test_anything_that_holds_media_is_scored_alike(policy, tmp_path):
    made = w.align(policy, "sample", **ASKED)
    expected = [round(v, 5) for v in made.scores["starter_clip"].tolist()]
    folder = made.save(tmp_path / "files")
    pictures = [Image.open(folder / f"000{n}.png") for n in (0, 1)]
    for given, prompts in [
        (made, None),
        (folder, None),
        ([folder / "0000.png", str(folder / "0001.png")], PROMPTS),
        (made.media, PROMPTS),
        (made.media.data, PROMPTS),
        (pictures, PROMPTS),
        ([*made], None),
    ]:
        rows = w.score(given, ["starter_clip", redness], prompts)
        assert [round(row["starter_clip"], 5) for row in rows] == expected
        assert [row["prompt"] for row in rows] == PROMPTS and all(isinstance(row["redness"], float) for row in rows)
    assert w.score(made.media.data[0], "brightness")[0]["prompt"] is None


@pytest.mark.parametrize(
    ("media", "reward", "prompts", "sentence"),
    [
        ("nowhere.png", "brightness", None, "no such file"),
        (torch.rand(3, 8, 8), "starter_clip", None, "needs the prompt"),
        (torch.rand(2, 3, 8, 8), "brightness", ["one"], "1 for 2 media"),
        (torch.rand(1, 2, 3, 8, 8), "brightness", None, "clips and sounds have a rate"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "brightness", None, "got torch.uint8"),
        (Media(torch.rand(1, 1, 800), "audio", 8000.0), "brightness", None, "judges image"),
        (7, "brightness", None, "expected a path, a PIL picture"),
        ([], "brightness", None, "nothing to score"),
        (torch.rand(3, 8, 8), "brightnes", None, "did you mean 'brightness'"),
    ],
)
def test_what_can_t_be_scored_is_one_sentence(media, reward, prompts, sentence):
    with pytest.raises(BadInput, match=sentence):
        w.score(media, reward, prompts)


def test_a_reward_of_whole_sets_scores_them_all_together():
    rows = w.score(
        torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), {"vendi": {"model": "starter:image/clip"}}
    )
    assert len({row["vendi"] for row in rows}) == 1 and len(rows) == 6


# train

TINY = {
    "lr": 1e-3,
    "rounds": 2,
    "prompts_per_round": 2,
    "eval_every": 0,
    "eval_prompts": 2,
    "best": "last",
    "lora": {"rank": 2},
}


def test_a_training_from_a_loaded_pipeline_and_a_callable_leaves_a_run(tmp_path):
    pipe = w.load("starter-image", device="cpu").pipe
    before = state(pipe)
    red = w.reward(redness, differentiable=True)
    settings = {
        "reward": red,
        "watch": ["starter_clip"],
        "prompts": "starter-image-train",
        "test": PROMPTS,
        "runs": tmp_path,
    }
    run = w.train(pipe, "draft", **TINY, **settings)
    assert state(pipe) == before and run.status == "done"
    assert [row["contestant"] for row in run.table()] == ["base", "draft"] and "redness" in run.table()[1]
    assert sorted(p.suffix for p in (tmp_path / "pipelines").iterdir()) == ["", ".yaml"]
    result = run.export(tmp_path / "lora")
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file() and result.exported.effect > 0
    made = w.align(run.path, "sample", reward=redness, prompts=PROMPTS)
    assert torch.equal(made.media.data, run.media("draft").data), "the run folder stands for what it trained"
    with pytest.raises(BadInput, match="redness"):
        w.read_run(run.path).export(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": "reno"}, "reno trains nothing; use align"),
        ({"round": 2}, "did you mean 'rounds'"),
        ({"method": "nonsense"}, "unknown method 'nonsense'"),
        ({"pipeline": "starter-imag"}, "did you mean 'starter-image'"),
        ({"lora": {"ranks": 2}}, "did you mean 'rank'"),
        ({"test": "nowhere.txt"}, "no prompt file"),
    ],
    ids=str,
)
def test_a_training_that_can_t_work_is_one_sentence_before_weights_load(change, sentence, no_weights, tmp_path):
    asked = {"pipeline": "starter-image", "method": "draft", "runs": tmp_path, **ASKED} | change
    with pytest.raises(BadInput, match=sentence):
        w.train(asked.pop("pipeline"), asked.pop("method"), **asked)
    assert not [*tmp_path.glob("*/run.json")]


def test_a_setting_that_method_and_training_share_is_the_method_s(no_weights):
    from workbench.engine.python_calls import setting_names, split_settings
    from workbench.engine.user_objects import UserObjects
    from workbench.runs.train_config import TrainConfig

    for name, cls in METHODS.items():
        if "trainable" in cls.needs:
            shared = setting_names(cls) & setting_names(TrainConfig)
            own, recipe = split_settings(name, dict.fromkeys(shared, 1), UserObjects())
            assert set(own) == shared and not recipe


def test_a_training_that_breaks_says_where_to_look(tmp_path, monkeypatch):
    def broken(media, prompts):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="draft failed: RuntimeError: out of luck .see .*failure-draft.txt"):
        w.train("starter-image", "draft", reward=w.reward(broken, differentiable=True), prompts="starter-image-train",
                limit=2, runs=tmp_path, **TINY)  # fmt: skip
