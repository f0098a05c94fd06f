"""Benchmarks' own prompt files become pictures where the benchmarks' own scorers look for them."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.methods import METHODS
from workbench.runs import store
from workbench.tools import suite_layouts, suites

TASKS = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a red circle"},
    {"tag": "counting", "include": [{"class": "square", "count": 2}],
     "exclude": [{"class": "square", "count": 3}], "prompt": "two blue squares"},
]  # fmt: skip
UNIGEN = """index,prompt_en,sub_dims_en
0,"a red circle, drawn","{""Testpoints"": [""Style""], ""Testpoint Description"": [""drawn""]}"
7,a blue square,"{""Testpoints"": [""Attribute - Color""], ""Testpoint Description"": [""blue""]}"
"""
FILES = {  # suite -> (the name and content of its prompt file, by hand, in the benchmark's format)
    "geneval": ("evaluation_metadata.jsonl", "".join(json.dumps(task) + "\n" for task in TASKS)),
    "t2i-compbench": ("color_val.txt", "a red circle\r\na blue square and a green circle.\r\na red circle\r\n"),
    "partiprompts": (
        "PartiPrompts.tsv",
        'Prompt\tCategory\tChallenge\tNote\na circle called "Red"\tAbstract\tBasic\t\n blue square \tArt\tBasic\tx\n',
    ),
    "drawbench": ("drawbench.csv", '"Prompts","Category"\n"A red circle.","Colors"\n"Two squares, blue","Counting"\n'),
    "hpdv2": ("photo.json", json.dumps(["a red circle", "a blue square"])),
    "unigenbench": ("test_prompts_en.csv", UNIGEN),
}
LAID = {  # suite -> what lies in OUT besides the manifest, with two seeds where the scorer reads several
    "geneval": {f"0000{n}/{f}" for n in (0, 1) for f in ("metadata.jsonl", "samples/00000.png", "samples/00001.png")},
    "t2i-compbench": {
        "samples/a red circle_000000.png", "samples/a red circle_000001.png",
        "samples/a blue square and a green circle._000002.png", "samples/a blue square and a green circle._000003.png",
        "samples/a red circle_000004.png", "samples/a red circle_000005.png",
    },
    "partiprompts": {"images/metadata.jsonl", *(f"images/0000{n}_{k}.png" for n in (0, 1) for k in (0, 1))},
    "drawbench": {"drawbench.json", "drawbench_imgs/starter-image-sample/00000.jpg",
                  "drawbench_imgs/starter-image-sample/00001.jpg"},
    "hpdv2": {"benchmark_imgs/starter-image-sample/photo/00000.jpg",
              "benchmark_imgs/starter-image-sample/photo/00001.jpg"},
    "unigenbench": {f"en/starter-image-sample/{n}_{k}.png" for n in (0, 7) for k in (0, 1)},
}  # fmt: skip


def prompt_file(folder: Path, name: str, content: str | None = None) -> Path:
    path = folder / FILES[name][0]
    path.write_text(FILES[name][1] if content is None else content, encoding="utf-8", newline="")
    return path


def ask(folder: Path, name: str, **change) -> suites.SuiteJob:
    source = folder / FILES[name][0]
    if "prompts" not in change and not source.exists():
        prompt_file(folder, name)
    asked = {"pipeline": "starter-image", "seeds": 1 if suite_layouts.SUITES[name].is_single_image else 2} | change
    return suites.prepare_job(name, asked.pop("prompts", source), folder / "out", **asked)


def make(job: suites.SuiteJob, command: str = "workbench suite …") -> dict:
    for _ in suites.make_pictures(job, plan_run(job.config, command), job.out.parent / "runs"):
        pass
    return json.loads((job.out / "manifest.json").read_text())


def laid(out: Path) -> dict[str, tuple[str, int]]:
    """Every file but the manifest -> (its digest, when it was written)."""
    found = [p for p in out.rglob("*") if p.is_file() and p.name != "manifest.json"]
    return {p.relative_to(out).as_posix(): (media.file_digest(p), p.stat().st_mtime_ns) for p in found}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every suite, made once with the starter pipeline: name -> (job, manifest)."""
    jobs = {name: ask(tmp_path_factory.mktemp(name), name) for name in suite_layouts.SUITES}
    return {name: (job, make(job)) for name, job in jobs.items()}


@pytest.fixture
def own(made, tmp_path):
    """A copy of the finished GenEval suite that a test may spoil, with its job."""
    shutil.copytree(made["geneval"][0].out.parent, tmp_path / "own")
    return ask(tmp_path / "own", "geneval")


@pytest.mark.parametrize("name", suite_layouts.SUITES)
def test_each_suite_lies_where_its_scorer_looks_and_nothing_else_does(made, name):
    job, manifest = made[name]
    assert set(laid(job.out)) == LAID[name]
    pictures = {f for f in LAID[name] if f.endswith((".png", ".jpg"))}
    assert {f["file"] for f in manifest["files"]} == pictures and manifest["count"] == len(pictures)
    assert (
        manifest["complete"]
        and manifest["command"] == "workbench suite …"
        and manifest["made_with"]["versions"]["torch"]
    )
    for f in manifest["files"]:
        assert media.file_digest(job.out / f["file"]) == f["sha256"]


def runs_own(job: suites.SuiteJob) -> dict[tuple[str, int], Path]:
    (folder,) = store.list_run_folders(job.out.parent / "runs")
    rows = [s for e in folder.events() if e.get("final") for s in e["samples"]]
    return {(s["prompt"], s["k"]): folder.path / s["file"] for s in rows}


@pytest.mark.parametrize("name", suite_layouts.SUITES)
def test_pictures_are_of_their_prompts_lossless_as_png_and_as_pil_writes_jpeg_where_jpeg_is_read(made, name):
    job, manifest = made[name]
    source = runs_own(job)
    for f in manifest["files"]:
        kept, there = source[f["prompt"], f["k"]], job.out / f["file"]
        assert f["prompt"] in {e.prompt for e in job.entries}
        if there.suffix == ".png":
            assert there.read_bytes() == kept.read_bytes() and media.read_meta(there)["prompt"] == f["prompt"]
        else:
            jpeg = io.BytesIO()
            Image.open(kept).save(jpeg, "JPEG")
            assert there.read_bytes() == jpeg.getvalue() and Image.open(there).format == "JPEG"


def test_geneval_and_drawbench_find_the_prompts_in_the_order_of_the_pictures(made):
    job, _ = made["geneval"]
    for n, task in enumerate(TASKS):
        assert json.loads((job.out / f"{n:05d}" / "metadata.jsonl").read_text()) == task
    told = json.loads((made["drawbench"][0].out / "drawbench.json").read_text())  # a list in the pictures' order
    assert told == ["A red circle.", "Two squares, blue"]


def test_compbench_reads_prompt_and_number_from_the_name_and_a_repeated_prompt_has_the_same_pictures(made):
    job, manifest = made["t2i-compbench"]
    names = sorted((p.name for p in (job.out / "samples").iterdir()), key=lambda n: int(n.split("_")[1].split(".")[0]))
    assert [n.split("_")[0] for n in names] == [e.prompt for e in job.entries for _ in range(2)]
    digest = {f["file"]: f["sha256"] for f in manifest["files"]}
    assert digest["samples/a red circle_000000.png"] == digest["samples/a red circle_000004.png"]
    assert digest["samples/a red circle_000000.png"] != digest["samples/a red circle_000001.png"]


def test_partiprompts_is_an_imagefolder_with_category_and_challenge(made):
    rows = [
        json.loads(line) for line in (made["partiprompts"][0].out / "images/metadata.jsonl").read_text().splitlines()
    ]
    assert rows[0] == {"file_name": "00000_0.png", "prompt": 'a circle called "Red"', "category": "Abstract",
                       "challenge": "Basic", "note": ""}  # fmt: skip
    assert len(rows) == 4 and rows[2]["file_name"] == "00001_0.png"


@pytest.mark.parametrize("name", sorted(set(suite_layouts.SUITES) - {"partiprompts"}))
def test_the_scorers_commands_are_one_shell_line_each_that_names_what_was_made(made, name):
    job, manifest = made[name]
    assert manifest["score"] and manifest["scorer"] == suite_layouts.SUITES[name].scorer
    for line in manifest["score"]:
        words = shlex.split(line)
        paths = [Path(w) for w in words if w.startswith(str(job.out.resolve()))]
        assert paths and all(p.exists() or p.name == "results.jsonl" for p in paths)
        assert "{" not in line


def test_the_published_number_of_pictures_is_made_unless_another_is_asked_for(tmp_path):
    counts = {name: ask(tmp_path, name, seeds=None).config.samples_per_prompt for name in suite_layouts.SUITES}
    assert counts == {
        "geneval": 4,
        "t2i-compbench": 10,
        "partiprompts": 1,
        "drawbench": 1,
        "hpdv2": 1,
        "unigenbench": 4,
    }


def test_a_limit_makes_the_first_prompts_only(tmp_path):
    job = ask(tmp_path, "unigenbench", limit=1, seeds=1)
    assert [*job.picture_paths()] == ["en/starter-image-sample/0_0.png"] and job.config.prompts == [
        "a red circle, drawn"
    ]


def test_any_method_can_make_them(tmp_path):
    job = ask(
        tmp_path, "hpdv2", method="{best_of_n: {n: 3}}", reward="starter_clip", overrides=["watch=[oracle]", "batch=2"]
    )
    manifest = make(job)
    assert manifest["made_with"]["methods"]["best_of_n"]["n"] == 3
    assert set(laid(job.out)) == {f.replace("-sample", "-best_of_n") for f in LAID["hpdv2"]}


def test_asking_again_changes_nothing_and_makes_nothing(own, monkeypatch):
    before, manifest = laid(own.out), (own.out / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(run, "execute_run", lambda *_: pytest.fail("made again"))
    make(own, "another wording of the same command")
    assert laid(own.out) == before and (own.out / "manifest.json").stat().st_mtime_ns == manifest


def test_what_is_missing_comes_back_from_the_finished_run_and_the_rest_stays(own, monkeypatch):
    before, manifest = laid(own.out), json.loads((own.out / "manifest.json").read_text())
    lost = {"00001/samples/00000.png", "00000/metadata.jsonl"}
    for f in lost:
        (own.out / f).unlink()
    monkeypatch.setattr(run, "execute_run", lambda *_: pytest.fail("made again"))
    again = make(own)
    after = laid(own.out)
    assert {f: d for f, (d, _) in after.items()} == {f: d for f, (d, _) in before.items()}
    assert all(after[f] == before[f] for f in before if f not in lost)
    assert again == manifest | {"score": again["score"]}  # the folder was copied: its commands name the new place


def test_when_the_run_is_gone_too_it_is_made_again_to_the_same_pictures(own):
    before = laid(own.out)
    shutil.rmtree(own.out.parent / "runs")
    (own.out / "00001/samples/00001.png").unlink()
    make(own)
    assert {f: d for f, (d, _) in laid(own.out).items()} == {f: d for f, (d, _) in before.items()}


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    job = ask(tmp_path, "geneval", overrides=["batch=1"])
    progress = suites.make_pictures(job, plan_run(job.config), tmp_path / "runs")
    next(progress), next(progress), progress.close()
    assert not json.loads((job.out / "manifest.json").read_text())["complete"] and not laid(job.out)
    (folder,) = store.list_run_folders(tmp_path / "runs")
    first = folder.events()[0]["samples"][0]["sha256"]
    assert make(job)["complete"] and set(laid(job.out)) == LAID["geneval"]
    assert len(store.list_run_folders(tmp_path / "runs")) == 1 and laid(job.out)["00000/samples/00000.png"][0] == first


def test_killed_while_laying_out_it_goes_on_and_leaves_no_temporary_file(own):
    manifest = json.loads((own.out / "manifest.json").read_text())
    (own.out / "manifest.json").write_text(json.dumps(manifest | {"complete": False, "files": []}))
    (own.out / "00001/samples/00001.png").unlink()
    (own.out / "00001/samples" / f".{'0a' * 16}.tmp").write_bytes(b"half a pict")
    assert make(own)["complete"] and set(laid(own.out)) == LAID["geneval"]


def test_a_disk_without_links_gets_copies(own, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(suites.os, "link", refuse)
    lost = own.out / "00000/samples/00001.png"
    digest = media.file_digest(lost)
    lost.unlink(), make(own)
    assert media.file_digest(lost) == digest and lost.stat().st_nlink == 1


@pytest.mark.parametrize("victim", ["00000/samples/00001.png", "00001/metadata.jsonl"])
def test_a_file_that_was_changed_is_named_and_left_alone(own, victim):
    (own.out / victim).unlink(), (own.out / victim).write_bytes(b"other")
    with pytest.raises(BadInput, match=rf"{re.escape(victim)} was changed .* remove it"):
        make(own)
    assert (own.out / victim).read_bytes() == b"other"


def test_a_picture_that_the_scorer_would_read_too_is_named(own):
    (own.out / "00000/samples/00002.png").write_bytes(b"stray")
    with pytest.raises(BadInput, match=r"00002\.png is not of this suite"):
        make(own)


def test_a_damaged_picture_of_the_run_is_not_handed_out(own):
    job, source = own, runs_own(own)
    (own.out / "00000/samples/00000.png").unlink()
    source["a red circle", 0].unlink(), source["a red circle", 0].write_bytes(b"broken")
    with pytest.raises(BadInput, match="gone or damaged"):
        make(job)


@pytest.mark.parametrize(
    "change", [{"seeds": 1}, {"limit": 1}, {"overrides": ["seed=5"]}, {"overrides": ["name=mine"]}]
)
def test_a_folder_of_another_command_is_left_alone(own, change):
    before = laid(own.out)
    with pytest.raises(BadInput, match="another command or prompt file made; choose another --out"):
        make(ask(own.out.parent, "geneval", **change))
    assert laid(own.out) == before


def test_the_same_prompts_with_other_tasks_are_another_prompt_file(own):
    prompt_file(own.out.parent, "geneval", FILES["geneval"][1].replace("counting", "colors"))
    with pytest.raises(BadInput, match="another command or prompt file"):
        make(ask(own.out.parent, "geneval"))


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path):
    (tmp_path / "out").mkdir(), (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match=r"out is not empty.*choose another --out"):
        make(ask(tmp_path, "geneval"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_out_is_one_sentence(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(BadInput, match="choose another --out"):
        make(ask(tmp_path, "geneval"))


HOSTILE = [
    "../../../etc/passwd",
    "/tmp/x",
    "..",
    "a/b\\c_d",
    "snake_case " * 40,
    "日本語の長い文" * 40,
    "~",
    "a\x01b",
    "-rf",
]


def test_no_prompt_becomes_a_path_or_is_cut_by_the_scorer_unnoticed(tmp_path):
    source = prompt_file(tmp_path, "t2i-compbench", "\n".join([*HOSTILE, "a plain one"]))
    job = ask(tmp_path, "t2i-compbench", seeds=1)
    for n, place in enumerate(job.picture_paths()):
        parts = Path(place).parts
        assert parts[0] == "samples" and len(parts) == 2 and len(parts[1].encode()) <= 255
        assert parts[1].split("_")[1:] == [f"{n:06d}.png"]
    manifest = make(job)
    assert set(manifest["renamed"]) == {p.strip() for p in HOSTILE} - {"..", "~", "-rf"}
    assert {p.name for p in tmp_path.iterdir()} == {source.name, "out", "runs"}
    assert len([*(tmp_path / "out" / "samples").iterdir()]) == len(HOSTILE) + 1


ASKED = [
    ({"pipeline": "starter-imge"}, "did you mean 'starter-image'"),
    ({"method": "rano", "reward": "starter_clip"}, "did you mean 'reno'"),
    ({"method": "reno"}, "method reno optimises a reward; say which with --reward"),
    ({"method": "{reno: {iteration: 3}}", "reward": "starter_clip"}, "did you mean 'iterations'"),
    ({"method": "[reno]"}, "--method"),
    ({"method": "{reno: ["}, "--method, line 1: not valid YAML"),
    ({"seeds": 0}, "seeds.*at least 1"),
    ({"limit": -1}, "--limit"),
    ({"overrides": ["batc=2"]}, "did you mean 'batch'"),
    ({"overrides": ["contestants.a=reno"]}, "--method says that"),
    ({"overrides": ["name=../up"]}, "can't name a folder"),
]


@pytest.mark.parametrize(("change", "sentence"), ASKED)
def test_what_cannot_be_is_said_before_any_weights_load(tmp_path, change, sentence):
    with pytest.raises(BadInput, match=sentence):
        ask(tmp_path, "geneval", **change)
    assert not (tmp_path / "out").exists()


def test_a_scorer_that_reads_one_picture_a_prompt_gets_no_second_one(tmp_path):
    with pytest.raises(BadInput, match="one picture a prompt; use --seeds 1"):
        ask(tmp_path, "hpdv2", seeds=2)


def call(capsys, *arguments):
    code = cli.main(["suite", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_makes_a_suite_says_how_to_score_it_and_can_be_repeated_from_its_manifest(tmp_path, capsys):
    source, out = prompt_file(tmp_path, "geneval"), tmp_path / "my out"
    code, said, _ = call(capsys, "geneval", "batch=2", "--prompts", source, "--pipeline", "starter-image", "--seeds", 2,
                         "--runs", tmp_path / "runs", "--out", out)  # fmt: skip
    assert code == 0 and set(laid(out)) == LAID["geneval"] and "evaluate_images.py" in said
    command = shlex.split(json.loads((out / "manifest.json").read_text())["command"])
    before = laid(out)
    assert command[:2] == ["workbench", "suite"] and cli.main(command[1:]) == 0 and laid(out) == before


def test_when_the_method_fails_nothing_is_laid_out_and_the_same_command_tries_again(tmp_path, capsys):
    source, out = prompt_file(tmp_path, "hpdv2"), tmp_path / "out"
    asked = ("hpdv2", "--prompts", source, "--pipeline", "starter-image", "--runs", tmp_path / "runs", "--out", out)

    def fail(*_):
        raise RuntimeError("out of luck")
        yield

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(METHODS["sample"], "__call__", fail)
        code, _, said = call(capsys, *asked)
    assert code == 1 and "the method failed" in said and not laid(out)
    assert call(capsys, *asked)[0] == 0 and set(laid(out)) == LAID["hpdv2"]


def test_a_dry_run_makes_nothing(tmp_path, capsys):
    source = prompt_file(tmp_path, "geneval")
    code, said, _ = call(capsys, "geneval", "--prompts", source, "--pipeline", "starter-image", "--dry-run", "--json",
                         "--runs", tmp_path / "runs", "--out", tmp_path / "out")  # fmt: skip
    assert code == 0 and json.loads(said)["contestants"][0]["denoiser_calls"] == 8
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("name", "prompts", "sentence"),
    [("genevol", "here.jsonl", "did you mean 'geneval'"), ("geneval", "nowhere.jsonl", "no such file nowhere.jsonl")],
)
def test_the_command_says_what_is_wrong_in_one_sentence(tmp_path, capsys, name, prompts, sentence):
    code, _, said = call(capsys, name, "--prompts", prompts, "--pipeline", "starter-image", "--out", tmp_path / "out")
    assert code == 2 and sentence in said and said.count("\n") == 1
