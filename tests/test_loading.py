"""From a name or a folder to a Policy: every shipped config, and one clear sentence for each thing that can be
wrong."""

from __future__ import annotations

import ast
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import tiny
import torch
import yaml
from tiny import PROMPTS, SEEDS

import pipelines
from pipelines import attention, schedule, weight_folder
from pipelines.config import FOLDER, list_names, read_config
from pipelines.known_classes import BLENDING, MODALITIES, REFUSED
from workbench.core.errors import BadInput
from workbench.core.paths import STARTER

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny pipelines, saved on first use."""
    path = tmp_path_factory.mktemp("pipelines")

    class Saved(dict):
        def __missing__(self, name):
            self[name] = tiny.save(name, path)
            return self[name]

    return Saved()


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved["StableDiffusionPipeline"], tmp_path / "sd"))


def load(name: str, **changes):
    return pipelines.load(replace(pipelines.read_config(name), **changes), device="cpu")


def small(name: str, **call) -> dict:
    """The published arguments of the call with a picture size that a tiny pipeline makes."""
    return {"call": {**pipelines.read_config(name).call, "height": 32, "width": 32, **call}}


# Every published setting of ReNO, run on a tiny pipeline of its class: only repositories and the size are replaced.
def test_sd_turbo_runs_in_one_unguided_step(saved):
    policy = load("sd-turbo", repo=str(saved["StableDiffusionPipeline"]), **small("sd-turbo"))
    assert one_step(policy) == len(PROMPTS)


def test_sdxl_turbo_runs_with_another_vae_and_a_trailing_ancestral_scheduler(saved, tmp_path):
    vae = tiny.build("StableDiffusionXLPipeline", seed=5).vae
    vae.save_pretrained(tmp_path / "vae")
    repo, parts = str(saved["StableDiffusionXLPipeline"]), {"vae": str(tmp_path / "vae")}
    policy = load("sdxl-turbo", repo=repo, components=parts, **small("sdxl-turbo"))
    scheduler = policy.pipe.scheduler
    assert type(scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert scheduler.config.timestep_spacing == "trailing"
    assert one_step(policy) == len(PROMPTS)
    assert int(scheduler.timesteps[0]) == 999
    assert torch.equal(policy.pipe.vae.decoder.conv_in.weight, vae.decoder.conv_in.weight)


def test_pixart_dmd_takes_its_picture_from_t_400(saved):
    repo = str(saved["PixArtAlphaPipeline"])
    policy = load(
        "pixart-dmd",
        repo=repo,
        scheduler={"class": "DDPMScheduler", "repo": repo},
        components={"transformer": {"repo": repo, "subfolder": "transformer"}},
        **small("pixart-dmd", use_resolution_binning=False),
    )
    assert one_step(policy) == len(PROMPTS)
    scheduler = policy.pipe.scheduler
    assert type(scheduler).__name__ == "DDPMScheduler"
    assert scheduler.timesteps.tolist() == [400]
    trajectory = policy.sample(PROMPTS, seeds=SEEDS)
    predicted = policy.predict(trajectory.x[:, 0], 0, PROMPTS).x0
    decoded = policy.decode(predicted, PROMPTS).data
    assert torch.allclose(decoded, trajectory.media.data, atol=1e-5)


def test_hyper_sdxl_takes_one_file_of_weights_and_starts_at_t_800(saved, tmp_path):
    repo = saved["StableDiffusionXLPipeline"]
    other = tiny.build("StableDiffusionXLPipeline", seed=5)
    other.unet.save_pretrained(tmp_path)
    parts = {"unet": {"repo": str(tmp_path), "file": "diffusion_pytorch_model.safetensors"}}
    policy = load("hyper-sdxl", repo=str(repo), components=parts, **small("hyper-sdxl"))
    assert one_step(policy) == len(PROMPTS)
    assert type(policy.pipe.scheduler).__name__ == "LCMScheduler"
    assert policy.pipe.scheduler.timesteps.tolist() == [800]
    assert torch.equal(policy.pipe.unet.conv_in.weight, other.unet.conv_in.weight)


def test_flux_schnell_runs_in_one_step_on_packed_latents(saved):
    policy = load("flux-schnell", repo=str(saved["FluxPipeline"]), **small("flux-schnell"))
    assert one_step(policy) == len(PROMPTS)
    assert policy.sample(PROMPTS, seeds=SEEDS).x.shape == (2, 2, 256, 4)


def test_sana_sprint_runs_in_one_step(saved):
    policy = load(
        "sana-sprint", repo=str(saved["SanaSprintPipeline"]), **small("sana-sprint", use_resolution_binning=False)
    )
    assert one_step(policy) == len(PROMPTS)


def one_step(policy) -> int:
    """Rows through the denoiser for one sampling, in which the noise must have a gradient and change the picture."""
    assert policy.steps == 1
    noise = policy.noise(SEEDS).requires_grad_()
    before = policy.nfe
    data = policy.sample(PROMPTS, seeds=SEEDS, noise=noise, grad=1).media.data
    (gradient,) = torch.autograd.grad(data.square().sum(), noise)
    assert gradient.isfinite().all() and gradient.flatten(1).any(1).all()
    assert not torch.equal(data[0], data[1])
    return policy.nfe - before


@pytest.mark.parametrize("name", list_names())
def test_every_shipped_config_reads_and_names_a_class_that_exists(name):
    config = pipelines.read_config(name)
    assert config.name == name
    is_scored = config.pipeline not in BLENDING
    assert config.provides == {"latents", "trainable"} | ({"stochastic"} if is_scored else set())
    cls = getattr(diffusers, config.pipeline)
    assert MODALITIES[config.pipeline][0] == config.modality
    code = cls.__call__.__wrapped__.__code__
    reserved = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    assert set(config.call) | set(config.text) | {config.guidance, "num_inference_steps"} <= {*reserved, ""}
    if scheduler := config.scheduler.get("class"):
        assert scheduler in schedule.FAMILIES
        assert len(FOLDER.joinpath(f"{name}.yaml").read_text().splitlines()) <= 12


@pytest.mark.skipif(not (STARTER / "image" / "student").is_dir(), reason="the starter pack is not built yet")
@pytest.mark.parametrize(("name", "steps"), [("starter-image", 1), ("starter-image-teacher", 8)])
def test_the_starter_pipelines_load_and_match_the_plain_call(name, steps):
    policy = pipelines.load(name, device="cpu")
    media = policy.sample(PROMPTS, seeds=SEEDS).media
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    plain = policy.pipe(list(PROMPTS), generator=generators, **policy.call).images
    assert policy.steps == steps
    assert torch.equal(plain, media.data)


def write(tmp_path, **changes) -> str:
    values = {"class": "StableDiffusionPipeline", "repo": "somewhere/else", "steps": 2, **changes}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stpes": 3}, "unknown key 'stpes'; did you mean 'steps'"),
        ({"pipeline": "x"}, "unknown key 'pipeline'"),
        ({"class": None}, "'class' is missing"),
        ({"repo": None}, "'repo' is missing"),
        ({"steps": -1}, "steps: must be at least 1, got -1"),
        ({"steps": "many"}, "steps: expected a whole number, got 'many'"),
        ({"modality": "picture"}, "'picture' is not a choice"),
        ({"modality": "video"}, "rate must say how many frames"),
        ({"call": [1]}, "call: expected a mapping"),
        ({"dtype": "int4"}, "dtype: 'int4' is not a choice"),
        ({"kernel": {"sigma": 1}}, "kernel: unknown key 'sigma'"),
        ({"class": "AmusedPipeline"}, "AmusedPipeline can't be aligned here: its states are tokens"),
        ({"class": "StableDiffusionParadigmsPipeline"}, "in parallel"),
        ({"class": "KandinskyV22CombinedPipeline"}, "two pipelines in one"),
    ],
)
def test_a_wrong_config_gets_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(BadInput, match=sentence) as error:
        pipelines.read_config(write(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_wrong_name_gets_the_nearest_one():
    with pytest.raises(BadInput, match="no pipeline 'sdxl-turb'; did you mean 'sdxl-turbo'"):
        pipelines.read_config("sdxl-turb")
    with pytest.raises(BadInput, match="hub id needs a config"):
        pipelines.read_config("someone/something")
    with pytest.raises(BadInput, match="no such file"):
        pipelines.read_config("missing.yaml")


@pytest.mark.parametrize("source", ["x" * 300, "x" * 300 + ".yaml", "y/" * 3000])
def test_a_name_that_no_file_can_have_is_one_sentence(source):
    with pytest.raises(BadInput, match=r"no pipeline '[xy/]{60}'… \(\d+ letters\)"):
        pipelines.read_config(source)


def test_refused_pipelines_are_named_for_a_reason_and_none_is_supported_too():
    assert not set(REFUSED) & set(MODALITIES)
    assert all(REFUSED.values())


def test_no_file_of_ours_imports_diffusers_before_it_loads_a_pipeline():
    """`read`, `list` and --dry-run answer at once: importing diffusers alone takes seconds."""
    for file in Path(pipelines.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            assert not re.match("(import|from) (diffusers|transformers)", ast.unparse(node)), file


def test_a_folder_loads_by_itself(saved):
    policy = pipelines.load(saved["StableDiffusionPipeline"], device="cpu", steps=2)
    assert (policy.modality, policy.steps) == ("image", 2)
    assert not any(p.requires_grad for part in (policy.pipe.unet, policy.pipe.vae) for p in part.parameters())
    assert policy.attention.startswith("sdpa (auto")


def spoil_cut(path: Path):
    file = path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-7])


def spoil_header(path: Path):
    file = path / WEIGHTS
    file.write_bytes(file.read_bytes()[:8] + b"{" * 40 + file.read_bytes()[48:])


def spoil_short(path: Path):
    (path / WEIGHTS).write_bytes(b"oops")


def spoil_pickle(path: Path):
    torch.save({}, path / "unet" / "diffusion_pytorch_model.bin")
    (path / WEIGHTS).unlink()


def spoil_missing(path: Path):
    (path / WEIGHTS).unlink()


def spoil_shard(path: Path):
    index = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "diffusion-00002-of-2.safetensors"}}
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def spoil_component(path: Path):
    shutil.rmtree(path / "unet")


def spoil_index(path: Path):
    (path / "model_index.json").unlink()


def spoil_json(path: Path):
    (path / "model_index.json").write_text("{")


def spoil_class(path: Path):
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_cut, "diffusion_pytorch_model.safetensors: .* bytes where its header promises"),
        (spoil_header, "diffusion_pytorch_model.safetensors: its safetensors header is damaged"),
        (spoil_short, "not a safetensors file"),
        (spoil_pickle, "diffusion_pytorch_model.bin: pickled weights are never loaded"),
        (spoil_missing, r"unet: no weights \(\*.safetensors\)"),
        (spoil_shard, "diffusion-00002-of-2.safetensors: this shard is missing"),
        (spoil_component, "component folder 'unet' .* is missing"),
        (spoil_index, "no model_index.json"),
        (spoil_json, "not valid JSON"),
        (spoil_class, "holds a FluxPipeline, but the config says class: StableDiffusionPipeline"),
    ],
)
def test_a_spoilt_folder_is_refused_before_anything_loads(copied, spoil, sentence, monkeypatch):
    config = tiny.config("StableDiffusionPipeline", copied)
    spoil(copied)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", None)  # would be a TypeError
    with pytest.raises(BadInput, match=sentence) as error:
        pipelines.load(config, device="cpu")
    assert "\n" not in str(error.value)


def test_an_unspoilt_folder_passes_the_same_check(copied):
    weight_folder.check_folder(copied, "StableDiffusionPipeline")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"device": "cuda:99"}, "torch sees .* GPUs"),
        ({"device": "abacus"}, "'abacus' is not one"),
        ({"dtype": "int8"}, "dtype: 'int8' is not a choice"),
        ({"attention": "flahs"}, "'flahs' is not known; did you mean 'flash'"),
        ({"scheduler": {"class": "DDIMSchedular"}}, "no 'DDIMSchedular'; did you mean 'DDIMScheduler'"),
        ({"scheduler": {"class": "DDIMScheduler", "shfit": 3}}, "DDIMScheduler has no setting 'shfit'"),
        ({"components": {"vea": None}}, "no component 'vea'; did you mean 'vae'"),
        ({"components": {"vae": {"repo": "x", "folder": "y"}}}, "components.vae: unknown key 'folder'"),
        ({"kernel": {"name": "euler"}}, "kernel: 'euler' is not known"),
        ({"pipeline": "LTX2Pipeline"}, "LTX2Pipeline can't be aligned here"),
    ],
)
def test_a_wrong_argument_of_load_gets_one_sentence(saved, arguments, sentence):
    config = tiny.config("StableDiffusionPipeline", saved["StableDiffusionPipeline"])
    with pytest.raises(BadInput, match=sentence):
        pipelines.load(config, **{"device": "cpu", **arguments})


def test_a_gpu_by_number_is_refused_where_several_processes_would_share_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="cuda:1 would put every process on one GPU.* use: auto"):
        pipelines.plan_loading(pipelines.read_config("starter-image"), device="cuda:1")


def test_a_scheduler_setting_takes_effect_even_where_diffusers_would_drop_it(saved):
    config = tiny.config("StableDiffusionPipeline", saved["StableDiffusionPipeline"])
    policy = pipelines.load(config, device="cpu", scheduler={"prediction_type": "v_prediction"})
    assert policy.pipe.scheduler.config.prediction_type == "v_prediction"
    assert {n.prediction for n in policy.levels} == {"v_prediction"}


def test_an_attention_backend_that_cannot_work_says_why(monkeypatch):
    assert attention.find_backend_problem("sdpa") == ""
    for backend in ("xformers", "flash"):
        if reason := attention.find_backend_problem(backend):
            with pytest.raises(BadInput, match="can't work here"):
                attention.choose_backend(backend, torch.device("cpu"))
            assert reason
        else:
            with pytest.raises(BadInput, match="no CPU kernels"):
                attention.choose_backend(backend, torch.device("cpu"))


def test_a_pipeline_whose_scheduler_is_unknown_offers_no_stochastic_steps(saved):
    config = tiny.config("StableDiffusionPipeline", saved["StableDiffusionPipeline"])
    policy = pipelines.load(config, device="cpu", scheduler={"class": "HeunDiscreteScheduler"})
    promised = replace(config, scheduler={"class": "HeunDiscreteScheduler"}).provides
    assert policy.provides == promised - {"trainable"} == {"latents"}
    assert config.provides == {"latents", "stochastic", "trainable"}
    with pytest.raises(TypeError, match="HeunDiscreteScheduler are not known"):
        policy.transition(policy.start(policy.noise(SEEDS), PROMPTS), 0, PROMPTS)
    with pytest.raises(TypeError, match="HeunDiscreteScheduler are not known"):
        pipelines.load(config, device="cpu", scheduler={"class": "HeunDiscreteScheduler"}, kernel={"name": "cps"})


def test_a_name_that_no_file_could_have_is_refused_in_a_sentence():
    with pytest.raises(BadInput, match="300 letters"):
        read_config("x" * 300)
