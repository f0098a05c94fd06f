"""Pictures, words and sounds reach a checkpoint as its own processor makes them, whatever its files say."""

from __future__ import annotations

import json
import random
import shutil
import string

import numpy as np
import pytest
import reward_fixtures
import sound_fixtures
import torch
from PIL import Image
from sound_fixtures import heard

from rewards import build
from rewards.encoders.clap import read_front_end
from rewards.encoders.image_processor import load_view, read_view
from rewards.encoders.image_text import load_transformers
from workbench.core.errors import BadInput
from workbench.core.types import Media

LEVELS = 1.5  # of 255: PIL rounds to 8 bits after each of two passes


def random_settings(draw: random.Random, n: int) -> dict:
    """Keys of a preprocessor_config.json, each there or left to the default of its class."""
    side, share = draw.choice([8, 17, 32, 40]), lambda: draw.random() < 0.4
    settings = {}
    if not share():
        forms = [{"shortest_edge": side}, {"height": side, "width": draw.choice([side, 21])}, side]
        forms += [{"shortest_edge": side, "longest_edge": side + 7}, {"max_height": side, "max_width": side + 5}]
        settings["size"] = draw.choice(forms)
    for key, values in {
        "do_resize": [True, True, False],
        "do_center_crop": [True, False],
        "do_rescale": [True, False],
        "do_normalize": [True, False],
        "rescale_factor": [1 / 255, 1 / 127.5, 1.0],
        "do_convert_rgb": [True, False],
        "image_mean": [[0.1, 0.5, 0.7], [0.5, 0.5, 0.5]],
        "image_std": [[0.3, 1.0, 0.4]],
    }.items():
        if share():
            settings[key] = draw.choice(values)
    settings |= {"resample": n % 7} if n % 7 < 6 else {}
    return settings | {"crop_size": draw.choice([32, {"height": 24, "width": 31}, {"height": 45, "width": 9}])}


def worst(ours, theirs, view) -> float:
    """In levels of 255 of the picture."""
    level = view.gain / 255 / torch.tensor(view.std).view(-1, 1, 1)
    assert ours.shape == theirs.shape
    return float(((ours - theirs) / level).abs().max())


def picture(draw: random.Random) -> np.ndarray:
    shape = (draw.randrange(12, 90), draw.randrange(12, 90), 3)
    return np.random.default_rng(draw.randrange(10**6)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor"])
def test_a_view_is_its_processors_own_output_whatever_the_config_says(kind, tmp_path):
    """PIL's backend is the reference; torchvision's is as near, where it has the kernel and nothing is padded."""
    from transformers import AutoImageProcessor

    draw, kernels, fast = random.Random(kind), set(), 0
    for n in range(24):
        settings = random_settings(draw, n)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"image_processor_type": kind}))
        view, eight_bit = load_view(str(tmp_path), "m"), picture(draw)
        theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(Image.fromarray(eight_bit))
        x = torch.from_numpy(eight_bit).permute(2, 0, 1)[None] / 255
        ours = view(x)
        assert worst(ours, torch.tensor(np.array(theirs["pixel_values"])), view) < LEVELS, settings
        kernels |= {view.kernel} if view.resize else set()
        if view.kernel in ("bilinear", "bicubic") and view.crop is None:  # lanczos only in the newest torchvision
            theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="torchvision")(Image.fromarray(eight_bit))
            assert worst(ours, torch.stack(theirs["pixel_values"]), view) < LEVELS, settings
            fast += 1
    assert kernels == {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"} and fast


@pytest.mark.parametrize("resample", range(6))
def test_the_gradient_of_every_kernel_leads_to_the_pixels(resample):
    from transformers import CLIPImageProcessor

    view = read_view(CLIPImageProcessor(size={"shortest_edge": 20}, crop_size=18, resample=resample))
    x = torch.rand(1, 3, 23, 29, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2 + 0.25
    x.requires_grad_()
    weights = torch.rand(1, 3, 18, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    (grad,) = torch.autograd.grad((view(x) * weights).sum(), x)
    step = torch.rand(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 0.5
    numeric = ((view(x + 1e-4 * step) - view(x - 1e-4 * step)) * weights).sum() / 2e-4
    assert torch.isclose((grad * step).sum(), numeric, rtol=1e-5) and grad.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": {"longest_edge": 32}}, "size is {'longest_edge': 32}; it needs shortest_edge or"),
        ({"resample": 9}, "resample is 9; there are 0 .nearest"),
        ({"image_std": [0.5, 0.5]}, "image_std is .*; it needs one number for each of red, green and blue"),
        ({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, "image_processor_type Eff"),
        ({"size": {"height": 40, "width": 32}, "do_center_crop": False}, "makes a picture 40 x 32 .* takes 32 x 32"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, None),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused_by_its_key(settings, words, tmp_path):
    """Where the size depends on the picture, a picture that fits is judged, and one that does not is refused."""
    folder = shutil.copytree(reward_fixtures.small_settings("clip")["model"], tmp_path / "clip")
    config = {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32} | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").unlink(missing_ok=True)
    if words:
        with pytest.raises(BadInput, match=words):
            load_transformers(str(folder))
        return
    encoder = load_transformers(str(folder))
    assert encoder.embed_images(torch.rand(1, 3, 50, 50)).shape[0] == 1
    with pytest.raises(BadInput, match="makes a picture 32 x 64 .* takes 32 x 32"):
        encoder.embed_images(torch.rand(1, 3, 50, 100))


ODD = [None, "64", -1, 0, 10**30, float("inf"), [], {}, [1], True, {"height": 0, "width": 3}, {"longest_edge": 5}]
ODD += [{"shortest_edge": 10**9}, ["a"] * 3, 2.5, "ConvNextImageProcessor", "DonutImageProcessor", "os.system"]


def test_a_config_of_nonsense_is_one_sentence(tmp_path):
    draw, config = random.Random(0), tmp_path / "preprocessor_config.json"
    plain = {"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 32, "resample": 3}
    plain |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "do_resize": True}
    texts = [json.dumps(plain | {key: draw.choice(ODD) for key in draw.sample(list(plain), 1)}) for _ in range(60)]
    refused = 0
    for text in [*texts, "", "[]", "null", "[" * 3000, '{"a":' * 3000 + "1" + "}" * 3000]:
        config.write_text(text)
        try:
            load_view(str(tmp_path), "m")
        except BadInput as error:
            assert "\n" not in str(error) and "preprocessor_config.json" in str(error)
            refused += 1
    assert 30 < refused < 65


def test_a_processor_nested_as_newer_transformers_write_it_is_read(tmp_path):
    nested = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    view = load_view(str(tmp_path), "m")
    assert view.resize == (("shortest_edge", 40),) and view.size == (32, 32)


# Words


def siglip2_folder(folder):
    """A SigLIP with Gemma's tokenizer, as the fixed-resolution checkpoints of SigLIP 2 have it."""
    import transformers as t

    reward_fixtures.siglip_folder(folder)
    vocab = {k: i for i, k in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_letters])}
    torch.manual_seed(2)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(vocab), "max_position_embeddings": 64, "projection_size": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    vision = tower | {"image_size": 32, "patch_size": 8}
    t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    t.GemmaTokenizer(vocab=vocab, merges=[], model_max_length=64, add_bos_token=False).save_pretrained(folder)
    return vocab


def test_siglip_2_reads_prompts_in_lower_case_as_it_was_trained(tmp_path):
    from transformers import GemmaTokenizer, Siglip2Tokenizer

    vocab = siglip2_folder(tmp_path)
    encoder, prompts = load_transformers(str(tmp_path)), ["a red cat", "A RED Cat", "A Red Dog"]
    plain = GemmaTokenizer(vocab=vocab, merges=[], add_bos_token=False)
    theirs = Siglip2Tokenizer(vocab=vocab, merges=[])
    read = encoder.tokens(prompts)["input_ids"]
    assert read.shape == (3, 64)
    for ids, prompt in zip(read.tolist(), prompts, strict=True):
        words = [i for i in theirs(prompt)["input_ids"] if i > 4]
        assert [i for i in ids if i > 4] == words
        assert words == [i for i in plain(prompt)["input_ids"] if i > 4] or prompt != prompts[0]
    assert plain(prompts[0])["input_ids"] != plain(prompts[1])["input_ids"]
    judge, media = (
        build("clip", model=str(tmp_path)),
        Media(torch.rand(3, 3, 32, 32)[:1].expand(3, -1, -1, -1), "image"),
    )
    scores = judge(media=media, prompts=prompts)
    assert scores[0] == scores[1] != scores[2]


# Sounds


@pytest.mark.parametrize("seed", range(3))
def test_a_clap_hears_what_its_own_extractor_makes_whatever_the_config_says(seed):
    from transformers import ClapConfig, ClapFeatureExtractor

    class Quieter(ClapFeatureExtractor):
        def _np_extract_fbank_features(self, waveform, mel_filters=None):
            return super()._np_extract_fbank_features(waveform * 0.9, mel_filters)

    draw = random.Random(seed)
    for _ in range(4):
        fusion, bins = draw.random() < 0.5, draw.choice([16, 32])
        settings = dict(
            feature_size=bins,
            sampling_rate=draw.choice([16000, 48000]),
            hop_length=draw.choice([160, 480]),
            fft_window_size=draw.choice([512, 1024]),
            frequency_min=draw.choice([0, 50]),
            frequency_max=draw.choice([7000, 8000]),
            padding=draw.choice(["repeatpad", "repeat", "pad"]),
            truncation="fusion" if fusion else "rand_trunc",
            max_length_s=1,
        )
        audio = ClapConfig(audio_config={"enable_fusion": fusion, "num_mel_bins": bins}).audio_config
        front = read_front_end(ClapFeatureExtractor(**settings), audio)  # it compares the two itself
        assert (front.rate, front.bins) == (settings["sampling_rate"], bins)
        with pytest.raises(BadInput, match="feature_size is 8, and the model takes"):
            read_front_end(ClapFeatureExtractor(**settings | {"feature_size": 8}), audio)
        with pytest.raises(BadInput, match="hears a sound otherwise"):
            read_front_end(Quieter(**settings), audio)


def test_a_clap_folder_of_newer_transformers_is_heard_as_before(tmp_path):
    old = sound_fixtures.clap_folder(tmp_path / "old")
    new = shutil.copytree(old, tmp_path / "new")
    settings = json.loads((new / "preprocessor_config.json").read_text())
    (new / "preprocessor_config.json").unlink()
    (new / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
    media = heard(1, 0.4, 48000)
    scores = [build("clap", model=str(f))(media=media, prompts=("slow flute",)) for f in (old, new)]
    assert torch.equal(*scores)
