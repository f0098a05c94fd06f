"""Prompts that come with pictures, masks, clips or sounds: read from files, folders and Python, and checked at once."""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from input_fixtures import write_edits, write_picture
from PIL import Image

from workbench.core.errors import BadInput
from workbench.core.inputs import FileInput, MediaInput, prompt_inputs
from workbench.core.io.budget import Budget
from workbench.core.io.media import file_digest, write_media
from workbench.core.types import Batch, Event, Media, Prompt
from workbench.engine.python_calls import read_prompts as read_python_prompts
from workbench.runs import prompt_inputs as checks
from workbench.runs.controls import InputExchange, OwnInputsReward, check_exchanged, check_shuffled, shuffle_prompts
from workbench.runs.prompts import read_prompt_table
from workbench.runs.train_config import TrainConfig, split_prompts

SOURCE = {"source": "image"}


def take(source, wanted=SOURCE):
    source = str(source) if isinstance(source, Path) else source
    return checks.take_prompts(read_prompt_table(source), wanted)


def digests(prompts) -> list[tuple[str, dict[str, str]]]:
    return [(str(p), {name: value.digest for name, value in prompt_inputs(p).items()}) for p in prompts]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures, and a mask of the first one's size."""
    for n in range(2):
        write_picture(tmp_path / "in" / f"{n}.png", n)
    write_picture(tmp_path / "in" / "mask.png", 9, mode="L")
    return tmp_path


def test_every_kind_of_file_with_columns_gives_the_same_prompts_with_the_same_inputs(folder):
    rows = [
        {"prompt": "make it red", "source": "in/0.png", "mask": "in/mask.png"},
        {"prompt": "make it red", "source": "in/1.png", "mask": None},
        {"prompt": "", "source": "in/1.png", "mask": None},
    ]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "p.json").write_text(json.dumps({"prompts": rows}))
    for name, delimiter in (("p.csv", ","), ("p.tsv", "\t")):
        with (folder / name).open("w", newline="") as f:
            writer = csv.DictWriter(f, rows[0], delimiter=delimiter)
            writer.writeheader(), writer.writerows(rows)
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet")
    picture = [file_digest(folder / "in" / f"{n}.png") for n in range(2)]
    expected = [
        ("make it red", {"mask": file_digest(folder / "in" / "mask.png"), "source": picture[0]}),
        ("make it red", {"source": picture[1]}),
        ("", {"source": picture[1]}),
    ]
    for name in ("p.jsonl", "p.json", "p.csv", "p.tsv", "p.parquet"):
        listed = take(folder / name, {"source": "image", "mask": "image"})
        assert digests(listed.prompts) == expected and listed.unused == "", name
        assert len({*listed.prompts}) == 3


def test_columns_that_nobody_takes_are_not_opened_and_are_said(folder):
    (folder / "p.csv").write_text("prompt,source\nred,coco\nred,laion\nblue,coco\n")
    listed = take(folder / "p.csv", {})
    assert listed.prompts == ("red", "blue") and type(listed.prompts[0]) is str
    assert listed.unused == "columns not used: source"


def test_files_without_a_prompt_column_are_prompts_of_no_words_and_equal_files_are_one(folder):
    (folder / "copy.png").write_bytes((folder / "in" / "0.png").read_bytes())
    (folder / "p.csv").write_text("source\nin/0.png\nin/1.png\nin/0.png\ncopy.png\n")
    listed = take(folder / "p.csv")
    assert [text for text, _ in digests(listed.prompts)] == ["", ""] and listed.unused == "2 repeated left out"
    with pytest.raises(BadInput, match=r"p.csv has no prompt in it"):
        take(folder / "p.csv", {})


def test_a_folder_of_media_has_its_metadata_or_one_prompt_for_all(folder):
    listed = take({"folder": str(folder / "in"), "prompt": "make it red"})
    assert {text for text, _ in digests(listed.prompts)} == {"make it red"} and len(listed.prompts) == 3
    assert "file_name is a source" in listed.unused
    assert [text for text, _ in digests(take({"folder": str(folder / "in")}).prompts)] == [""] * 3
    with pytest.raises(BadInput, match="is a folder without metadata.jsonl or metadata.csv; .* prompt: one for all"):
        take(folder / "in")
    rows = [{"file_name": f"{n}.png", "text": f"prompt {n}"} for n in range(2)]
    (folder / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (folder / "in", {"folder": str(folder / "in")}):
        assert digests(take(source).prompts) == [
            (f"prompt {n}", {"source": file_digest(folder / "in" / f"{n}.png")}) for n in range(2)
        ]
    assert list(prompt_inputs(take(folder / "in", {"first": "image"}).prompts[0])) == ["first"]
    for block, sentence in (
        ({"folder": str(folder / "in"), "prompt": "x"}, "says the prompts; leave `prompt` out"),
        ({"folder": "nowhere"}, "folder: 'nowhere' is no folder"),
        ({"folder": str(folder), "promt": "x"}, "did you mean 'prompt'"),
        ({"folder": str(folder), "prompt": 5}, "got 5; put quotes around it"),
    ):
        with pytest.raises(BadInput, match=sentence):
            take(block)


def damaged(folder: Path) -> dict[str, str]:
    """Name of a file in the folder -> what is said of it."""
    picture = (folder / "in" / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(picture[: len(picture) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"no picture at all, whatever its name says")
    write_picture(folder / "large.png", 3, (30, 30))
    write_media(Media(torch.zeros(1, 1, 800), "audio", 8000.0), folder / "sound.wav")
    sentences = {
        "cut.png": "can't be read as a picture",
        "empty.png": "the file is empty",
        "text.png": "can't be read as a picture|no picture, clip or sound",
        "large.png": "30 x 30 are .* megapixels, and a picture may have",
        "sound.wav": "source: sound.wav is a sound, and a picture is needed",
        "nowhere.png": "no such file",
    }
    if os.geteuid():
        (folder / "locked.png").write_bytes(picture)
        (folder / "locked.png").chmod(0)
        sentences["locked.png"] = "Permission denied"
    return sentences


def test_what_can_not_be_an_input_is_one_sentence_with_file_and_line(folder, monkeypatch):
    monkeypatch.setattr(checks, "Budget", lambda: Budget(picture_pixels=600))
    for name, sentence in damaged(folder).items():
        (folder / "p.csv").write_text(f"prompt,source\na,in/0.png\nb,{name}\n")
        with pytest.raises(BadInput, match=f"^prompts: .*p.csv, line 3: .*({sentence})") as caught:
            take(folder / "p.csv")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (folder / "p.jsonl").write_text('{"prompt": "a", "source": 5}\n')
    with pytest.raises(BadInput, match="line 1: source: expected a path, .* got 5"):
        take(folder / "p.jsonl")


def test_of_a_long_list_only_the_first_pictures_are_decoded(folder, monkeypatch):
    monkeypatch.setattr(checks, "READ_AHEAD", 1)
    picture = (folder / "in" / "1.png").read_bytes()
    (folder / "in" / "1.png").write_bytes(picture[:-40] + b"\0" * 40)
    rows = [f"in/{n}.png" for n in range(2)]
    (folder / "p.csv").write_text("source\n" + "\n".join(rows) + "\n")
    assert len(take(folder / "p.csv").prompts) == 2
    (folder / "p.csv").write_text("source\n" + "\n".join(rows[::-1]) + "\n")
    with pytest.raises(BadInput, match="line 2: .*1.png: can't be read as a picture"):
        take(folder / "p.csv")


def test_a_mask_has_the_size_of_what_it_covers_as_both_are_shown(folder):
    write_picture(folder / "small.png", 1, (10, 10), "L")
    upright = Image.open(folder / "in" / "0.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned
    upright.save(folder / "turned.jpg", exif=exif)
    wanted = {"source": "image", "mask": "image"}
    (folder / "p.csv").write_text("prompt,source,mask\na,in/0.png,in/mask.png\nb,turned.jpg,in/mask.png\n")
    assert len(take(folder / "p.csv", wanted).prompts) == 2
    (folder / "p.csv").write_text("prompt,source,mask\na,in/0.png,in/mask.png\nb,in/0.png,small.png\n")
    with pytest.raises(BadInput, match="line 3: the mask is 10 x 10 and the picture that it covers 24 x 20"):
        take(folder / "p.csv", wanted)


def test_a_path_that_leaves_the_folder_is_read_and_said(folder, tmp_path_factory):
    other = write_picture(tmp_path_factory.mktemp("other") / "x.png", 5)
    (folder / "p.csv").write_text(f"prompt,source\na,{other}\nb,in/0.png\n")
    listed = take(folder / "p.csv")
    assert len(listed.prompts) == 2 and f"1 file lies outside of {folder}, such as {other}" in listed.unused


def test_prompts_from_python_come_with_paths_pictures_and_media(folder):
    picture = Image.open(folder / "in" / "0.png")
    sound = Media(torch.linspace(-1, 1, 800)[None, None], "audio", 8000.0)
    given = [
        "plain",
        {"prompt": "a", "source": folder / "in" / "0.png"},
        {"prompt": "a", "source": str(folder / "in" / "1.png")},
        {"prompt": "b", "source": picture},
        {"prompt": "b", "audio": sound},
        Prompt("c", {"source": FileInput.at(folder / "in" / "0.png")}),
        Prompt("c", {"source": FileInput.at(folder / "in" / "0.png")}),
    ]
    listed = read_python_prompts(given)
    assert [str(p) for p in listed] == ["plain", "a", "a", "b", "b", "c"] and len({*listed}) == 6
    assert torch.equal(prompt_inputs(listed[4])["audio"].read().data, sound.data)
    blocks = read_python_prompts(given, folder / "runs")
    assert json.loads(json.dumps(blocks)) == blocks and blocks[0] == "plain"
    again = checks.take_prompts(read_prompt_table(blocks), {"source": "image", "audio": "audio"}).prompts
    assert again == tuple(listed)  # from files alone: media from memory were written beside the runs
    for wrong, sentence in (
        ([{"prompt": "a", "sourse": "x.png"}], "unknown key 'sourse'; did you mean 'source'"),
        ([{"prompt": "a", "source": Media(torch.full((1, 3, 4, 4), torch.nan), "image")}], "aren't finite"),
        ([{"prompt": "a", "source": Media(torch.zeros(2, 3, 4, 4), "image")}], "expected one row"),
        ([{"prompt": "a", "source": [1]}], r"expected a path, a PIL picture or a Media of one row, got \[1\]"),
        ({"prompt": "a", "source": "x.png"}, "goes into a list"),
    ):
        with pytest.raises(BadInput, match=sentence):
            read_python_prompts(wrong)


def test_a_prompt_with_an_input_that_nobody_takes_is_refused():
    prompt = Prompt("a", {"mask": MediaInput.of(Media(torch.zeros(1, 3, 4, 4), "image"))})
    with pytest.raises(BadInput, match="'a' comes with a mask, and no pipeline or reward of this run takes one"):
        take([prompt])


# --- what is held out, and controls


def made_prompts(seed: int, count: int) -> list[str]:
    """Prompts on a few sources, a third of them plain texts."""
    rng = random.Random(seed)
    sources = [FileInput(f"{n}.png", f"{n:064x}") for n in range(count // 3)]
    drawn = {}
    while len(drawn) < count:
        text = f"instruction {rng.randrange(count)}"
        drawn[Prompt(text, {"source": rng.choice(sources)}) if rng.random() < 0.67 else text] = None
    return list(drawn)


def test_no_source_is_trained_on_and_judged_with_another_instruction():
    for seed in range(20):
        prompts = made_prompts(seed, 60)
        train, held_out, is_apart = split_prompts(prompts, TrainConfig(eval_prompts=6), seed)
        assert is_apart and len(held_out) == 6 and len(train) >= 12
        assert {*map(checks.prompt_source, train)}.isdisjoint(map(checks.prompt_source, held_out))
        assert {*train, *held_out} <= {*prompts}


def test_prompts_of_few_sources_are_not_set_apart_and_plain_ones_are_split_as_they_always_were():
    source = FileInput("a.png", "a" * 64)
    prompts = [Prompt(f"edit {n}", {"source": source}) for n in range(30)]
    train, held_out, is_apart = split_prompts(prompts, TrainConfig(eval_prompts=4), 0)
    assert not is_apart and train == prompts and len(held_out) == 4
    plain = [f"prompt {n}" for n in range(30)]
    train, held_out, is_apart = split_prompts(plain, TrainConfig(eval_prompts=4), 7)
    assert is_apart and held_out == ["prompt 8", "prompt 12", "prompt 18", "prompt 27"] and len(train) == 26


def test_a_shuffled_control_gives_each_sample_other_words_and_another_source():
    for seed in range(20):
        prompts = made_prompts(seed, 24)
        for prompt, other in shuffle_prompts(prompts, seed).items():
            assert str(other) != str(prompt) and checks.prompt_source(other) != checks.prompt_source(prompt)
    a, b = (FileInput(f"{x}.png", x * 64) for x in "ab")
    crossed = shuffle_prompts([Prompt("x", {"source": a}), Prompt("y", {"source": a}), Prompt("x", {"source": b})], 0)
    assert crossed[Prompt("x", {"source": a})] == Prompt("y", {"source": b})
    assert shuffle_prompts(["p0", "p1", "p2"], 3) == {"p2": "p1", "p1": "p0", "p0": "p2"}


def test_a_shuffled_control_of_one_source_or_one_instruction_is_refused_where_the_reward_reads_it():
    from rewards import build_reward

    a, b = (FileInput(f"{x}.png", x * 64) for x in "ab")
    one_source, one_text = [
        [Prompt("x", {"source": a}), Prompt(*last)] for last in (("y", {"source": a}), ("x", {"source": b}))
    ]
    unchanged, oracle = build_reward("unchanged"), build_reward("starter_clip")
    check_shuffled(unchanged, one_text), check_shuffled(oracle, one_source)
    with pytest.raises(BadInput, match="at least two different sources"):
        check_shuffled(unchanged, one_source)
    with pytest.raises(BadInput, match="at least two different prompts"):
        check_shuffled(oracle, one_text)


class Asked:
    """A reward that notes what it is asked about."""

    spec = None

    def __init__(self, prompts: list):
        self.prompts = prompts

    def __call__(self, *, media, prompts, references=None):
        self.prompts += prompts


def test_exchanged_inputs_are_anothers_for_the_pipeline_and_the_prompts_own_for_the_reward():
    for seed in range(20):
        prompts = tuple(p for p in made_prompts(seed, 24) if prompt_inputs(p))
        exchange = InputExchange.between(prompts, seed)
        made = exchange.exchange(Batch(prompts, tuple(range(len(prompts))))).prompts
        assert [*map(str, made)] == [*map(str, prompts)]
        assert all(checks.prompt_source(p) != checks.prompt_source(q) for p, q in zip(prompts, made, strict=True))
        assert {*map(checks.prompt_source, made)} == {*map(checks.prompt_source, prompts)}
        assert exchange.restore(Event(0, prompts=made)).prompts == prompts
        asked = []
        OwnInputsReward(Asked(asked), exchange=exchange)(
            media=None, prompts=[p.reworded(f"{p}, well lit") for p in made]
        )
        assert asked == [p.reworded(f"{p}, well lit") for p in prompts]
    check_exchanged(prompts)
    with pytest.raises(BadInput, match="at least two different inputs"):
        check_exchanged(prompts[:1])


def test_a_prompt_with_its_inputs_survives_a_process(folder):
    prompts = take(write_edits(folder)).prompts
    assert pickle.loads(pickle.dumps(prompts)) == prompts
    assert [*map(prompt_inputs, pickle.loads(pickle.dumps(prompts)))] == [*map(prompt_inputs, prompts)]
