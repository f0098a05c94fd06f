"""The command line as a user meets it: what is wrong is said in one sentence, before any weights load."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

from workbench import cli
from workbench.commands import console
from workbench.commands.run_summary import print_summary
from workbench.core.paths import ROOT, STARTER

GOOD = {
    "pipeline": "starter-image",
    "method": {"name": "reno", "iterations": 2},
    "reward": "starter_clip",
    "watch": ["oracle"],
    "prompts": ["a red circle", "a blue square"],
}


@pytest.fixture
def no_weights(monkeypatch):
    """Any attempt to load a pipeline or a reward model is an error."""
    import pipelines
    from rewards.encoders import image_text

    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(pipelines, "load", refuse)
    monkeypatch.setattr(image_text, "load_encoder", refuse)


def call(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def config(tmp_path, **change):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (GOOD | change).items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pipeline": "starter-imge"}, "did you mean 'starter-image'"),
        ({"pipeline": "no/such/folder"}, "no/such/folder"),
        ({"pipeline": 3}, "pipeline"),
        ({"method": "rano"}, "did you mean 'reno'"),
        ({"method": {"name": "reno", "iteration": 2}}, "did you mean 'iterations'"),
        ({"method": {"name": "best_of_n", "n": 0}}, "at least 1"),
        ({"reward": "starter_clp"}, "did you mean 'starter_clip'"),
        ({"reward": {"starter_clip": "much"}}, "weight"),
        ({"reward": {"starter_clip": {"wieght": 2}}}, "wieght"),
        ({"reward": "compressibility"}, "no gradient"),
        ({"reward": "starter_clip", "watch": ["starter_clip"]}, "can't be held out"),
        ({"watch": ["orcale"]}, "did you mean 'oracle'"),
        ({"prompts": "missing.txt"}, "no prompt file"),
        ({"prompts": []}, "no prompt in it"),
        ({"sede": 1}, "did you mean 'seed'"),
        ({"seed": -1}, "at least 0"),
        ({"samples_per_prompt": "two"}, "a whole number"),
        ({"prompts": ["a red circle"], "control": "shuffled"}, "two different prompts"),
        ({"attention": "flash"}, "flash"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "toaster"}, "toaster"),
    ],
)
def test_a_config_that_cannot_work_exits_2_with_one_sentence_before_weights_load(
    tmp_path, capsys, no_weights, change, sentence
):
    code, out, err = call(capsys, "run", config(tmp_path, **change), "--runs", tmp_path / "runs")
    assert code == 2 and sentence in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "runs").exists()


def test_a_reward_of_another_modality_is_refused_by_name(tmp_path, capsys, no_weights):
    (tmp_path / "loud.py").write_text(
        "from workbench.core.types import RewardSpec\n"
        "class Loud:\n    spec = RewardSpec('loud', '1', frozenset({'audio'}), True)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        code, _, err = call(capsys, "run", config(tmp_path, reward="loud:Loud"), "--runs", tmp_path / "runs")
    finally:
        sys.path.remove(str(tmp_path))
    assert code == 2 and "judges audio" in err and "makes image" in err


@pytest.mark.parametrize("damage", ["cut short", "garbage header", "pickle", "no model_index.json"])
def test_a_damaged_or_pickled_pipeline_folder_is_refused_and_the_file_named(tmp_path, capsys, no_weights, damage):
    folder = tmp_path / "pipe"
    shutil.copytree(STARTER / "image" / "student", folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "garbage header":
        weights.write_bytes(b"\xff" * 4096)
    elif damage == "pickle":
        weights.unlink()
        (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"evil": 1}))
    else:
        (folder / "model_index.json").unlink()
    code, _, err = call(capsys, "run", config(tmp_path, pipeline=str(folder)), "--runs", tmp_path / "runs")
    assert code == 2 and err.count("\n") == 1
    assert {"pickle": "pickled weights are never loaded", "no model_index.json": "model_index.json"}.get(
        damage, weights.name
    ) in err


def test_a_pickled_reward_checkpoint_is_refused_and_never_run(tmp_path, capsys, no_weights):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"head": Evil()}, tmp_path / "head.pt")
    reward = {"aesthetic": {"weights": str(tmp_path / "head.pt")}}
    code, _, err = call(capsys, "run", config(tmp_path, reward=reward), "--runs", tmp_path / "runs")
    assert code == 2 and "head.pt" in err and not (tmp_path / "ran").exists()


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path, capsys, no_weights):
    (tmp_path / "runs").write_text("a file where a folder should be")
    code, _, err = call(capsys, "run", config(tmp_path), "--runs", tmp_path / "runs")
    assert code == 2 and "--runs" in err


def test_a_full_disk_is_noticed_before_weights_load(tmp_path, capsys, no_weights, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    code, _, err = call(capsys, "run", config(tmp_path), "--runs", tmp_path / "runs")
    assert code == 2 and "1 MB free" in err


def test_a_dry_run_prints_the_plan_and_loads_and_writes_nothing(tmp_path, capsys, no_weights):
    code, out, _ = call(capsys, "run", config(tmp_path), "--runs", tmp_path / "runs", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and not (tmp_path / "runs").exists()
    assert [c["denoiser_calls"] for c in plan["contestants"]] == [2, 6] and plan["weights_mb"] > 1


@pytest.mark.parametrize("kind", ["pipelines", "rewards", "methods", "configs"])
def test_list_names_what_there_is_without_loading_it(capsys, no_weights, kind):
    code, out, _ = call(capsys, "list", kind, "--json")
    names = [row["name"] for row in json.loads(out)]
    expected = {"pipelines": "starter-image", "rewards": "oracle", "methods": "reno", "configs": "demo"}[kind]
    assert code == 0 and expected in names


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("missing.png", "--reward", "brightness"), "missing.png"),
        ((".", "--reward", "brightness"), "no media files"),
        (("picture.png", "--reward", "brightnes"), "did you mean 'brightness'"),
        (("picture.png", "--reward", "starter_clip"), "--prompt"),
    ],
)
def test_score_answers_bad_input_in_one_sentence(tmp_path, capsys, monkeypatch, arguments, sentence):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    if arguments[0] == "picture.png":
        Image.new("RGB", (8, 8), "white").save("picture.png")
    code, _, err = call(capsys, "score", *arguments)
    assert code == 2 and sentence in err


def test_score_shows_texts_in_brackets_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "white").save("b[final].png")
    code, out, _ = call(capsys, "score", "b[final].png", "--reward", "brightness", "--prompt", "a cat [/b] :cat:")
    assert code == 0 and "b[final].png" in out and "a cat [/b] :cat:" in out


def test_score_goes_on_past_a_corrupt_file_and_says_so(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (8, 8), "white").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    code, out, _ = call(capsys, "score", tmp_path, "--reward", "brightness", "--json")
    bad, good = json.loads(out)
    assert (
        code == 1
        and good["brightness"] == pytest.approx(1.0)
        and bad["brightness"] is None
        and "bad.png" in bad["error"]
    )


def test_help_is_instant_and_teaches_every_command():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "workbench.cli", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "torch" not in done.stderr
    for command in ("demo", "run", "list", "score", "report", "doctor", "starter"):
        assert command in done.stdout
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "--help"])
        assert caught.value.code == 0


@pytest.mark.parametrize("modality", ["image", "music", "video", "edit"])
def test_the_demo_of_each_pack_is_a_run_that_can_be_made_and_a_fast_one_is_small(modality, no_weights):
    from workbench.engine.plan import plan_run

    whole, fast = (
        plan_run(args.read_request(args).config)
        for args in (cli.parse_arguments(["demo", "--modality", modality, *flag]) for flag in ((), ("--fast",)))
    )
    assert len(fast.rows) == 14 < len(whole.rows)
    names = ["base", "best_of_n", {"video": "ditto"}.get(modality, "reno")]
    assert list(whole.methods)[:3] == list(fast.methods)[:3] == names
    assert len(whole.trained_contestants) == len(fast.trained_contestants) == (modality != "edit")


@pytest.mark.parametrize(
    ("arguments", "override"),
    [
        (("run", "demo", "--dry-run", "samples_per_prompt=4"), ["samples_per_prompt=4"]),
        (
            ("run", "demo", "seed=1", "--runs", "x", "samples_per_prompt=4", "--json", "limit=2"),
            ["seed=1", "samples_per_prompt=4", "limit=2"],
        ),
        (("suite", "geneval", "--prompts", "p", "--pipeline", "q", "--out", "o", "batch=8"), ["batch=8"]),
        (("social", "curate", "log.csv", "--out", "p", "window=3"), ["window=3"]),
    ],
)
def test_overrides_may_stand_after_a_flag(arguments, override):
    assert cli.parse_arguments([*arguments]).override == override


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "demo", "--dry-run", "seeds"),
        ("run", "demo", "--dry-rum=yes"),
        ("report", "runs/mine", "--json", "samples_per_prompt=4"),
    ],
)
def test_what_is_no_override_is_still_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments])
    assert caught.value.code == 2 and f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err


def test_a_file_where_a_run_folder_should_be_is_refused_in_one_sentence(tmp_path, capsys):
    path = config(tmp_path)
    for command in ("report", "export"):
        code, _, err = call(capsys, command, path)
        assert code == 2 and str(path) in err and err.count("\n") == 1
    code, _, err = call(capsys, "report", tmp_path / ("x" * 300))
    assert code == 2 and "can't be read" in err and err.count("\n") == 1


def test_a_damaged_index_is_named_before_anything_is_made(tmp_path, capsys, no_weights):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "workbench.db").write_text("not a database at all " * 100)
    for more in ((), ("--dry-run",)):
        code, out, err = call(capsys, "run", config(tmp_path), "--runs", tmp_path / "runs", *more)
        said = err.splitlines()[-1]
        assert code == 2 and "workbench.db is damaged" in said and said.startswith("workbench: ")


def test_brackets_in_what_a_run_says_are_shown_as_they_are(tmp_path, capsys):
    """rich would take them for markup: it eats [what it knows], and breaks on [/what closes nothing]."""
    place = tmp_path / "[bold]runs"
    place.mkdir()
    (place / "report.html").write_text("")
    spent = {"samples": 1, "nfe": 1, "reward_calls": 0, "decodes": 1, "seconds": 1.0, "peak_mb": 1.0, "diversity": None}
    base = {"name": "base", "method": "sample", "rewards": {"oracle": {"mean": 0.5, "ci95": None}}} | spent
    lost = {"name": "fk", "method": "fk", "failed": "ValueError: no [/red] in [bold]"}
    summary = {"run": "r", "modality": "image", "prompts": 1, "seeds": 1, "contestants": [base, lost]}
    assert print_summary(place, summary | {"alarm": "the [/dim] judge fell"}, False) == 1
    out, err = capsys.readouterr()
    assert "the [/dim] judge fell" in out and f"{place}/report.html" in out
    assert "fk failed: ValueError: no [/red] in [bold]." in out
    assert "no [/red] in [bold]" in err and "[bold]runs/failure-fk.txt" in err.replace("\n", "")


def test_a_table_shows_brackets_as_they_are(capsys):
    console.out.print(console.build_table([{"file": "[bold]one[/red].png", "score": 0.5}]))
    assert "[bold]one[/red].png" in capsys.readouterr().out


def test_what_cannot_be_pushed_is_refused_before_anything_is_exported(tmp_path, capsys, no_weights):
    for asked, sentence in (
        (["--push", "a/b/c"], "--push a/b/c"),
        (["--private"], "--push"),
        (["--push", ""], "--push"),
    ):
        code, _, err = call(capsys, "export", tmp_path, *asked)
        assert code == 2 and sentence in err and err.count("\n") == 1 and "run.json" not in err


# What a terminal shows, and what it may do


EVIL = 'a\x1b[31m "red" \x9b2J circle\u202e [bold]'


def test_a_prompt_and_a_file_name_of_others_move_no_terminal(tmp_path, capsys):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("workbench", json.dumps({"prompt": EVIL}))
    path = tmp_path / "a\x1b]0;title\x07 [red].png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    for form in ((), ("--json",), ("--csv",)):
        code, out, err = call(capsys, "score", path, "--reward", "brightness", *form)
        assert code == 0 and not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)
        if "--json" in form:
            (row,) = json.loads(out)
            assert row["prompt"] == EVIL and row["file"] == str(path), "in JSON it is written out, and still the same"
        else:
            assert "[bold]" in out and r"\x1b" in out


def test_an_error_is_one_line_of_a_terminal_whatever_was_typed(capsys):
    for arguments in (
        ("run", "x" * 300_000),
        ("run", "demo\x1b[2J\nworkbench: done", "--dry-run"),
        ("run", "demo", "seed=" + "9" * 5000, "--dry-run"),
        ("run", "demo", "watch.\ud800=1", "--dry-run"),
        ("report", "\x1b" * 400),
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2 and err.startswith("workbench: ") and err.count("\n") == 1 and len(err) <= 312
        assert "\x1b" not in err and "\ud800" not in err
    with pytest.raises(SystemExit):
        cli.main(["list", "--" + "x" * 5000])
    assert len(capsys.readouterr().err.splitlines()[-1]) < 400


def test_a_terminal_that_knows_ascii_only_ends_no_work(tmp_path, monkeypatch):
    import io

    Image.new("RGB", (8, 8)).save(path := tmp_path / "rot \U0001f534 丸.png")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["score", str(path), "--reward", "brightness", "--prompt", "grün"]) == 0
    assert cli.main(["list", "methods"]) == 0
    stream.flush()
    assert rb"gr\xfcn" in stream.buffer.getvalue() and rb"\U0001f534" in stream.buffer.getvalue().replace(b"\n", b"")


def test_output_that_nobody_reads_any_more_is_no_traceback(monkeypatch, capfd):
    import os

    for arguments in (["list", "methods", "--json"], ["list", "methods"]):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            assert cli.main(arguments) == 141
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interruption_while_modules_are_imported_is_one_line(tmp_path):
    import os
    import signal

    (tmp_path / "transformers.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(30)\n")
    (tmp_path / "torch.py").write_text((tmp_path / "transformers.py").read_text())
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "score", "x.png", "--reward", "brightness"],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.splitlines() == ["workbench: stopped; the same command goes on from here"]
