"""Weights come from honest files only: what is broken, foreign or armed is refused in one sentence."""

from __future__ import annotations

import pickle

import pytest
import reward_fixtures as fixtures
import torch
from reward_fixtures import small_settings

from rewards import build
from rewards.encoders import checkpoints
from workbench.core.errors import BadInput


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"x": Trap()}, protocol=2))
    torch.save({"state_dict": {"x": Trap()}}, tmp_path / "zipped.pt")
    for name in ("trap.pt", "zipped.pt"):
        with pytest.raises(BadInput, match="no readable weights file"):
            checkpoints.read_weights(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt", "empty.pt", "empty.safetensors"])
def test_a_broken_file_is_one_clear_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"not weights at all, whatever the name says")
    with pytest.raises(BadInput, match="no readable weights file"):
        checkpoints.read_weights(str(tmp_path / name))


def test_a_broken_transformers_folder_is_one_clear_sentence(tmp_path):
    folder = fixtures.clip_folder(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BadInput, match="can't load"):
        build("clip", model=folder).load()
    (tmp_path / "clip" / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no config\.json"):
        build("clip", model=folder).check()


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = fixtures.clip_folder(tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    state = load_file(path)
    del state["visual_projection.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lack 1 of its \d+ tensors \(visual_projection\.weight\)"):
        build("clip", model=folder).load()


def test_weights_of_another_shape_or_model_are_refused(tmp_path):
    clip = small_settings("clip")["model"]
    wrong = fixtures.aesthetic_files(tmp_path, clip, width=48)
    with pytest.raises(BadInput, match=r"layers\.0\.weight is \[1024, 48\], this model has \[1024, 32\]"):
        build("aesthetic", **wrong).load()
    with pytest.raises(BadInput, match="is no ImageReward checkpoint"):
        build("imagereward", weights=wrong["weights"], tokenizer=small_settings("imagereward")["tokenizer"]).load()
    with pytest.raises(BadInput, match="no weights file"):
        build("aesthetic", weights="./nowhere.pth", model=clip).load()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("open_clip:ViT-H-14x/laion2b_s32b_b79k", "did you mean 'ViT-H-14'"),
        ("open_clip:ViT-H-14/laion2b_s32b_b97k", "did you mean 'laion2b_s32b_b79k'"),
        ("open_clip:ViT-H-14/./nowhere.pt", "no weights file './nowhere.pt'"),
        ("./nowhere", r"no config\.json"),
        ("starter:image/clop", "workbench starter build"),
    ],
)
def test_a_model_that_can_not_be_is_refused_before_anything_loads(model, says):
    with pytest.raises(BadInput, match=says):
        build("clip", model=model).check()


def test_a_local_file_is_opened_once_to_be_read(monkeypatch):
    """What `check` found good before a run is not looked through again by every load."""
    opened, real = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **how: opened.append(path) or real(path, **how))
    checkpoints.read_weights(small_settings("aesthetic")["weights"])
    assert len(opened) == 1


def test_blank_initialisation_ends_whatever_lay_in_memory_before():
    """torch's truncated normal draws again until all values fit: left undone, a value that never fits never ends."""
    stale = torch.full((64,), 1e9)
    with checkpoints.BlankInit():
        torch.nn.init.trunc_normal_(stale, std=0.02)
    assert stale.abs().max() <= 2
