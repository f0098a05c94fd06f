"""Training that starts from a LoRA: what is exported holds both, and plain diffusers uses it on the true base."""

from __future__ import annotations

import json

import diffusers
import pytest
import tiny
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_lora_layouts import KOHYA, LAYOUTS, SD, encoder, unet, write_and_merge
from tiny import PROMPTS, SEEDS
from tiny_trained import SMALL, nudge
from train_fixtures import PIPELINE, folder_of, go, planned

import pipelines
from pipelines import Lora, export_policy, load
from pipelines.adapters import lora_layers
from pipelines.fingerprint import fingerprint_network
from workbench.core.errors import BadInput
from workbench.engine import usage_code


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(SD, tmp_path_factory.mktemp("base"))


def picture(policy):
    """In levels of 0 to 255, not rounded."""
    return policy.sample(PROMPTS[:1], seeds=SEEDS[:1]).media.data * 255


def same(ours, theirs):
    """Whether no value differs by more than what float32 rounds: a hundredth of a level."""
    return (ours - theirs).abs().max() < 0.01


def plain_picture(base, config, prepare):
    """What diffusers makes of the base, the files and the config's call, without our loading."""
    pipe = getattr(diffusers, config.pipeline).from_pretrained(base)
    prepare(pipe)
    settings = dict(modality=config.modality, rate=config.rate, steps=config.steps, call=config.call, text=config.text)
    return picture(pipelines.Policy(pipe, guidance=config.guidance, **settings))


def train_on(config, lora=SMALL, seed=0):
    policy = load(config, device="cpu", train={"lora": lora})
    nudge(policy, seed=seed)
    return policy


def test_a_lora_is_merged_as_by_hand_before_training(base, tmp_path):
    merged = write_and_merge(SD, tmp_path / "theirs.safetensors", unet("lora_unet_", "_", convolution=False), KOHYA)
    policy = load(tiny.config(SD, base, lora=str(tmp_path / "theirs.safetensors")), device="cpu", train={"lora": SMALL})
    for (network, layer), weight in merged.items():
        assert torch.equal(getattr(policy.pipe, network).get_submodule(layer).get_base_layer().weight, weight)
    assert not [name for name in policy.adapters.live if "lora_0" in name]


def test_two_trainings_on_a_foreign_lora_give_one_file_for_the_base(base, tmp_path):
    theirs = tmp_path / "theirs.safetensors"
    write_and_merge(SD, theirs, unet("lora_unet_", "_") + encoder("lora_te_", "_"), KOHYA)
    config = tiny.config(SD, base, lora=str(theirs))
    for stage, targets in enumerate(("attention", "linear")):
        policy = train_on(config, Lora(rank=4, alpha=16.0, targets=targets), seed=stage)
        out = tmp_path / f"stage-{stage}"
        assert export_policy(policy, out, pipeline=config).effect > 1e-3
        config = pipelines.read_config(out)
        assert config.repo == str(base) and config.lora == str(out)
        made = picture(policy)
        assert same(plain_picture(base, config, lambda pipe, out=out: pipe.load_lora_weights(str(out))), made)
    assert same(picture(load(config, device="cpu")), made)
    ranks = {len(a) for key, a in load_file(out / "pytorch_lora_weights.safetensors").items() if "lora_A" in key}
    assert ranks == {4, 6, 8, 14}  # of one training, of theirs, of both trainings, and of all three
    comfy = load_file(out / "comfyui.safetensors")
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.alpha" in comfy


def test_a_training_on_a_dora_is_exported_as_whole_weights(base, tmp_path):
    theirs = tmp_path / "theirs.safetensors"
    write_and_merge(SD, theirs, unet("lora_unet_", "_", dora=True) + encoder("lora_te_", "_"), KOHYA)
    config = tiny.config(SD, base, lora=str(theirs))
    policy = train_on(config)
    out = tmp_path / "out"
    export_policy(policy, out, pipeline=config)
    assert json.loads((out / "export.json").read_text())["parts"] == {"text_encoder": "merged", "unet": "merged"}

    def prepare(pipe):
        pipe.unet = type(pipe.unet).from_pretrained(out / "merged/unet")
        pipe.text_encoder = type(pipe.text_encoder).from_pretrained(out / "merged/text_encoder")

    assert same(plain_picture(base, config, prepare), picture(policy))
    again = pipelines.read_config(out)
    assert same(picture(load(again, device="cpu")), picture(policy))


def test_all_weights_trained_on_a_lora_are_exported_with_it(base, tmp_path):
    theirs = tmp_path / "theirs.safetensors"
    write_and_merge(SD, theirs, unet("lora_unet_", "_"), KOHYA)
    config = tiny.config(SD, base, lora=str(theirs))
    policy = load(config, device="cpu", train={"lora": Lora(targets="weights")})
    nudge(policy, size=0.01)
    export_policy(policy, tmp_path / "out", pipeline=config)
    assert same(picture(load(pipelines.read_config(tmp_path / "out"), device="cpu")), picture(policy))


# --- of which base ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "lora"
    config = tiny.config(SD, base)
    export_policy(train_on(config), out, pipeline=config)
    return out


def test_an_export_says_of_which_base_it_is(base, exported):
    for name in ("pytorch_lora_weights", "comfyui"):
        with safe_open(exported / f"{name}.safetensors", "pt") as file:
            assert file.metadata()["base_fingerprint"] == fingerprint_network(tiny.build(SD).unet)
            assert file.metadata()["base_model"] == base.name
    assert load(pipelines.read_config(exported), device="cpu").notes[0].endswith("layers of the unet")


def test_a_lora_of_another_base_with_the_same_shapes_is_refused_unless_asked_for(exported, tmp_path):
    other = tmp_path / "other"
    tiny.build(SD, seed=5).save_pretrained(other)
    for source in (exported, exported / "pytorch_lora_weights.safetensors"):
        with pytest.raises(BadInput, match="trained on other weights .*any_base: true") as caught:
            load(tiny.config(SD, other, lora=str(source)), device="cpu")
        assert "\n" not in str(caught.value)
        notes = load(tiny.config(SD, other, lora=str(source), any_base=True), device="cpu").notes
        assert any("any_base" in note for note in notes)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_its_own_base_is_known_in_any_precision(exported, dtype):
    policy = load(pipelines.read_config(exported), device="cpu", dtype=dtype)
    assert lora_layers(policy.pipe.unet) and len(policy.notes) == 1


def test_of_a_foreign_lora_it_is_said_that_its_base_is_not_recorded(base, tmp_path):
    write_and_merge(SD, tmp_path / "x.safetensors", unet("unet.", "."), LAYOUTS["peft"][2])
    notes = load(tiny.config(SD, base, lora=str(tmp_path / "x.safetensors")), device="cpu").notes
    assert any("base is not recorded" in note for note in notes)


# --- as runs ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_an_export_and_its_card_loads_it_in_plain_diffusers(tmp_path):
    """On a base with a replaced network and another scheduler, as hyper-sdxl has."""
    teacher = pipelines.read_config("starter:image/teacher").folder
    unet = tmp_path / "unet.safetensors"
    save_file({k: 0.99 * v for k, v in load_file(teacher / "unet/diffusion_pytorch_model.safetensors").items()}, unet)
    place = tmp_path / "replaced.yaml"
    config = PIPELINE | {"components": {"unet": {"repo": str(tmp_path), "file": unet.name}}}
    place.write_text(yaml.safe_dump(config | {"scheduler": {"flow_shift": 2.0}}))
    first = pipelines.read_config(place)
    export_policy(train_on(first), tmp_path / "first", pipeline=first, comfy=False)
    plan = planned(
        tmp_path, pipeline=str(tmp_path / "first"), limit=1, reward="brightness", watch=None,
        train={"rounds": 1, "eval_every": 0, "lora": {"rank": 2, "alpha": 4}},
    )  # fmt: skip
    assert any("starts from" in check for check in plan.checks)
    run = folder_of(plan, tmp_path / "runs")
    go(plan, run)
    card = (run.path / "export/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(run.path / "export"))
    found = {}
    exec(code[: code.index("made = pipe(")], found)  # noqa: S102  (of a file that this test has made)
    assert "Trained on top of" in card and str(tmp_path) in card.split("---")[1]
    again = pipelines.read_config(run.path)
    assert again.lora == str(run.path / "export") and again.components and again.scheduler == {"flow_shift": 2.0}
    plain = pipelines.Policy(found["pipe"], modality="image", steps=again.steps, call=again.call)
    ours = load(again, device="cpu")
    assert same(picture(plain), picture(ours))
    assert not same(picture(ours), picture(load(pipelines.read_config(tmp_path / "first"), device="cpu")))


@pytest.mark.parametrize(
    ("name", "repos", "line"),
    [
        ("hyper-sdxl",
         ["ByteDance/Hyper-SD", "madebyollin/sdxl-vae-fp16-fix", "stabilityai/stable-diffusion-xl-base-1.0"],
         "pipe.unet.load_state_dict(safetensors.torch.load_file(huggingface_hub.hf_hub_download('ByteDance/Hyper-SD', "
         "'Hyper-SDXL-1step-Unet.safetensors')))"),
        ("pixart-dmd", ["PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512", "PixArt-alpha/PixArt-XL-2-1024-MS"],
         "pipe.transformer = type(pipe.transformer).from_pretrained('PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512', "
         "torch_dtype=torch.float16, subfolder='transformer')"),
    ],
)  # fmt: skip
def test_a_card_names_every_repository_that_the_base_is_made_of(name, repos, line):
    config = pipelines.read_config(name)
    code = usage_code.write_usage(config, ['pipe.load_lora_weights("FOLDER")'], "float16")
    compile(code, name, "exec")
    assert usage_code.list_base_repos(config) == repos and line in code.splitlines()
    assert code.index(line) < code.index("pipe.scheduler = ") < code.index("load_lora_weights")
