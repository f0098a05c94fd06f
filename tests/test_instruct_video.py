"""InstructVideo: what it begins from, and what that costs."""

from __future__ import annotations

import json

import pytest
import tiny_trained
import torch
from training_toys import Value, gaussian_policy

from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Batch, Media
from workbench.methods.training.direct import DRaFT
from workbench.methods.training.instruct_video import InstructVideo
from workbench.runs.captioned_media import CaptionedFolder
from workbench.runs.resolve import list_dependency_files, resolve_dependencies

PROMPTS = tuple("abcdefgh")
BATCHES = [Batch(PROMPTS[k % 2 :: 2], tuple(range(4 * k, 4 * k + 4))) for k in range(10)]


class Given:
    """A medium of every prompt, for the toy policy whose latents are its pictures."""

    def count(self, prompt):
        return 1

    def read(self, prompt, n, size):
        return Media(torch.full((1, 1, 1, 2), 0.1 * PROMPTS.index(prompt)), "image")


def spent(method):
    policy = gaussian_policy(method, steps=8)
    policy.encode, policy.size = lambda media: media.data, (1, 1, 2)
    events = list(method(policy, Value(), BATCHES))
    assert len(events) == 10 and all(event.metrics["grad_norm"] > 0 for event in events)
    return policy.nfe


def test_only_the_last_part_of_the_chain_is_run_and_samples_are_made_once():
    """8 steps, of which 0.6 are 5; 40 rows of 8 prompts."""
    draft, given, once, anew = (
        spent(method)
        for method in (DRaFT(), InstructVideo(clips=Given()), InstructVideo(), InstructVideo(samples_per_prompt=0))
    )
    assert (draft, given, once, anew) == (40 * 8, 40 * 5, 40 * 5 + 8 * 8, 40 * 13)
    assert given < once < draft < anew
    for method, count in ((InstructVideo(clips=Given()), given), (InstructVideo(samples_per_prompt=0), anew)):
        assert method.calls(8) * 40 == count


def folder_of_clips(place):
    for n in range(4):
        story = {"prompt": "c"} if n == 2 else None
        media.write_media(Media(torch.full((1, 3, 24, 40), 0.2 * n), "image"), place / f"{n}.png", meta=story)
    (place / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a"}) + "\n")
    (place / "1.txt").write_text("a\n")
    return place


def test_given_media_have_their_prompts_beside_them_or_in_them(tmp_path):
    found = CaptionedFolder(str(folder_of_clips(tmp_path)))
    assert [found.count(p) for p in "abc"] == [2, 0, 1] and len(found.input_files()) == 4
    assert found.read("a", 1, (3, 8, 8)).data.shape == (1, 3, 8, 8)
    assert found.read("c", 0, (3, 8, 8)).data.mean().item() == pytest.approx(0.4, abs=0.01)
    method = InstructVideo(clips=str(tmp_path))
    assert len(list_dependency_files(method)) == 4
    resolve_dependencies(method).check_prompts(["a", "c"])
    with pytest.raises(BadInput, match="no medium for 1 of 2 prompts, such as 'b'"):
        resolve_dependencies(method).check_prompts(["a", "b"])
    InstructVideo().check_prompts(["b"])
    for name, sentence in ((tmp_path / "none", "is no folder"), (tmp_path / "bare", "no medium in .* has a prompt")):
        (tmp_path / "bare").mkdir(exist_ok=True)
        with pytest.raises(BadInput, match=sentence):
            resolve_dependencies(InstructVideo(clips=str(name)))


def test_a_real_pipeline_begins_from_given_media_and_makes_each_latent_once(tmp_path):
    policy = tiny_trained.trainable(tiny_trained.SD)
    method = resolve_dependencies(InstructVideo(clips=str(folder_of_clips(tmp_path)), lr=1e-3))
    encoded, real = [], policy.encode
    policy.encode = lambda media: encoded.append(1) or real(media)
    events = list(method(policy, Value(), [Batch(("c", "c"), (k, k + 9)) for k in range(3)]))
    assert all(event.metrics["grad_norm"] > 0 for event in events) and len(encoded) == 1
