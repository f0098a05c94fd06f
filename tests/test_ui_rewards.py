"""The tab of rewards: every reward that applies judges what was handed in, maps show where one looks, and hostile
files, names and texts are refused in one sentence each or neutralised."""

from __future__ import annotations

import io
import json
import pickle
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from gradio_client import handle_file
from PIL import Image
from ui_fixtures import launch_tab

from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Media, RewardSpec
from workbench.ui import limits, reward_choices, uploads
from workbench.ui.context import AppContext
from workbench.ui.lora_uploads import inspect_lora
from workbench.ui.tabs import rewards
from workbench.ui.widgets import reward_scores, reward_tables, saliency

EVIL = "<script>alert(1)</script>{{evil}}${evil}"
SPACE = limits.EMBEDDING_MODELS[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards-page")
    return launch_tab(rewards.build_tab, folder / "runs", folder / "temp")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A red square on black, which says what it was made for."""
    x = torch.zeros(1, 3, 64, 64)
    x[:, 0, 20:44, 20:44] = 1
    return media.write_media(
        Media(x, "image"), tmp_path_factory.mktemp("pictures") / "red", meta={"prompt": "a red square"}
    )


def ask(client, files, prompt="", examples=(), api_name="/score"):
    return client.predict(
        [handle_file(f) for f in files], prompt, [handle_file(f) for f in examples], SPACE, api_name=api_name
    )


# --- judging ---------------------------------------------------------------------------------------------------------


def test_every_reward_that_applies_judges_a_picture_by_its_own_prompt_and_the_others_say_why_not(page, picture):
    table, tiles = ask(page[0], [picture])
    scored, refused = table.split("<details")
    for name in ("brightness", "compressibility", "starter_clip", "oracle", "hidden_taste"):
        assert f">{name}<small>" in scored
    assert "Apache-2.0" in scored and "a red square" in tiles and "64 x 64" in tiles
    assert "its weights are not on this machine: yuvalkirstain/PickScore_v1" in refused
    assert "give some below" in refused and "asks a server" in refused
    direct = float(
        reward_choices.configure_reward(reward_choices.all_rewards()["brightness"], {}, "")(
            media=media.read_media(picture), prompts=[""]
        )[0]
    )
    assert f"<td>{direct:.3f}</td>" in scored, "the same number as the reward itself gives"


def test_examples_bring_the_rewards_of_sets_in_and_leave_no_path_behind(page, picture, tmp_path):
    others = []
    for n in range(3):
        torch.manual_seed(n)
        others.append(media.write_media(Media(torch.rand(1, 3, 64, 64), "image"), tmp_path / f"noise{n}"))
    table, _ = ask(page[0], [picture, others[0]], "a red square", [picture, *others])
    scored = table.split("<details")[0]
    assert all(f">{name}<small>" in scored for name in ("exemplar", "frechet", "kad")) and "all together" in scored
    assert str(page[1].temp) not in table


def test_a_source_lets_rewards_of_edits_judge_and_without_one_they_say_what_they_need(page, picture, tmp_path):
    refused = ask(page[0], [picture])[0].split("<details")[1]
    assert "compares a file with the source and the mask that it was made from: give it under" in refused
    source = media.write_media(Media(torch.full((1, 3, 80, 64), 0.5), "image"), tmp_path / "grey")
    mask = media.write_media(Media(torch.zeros(1, 3, 80, 64), "image"), tmp_path / "mask")
    given = [handle_file(source), handle_file(mask), None]
    table, tiles = page[0].predict([handle_file(picture)], "", [], SPACE, *given, api_name="/score")
    scored = table.split("<details")[0]
    x = media.read_media(picture).data
    assert (
        ">unchanged<small>" in scored and f"<td>{-(x - 128 / 255).square().mean():.3f}</td>".replace("-", "−") in scored
    )
    assert ">background<small>" in scored and "Source: grey.png" in tiles and "Mask: mask.png" in tiles
    sound = media.write_media(Media(torch.rand(1, 1, 800) - 0.5, "audio", 8000.0), tmp_path / "sound")
    table, _ = page[0].predict([handle_file(picture)], "", [], SPACE, handle_file(sound), None, None, api_name="/score")
    assert "unchanged compares image with what it was made from, and got audio" in table.split("<details")[1]
    table, _ = page[0].predict([handle_file(picture)], "", [], SPACE, None, None, handle_file(sound), api_name="/score")
    assert 'role="alert"' in table and "sound.wav: is a sound, and the first frame is a picture" in table


def test_a_prompt_is_text_and_has_an_end(page, picture):
    table, tiles = ask(page[0], [picture], EVIL)
    assert "<script" not in table + tiles and "{{evil" not in tiles and "&lt;script&gt;alert(1)" in tiles
    refused, _ = ask(page[0], [picture], "x" * 10_000)
    assert "wb-bad" in refused and "10,000 letters" in refused


def test_a_range_is_drawn_with_what_lies_in_it_and_beyond_it():
    inside, above = reward_tables.draw_range((0.0, 1.0), [0.25]), reward_tables.draw_range((0.0, 1.0), [7.0])
    assert 'aria-label="within"' in inside and "<circle" in inside
    assert 'aria-label="above"' in above and "<path" in above and "<circle" not in above
    assert "not known" in reward_tables.draw_range(None, [1.0])


# --- maps ------------------------------------------------------------------------------------------------------------


class Corner:
    """Looks at the upper left quarter of pictures, and at the second quarter of sounds."""

    spec = RewardSpec("corner", "1", frozenset({"image", "video", "audio"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        x = media.data
        if media.modality == "audio":
            part = x[..., x.shape[-1] // 4 : x.shape[-1] // 2]
        else:
            part = x[..., : x.shape[-2] // 2, : x.shape[-1] // 2]
        return part.square().flatten(1).mean(1)


class Flat(Corner):
    spec = RewardSpec("flat", "1", frozenset({"image"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        return (media.data * 0).flatten(1).sum(1)


@pytest.mark.parametrize(
    ("shape", "modality", "rate"),
    [((1, 3, 16, 16), "image", 0), ((1, 5, 3, 16, 16), "video", 8), ((1, 2, 1600), "audio", 800)],
)
def test_a_map_glows_where_the_reward_looks_and_nowhere_else(shape, modality, rate):
    torch.manual_seed(0)
    *_, (draws, saliency_map) = saliency.smooth_gradient(Corner(), Media(torch.rand(shape), modality, rate), "")
    heat = saliency_map.heat
    corner = heat[400:800] if modality == "audio" else heat[..., :8, :8]
    assert draws == saliency.DRAWS and corner.mean() > 0.1 and torch.isclose(heat.sum(), corner.sum())
    assert (
        "<svg" in saliency.draw_map(saliency_map, "corner", draws)
        if modality == "audio"
        else "<img" in saliency.draw_map(saliency_map, "corner", draws)
    )


def test_a_map_needs_a_gradient_that_is_one():
    image = Media(torch.rand(1, 3, 8, 8), "image")
    with pytest.raises(BadInput, match="zero or not finite"):
        next(saliency.smooth_gradient(Flat(), image, ""))
    with pytest.raises(BadInput, match="has no gradient"):
        next(
            saliency.smooth_gradient(
                reward_choices.configure_reward(reward_choices.all_rewards()["saturated_pixels"], {}, ""), image, ""
            )
        )


def test_a_map_over_http_sharpens_and_its_bad_input_is_one_sentence(page, picture):
    client, files = page[0], [handle_file(picture)]
    job = client.submit(files, 1, "a red square", "starter_clip", api_name="/saliency")
    assert "where it looks" in job.result(timeout=60) and len(job.outputs()) > 2
    for number, reward, sentence in [
        (9, "starter_clip", "counted from 1"), (-1, "starter_clip", "counted from 1"),
        (1, "os:system", "listed rewards"), (1, "compressibility", "listed rewards"),
    ]:  # fmt: skip
        html = client.predict(files, number, "", reward, api_name="/saliency")
        assert "wb-bad" in html and sentence in html


# --- hostile files ---------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (Path("/tmp/this-must-never-exist").touch, ())


def header(width, height, frames=0):
    """A PNG whose header is all there is to it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    moving = chunk(b"acTL", struct.pack(">II", frames, 0)) if frames else b""
    return start + moving + chunk(b"IDAT", zlib.compress(b"\0" * 2000)) + chunk(b"IEND", b"")


def deep():
    out = io.BytesIO()
    from PIL.PngImagePlugin import PngInfo

    story = PngInfo()
    story.add_itxt("workbench", "[" * 50_000)
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=story)
    return out.getvalue()


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("data.pkl", pickle.dumps(Bomb()))
    return out.getvalue()


HOSTILE = {
    "pickle.png": (pickle.dumps(Bomb()), "pickle or an archive"),
    "torch.wav": (zipped(), "pickle or an archive"),
    "empty.png": (b"", "empty"),
    "page.png": (b"<html><script>alert(1)</script>", "no picture, clip or sound"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "no picture, clip or sound"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (w) file\n", "no picture, clip or sound"),
    "bomb.png": (header(60_000, 60_000), "megapixels"),
    "large.png": (header(8_000, 8_000), "64 megapixels"),
    "frames.png": (header(4000, 4000, frames=2**31 - 1), "megapixels"),
    "torn.jpg": (b"\xff\xd8\xff\xe0" + b"\0" * 40, "can't be read"),
    "torn.wav": (b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\xff\xff\0\0\0\0", "can't be read"),
    "torn.mp4": (b"\0\0\0\x18ftypisom" + b"\0" * 40, "can't be read"),
    "deep.png": (deep(), "broken"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_sentence_under_its_own_name(tmp_path, name):
    content, sentence = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    folder = tmp_path / "home"
    with pytest.raises(BadInput, match=sentence) as raised:
        uploads.read_upload(uploads.accept_upload(tmp_path / name, folder))
    assert (
        str(raised.value).startswith(f"{name}: ")
        and "\n" not in str(raised.value)
        and str(folder) not in str(raised.value)
    )
    assert not Path("/tmp/this-must-never-exist").exists()


def test_a_file_that_is_too_large_is_refused_before_it_is_copied(tmp_path):
    with open(tmp_path / "large.png", "wb") as f:
        f.write(header(8, 8))
        f.truncate(uploads.MAX_BYTES["image"] + 1)
    with pytest.raises(BadInput, match="MB; the page takes image files of up to 32 MB"):
        uploads.accept_upload(tmp_path / "large.png", tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_sound_that_decodes_into_too_much_is_counted_and_not_kept(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "long.flac"), "w") as file:
        stream = file.add_stream("flac", rate=48_000, layout="mono")
        for _ in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), layout="mono")
            frame.rate = 48_000
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert (tmp_path / "long.flac").stat().st_size < 50_000, "small as a file"
    monkeypatch.setattr(uploads, "MAX_SOUND_VALUES", 1_000_000)
    with pytest.raises(BadInput, match="million values when it is decoded"):
        uploads.accept_upload(tmp_path / "long.flac", tmp_path / "home")


def test_what_a_file_is_its_content_says_and_never_its_name(tmp_path):
    sound = media.write_media(Media(torch.zeros(1, 1, 800) + 0.1, "audio", 800.0), tmp_path / "tone")
    (tmp_path / "picture.png").write_bytes(sound.read_bytes())
    upload = uploads.accept_upload(tmp_path / "picture.png", tmp_path / "home")
    assert upload.modality == "audio" and "WAV" in upload.note and uploads.read_upload(upload).media.modality == "audio"


def test_no_name_of_a_user_becomes_a_path_or_html(page, picture, tmp_path):
    evil = tmp_path / f"..%2f..%2f{EVIL.replace('/', '')}.png"
    evil.write_bytes(picture.read_bytes())
    upload = uploads.accept_upload(evil, tmp_path / "home")
    assert upload.path.parent.parent == tmp_path / "home" and upload.path.name == "file.png"
    tiles = reward_scores.draw_thumbnails([upload], [uploads.read_upload(upload)], [""])
    assert "<script" not in tiles and "{{" not in tiles


def test_a_file_that_was_never_uploaded_is_not_read(page):
    """The request that a hostile program would send: a path of the server in place of an upload."""
    for path in ("/etc/passwd", str(page[1].runs / "workbench.db"), "../../etc/passwd", "file:///etc/passwd"):
        ask = {"data": [[{"path": path, "meta": {"_type": "gradio.FileData"}}], "", None, SPACE]}
        event = httpx.post(f"{page[0].src}gradio_api/call/score", json=ask).json()["event_id"]
        raised = httpx.get(f"{page[0].src}gradio_api/call/score/{event}", timeout=30).text
        assert "event: error" in raised and "root:" not in raised


def test_hostile_files_over_http_are_answered_by_the_same_sentences(page, picture, tmp_path):
    (tmp_path / "pickle.png").write_bytes(HOSTILE["pickle.png"][0])
    html, _ = ask(page[0], [picture, tmp_path / "pickle.png"])
    assert "wb-bad" in html and "pickle or an archive" in html and "<table" not in html
    html, _ = ask(page[0], [picture] * 9)
    assert "at most 8 at once" in html
    sound = media.write_media(Media(torch.zeros(1, 1, 800) + 0.1, "audio", 800.0), tmp_path / "tone")
    html, _ = ask(page[0], [picture], "", [sound])
    assert "examples are pictures" in html


# --- LoRA ------------------------------------------------------------------------------------------------------------


def factors(rank=4, layer="unet.mid_block.attentions.0.to_q", down="lora_A", up="lora_B"):
    return {f"{layer}.{down}.weight": torch.zeros(rank, 8), f"{layer}.{up}.weight": torch.zeros(8, rank)}


@pytest.mark.parametrize(
    "state",
    [factors(), factors(layer="base_model.model.transformer.blocks.0.attn.to_k"),
     factors(layer="lora_unet_down_blocks_0", down="lora_down", up="lora_up")
     | {"lora_unet_down_blocks_0.alpha": torch.tensor(4.0)}],
)  # fmt: skip
def test_a_lora_is_taken(tmp_path, state):
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    upload = inspect_lora(tmp_path / "a.safetensors")
    assert ([pair.rank for pair in upload.pairs.values()], upload.parameters) == ([4], 64)


def tensors(state):
    return safetensors.torch.save(state)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps(Bomb()), "pickle or an archive"),
        (zipped(), "pickle or an archive"),
        (b"", "empty"),
        (b"not a header at all", "no safetensors"),
        (struct.pack("<Q", 2**62) + b"{" * 40, "no safetensors"),
        (struct.pack("<Q", 40) + b"{" * 40, "broken or cut short"),
        (tensors(factors())[:-8], "broken or cut short"),
        (tensors({"unet.conv_in.weight": torch.zeros(4, 4)}), "belongs to no LoRA"),
        (tensors({"a.lora_A.weight": torch.zeros(4, 8)}), "only one of its two matrices"),
        (
            tensors(factors(rank=2) | {"unet.mid_block.attentions.0.to_q.lora_B.weight": torch.zeros(8, 3)}),
            "ranks differ",
        ),
        (tensors(factors(rank=5000)), "no LoRA of rank"),
        (tensors({"a.lora_A.weight": torch.zeros(4, 8, dtype=torch.int64)}), "floating point"),
        (tensors({"a.alpha": torch.tensor(1.0)}), "no LoRA in it"),
    ],
)
def test_what_is_no_lora_is_refused_without_being_loaded(tmp_path, content, sentence):
    (tmp_path / "style.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=sentence) as raised:
        inspect_lora(tmp_path / "style.safetensors")
    assert str(raised.value).startswith("style.safetensors: ") and not Path("/tmp/this-must-never-exist").exists()


# --- interaction logs ------------------------------------------------------------------------------------------------


def log_of(prompts=6, users=40):
    """Of each prompt's two pictures nearly everybody likes the first and nobody the second."""
    rows = ["item,prompt,path,user,event,time"]
    for p in range(prompts):
        for item in range(2):
            for user in range(users):
                at = 86_400 * p + 60 * user + item
                rows.append(
                    f"i{p}-{item},prompt {p} {EVIL if p == 0 else ''},../../../etc/p{p}-{item}.png,u{user},view,{at}"
                )
                if item == 0 and (user + p) % 5:
                    rows.append(
                        f"i{p}-{item},prompt {p} {EVIL if p == 0 else ''},../../../etc/p{p}-{item}.png,"
                        f"u{user},like,{at + 5}"
                    )
    return "\n".join(rows) + "\n"


def test_a_log_becomes_pairs_with_a_card_that_shows_texts_as_texts(page, tmp_path):
    (tmp_path / "log.csv").write_text(log_of())
    card, files = page[0].predict(handle_file(tmp_path / "log.csv"), 0.5, 3, 0.8, api_name="/curate")
    names = {Path(f).name: Path(f) for f in files}
    assert (
        "6 prompts" in card
        and "<script" not in card
        and set(names) == {"card.md", *(f"{s}.jsonl" for s in ("train", "val", "test"))}
    )
    pairs = [
        json.loads(line) for s in ("train", "val", "test") for line in names[f"{s}.jsonl"].read_text().splitlines()
    ]
    assert pairs and all(p["pos_item"].endswith("-0") and p["neg_item"].endswith("-1") for p in pairs)
    assert all(p["pos_path"].startswith("../../../etc/") for p in pairs), (
        "a path is passed on as it was, and never read"
    )
    assert str(page[1].temp) not in names["card.md"].read_text()


@pytest.mark.parametrize(
    ("content", "window", "confidence", "sentence"),
    [(b"item,prompt\n1,2\n", 14, 0.9, "column 'path' is missing"), (b"\0\1\2", 14, 0.9, "is no text"),
     (b"\xff\xfe\xfd", 14, 0.9, "is no text"), (pickle.dumps(Bomb()), 14, 0.9, "is no text"), (b"", 14, 0.9, "empty"),
     (b'{"item": 1', 14, 0.9, "not a readable .jsonl"),
     (b"item\n", -1, 0.9, "at least 0"), (b"item\n", 14, 7, "a probability"), (b"item\n", float("nan"), 0.9, "number")],
)  # fmt: skip
def test_a_log_or_a_setting_that_is_none_is_one_sentence(tmp_path, content, window, confidence, sentence):
    (tmp_path / "log.csv").write_bytes(content)
    context = AppContext(tmp_path, tmp_path / "home", _ImmediateQueue())
    with pytest.raises(BadInput, match=sentence) as raised:
        list(reward_scores.curate_log(context, str(tmp_path / "log.csv"), window, 3, confidence))
    assert "\n" not in str(raised.value) and str(context.temp) not in str(raised.value)


class _ImmediateQueue:
    """A job queue that works at once, in the caller's thread."""

    def submit(self, title, work):
        self.watch = lambda: work(threading.Event())
        return self
