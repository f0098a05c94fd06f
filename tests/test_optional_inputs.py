"""`inputs: {source: null}`: classes whose picture is optional make samples from prompts alone."""

from __future__ import annotations

import pytest
import tiny
import torch
import yaml
from input_fixtures import plan_edits, save_pipeline, write_edits

import pipelines
from pipelines.known_classes import INPUTS, OPTIONAL_INPUTS
from pipelines.variants import pipeline_label
from workbench.core.errors import BadInput

KONTEXT = "FluxKontextPipeline"


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    path = save_pipeline(tmp_path_factory.mktemp("kontext"), KONTEXT)
    values = yaml.safe_load(path.read_text())
    values["call"] |= {"height": 16, "width": 8}
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_pipeline_without_its_source_makes_what_its_class_makes_of_the_prompt_alone(kontext):
    source = {"name": str(kontext), "inputs": {"source": None}}
    config = pipelines.read_config(source)
    assert config.inputs == {} == pipelines.read_config(pipeline_label(source)).inputs
    assert pipelines.read_config({"name": str(kontext), "steps": 1}).inputs == {"source": "image"}
    policy = pipelines.load(config)
    made = policy.sample(["a red cat", "two dogs"], seeds=[1, 2])
    assert made.media.data.shape == (2, 3, 16, 8), "its own area, a megapixel, is not taken in place of the call's"
    call = {**config.call, **config.text, "num_inference_steps": config.steps, "max_area": 128, "output_type": "pt"}
    call |= {"prompt": "a red cat", "generator": torch.Generator().manual_seed(1)}
    expected = tiny.build(KONTEXT)(**call).images
    assert torch.allclose(made.media.data[:1], expected, atol=1e-4)


def test_a_run_of_prompts_alone_needs_no_source_and_leaves_columns_unread(kontext, tmp_path):
    label = pipeline_label({"name": str(kontext), "inputs": {"source": None}})
    plan = plan_edits(label, write_edits(tmp_path), watch=None)
    assert [type(row[1]) for row in plan.rows] == [str, str]
    assert "columns not used: source" in " ".join(plan.checks)
    with pytest.raises(BadInput, match="no prompt comes with one"):
        plan_edits(kontext, ["a red cat"], watch=None)


def test_a_class_that_needs_its_input_says_so_and_names_the_class_without(tmp_path):
    video = {"modality": "video", "rate": 16}
    for cls, name, sentence in [
        (
            "QwenImageEditPipeline",
            "source",
            "source: null: QwenImageEditPipeline can't do without it; .*QwenImagePipeline",
        ),
        ("StableDiffusionInpaintPipeline", "mask", "mask: null: .* for prompts alone take StableDiffusionPipeline"),
        ("WanImageToVideoPipeline", "first", "first: null: .* take WanPipeline"),
        ("FluxPipeline", "sourse", "inputs: unknown 'sourse'; did you mean 'source'"),
    ]:
        values = {"class": cls, "repo": "a/b", "steps": 2, "inputs": {name: None}, **(video if "Wan" in cls else {})}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(BadInput, match=sentence):
            pipelines.read_config(tmp_path / "x.yaml")
    assert pipelines.read_config({"name": "flux2-klein-edit", "inputs": {"source": None}}).inputs == {}
    assert INPUTS.keys() >= OPTIONAL_INPUTS
