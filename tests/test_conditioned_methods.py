"""Methods on pipelines that make media from a source, another one for each prompt; on one process and two, row by row,
in shards, and by a run of the command line."""

from __future__ import annotations

import os
from typing import Any

import pytest
import tiny
import tiny_conditioned  # noqa: F401
import tiny_conditioned_timed  # noqa: F401
import torch
from tiny import SEEDS
from tiny_trained import nudge, trainable

from pipelines import DistributedPolicy, Lora
from pipelines.export import export_policy
from pipelines.loading import as_sibling
from rewards.compose import WeightedReward
from workbench.core.inputs import stack_inputs
from workbench.core.types import Batch, Media, PairBatch, RewardSpec
from workbench.methods import DPO, GRPO, METHODS, NFT, HyperNoise

TEXTS = ("a red cat", "two dogs")
COG, WAN, COVER, VARIED = (
    "CogVideoXImageToVideoPipeline",
    "WanImageToVideoPipeline:2.2",
    "AceStepPipeline:cover",
    "StableAudioPipeline:source",
)
PIX, KLEIN = "StableDiffusionInstructPix2PixPipeline", "Flux2KleinPipeline:source"  # takes one for each; one for all
KONTEXT = "FluxKontextPipeline"
KINDS = frozenset({"image", "video", "audio"})


class Near:
    """How near media are to what they were made from: clips in the mean of their frames."""

    def __init__(self, name: str):
        self.name, self.spec = name, RewardSpec("near", "1", KINDS, differentiable=True, needs=frozenset({name}))

    def __call__(self, *, media, prompts, references=None):
        x = media.data.mean(1) if media.modality == "video" else media.data
        source = stack_inputs(prompts, self.name, x.shape[-2:], media.rate).data
        return -(x - source).square().flatten(1).mean(1)


def given(policy) -> tuple[WeightedReward, Batch]:
    """A reward for being near to one's own source, and two prompts with different ones."""
    (name,) = policy.conditions.inputs
    prompts = policy.conditions.example_prompts(TEXTS, seed=1000)
    return WeightedReward({Near(name): 1.0}), Batch(prompts, SEEDS)


@pytest.mark.parametrize(
    ("name", "method"),
    [(COG, GRPO(group=2, lr=1e-3)), (COVER, GRPO(group=2, lr=1e-3)), (WAN, NFT(group=2)), (VARIED, NFT(group=2))],
)
def test_a_training_of_clips_and_sounds_takes_each_row_from_its_own_source(name, method):
    """In micro-batches of three, and at once: the same update. Steps are scored exactly as they were drawn."""
    updates = []
    for micro in (0, 3):
        policy = trainable(name, steps=2, checkpoint=False)
        reward, batch = given(policy)
        (event,) = method(DistributedPolicy(policy, micro), reward, [batch])
        assert event.metrics["grad_norm"] > 0 and event.metrics.get("log_ratio", 0.0) == 0.0
        updates.append([p.detach().clone() for p in policy.adapters.parameters])
    for ours, theirs in zip(*updates, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", [COG, KLEIN, "StableAudio3AudioToAudioPipeline"])
def test_a_search_over_noises_judges_each_sample_by_its_own_source(name):
    """What a search returns is better than the first samples, and its noise makes it again."""
    policy = tiny.policy(name, steps=2, checkpoint=False)
    reward, batch = given(policy)
    before = reward(media=policy.sample(batch.prompts, seeds=batch.seeds).media, prompts=batch.prompts).mean()
    for search in (METHODS["best_of_n"](n=3), METHODS["reno"](iterations=2), METHODS["fk"](particles=2)):
        event = next(e for e in search(policy, reward, [batch]) if e.final)
        after = reward(media=event.media, prompts=batch.prompts).mean()
        assert event.media.data.shape[0] == 2 and after.isfinite()
        if event.latents is not None:
            again = policy.sample(batch.prompts, seeds=event.seeds, noise=event.latents).media.data
            assert torch.equal(again, event.media.data) and after >= before


def test_pairs_of_existing_clips_teach_with_the_first_frames_of_their_prompts():
    """Encoded around the first frame, which is given."""
    policy = trainable("LTXImageToVideoPipeline", steps=2, checkpoint=False)
    _, batch = given(policy)
    winners, losers = (Media(torch.full((2, *policy.size), level), "video", policy.rate) for level in (0.7, 0.2))
    (event,) = DPO(lr=1e-3)(policy, Near("first"), [PairBatch(*vars(batch).values(), winners, losers)])
    assert event.metrics["grad_norm"] > 0


def test_a_noise_hypernetwork_reads_the_source_with_the_prompt():
    policy = trainable(PIX, steps=2, checkpoint=False, kernel=None, lora=Lora(rank=2, targets="all"))
    reward, batch = given(policy)
    (event,) = HyperNoise(lr=1e-3)(policy, reward, [batch])
    assert event.metrics["grad_norm"] > 0
    nudge(policy)
    noise = policy.noise(SEEDS)
    with torch.no_grad():
        ours = policy.noise_correction(noise, batch.prompts)
        others = policy.noise_correction(noise, policy.conditions.example_prompts(TEXTS, seed=2000))
    assert ours.abs().max() > 1e-3 and (ours - others).abs().max() > 1e-4 * ours.abs().max()


def test_a_training_that_is_resumed_ends_with_the_bits_of_one_that_was_not():
    """As another process would begin: with a policy of its own, whose adapters are others and whose caches are
    empty."""

    def begin(seed):
        torch.manual_seed(seed)
        return trainable(KLEIN, steps=2, checkpoint=False)

    with torch.random.fork_rng([]):
        calm, halves = begin(0), begin(0)
        reward, batch = given(calm)
        method = GRPO(group=2, lr=1e-3)
        torch.manual_seed(1)
        list(method(calm, reward, [batch, batch]))
        torch.manual_seed(1)
        list(method(halves, reward, [batch]))
        resumed = begin(2)
        resumed.load_state_dict(halves.state_dict())
        list(method(resumed, reward, [batch]))
    assert halves.updates == 1 and resumed.updates == calm.updates == 2
    pairs = list(zip(resumed.adapters.parameters, calm.adapters.parameters, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(halves.adapters.parameters, calm.adapters.parameters, strict=True))


def test_what_was_trained_is_exported_and_loaded_back_with_a_source(tmp_path):
    """The comparison of predictions gives the call its inputs; a sibling and the merged weights take them too."""
    policy = trainable(WAN, steps=2, checkpoint=False)
    nudge(policy)
    exported = export_policy(policy, tmp_path / "lora")
    assert exported.effect > 0.1 and exported.difference < 1e-5
    names = {path.name for path in exported.files}
    assert "comfyui.safetensors" in names, "as the text-to-video pipeline, which has the same denoiser"
    _, batch = given(policy)
    twin = as_sibling(policy, tiny.config(WAN, "unused", steps=2))
    policy.kernel = None
    media = policy.sample(batch.prompts, seeds=SEEDS).media.data
    assert torch.equal(twin.sample(batch.prompts, seeds=SEEDS).media.data, media)
    with policy.merged():
        torch.testing.assert_close(policy.sample(batch.prompts, seeds=SEEDS).media.data, media, atol=1e-3, rtol=0)


# Several processes


def learn(name: str, **settings) -> dict:
    """Two updates on three rows, of which two have one source: by chains and by samples with their gradient."""
    policy = trainable(name, steps=2, checkpoint=False, **settings)
    rows = DistributedPolicy(policy)
    a, b = policy.conditions.example_prompts(TEXTS, seed=1000)
    prompts, seeds = (a, b, a), (11, 12, 13)
    rows.optimizer(1e-3)
    norms = []
    for _ in range(2):
        with torch.no_grad():
            path = rows.sample(prompts, seeds=seeds)
        law = rows.transition(path.x[:, 0], 0, prompts)
        rows.backward((law.mean - 0.5 * path.x[:, 1]).square().mean())
        rows.backward(rows.sample(prompts, seeds=seeds, grad=1).media.data.square().mean())
        norms.append(rows.update())
    state = policy.state_dict()["adapters"]["train"]
    return {"norms": norms, "nfe": policy.nfe, "grouping": policy.grouping, "x": path.x, "weights": state}


def align(name: str, method: Any) -> dict:
    """Two updates by a method on three prompts, of which two have one source, in micro-batches of two rows."""
    policy = trainable(name, steps=2, checkpoint=False)
    reward, _ = given(policy)
    a, b = policy.conditions.example_prompts(TEXTS, seed=1000)
    batches = [Batch((a, b, a), (11, 12, 13)), Batch((b, a, b), (14, 15, 16))]
    norms = [event.metrics["grad_norm"] for event in method(DistributedPolicy(policy, 2), reward, batches)]
    return {"norms": norms, "weights": policy.state_dict()["adapters"]["train"]}


ALIGNED = {KONTEXT: GRPO(group=2, lr=1e-3), COVER: GRPO(group=2, lr=1e-3), COG: NFT(group=2, lr=1e-3)}
SHARDED = dict(lora=Lora(targets="weights"), shard=True)
FLAT = dict(call={"guidance_scale": 1.0, "guidance_scale_2": 1.0, "num_frames": 5, **tiny.SQUARE, **tiny.CLIP16})


def work(folder) -> None:
    """In one process of two."""
    torch.set_num_threads(1)
    whole, shards = learn(WAN, **FLAT), learn(WAN, **FLAT, **SHARDED)
    aligned = {name: align(name, method) for name, method in ALIGNED.items()}
    torch.save({"whole": whole, "shards": shards, **aligned}, folder / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outputs(launcher, tmp_path_factory) -> list[dict]:
    """What `work` saved in each of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    codes, said = launcher.launch(folder / "work", function="test_conditioned_methods:work", out=str(folder))
    assert codes == [0, 0], said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", list(ALIGNED))
def test_two_processes_align_on_sources_as_one_would(outputs, name):
    """A row of a group may be in another process than the rest, and so may the rows of one source."""
    first, second = (output[name] for output in outputs)
    single = align(name, ALIGNED[name])
    assert first["norms"] == second["norms"] == pytest.approx(single["norms"], rel=2e-3)
    for key, value in single["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key])
        torch.testing.assert_close(first["weights"][key], value, atol=2e-4, rtol=0)


def test_two_processes_learn_what_one_would_also_in_shards_where_they_run_the_denoiser_equally_often(outputs):
    """Wan takes one first frame for all rows of a call, so rows are grouped by their frames: two calls here. The
    processes have two rows and one, of other frames; in shards each row is a call of its own, and both make two."""
    first, second = outputs
    for kind, settings in (("whole", {}), ("shards", SHARDED)):
        single = learn(WAN, **FLAT, **settings)  # one process: nothing is sharded
        assert single["grouping"] == "one"
        assert first[kind]["grouping"] == second[kind]["grouping"] == ("one" if kind == "whole" else "alone")
        torch.testing.assert_close(first[kind]["x"], single["x"], atol=1e-4, rtol=0)
        assert first[kind]["norms"] == second[kind]["norms"] == pytest.approx(single["norms"], rel=1e-3)
        for key, value in single["weights"].items():
            torch.testing.assert_close(first[kind]["weights"][key], value, atol=1e-3, rtol=0)
    assert first["shards"]["nfe"] == second["shards"]["nfe"], "or they would have waited for ever"
