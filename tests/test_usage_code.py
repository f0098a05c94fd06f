"""The Python on the card of an export, run as it stands: it makes what a run of the workbench makes."""

from __future__ import annotations

import dataclasses

import diffusers
import numpy as np
import pytest
import tiny
import tiny_conditioned
from diffusers.models.autoencoders import vae
from input_fixtures import write_picture
from PIL import Image

import pipelines
from pipelines.call_arguments import read_arguments
from pipelines.ip_adapter import ARGUMENT
from workbench.core.inputs import FileInput
from workbench.core.types import Prompt
from workbench.engine import usage_code

NAMES = [
    "StableDiffusionInstructPix2PixPipeline",
    "FluxKontextPipeline",
    "StableDiffusionInpaintPipeline:9",
]


def write_inputs(folder, names):
    """Files as the code reads them: pictures twice as large as what is made, and a grey mask."""
    for n, name in enumerate(names):
        mode = "L" if name == "mask" else "RGB"
        write_picture(folder / f"{name}.png", n, (32, 32), mode)
        if name == "mask":
            Image.fromarray(np.linspace(0, 255, 32 * 32).reshape(32, 32).astype("uint8")).save(folder / "mask.png")
    return Prompt("a prompt", {name: FileInput.at(folder / f"{name}.png") for name in names})


def run_code(config):
    """What the written code makes, of the noise of seed 3."""
    code = usage_code.write_usage(config, [], "float32")
    added = "made = pipe(generator=torch.Generator().manual_seed(3), output_type='pt', "
    names: dict = {}
    exec(code.replace("made = pipe(", added), names)  # noqa: S102  (what is tested)
    return names["made"].images


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Files lie in the current folder, and a source is encoded by the mode, as runs do, and not by a draw."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vae.DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    diffusers.utils.logging.disable_progress_bar()
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_the_written_code_makes_the_sample_of_a_run(name, place):
    config = tiny.config(name, tiny.save(name, place))
    known = read_arguments(config.pipeline)
    call = {k: v for k, v in {**config.call, "height": 16, "width": 16}.items() if k in known}
    config = dataclasses.replace(config, call=call, input_size=[] if "height" in known else [16, 16])
    expected = pipelines.load(config).sample([write_inputs(place, config.inputs)], seeds=[3]).media.data
    made = run_code(config)
    assert made.shape == expected.shape
    for changed in config.inputs:  # resampled a little otherwise: by a tenth of what another file would change
        original = (place / f"{changed}.png").read_bytes()
        write_picture(place / f"{changed}.png", 99, (32, 32))
        other = run_code(config)
        assert (made - expected).abs().max() < 0.1 * (other - expected).abs().max(), changed
        (place / f"{changed}.png").write_bytes(original)


def test_the_written_code_reads_a_reference_by_its_ip_adapter(place):
    name = "StableDiffusionPipeline"
    adapter = tiny_conditioned.save_ip_adapter(place)
    config = tiny.config(name, tiny.save(name, place), ip_adapter=adapter, inputs={"reference": ARGUMENT})
    expected = pipelines.load(config).sample([write_inputs(place, config.inputs)], seeds=[3]).media.data
    made = run_code(config)
    write_picture(place / "reference.png", 99, (32, 32))
    other = run_code(config)
    assert (made - expected).abs().max() < 0.1 * (other - expected).abs().max()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("flux-kontext", ["fit(diffusers.utils.load_image('source.png'), (1024, 1024)", "max_area=1048576"]),
        ("stable-audio-open-variation", [".T).float()[None], num_inference", "initial_audio_sampling_rate=44100"]),
        ("ace-step-reference", ["soundfile.read('reference.wav', always_2d=True)[0].T).float(), num"]),
        ("wan21-v2v-1.3b", ["for x in diffusers.utils.load_video('source.mp4')[:"]),
        ("sdxl-ip-adapter", ["pipe.load_ip_adapter('h94/IP-Adapter', subfolder='sdxl_models', weight_name="]),
    ],
)  # fmt: skip
def test_the_written_code_of_published_pipelines_takes_their_inputs_as_their_classes_do(name, parts):
    code = usage_code.write_usage(pipelines.read_config(name), [], "float16")
    compile(code, name, "exec")
    assert [part for part in parts if part not in code] == [], code
