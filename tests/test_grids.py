"""Grids: one run whose contestants are the cells of a table, and the page that shows them."""

from __future__ import annotations

import json
import re
import threading

import pytest
import torch
import yaml
from safetensors.torch import save_file

import pipelines
from pipelines.lora_loading import read_empty_networks
from rewards import build_reward
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.schema import build_dataclass
from workbench.engine import run
from workbench.engine.cost_estimates import estimate_cost
from workbench.engine.plan import plan_run
from workbench.report.grid_page import write_grid_page
from workbench.runs import config, grids, store

TEACHER = "starter-image-teacher"


def call(*words) -> int:
    return cli.main([*map(str, words)])


def cells_of(**values) -> dict:
    return grids.expand_grid({"pipeline": TEACHER, **values})["contestants"]


def content_of(folder) -> dict:
    page = (folder.path / "grid.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.S)[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A grid over steps, the weight of a reward and seeds, stopped after its first cells and gone on with: (folder,
    which pipelines were loaded anew)."""
    runs = tmp_path_factory.mktemp("grids")
    values = {
        "name": "grid",
        "pipeline": TEACHER,
        "method": {"name": "best_of_n", "n": 2},
        "reward": {"starter_clip": 1.0, "brightness": -2.0},
        "watch": ["oracle"],
        "prompts": ["a red circle", "a <b>blue</b> square"],
        "grid": {"x": {"steps": [1, 2]}, "y": {"reward.brightness": [0, 5]}, "z": {"seed": [0, 1]}},
    }
    asked = config.check_config(build_dataclass(config.RunConfig, grids.expand_grid(values), "grid"))
    plan, stop, loaded = plan_run(asked, "workbench grid"), threading.Event(), []
    folder = store.RunFolder.open(runs, "grid", vars(asked))

    def load(source, like=None, **more):
        loaded.extend([source.name] if like is None else [])
        return pipelines.load(source, like=like, **more)

    for progress in run.execute_run(plan, folder, stop, load):
        if progress.contestant == "steps-2_brightness-0":
            stop.set()
    assert folder.read()["status"] == "stopped"
    first = (folder.path / "media" / "steps-1_brightness-0" / "0000-0.png").read_bytes()
    list(run.execute_run(plan, folder, None, load))
    assert (folder.path / "media" / "steps-1_brightness-0" / "0000-0.png").read_bytes() == first, "it went on"
    return folder, loaded


def test_a_grid_is_one_run_whose_contestants_are_its_cells(made):
    folder, loaded = made
    assert folder.read()["status"] == "done" and len(loaded) == 2, "the weights were loaded once each time"
    parts = {c["name"]: c for c in folder.read("summary.json")["contestants"]}
    assert [*parts] == ["steps-1_brightness-0", "steps-2_brightness-0", "steps-1_brightness-5", "steps-2_brightness-5"]
    assert all(c["samples"] == 4 for c in parts.values()), "both seeds of two prompts"
    by_cell = {name: c["rewards"]["brightness"] for name, c in parts.items()}
    assert [row["optimised"] for row in by_cell.values()] == [False, False, True, True], "0 is not optimised"
    assert by_cell["steps-2_brightness-5"]["mean"] > by_cell["steps-2_brightness-0"]["mean"], (
        "the weight had its effect"
    )
    assert folder.read()["methods"]["steps-1_brightness-5"]["reward"] == {"starter_clip": 1.0, "brightness": 5.0}


def test_a_cell_makes_what_a_run_of_its_settings_makes(made, tmp_path):
    folder, _ = made
    alone = folder.read()["config"] | {"grid": None, "name": "alone", "contestants": {"only": {"name": "best_of_n"}}}
    alone |= {"pipeline": {"name": TEACHER, "steps": 2}, "reward": {"starter_clip": 1.0}}
    alone["contestants"]["only"]["n"] = 2
    other = store.RunFolder.open(tmp_path, "alone", alone)
    list(run.execute_run(plan_run(build_dataclass(config.RunConfig, alone, "alone")), other))
    for file in ("0000.safetensors",):
        one, two = (f.path / "latents" / n / file for f, n in ((folder, "steps-2_brightness-0"), (other, "only")))
        assert one.read_bytes() == two.read_bytes()


def test_its_page_has_every_cell_with_scores_and_carries_the_media_with_it(made):
    folder, _ = made
    page, content = (folder.path / "grid.html").read_text(), content_of(folder)
    assert "<b>blue" not in page and content["prompts"][1]["text"] == "a <b>blue</b> square"
    assert 'href="grid.html"' in (folder.path / "report.html").read_text() and 'src="http' not in page
    assert content["axes"]["z"] == {"title": "seed", "labels": ["0", "1"], "seed": True}
    assert [r["name"] for r in content["rewards"]] == ["oracle", "starter_clip", "brightness"]
    logged = {(e["contestant"], s["index"], s["k"]): s for e in folder.events() if e.get("final") for s in e["samples"]}
    for z, table in enumerate(content["cells"]):
        for y, row in enumerate(table):
            for x, cell in enumerate(row):
                assert cell["name"] == f"steps-{(1, 2)[x]}_brightness-{(0, 5)[y]}"
                for at, samples in enumerate(cell["samples"]):
                    (sample,) = samples
                    assert sample["k"] == z and sample["uri"].startswith("data:image/png;base64,")
                    scores = logged[cell["name"], at, z]["scores"]
                    assert sample["scores"] == {n: v for n, v in scores.items() if v is not None}
    low, high = next((r["low"], r["high"]) for r in content["rewards"] if r["name"] == "brightness")
    scores = [s["scores"]["brightness"] for s in logged.values()]
    assert (low, high) == (min(scores), max(scores)) and content["left_out"] == 0


def test_media_that_the_page_has_no_room_for_are_named_and_not_left_out_unsaid(made, monkeypatch):
    folder, _ = made
    whole = (folder.path / "grid.html").read_text()
    monkeypatch.setattr("workbench.report.grid_page.MAX_BYTES", 40_000)
    write_grid_page(folder.path)
    content = content_of(folder)
    (folder.path / "grid.html").write_text(whole)
    assert content["left_out"] == 1
    last = content["cells"][0][0][0]["samples"][-1][0]
    assert "uri" not in last and (folder.path / last["file"]).is_file()


def test_a_cost_is_said_before_it_begins_and_is_unknown_where_no_run_tells_it(made, tmp_path):
    folder, _ = made
    plan = plan_run(build_dataclass(config.RunConfig, folder.read()["config"], "grid"))
    unknown, known = estimate_cost(plan, tmp_path), estimate_cost(plan, folder.path.parent)
    assert unknown.denoiser_calls == known.denoiser_calls == 2 * 4 * 2 * (1 + 2)
    assert len(unknown.unknown) == 4 and "time unknown" in unknown.describe() and "memory unknown" in unknown.describe()
    assert known.describe().startswith("4 contestants, 48 denoiser calls")


def test_cells_take_their_settings_where_they_belong():
    blocks = cells_of(
        method={"name": "reno", "lr": 2.0},
        grid={"x": {"iterations": [5, 10]}, "y": {"pipeline": [TEACHER, "runs/x/export"]}, "z": {"steps": [4]}},
    )
    assert [*blocks] == [f"iterations-{n}_{p}_steps-4" for p in (TEACHER, "export") for n in (5, 10)]
    assert blocks["iterations-5_export_steps-4"] == {
        "name": "reno", "lr": 2.0, "iterations": 5, "pipeline": {"name": "runs/x/export", "steps": 4},
    }  # fmt: skip
    blocks = cells_of(grid={"x": {"guidance_scale": [1.5, 3]}, "y": {"pipeline.call.height": [64]}})
    assert blocks["guidance_scale-1.5_height-64"]["pipeline"] == {"call": {"guidance_scale": 1.5, "height": 64}}
    blocks = cells_of(grid={"x": {"lora_weight": [0, 0.5]}, "y": {"lora": ["none", "a/b/style.safetensors"]}})
    assert blocks["lora_weight-0.5_lora-style"] == {
        "name": "sample",
        "lora": {"file": "a/b/style.safetensors", "weight": 0.5},
    }
    assert "lora" not in blocks["lora_weight-0.5_lora-none"]
    blocks = cells_of(method={"name": "reno", "lr": 2.0}, grid={"x": {"method": ["reno", {"name": "das"}]}})
    assert blocks["reno"] == {"name": "reno", "lr": 2.0} and blocks["das"] == {"name": "das"}
    names = [*cells_of(grid={"x": {"pipeline": [f"{'long-' * 20}{n}" for n in "ab"]}})]
    assert len({*names}) == 2 and all(len(name) <= 64 for name in names)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"x": {"stepz": [1]}}, "grid.x: 'stepz' is no setting .* did you mean 'steps'"),
        ({"x": {"prompts": ["a"]}}, "what is one for a whole run takes a grid for each value"),
        ({"x": {"steps": 3}}, "grid.x: expected a list of values, got 3"),
        ({"x": {"steps": []}}, "expected a list of values"),
        ({"x": {"steps": [1, 1]}}, "'1' stands there twice"),
        ({"x": {"steps": [1], "seed": [0]}}, "expected one setting with its values"),
        ({"x": {"steps": [1]}, "y": {"pipeline.steps": [2]}}, "pipeline.steps is on two axes"),
        ({"w": {"steps": [1]}}, "expected x, y and z"),
        ({"x": {"seed": [3, 4]}}, "numbered from 0, as seed=0,1,2; .* seed=7"),
        ({"x": {"reward.clip": ["much"]}}, "expected numbers, got 'much'"),
        ({"x": {"lora_weight": [float("nan")]}}, "expected numbers"),
        ({"x": {"pipeline": [3]}}, "expected names, got 3"),
        ({"x": {"steps": [*range(300)]}}, "300 cells are too many"),
    ],
)
def test_an_axis_that_can_not_be_is_one_sentence(grid, sentence):
    with pytest.raises(BadInput, match=sentence) as raised:
        cells_of(grid=grid)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--x", "steps"], "write SETTING=VALUE,VALUE"),
        (["--x", "steps=0,1"], "steps"),
        (["--x", "steps=2", "--y", "reward.clip=1"], "'clip' is not among this run's rewards"),
        (["--x", "steps=2", "--y", "lora_weight=0.5"], "there is no LoRA to weigh"),
        (["--x", "method.n=4"], "unknown key 'n'"),
        (["--x", "pipeline=starter-image,starter-imagine"], "no pipeline 'starter-imagine'"),
        (["--x", "pipeline=starter-image,starter-music"], "they can't be compared"),
        (["demo"], "contestant: this config has base, best_of_n, reno, hypernoise; say which one is varied"),
        (["demo", "--contestant", "ren"], "'ren' is none of them; did you mean 'reno'"),
        (["--save", "../x", "--x", "steps=2"], "can't name a file"),
        ([], "names no axis|expected x, y and z"),
    ],
)
def test_a_grid_that_can_not_be_is_one_sentence_before_weights_load(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipelines, "load", None)
    given = [] if words[:1] == ["demo"] else ["--pipeline", "starter-image", "--prompt", "a red circle"]
    assert call("grid", *words, *given, "--dry-run", "--runs", tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said) and said.count("\n") == 1


def test_a_grid_is_saved_under_a_name_and_made_again_by_it(tmp_path, capsys):
    options = ["--dry-run", "--json", "--runs", tmp_path]
    first = [
        "--pipeline",
        "starter-image",
        "--prompt",
        "a red circle",
        "--method",
        "best_of_n",
        "--reward",
        "starter_clip",
    ]
    assert call("grid", *first, "--x", "n=2,4", "--save", "mine", *options) == 0
    once = json.loads(capsys.readouterr().out)["contestants"]
    assert yaml.safe_load((tmp_path / "grids" / "mine.yaml").read_text())["grid"] == {"x": {"n": [2, 4]}}
    assert call("grid", "mine", "limit=1", *options) == 0
    assert json.loads(capsys.readouterr().out)["contestants"] == once and [c["contestant"] for c in once] == [
        "n-2",
        "n-4",
    ]
    assert call("run", tmp_path / "grids" / "mine.yaml", *options) == 0, "it is a config like any other"
    assert call("grid", *first, "--x", "n=2,8", "--save", "mine", *options) == 2
    assert "is another grid" in capsys.readouterr().err
    assert call("grid", "starter-guidance", *options) == 0, "the bundled one"


def test_a_contestant_of_a_config_can_be_varied(tmp_path, capsys):
    words = ("--contestant", "reno", "--x", "iterations=1,2", "--dry-run", "--json", "--runs", tmp_path)
    assert call("grid", "demo", *words) == 0
    said = json.loads(capsys.readouterr().out)
    assert [c["settings"]["iterations"] for c in said["contestants"]] == [1, 2]
    assert any("86 prompts x 2" in check for check in said["checks"]), "those that the demo is judged on"


def test_a_reward_of_its_own_weights_has_the_same_components():
    reward = build_reward({"starter_clip": 1.0, "brightness": 2.0})
    own = reward.change_weights({"brightness": 0})
    assert own.weights == {"starter_clip": 1.0} and own.rewards["starter_clip"] is reward.rewards["starter_clip"]
    assert reward.weights == {"starter_clip": 1.0, "brightness": 2.0}
    combined = build_reward({"starter_clip": 1.0, "brightness": {"weight": 1.0, "within": [0, 0.5]}})
    assert combined.change_weights({"brightness": 3}).within == combined.within
    for weights, sentence in (
        ({"starter_clip": 0, "brightness": 0}, "every weight is 0"),
        ({"sharp": 1}, "'sharp' is not among this run's rewards"),
        ({"brightness": float("inf")}, "a weight is a finite number"),
        ({"brightness": True}, "a weight is a finite number"),
    ):
        with pytest.raises(BadInput, match=sentence):
            reward.change_weights(weights)


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    """A LoRA of the starter teacher, and the same as a DoRA."""
    folder, own = tmp_path_factory.mktemp("lora"), pipelines.read_config(TEACHER)
    (network,) = [n for name, n in read_empty_networks(own).items() if name in ("unet", "transformer")]
    layers = [n for n, m in network.named_modules() if n.endswith("to_q")][:2]
    generator, tensors, norms = torch.Generator().manual_seed(0), {}, {}
    for name in layers:
        rows, columns = network.get_submodule(name).weight.shape
        tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
        tensors[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
        norms[f"unet.{name}.lora_magnitude_vector"] = 0.5 + torch.rand(rows, generator=generator)
    save_file(tensors, folder / "style.safetensors")
    save_file(tensors | norms, folder / "dora.safetensors")
    return folder


@pytest.mark.parametrize("file", ["style.safetensors", "dora.safetensors"])
def test_the_strength_of_a_lora_goes_from_nothing_to_all_of_it(style, file):
    own = pipelines.read_config({"name": TEACHER, "steps": 1})

    def sample(lora=None, weight=1.0):
        policy = pipelines.load(pipelines.with_lora(own, lora, weight), device="cpu")
        return policy.sample(["a red circle"], seeds=[0]).media.data

    base, full = sample(), sample(str(style / file))
    none, half = (sample(str(style / file), weight) for weight in (0.0, 0.5))
    torch.testing.assert_close(none, base, rtol=1e-5, atol=1e-5)
    assert all((one - other).abs().max() > 2e-4 for one, other in ((full, base), (half, full), (half, base)))
    with pytest.raises(BadInput, match="lora_weight: inf is no strength"):
        pipelines.with_lora(own, str(style / file), float("inf"))


def test_a_lora_and_its_strength_are_contestants(style, tmp_path):
    file = str(style / "style.safetensors")
    blocks = cells_of(grid={"x": {"lora_weight": [0.5, 1]}, "y": {"lora": [file]}}) | {
        "plain": {"name": "sample", "lora": file}
    }
    asked = {"pipeline": TEACHER, "reward": {}, "prompts": ["a red circle"], "contestants": blocks, "name": "loras"}
    plan = plan_run(build_dataclass(config.RunConfig, asked, "loras"))
    assert [p.lora_weight for p in plan.pipelines.values()] == [0.5, 1, 1.0]
    assert len({*run.describe_run(plan)["pipelines"]}) == 2, "the last two are one pipeline"
    for lora, sentence in (({"file": file, "strength": 1}, "unknown key 'strength'"), ({"weight": 1}, "file")):
        asked["contestants"] = {"base": {"name": "sample", "lora": lora}}
        with pytest.raises(BadInput, match=sentence):
            plan_run(build_dataclass(config.RunConfig, asked, "loras"))
