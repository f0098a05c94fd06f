"""What works on the CPU works on another device too, in the precision that GPUs get: nothing is left behind on the way.

The device is pretended (elsewhere.py). Where there is a GPU, the marked tests ask it itself.
"""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
import training_toys as toys
from elsewhere import GPU, elsewhere
from reward_fixtures import batch_for, scored, small
from test_methods_on_models import SETTINGS, method_of
from test_sharding import build  # a U-Net of one level: every operation is looked at
from test_training_models import Level
from tiny import PROMPTS, SEEDS
from tiny_trained import SD, nudge, trainable
from torch.utils._pytree import tree_leaves

from pipelines import Lora
from rewards import REWARDS
from workbench.core.types import Batch, Media
from workbench.methods import DRAGON, HyperNoise

CLASSES = [SD, "StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline", "AudioLDM2Pipeline", "AceStepPipeline"]
# One is answered by another process and makes its tensors in a thread of its own; safetensors reads the other's onto
# `cuda` by name.
BY_NAME = {"remote", "exemplar"}
BATCH = Batch(PROMPTS, SEEDS)


@pytest.fixture(scope="module")
def sampler():
    with elsewhere():
        return tiny.policy(SD, build(SD).to(GPU, torch.bfloat16), steps=2)


@pytest.fixture(scope="module")
def learner():
    with elsewhere():
        policy = trainable(SD, build(SD).to(GPU, torch.bfloat16), lora=Lora(rank=2, alpha=4.0, targets="all"), steps=2)
        nudge(policy, 0.05)
        return policy, policy.state_dict()


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with elsewhere():
        layer, x = torch.nn.Linear(3, 2).to(GPU), torch.ones(4, 3, device=GPU, requires_grad=True)
        (layer(x) * torch.tensor(2.0)).sum().backward()
        assert x.grad.device == layer.weight.grad.device == GPU
        assert torch.equal(x.grad.cpu(), 2 * layer.weight.sum(0).expand(4, 3).cpu())
        with pytest.raises(RuntimeError, match="same device"):
            layer(torch.ones(4, 3))
        with pytest.raises(RuntimeError, match="same device"):
            x[:, 0] + torch.arange(4)
        assert x[torch.tensor([1, 3])].shape == x[[0, 2]].shape == (2, 3)


@pytest.mark.parametrize("name", [name for name in REWARDS if name not in BY_NAME])
def test_a_reward_scores_on_the_device_of_the_media_and_its_gradient_is_there(name):
    media = batch_for(REWARDS[name].spec, 3)
    on_cpu = scored(small(name), media)
    with elsewhere():
        data = media.data.to(GPU).requires_grad_(REWARDS[name].spec.differentiable)
        on_device = scored(small(name), Media(data, media.modality, media.rate))
        assert on_device.device == GPU
        if data.requires_grad:
            assert torch.autograd.grad(on_device.sum(), data)[0].device == GPU
        torch.testing.assert_close(on_device.detach().cpu(), on_cpu, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_scores_on_a_gpu_as_on_the_cpu(name):
    reward, media = small(name), batch_for(REWARDS[name].spec, 3)
    on_device = scored(reward, Media(media.data.cuda(), media.modality, media.rate))
    assert on_device.is_cuda
    torch.testing.assert_close(on_device.cpu(), scored(reward, media), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", CLASSES)
def test_a_pipeline_samples_learns_and_goes_on_from_its_state(name):
    on_cpu = tiny.policy(name, tiny.build(name)).sample(PROMPTS, seeds=SEEDS).media.data
    with elsewhere():
        results = tiny.policy(name, tiny.build(name).to(GPU)).sample(PROMPTS, seeds=SEEDS).media.data
        assert results.device == GPU
        torch.testing.assert_close(results.cpu(), on_cpu, rtol=0, atol=1e-4)
        policy = trainable(name, tiny.build(name).to(GPU, torch.bfloat16))
        policy.optimizer(1e-3)
        for _ in range(2):
            path = policy.sample(PROMPTS, seeds=SEEDS, grad=1)
            policy.backward(path.media.data.square().mean())
            assert policy.update() > 0
            state = policy.state_dict()
            assert {v.device.type for v in tree_leaves(state) if torch.is_tensor(v)} == {"cpu"}, (
                "it needs no GPU memory"
            )
            policy.load_state_dict(state)
        with torch.no_grad():
            path, i = policy.sample(PROMPTS, seeds=SEEDS), path.stochastic[0]
        law = policy.transition(path.x[:, i], i, PROMPTS)
        assert not (law.log_prob(path.x[:, i + 1]) - path.log_prob[:, i]).any()


@pytest.mark.parametrize("case", [case for case in SETTINGS if ":" not in case and case != "reuse"])
def test_a_method_delivers_media_on_the_device(sampler, case):
    with elsewhere():
        *_, last = method_of(case)(sampler, Level(), [BATCH])
        assert last.final and last.media.data.device == GPU and last.media.data.isfinite().all()


TRAINED = {
    name: dataclasses.replace(method, **{"group": 2} if "group" in vars(method) else {})
    for name, method in toys.METHODS.items()
    if ":" not in name
} | {"hypernoise": HyperNoise(), "dragon": DRAGON(group=2)}


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_moves_weights_on_the_device_in_a_gpus_precision(learner, name):
    with elsewhere():
        policy, state = learner
        policy.reset_optimizer()
        policy.load_state_dict(state)
        before = policy.adapters.content_hash()
        for event in TRAINED[name](policy, Level(), [BATCH]):
            assert event.metrics["grad_norm"] > 0
        assert policy.adapters.content_hash() != before
