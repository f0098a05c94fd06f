"""A stopped run goes on only with the files and settings that it began with, and only from media that are as logged."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import json
import os
import shutil
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
import train_fixtures
import yaml
from PIL import Image
from test_preference_data import grey, pick_a_pic
from train_fixtures import NFT, PIPELINE, TRAIN

from workbench import cli
from workbench.core.errors import BadInput, DiskFull, is_disk_full
from workbench.core.io import media
from workbench.core.paths import STARTER
from workbench.engine import resume, run, run_record
from workbench.engine.plan import plan_run
from workbench.runs import checkpoints, config, input_files, store

BASE = {"pipeline": "starter-image", "reward": "starter_clip", "prompts": ["a red circle", "a blue square"]}
TRAINED = {"pipeline": "starter-image-base", "method": NFT, "train": TRAIN, "test": ["a green triangle"]}
REWARD = """
import torch
from workbench.core.types import RewardSpec

class Warm:
    spec = RewardSpec("warm", "1", frozenset({"image"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        return media.data[:, 0].flatten(1).mean(1)
"""
METHOD = """
from dataclasses import dataclass
from workbench.core.types import Event

@dataclass(frozen=True)
class Plain:
    needs = frozenset()

    def calls(self, steps):
        return steps

    def __call__(self, policy, reward, batches):
        for batch in batches:
            path = policy.sample(batch.prompts, seeds=batch.seeds)
            yield Event(0, {}, path.media, batch.prompts, batch.seeds, final=True)
"""


def plan(**settings):
    return plan_run(config.check_config(config.build_dataclass(config.RunConfig, BASE | {"name": "x"} | settings, "x")))


def write_pictures(folder: Path, *shades: float) -> Path:
    for n, shade in enumerate(shades):
        media.write_media(grey(shade), folder / f"{n}.png")
    return folder


def write_head(folder: Path, value: float) -> Path:
    from rewards.people import learned
    from rewards.people.votes import make_report

    report = dataclasses.asdict(make_report(torch.ones(40), torch.ones(40), tuple(f"p{n}" for n in range(40))))
    info = {"model": "starter:image/clip", "l2": 0.1, "report": report}
    learned.write_head(folder, {"weights": torch.full((64,), value, dtype=torch.float64)}, info)
    return folder


def change_weight(file: Path) -> None:
    """Another value of one tensor: size and header stay."""
    state = safetensors.torch.load_file(file)
    next(iter(state.values())).view(-1)[0] += 1
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})


def copy_student(tmp: Path) -> Path:
    return Path(shutil.copytree(STARTER / "image" / "student", tmp / "student"))


def pipeline_config(tmp: Path):
    path = tmp / "mine.yaml"
    path.write_text(yaml.safe_dump(PIPELINE))
    return (
        {"pipeline": str(path)},
        lambda: path.write_text(yaml.safe_dump(PIPELINE | {"steps": 6})),
        r"steps.*mine\.yaml",
    )


def weights(tmp: Path):
    folder = copy_student(tmp)
    return (
        {"pipeline": {"name": "starter-image", "repo": str(folder)}},
        lambda: change_weight(folder / "unet" / "diffusion_pytorch_model.safetensors"),
        r"student/unet/diffusion_pytorch_model\.safetensors",
    )


def component(tmp: Path):
    folder = copy_student(tmp)
    return (
        {"pipeline": {"name": "starter-image", "components": {"vae": {"repo": str(folder), "subfolder": "vae"}}}},
        lambda: change_weight(folder / "vae" / "diffusion_pytorch_model.safetensors"),
        r"student/vae/diffusion_pytorch_model\.safetensors",
    )


def lora(tmp: Path):
    file, layer = tmp / "style.safetensors", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    safetensors.torch.save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, 96), f"{layer}.lora_B.weight": torch.ones(96, 2)}, file
    )
    block = {"base": "sample", "styled": {"name": "sample", "lora": str(file)}}
    return {"contestants": block, "method": None}, lambda: change_weight(file), r"style\.safetensors"


def prompt_file(tmp: Path):
    path = tmp / "list.txt"
    path.write_text("a red circle\na blue square\n")
    return {"prompts": str(path)}, lambda: path.write_text("a red circle\na big square\n"), r"prompts.*list\.txt"


def exemplars(tmp: Path):
    folder = tmp / "liked"
    folder.mkdir()
    write_pictures(folder, 0.1, 0.9)
    block = {"exemplar": {"reference": str(folder), "model": "starter:image/clip"}}
    return {"reward": block}, lambda: write_pictures(folder, 0.1, 0.5), r"liked/1\.png"


def new_exemplar(tmp: Path):
    settings, _, _ = exemplars(tmp)
    return settings, lambda: write_pictures(tmp / "liked", 0.1, 0.9, 0.5), r"liked/2\.png.* was added"


def taste(tmp: Path):
    folder = write_head(tmp / "taste", 0.1)
    block = {"learned": {"path": str(folder), "unproven": True}}
    return {"watch": block}, lambda: write_head(folder, 0.2), r"taste/head\.(json|safetensors)"


def outside_reward(tmp: Path):
    (tmp / "warm_reward.py").write_text(REWARD)
    changed = REWARD.replace("data[:, 0]", "data[:, 1]")
    return (
        {"watch": {"warm_reward:Warm": 1.0}},
        lambda: (tmp / "warm_reward.py").write_text(changed),
        r"warm_reward\.py",
    )


def outside_method(tmp: Path):
    (tmp / "plain_method.py").write_text(METHOD)
    change = METHOD.replace("Event(0", "Event(1")
    block = {"base": "sample", "plain": {"name": "plain_method:Plain"}}
    return (
        {"contestants": block, "method": None},
        lambda: (tmp / "plain_method.py").write_text(change),
        r"plain_method\.py",
    )


def base_scores(tmp: Path):
    path = tmp / "base.json"

    def write(low: float):
        scores = {p: [low, 1.0, 2.0] for p in (*BASE["prompts"], "a green triangle")}
        path.write_text(json.dumps({"rewards": {"starter_clip": {"scores": scores}}}))

    write(0.0)
    block = {"starter_clip": 1.0, "shape": {"how": "par", "base": str(path)}}
    return {"reward": block}, lambda: write(0.5), r"base\.json"


def noise_of_a_run(tmp: Path):
    file, log = tmp / "old" / "latents" / "base" / "0000.safetensors", tmp / "old" / "events.jsonl"
    file.parent.mkdir(parents=True)
    safetensors.torch.save_file({"noise": torch.zeros(2, 4, 16, 16)}, file)
    rows = [{"prompt": p, "seed": 1, "latents": "latents/base/0000.safetensors"} for p in BASE["prompts"]]
    log.write_text(json.dumps({"contestant": "base", "batch": 0, "final": True, "samples": rows}) + "\n")
    settings = {
        "contestants": {"base": "sample", "again": {"name": "reuse", "noise": str(tmp / "old" / "base")}},
        "method": None,
    }
    return settings, lambda: change_weight(file), r"latents/base/0000\.safetensors"


def votes(tmp: Path):
    folder = tmp / "pairs"
    folder.mkdir()
    write_pictures(folder, 0.1, 0.9)
    rows = [{"prompt": p, "a_path": "0.png", "b_path": "1.png", "winner": "a"} for p in BASE["prompts"]]
    (folder / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    swapped = [row | {"winner": "b"} for row in rows]
    settings = {"pairs": {"files": str(folder / "votes.jsonl")}, "method": {"name": "dpo"}}
    return settings, lambda: (folder / "votes.jsonl").write_text("\n".join(map(json.dumps, swapped))), r"votes\.jsonl"


def media_of_votes(tmp: Path):
    settings, _, _ = votes(tmp)
    return settings, lambda: write_pictures(tmp / "pairs", 0.1, 0.5), r"pairs/1\.png"


def parquet_pairs(tmp: Path):
    file = tmp / "pairs.parquet"
    pick_a_pic(file, [("a red circle", 10, 20, 1.0), ("a blue square", 30, 40, 0.0)])
    change = [("a red circle", 10, 20, 1.0), ("a blue square", 30, 50, 0.0)]
    return (
        {"pairs": {"files": str(file)}, "method": {"name": "dpo"}},
        lambda: pick_a_pic(file, change),
        r"pairs\.parquet",
    )


def references(tmp: Path):
    folder = tmp / "subject"
    folder.mkdir()
    write_pictures(folder, 0.1, 0.9)
    settings = {
        "method": {"name": "rpo", "references": str(folder), "caption": "a [V] dog"},
        "prompts": ["a [V] dog", "the [V] dog"],
    }
    return settings, lambda: write_pictures(folder, 0.2, 0.9), r"subject/0\.png"


BOTH = (pipeline_config, weights, prompt_file, exemplars)
CASES = [(make, trained) for make in BOTH for trained in (False, True)]
CASES += [(make, False) for make in (component, lora, new_exemplar, outside_reward, outside_method, noise_of_a_run)]
CASES += [(make, True) for make in (taste, base_scores, votes, media_of_votes, parquet_pairs, references)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("warm_reward", "plain_method"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("make", "trained"), CASES, ids=[f"{m.__name__}-{'trained' if t else 'not'}" for m, t in CASES]
)
def test_a_file_that_was_changed_while_a_run_was_stopped_is_named_and_refused(home, make, trained):
    settings, change, named = make(home)
    settings = (TRAINED if trained else {"method": {"name": "best_of_n", "n": 2}}) | settings
    folder = store.RunFolder(home / "runs" / "it")
    folder.path.mkdir(parents=True)
    folder.write("run.json", run_record.describe_run(plan(**settings)) | {"status": "stopped"})
    before = folder.read()
    assert not [*resume.find_differences(before, run_record.describe_run(plan(**settings)))], "nothing has changed yet"
    for path in home.rglob("*.*"):
        os.utime(path)
    assert not [*resume.find_differences(before, run_record.describe_run(plan(**settings)))], "only times have changed"
    change()
    with pytest.raises(BadInput, match=named) as refusal:
        next(run.execute_run(plan(**settings), folder))
    assert "this run began" in str(refusal.value)
    assert "--new" in str(refusal.value) and "\n" not in str(refusal.value)
    assert folder.read() == before, "what is refused stays as it was"


def test_a_pipeline_from_python_with_other_weights_is_another_run(tmp_path):
    import tiny

    from workbench.engine import python_calls
    from workbench.engine.user_objects import UserObjects

    def describe(pipe):
        objects = UserObjects()
        values = {"prompts": ["a", "b"], "method": "sample", "device": "cpu"}
        return run_record.describe_run(python_calls.plan_objects(values, objects, pipe, "brightness", None, "compare"))

    one, same, other = (tiny.build("StableDiffusionPipeline", seed) for seed in (0, 0, 1))
    before = describe(one)
    assert not [*resume.find_differences(before, describe(same))]
    (clause,) = resume.find_differences(before, describe(other))
    assert clause.startswith("object StableDiffusionPipeline was 'vae:") and "this run began" in clause


def test_a_default_that_a_newer_workbench_has_changed_is_named(tmp_path):
    before = run_record.describe_run(plan(method={"name": "best_of_n", "n": 2}))
    now = json.loads(json.dumps(before))
    now["methods"]["best_of_n"] |= {"n": 3, "a_new_setting": 1}
    now["inputs"]["a new kind"] = {"file": "digest"}
    (clause,) = resume.find_differences(before, now)
    assert clause == "n of contestant best_of_n was 2 when this run began and is 3 now"


def test_another_dtype_that_the_machine_chose_is_said_and_not_refused():
    before = run_record.describe_run(plan(method="sample"))
    now = json.loads(json.dumps(before))
    now["placement"]["starter-image"] = {"device": "cuda", "dtype": "bfloat16"}
    assert not [*resume.find_differences(before, now)]
    (sentence,) = resume.placement_changes(before, now)
    assert "was in float32 on cpu" in sentence and "is in bfloat16 on cuda now" in sentence


def test_of_a_large_file_blocks_all_over_it_are_read(tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(input_files.BLOCK * 40))
    whole, blocks = input_files.digest_file(path), input_files.digest_file(path, input_files.BLOCK * 10)
    assert whole == media.file_digest(path) and blocks.startswith("blocks:")
    for place in (0, input_files.BLOCK * 18, input_files.BLOCK * 40 - 1):
        data = bytearray(input_files.BLOCK * 40)
        data[place] = 1
        path.write_bytes(data)
        assert input_files.digest_file(path, input_files.BLOCK * 10) != blocks


def test_many_files_have_one_digest_under_their_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "MAX_NAMED", 3)
    for n in range(5):
        (tmp_path / f"{n}.txt").write_text(str(n))
    ((name, digest),) = input_files.digest_files(sorted(tmp_path.iterdir())).items()
    assert name == f"{tmp_path}/" and digest.startswith("5 files, ")


# --- what a run has made ---------------------------------------------------------------------------------------------

SMALL = {"contestants": {"base": "sample", "best_of_n": {"n": 2}}, "method": None, "batch": 1, "reward": "brightness"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two contestants, each of two batches of one picture; its command."""
    home = tmp_path_factory.mktemp("finished")
    (home / "x.yaml").write_text(yaml.safe_dump({k: v for k, v in (BASE | SMALL).items() if v is not None}))
    assert cli.main(["run", str(home / "x.yaml"), "--runs", str(home / "runs")]) == 0
    return home


@pytest.fixture
def copy(finished, tmp_path):
    (folder,) = store.list_run_folders(finished / "runs")
    return store.RunFolder(Path(shutil.copytree(folder.path, tmp_path / "runs" / folder.path.name)))


def test_media_that_are_not_as_logged_are_told_and_made_again(copy, capsys):
    """One deleted, one swapped, one cut short, in three of the four batches."""
    pictures = {p: p.read_bytes() for p in sorted((copy.path / "media").rglob("*.png"))}
    events, summary = copy.events(), copy.read("summary.json")
    assert cli.main(["report", str(copy.path), "--verify", "--format", "csv"]) == 0
    assert "4 stored files are as logged" in capsys.readouterr().err
    whole, deleted, swapped, cut = pictures
    deleted.unlink(), shutil.copy(whole, swapped), cut.write_bytes(pictures[cut][:100])
    assert cli.main(["report", str(copy.path), "--verify", "--format", "csv"]) == 1
    said = capsys.readouterr().err
    assert f"{deleted.relative_to(copy.path)} is missing" in said and "2 more batches are damaged" in said
    assert f"workbench run {copy.path}" in said and said.count("\n") == 1
    assert cli.main(["run", str(copy.path)]) == 0
    said = capsys.readouterr().err
    for path, what in ((deleted, "is missing"), (swapped, "is not the file"), (cut, "is not the file")):
        assert f"{path.relative_to(copy.path)} {what}" in said
    assert said.count("is made again") == 3 and {p: p.read_bytes() for p in pictures} == pictures
    rewards = [[c["rewards"] for c in s["contestants"]] for s in (summary, copy.read("summary.json"))]
    assert len(copy.events()) == len(events) and rewards[0] == rewards[1]


def test_lines_of_the_log_that_were_cut_are_told_and_made_again(copy, capsys):
    log = copy.path / "events.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0][: len(lines[0]) // 2], *lines[1:]]) + "\n")
    assert cli.main(["report", str(copy.path)]) == 2
    assert "events.jsonl, line 1 is damaged" in (said := capsys.readouterr().err) and "workbench run" in said
    assert cli.main(["run", str(copy.path)]) == 0
    assert "line 1 of events.jsonl" in capsys.readouterr().err and len(copy.events()) == len(lines)


def test_equal_commands_at_once_are_one_run(tmp_path):
    """Of those that look for a run at the same moment one makes it; the others get the same folder."""
    together = threading.Barrier(4)

    def look(_: int) -> Path:
        together.wait()
        return store.RunFolder.open(tmp_path / "runs", "x", {"pipeline": "p"}).path

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(look, range(4)))) == 1
    assert len(list((tmp_path / "runs").glob("*-x"))) == 1


def test_what_can_only_be_read_is_reported_elsewhere_and_planned(finished, tmp_path, monkeypatch, capsys):
    """On a read-only disk: here whatever writes below the folder is refused as such a disk refuses it."""
    (folder,) = store.list_run_folders(finished / "runs")
    make_read_only(finished, monkeypatch)
    assert cli.main(["report", str(folder.path)]) == 2
    assert "Read-only file system" in (said := capsys.readouterr().err) and "--out" in said and said.count("\n") == 1
    assert cli.main(["report", str(folder.path), "--out", str(tmp_path / "page.html")]) == 0
    assert "at a glance" in (tmp_path / "page.html").read_text().lower() or (tmp_path / "page.html").stat().st_size
    capsys.readouterr()
    assert cli.main(["run", str(folder.path)]) == 2
    assert "Read-only file system" in (said := capsys.readouterr().err.splitlines()[-1]) and "report" in said
    assert cli.main(["run", str(folder.path), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["contestants"][0]["seconds"] is not None, "the index can be read"


def make_read_only(folder: Path, monkeypatch) -> None:
    def refuse(real, place=lambda path, *_: path, writes=lambda *_: True):
        def call(*args, **kwargs):
            path = place(*args)
            is_inside = isinstance(path, (str, Path)) and Path(path).is_relative_to(folder)
            if is_inside and writes(*args):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(builtins, "open", refuse(open, writes=lambda _, mode="r", *__: set(mode) & set("wxa+")))
    for name in ("mkdir", "unlink", "replace"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    real_access = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: real_access(path, mode) and not (mode & os.W_OK and Path(path).is_relative_to(folder)),
    )


# --- a full disk -----------------------------------------------------------------------------------------------------


def raise_full(library: str, tmp: Path) -> None:
    state = {"weights": torch.zeros(300_000)}
    if library == "torch":
        with open("/dev/full", "wb") as file:
            torch.save(state, file)
    elif library == "pillow":
        Image.new("RGB", (64, 64)).save("/dev/full", "PNG")
    elif library == "sqlite":
        db = sqlite3.connect(tmp / "x.db")
        db.execute("PRAGMA max_page_count = 2")
        db.execute("CREATE TABLE t (a BLOB)")
        db.execute("INSERT INTO t VALUES (?)", (bytes(50_000),))
    else:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("library", ["torch", "pillow", "sqlite", "quota"])
def test_a_full_disk_is_known_whatever_library_says_it(library, tmp_path):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each raises its own
        raise_full(library, tmp_path)
    assert is_disk_full(caught.value)
    try:
        raise ValueError("could not be stored") from caught.value
    except ValueError as error:
        assert is_disk_full(error)
    assert not is_disk_full(RuntimeError("out of luck")) and not is_disk_full(OSError(errno.EIO, "broken"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_at_a_checkpoint_is_no_failed_training_and_nothing_is_sampled(tmp_path, monkeypatch):
    real = torch.save

    def save(state, file, *_):
        with open("/dev/full", "wb") as full:
            real(state, full)

    monkeypatch.setattr(checkpoints.torch, "save", save)
    planned = train_fixtures.planned(tmp_path, train={"eval_prompts": 1})
    folder = train_fixtures.folder_of(planned, tmp_path / "runs")
    with pytest.raises(DiskFull, match="make room and run the same command"):
        train_fixtures.go(planned, folder)
    assert folder.read()["status"] == "running" and not [e for e in folder.events() if "failed" in e or e.get("final")]
    assert not list(folder.path.glob("failure-*")) and not list(folder.path.rglob("*.tmp"))
