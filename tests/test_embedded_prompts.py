"""Prompts that other programs wrote into their media are read as those programs wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from workbench.core.errors import BadInput
from workbench.core.io.embedded_prompts import EmbeddedPrompt, read_embedded_prompt

PARAMETERS = (
    "a red fox, (forest:1.2)\nat dusk\nNegative prompt: blurry,\nlow quality\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 512x512, Model: x"
)
FOX = EmbeddedPrompt("a red fox, (forest:1.2)\nat dusk", "AUTOMATIC1111", "blurry,\nlow quality", 123)


def write_png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("_dash_", "-"), text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def write_exif(path: Path, comment: bytes | None = None, **tags: str) -> Path:
    exif = Image.Exif()
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    for name, text in tags.items():
        exif[{"make": 0x010F, "model": 0x0110}[name]] = text
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


def write_clip(path: Path, **tags: str) -> Path:
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as out:
        out.metadata.update(tags)
        stream = out.add_stream("libvpx-vp9" if path.suffix == ".webm" else "mpeg4", rate=8)
        stream.width = stream.height = 16
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        out.mux(stream.encode())
    return path


def write_sound(path: Path, **tags: str) -> Path:
    with av.open(str(path), "w") as out:
        out.metadata.update(tags)
        stream = out.add_stream("flac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def comfy_graph(prompt: str = "a red fox", negative: str = "blurry") -> dict:
    """A graph as it ran: the text passes a ControlNet, which has a positive and a negative side, on its way."""
    return {
        "3": {"class_type": "KSampler", "inputs": {"seed": 7, "positive": ["8", 0], "negative": ["8", 1]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0], "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": negative, "clip": ["4", 1]}},
        "8": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
        "9": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": prompt}},
    }  # fmt: skip


def comfy_workflow(prompt: str = "a red fox") -> dict:
    """The same as it is drawn, with a muted sampler of another text."""
    return {
        "nodes": [
            {"id": 3, "type": "KSampler", "widgets_values": [7, "randomize", 20, 8.0, "euler"],
             "inputs": [{"name": "positive", "link": 1}, {"name": "negative", "link": 2}]},
            {"id": 6, "type": "CLIPTextEncode", "widgets_values": [prompt], "inputs": [{"name": "clip", "link": None}]},
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["blurry"], "inputs": []},
            {"id": 5, "type": "KSampler", "mode": 4, "inputs": [{"name": "positive", "link": 3}]},
            {"id": 9, "type": "CLIPTextEncode", "widgets_values": ["never asked"], "inputs": []},
        ],
        "links": [[1, 6, 0, 3, 1, "CONDITIONING"], [2, 7, 0, 3, 2, "CONDITIONING"], [3, 9, 0, 5, 1, "CONDITIONING"]],
    }  # fmt: skip


def flux_graph() -> dict:
    """FLUX: a guider between sampler and text, one text for both encoders."""
    return {
        "1": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["2", 0], "noise": ["5", 0]}},
        "2": {"class_type": "BasicGuider", "inputs": {"conditioning": ["3", 0], "model": ["9", 0]}},
        "3": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["4", 0], "guidance": 3.5}},
        "4": {"class_type": "CLIPTextEncodeFlux", "inputs": {"clip_l": "a red fox", "t5xxl": "a red fox"}},
        "5": {"class_type": "RandomNoise", "inputs": {"noise_seed": 11}},
    }  # fmt: skip


def as_json(**values) -> str:
    return json.dumps(values)


COMFY = EmbeddedPrompt("a red fox", "ComfyUI", "blurry", 7)
GRAPH, DRAWN, FLUX = json.dumps(comfy_graph()), json.dumps(comfy_workflow()), json.dumps(flux_graph())
SWARM = as_json(sui_image_params={"prompt": "a fox", "negativeprompt": "bad", "seed": 5})
INVOKE = as_json(positive_prompt="a fox", negative_prompt="bad", seed=5)
ONCE = as_json(image={"prompt": [{"prompt": "a fox", "weight": 1}]})
FOOOCUS = as_json(prompt="a fox", negative_prompt="bad", seed="5")
NOVEL = as_json(prompt="a fox", uc="bad", seed=5)
HELPER = as_json(prompt=GRAPH, workflow={})
SONG = json.dumps(comfy_graph("a slow song"))


def a_fox(program: str) -> EmbeddedPrompt:
    return EmbeddedPrompt("a fox", program, "bad", 5)


CASES = {  # name -> (file, how it is written, what is read)
    "A1111, PNG": ("x.png", lambda p: write_png(p, parameters=PARAMETERS), FOX),
    "A1111, JPEG": ("x.jpg", lambda p: write_exif(p, b"UNICODE\0" + PARAMETERS.encode("utf-16-be")), FOX),
    "A1111, WebP": ("x.webp", lambda p: write_exif(p, b"UNICODE\0" + PARAMETERS.encode("utf-16-le")), FOX),
    "A1111, ASCII": ("x.jpg", lambda p: write_exif(p, b"ASCII\0\0\0" + PARAMETERS.encode()), FOX),
    "A1111, bare": ("x.png", lambda p: write_png(p, parameters="a fox"), EmbeddedPrompt("a fox", "AUTOMATIC1111")),
    "Fooocus": ("x.png", lambda p: write_png(p, parameters=FOOOCUS, fooocus_scheme="fooocus"), a_fox("Fooocus")),
    "SwarmUI": ("x.png", lambda p: write_png(p, parameters=SWARM), a_fox("SwarmUI")),
    "InvokeAI": ("x.png", lambda p: write_png(p, invokeai_metadata=INVOKE), a_fox("InvokeAI")),
    "InvokeAI, once": ("x.png", lambda p: write_png(p, sd_dash_metadata=ONCE), EmbeddedPrompt("a fox", "InvokeAI")),
    "InvokeAI, at first": ("x.png", lambda p: write_png(p, Dream='"a fox" -s 50'), EmbeddedPrompt("a fox", "InvokeAI")),
    "NovelAI": ("x.png", lambda p: write_png(p, Software="NovelAI", Comment=NOVEL), a_fox("NovelAI")),
    "ComfyUI, PNG": ("x.png", lambda p: write_png(p, prompt=GRAPH, workflow=as_json(nodes=[])), COMFY),
    "ComfyUI, drawn only": ("x.png", lambda p: write_png(p, workflow=DRAWN), COMFY),
    "ComfyUI, FLUX": ("x.png", lambda p: write_png(p, prompt=FLUX), EmbeddedPrompt("a red fox", "ComfyUI", seed=11)),
    "ComfyUI, WebP": ("x.webp", lambda p: write_exif(p, model="prompt:" + GRAPH, make="workflow:{}"), COMFY),
    "ComfyUI, MP4": ("x.mp4", lambda p: write_clip(p, prompt=GRAPH), COMFY),
    "ComfyUI, WebM": ("x.webm", lambda p: write_clip(p, prompt=GRAPH), COMFY),
    "VideoHelperSuite": ("x.mp4", lambda p: write_clip(p, comment=HELPER), COMFY),
    "ComfyUI, FLAC": (
        "x.flac", lambda p: write_sound(p, prompt=SONG), EmbeddedPrompt("a slow song", "ComfyUI", "blurry", 7),
    ),
    "a script": ("x.png", lambda p: write_png(p, prompt="a fox", seed="5"), EmbeddedPrompt("a fox", "", seed=5)),
    "nothing": ("x.png", lambda p: write_png(p, Software="GIMP"), None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_is_read_from_where_its_program_puts_it(case, tmp_path):
    name, write, expected = CASES[case]
    assert read_embedded_prompt(write(tmp_path / name)) == expected


def test_a_graph_with_two_prompts_is_not_guessed_at(tmp_path):
    second = {f"{number}b": node for number, node in flux_graph().items()}
    second["1b"]["inputs"]["guider"], second["2b"]["inputs"]["conditioning"] = ["2b", 0], ["4b", 0]
    second["4b"]["inputs"] = {"clip_l": "a blue whale", "t5xxl": "a blue whale"}
    path = write_png(tmp_path / "x.png", prompt=json.dumps(flux_graph() | second))
    with pytest.raises(BadInput, match="2 prompts, 'a blue whale' and 'a red fox'; give the prompts in a file"):
        read_embedded_prompt(path)


def test_a_graph_that_runs_in_a_circle_or_is_cut_has_an_end(tmp_path):
    circle = comfy_graph()
    circle["9"]["inputs"] = {"input": ["6", 0]}
    with pytest.raises(BadInput, match="no text that reaches what samples"):
        read_embedded_prompt(write_png(tmp_path / "circle.png", prompt=json.dumps(circle)))
    cut = json.dumps(comfy_graph())[:-30]
    assert read_embedded_prompt(write_png(tmp_path / "cut.png", prompt=cut)) is None
