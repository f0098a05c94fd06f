"""Every tensor of every network comes from its files, or one sentence says which do not, before anything is made."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import reward_fixtures
import tiny
import torch
import transformers
from reward_fixtures import build
from safetensors.torch import load_file, save_file

import pipelines
from pipelines import weight_folder
from pipelines.adapters import Lora, attach_lora
from pipelines.component_sources import list_weight_files
from pipelines.fingerprint import RECORD, fingerprint_network
from pipelines.seam_check import check_pipeline
from pipelines.starter.pack_builder import record_fingerprints
from workbench.core.errors import BadInput
from workbench.core.paths import STARTER
from workbench.core.weights import files as weight_files
from workbench.core.weights import tensors

SD, AUDIO = "StableDiffusionPipeline", "AudioLDM2Pipeline"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: tiny.save(name, folder) for name in (SD, AUDIO)}


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved[SD], tmp_path / "sd"))


def rewrite(part: Path, change) -> dict[str, torch.Tensor]:
    """The tensors of a network's file after `change` has changed them in place."""
    (file,) = weight_files.select_weights(part)
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    return state


def drop_some(state):
    for name in sorted(state)[-3:]:
        del state[name]


def add_one(state):
    state["surprise.weight"] = torch.zeros(3)


def add_inside(state):
    state[f"{min(state)}_extra"] = torch.zeros(3)


def reshape_one(state):
    name = max(state)
    state[name] = state[name][..., None].repeat_interleave(2, -1)


DAMAGE = {
    drop_some: r"lack 3 of its \d+ tensors \([\w., ]+, …\)",
    add_one: r"hold 1 that it does not have \(surprise\.weight\)",
    add_inside: r"hold 1 that it does not have \([\w.]+_extra\)",
    reshape_one: r"hold 1 of another shape \([\w.]+: \[.*\] where the network has \[.*\]\)",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("name", "part"),
    [(SD, "unet"), (SD, "vae"), (SD, "text_encoder"), (AUDIO, "vocoder"), (AUDIO, "projection_model")],
)
def test_files_with_other_tensors_than_their_network_are_refused_in_the_plan(saved, tmp_path, name, part, damage):
    folder = tmp_path / "copy" / name
    shutil.copytree(saved[name], folder)
    rewrite(folder / part, damage)
    with pytest.raises(BadInput, match=DAMAGE[damage]) as error:
        pipelines.plan_loading(tiny.config(name, folder), device="cpu")
    assert str(folder / part) in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_component_of_another_repository_is_refused_in_the_plan(saved, copied):
    rewrite(copied / "vae", drop_some)
    file = weight_files.select_weights(copied / "vae")[0]
    for spec in (
        {"repo": str(copied), "subfolder": "vae"},
        {"file": str(file)},
        {"repo": str(copied), "file": file.name},
    ):
        if spec.get("repo") and "file" in spec:
            spec["repo"] = str(copied / "vae")
        with pytest.raises(BadInput, match="lack 3 of its"):
            pipelines.load(tiny.config(SD, saved[SD], components={"vae": spec}), device="cpu")


def test_weights_of_a_later_version_say_which_version_to_install(copied):
    rewrite(copied / "text_encoder", drop_some)
    path = copied / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformers_version": "99.1.0"}))
    with pytest.raises(BadInput, match=r"transformers 99\.1\.0 saved them, and .* is installed: install that version"):
        pipelines.plan_loading(tiny.config(SD, copied), device="cpu")


def test_what_a_network_has_no_use_for_and_what_is_tied_is_no_fault(saved, copied, tmp_path):
    def as_a_whole_clip(state):
        for name in [*state]:
            state[f"text_model.{name}"] = state.pop(name)  # the names of transformers 4, as on the hub
        state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
        state |= {"visual_projection.weight": torch.zeros(4, 4), "logit_scale": torch.ones(())}
        state["vision_model.encoder.layers.0.mlp.fc1.weight"] = torch.zeros(4, 4)

    rewrite(copied / "text_encoder", as_a_whole_clip)
    plain, whole = (
        pipelines.load(tiny.config(SD, folder), device="cpu").pipe.text_encoder for folder in (saved[SD], copied)
    )
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), whole.parameters(), strict=True))

    t5 = shutil.copytree(saved[AUDIO] / "text_encoder_2", tmp_path / "t5")
    rewrite(t5, lambda state: state.update({"encoder.embed_tokens.weight": state["shared.weight"].clone()}))
    tensors.check_tensor_names(t5, ("transformers", "T5EncoderModel"))
    rewrite(t5, lambda state: state.pop("shared.weight"))  # T5 by the other of its tied names
    tensors.check_tensor_names(t5, ("transformers", "T5EncoderModel"))


def build_instead(make):
    """from_pretrained that builds a network as its config says, by make(), and loads nothing, as transformers 5.0 to
    5.5 do with names that they don't know."""
    original = transformers.CLIPTextModel.from_pretrained.__func__

    def from_pretrained(cls, folder, *args, **kwargs):
        if folder is None:  # the check of names
            return original(cls, folder, *args, **kwargs)
        return make(lambda: cls(cls.config_class.from_pretrained(folder)).eval())

    return classmethod(from_pretrained)


def on_meta(build_network):
    with torch.device("meta"):
        return build_network()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda build_network: build_network(),
            r"text_encoder of .*: \d+ \(.*\) of its \d+ tensors do not have the values",
        ),
        (on_meta, r"text_encoder of .*: (\d+) of its \1 tensors \(.*\) came without values"),
    ],
)
def test_a_network_that_came_without_its_values_is_refused(saved, monkeypatch, make, sentence):
    monkeypatch.setattr(transformers.CLIPTextModel, "from_pretrained", build_instead(make))
    for pipeline in (tiny.config(SD, saved[SD]), "starter-image"):
        with pytest.raises(BadInput, match=sentence):
            pipelines.load(pipeline, device="cpu")


def test_a_network_of_the_starter_pack_with_another_fingerprint_is_refused(monkeypatch):
    """Even if its own file says the same: the file was replaced, or the check of values is blind."""
    monkeypatch.setattr(
        transformers.CLIPTextModel, "from_pretrained", build_instead(lambda build_network: build_network())
    )
    monkeypatch.setattr(tensors, "check_loaded_values", lambda *_: 0)
    with pytest.raises(BadInput, match=r"text_encoder of the starter pack came with other weights .*fingerprint"):
        pipelines.load("starter-image", device="cpu")


def test_the_check_of_a_pipeline_counts_its_tensors_and_names_recorded_fingerprints(saved, monkeypatch):
    def check_weights(pipeline):
        policy = pipelines.load(pipeline, device="cpu")
        checks = check_pipeline(policy)
        next(checks)
        return policy, next(checks)

    _, result = check_weights("starter-image")
    assert result.holds and "text_encoder 52 of 52" in result.evidence and "fingerprints" in result.evidence
    policy, result = check_weights(tiny.config(SD, saved[SD]))
    total = len(load_file(weight_files.select_weights(saved[SD] / "vae")[0]))
    assert result.holds and f"vae {total} of {total}" in result.evidence and "fingerprints" not in result.evidence
    with torch.no_grad():
        policy.pipe.vae.decoder.conv_in.weight.mul_(1.01)
    checks = check_pipeline(policy)
    next(checks)
    assert next(checks).holds is False


@pytest.mark.parametrize("kind", ["image", "music", "video"])
def test_the_recorded_fingerprints_are_those_of_the_pack(kind, tmp_path):
    for index in (STARTER / kind).glob("*/model_index.json"):
        shutil.copytree(index.parent, tmp_path / index.parent.name)
    record_fingerprints(tmp_path)
    assert json.loads((tmp_path / RECORD).read_text()) == json.loads((STARTER / kind / RECORD).read_text())


def test_a_fingerprint_is_of_the_base_whatever_its_precision_and_adapters():
    first = tiny.build(SD).unet
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.conv_out.weight.mul_(-1)
    fingerprint = fingerprint_network(first)
    assert len(fingerprint) == 16 and fingerprint != fingerprint_network(second)
    for dtype in (torch.bfloat16, torch.float16):
        assert fingerprint_network(copy.deepcopy(first).to(dtype)) == fingerprint
    attach_lora(first, Lora(rank=2, targets="all"))
    assert fingerprint_network(first) == fingerprint
    with torch.no_grad():
        for name, p in first.named_parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))) if "lora_" in name else None
        assert fingerprint_network(first) == fingerprint
        first.conv_in.base_layer.weight.add_(0.05)
    assert fingerprint_network(first) != fingerprint
    before = fingerprint_network(second)
    with torch.no_grad():
        for p in second.parameters():
            p.mul_(1.05)
    assert fingerprint_network(second) != before
    assert fingerprint_network(second.to("meta")) == ""


def test_the_files_that_loading_reads_are_listed(saved, copied):
    names = {str(f.relative_to(copied)) for f in list_weight_files(tiny.config(SD, copied))}
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"} <= names
    (copied / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert {str(f.relative_to(copied)) for f in list_weight_files(tiny.config(SD, copied))} == names
    vae = tiny.config(SD, copied, components={"vae": {"repo": str(saved[SD]), "subfolder": "vae"}})
    assert saved[SD] / "vae" / "diffusion_pytorch_model.safetensors" in list_weight_files(vae)
    assert copied / "vae" / "diffusion_pytorch_model.safetensors" not in list_weight_files(vae)
    assert all(weight_folder.list_components(copied))


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_encoder_of_a_reward_with_other_tensors_than_its_file_is_refused(tmp_path, damage):
    folder = Path(reward_fixtures.clip_folder(tmp_path / "clip"))
    rewrite(folder, damage)
    with pytest.raises(BadInput, match=DAMAGE[damage]):
        build("clip", model=str(folder)).load()


def test_an_encoder_of_a_reward_that_came_without_its_values_is_refused(tmp_path, monkeypatch):
    folder = reward_fixtures.clip_folder(tmp_path / "clip")
    original = transformers.AutoModel.from_pretrained.__func__

    def from_pretrained(cls, *args, **kwargs):
        net, info = original(cls, *args, **kwargs)
        return type(net)(net.config), info

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", classmethod(from_pretrained))
    with pytest.raises(BadInput, match=r"clip: \d+ \(.*\) of its \d+ tensors do not have the values in model"):
        build("clip", model=folder).load()


def test_the_networks_of_every_tiny_pipeline_are_those_that_diffusers_names():
    """Classes of a pipeline's own module are found, too."""
    assert tensors.find_component_class(("audioldm2", "AudioLDM2ProjectionModel")) is not None
    with pytest.raises(BadInput, match=r"names nothing\.Here, which is not installed"):
        tensors.find_component_class(("nothing", "Here"))
    assert tensors.find_component_class(("diffusers", "AutoencoderKL")) is diffusers.AutoencoderKL


def test_a_config_that_describes_no_such_network_is_refused_in_the_plan(copied):
    for part, change in (("unet", {"block_out_channels": "wide"}), ("text_encoder", {"hidden_size": -3})):
        path = copied / part / "config.json"
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(BadInput, match=r"config\.json can't describe a \w+: ") as error:
            pipelines.plan_loading(tiny.config(SD, copied), device="cpu")
        assert "\n" not in str(error.value)
        path.write_text(before)
