"""What a policy promises while it is trained: exact scores, gradients, updates, resumption, memory."""

from __future__ import annotations

import copy
import io
import math
import weakref

import pytest
import tiny
import torch
from tiny import PROMPTS, SEEDS
from tiny_trained import SD, nudge, trainable
from torch.nn.utils import parameters_to_vector
from torch.utils._pytree import tree_leaves

from pipelines import Lora
from pipelines.trainable_policy import EMA
from workbench.core.errors import BadInput

NAMES = [
    SD,
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "WanPipeline",
    "LTXPipeline",
    "AudioLDM2Pipeline",
    "StableAudioPipeline",
    "LongCatAudioDiTPipeline",
    "TextToVideoSDPipeline",
    "WanPipeline:2.2",
]
UNUSED = ("attn.add_q_proj",)  # of SD3's last block, whose text stream ends there


@pytest.fixture(scope="module", params=NAMES)
def subject(request):
    """A pipeline's pictures before it is trained, and then it in training, the adapters away from their start."""
    pipe = tiny.build(request.param)
    before = tiny.policy(request.param, pipe).sample(PROMPTS, seeds=SEEDS).media.data
    policy = trainable(request.param, pipe)
    nudge(policy)
    return before, policy


@pytest.fixture
def policy(pipe):
    return trainable(SD, copy.deepcopy(pipe))


def ratios(policy, trajectory):
    """[stochastic steps, B], with graph."""
    steps = trajectory.stochastic
    laws = [policy.transition(trajectory.x[:, i], i, PROMPTS) for i in steps]
    return torch.stack(
        [law.log_prob(trajectory.x[:, i + 1]) - trajectory.log_prob[:, i] for law, i in zip(laws, steps, strict=True)]
    )


def loss_of(policy, seeds=SEEDS):
    return policy.sample(PROMPTS, seeds=seeds, grad=1).media.data.square().mean()


def train(policy, seed):
    policy.backward(loss_of(policy, (seed, seed + 1)))
    return policy.update()


def values(policy):
    return parameters_to_vector(policy.adapters.parameters).detach().clone()


def test_a_recorded_step_scores_to_the_last_bit_as_it_did_and_gives_gradient_to_every_adapter(subject):
    """The log-ratio is exactly 0 until the first update, at every stochastic step, and not 0 after other values."""
    _, policy = subject
    trajectory = policy.sample(PROMPTS, seeds=SEEDS)
    assert not trajectory.media.data.requires_grad and len(trajectory.stochastic) >= 2
    results = ratios(policy, trajectory)
    assert torch.equal(results, torch.zeros_like(results))
    results.sum().backward()
    dead = [k for k, p in policy.adapters.live.items() if (p.grad is None or not p.grad.any()) and "lora_B" in k]
    assert all(any(name in key for name in UNUSED) for key in dead)
    assert all(p.grad is None for name in policy.structure.denoisers for k, p in _frozen(policy, name))
    for p in policy.adapters.parameters:
        p.grad = None
    policy.take_copy("old")
    with policy.use("old"), torch.no_grad():  # without a graph, and through a copy, it is the same step
        assert not ratios(policy, trajectory).any()
    nudge(policy, 0.05, seed=1)
    with torch.no_grad():
        assert ratios(policy, trajectory).abs().min() > 1e-8
        with policy.use("old"):
            assert not ratios(policy, trajectory).any()


def _frozen(policy, name):
    return [(k, p) for k, p in policy.adapters.denoisers[name].named_parameters() if not p.requires_grad]


def test_with_its_adapters_off_it_is_the_pipeline_that_was_loaded(subject):
    before, policy = subject
    policy.kernel, kernel = None, policy.kernel
    after = policy.sample(PROMPTS, seeds=SEEDS).media.data
    with policy.reference():
        base = policy.sample(PROMPTS, seeds=SEEDS).media.data
        with policy.reference():
            pass
        repeated = policy.sample(PROMPTS, seeds=SEEDS).media.data
    policy.kernel = kernel
    assert torch.equal(base, before) and torch.equal(repeated, before)
    assert not torch.equal(after, before)
    assert all(p.requires_grad for p in policy.adapters.parameters)


def test_the_last_step_and_a_prediction_give_gradient_to_the_adapters(subject):
    _, policy = subject
    x = policy.start(policy.noise(SEEDS), PROMPTS)
    for loss in (loss_of(policy), policy.predict(x, 0, PROMPTS).x0.square().mean()):
        gradients = torch.autograd.grad(loss, policy.adapters.parameters, allow_unused=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)
        requested = len(gradients) // len(policy.structure.denoisers)  # the last step is one expert's
    assert sum(g is not None and bool(g.any()) for g in gradients) >= requested - 2


def test_a_policy_in_training_says_so_and_remembers_its_prompts(policy):
    assert policy.provides == {"latents", "stochastic", "trainable"}
    ran, encoder = [], policy.pipe.text_encoder
    encoder.register_forward_hook(lambda *_: ran.append(1))
    policy.optimizer(1e-2)
    train(policy, 1)
    once, first = len(ran), policy.sample(PROMPTS, seeds=SEEDS).media.data
    train(policy, 1)
    second = policy.sample(PROMPTS, seeds=SEEDS).media.data
    assert len(ran) == once > 0
    policy.forget_prompts()
    assert torch.equal(policy.sample(PROMPTS, seeds=SEEDS).media.data, second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("sign", [1, -1])
def test_updates_move_the_loss_the_way_it_was_asked_for(policy, sign):
    policy.optimizer(1e-2)
    start = loss_of(policy).item()
    norms = []
    for _ in range(6):
        policy.backward(sign * loss_of(policy))
        norms.append(policy.update())
    assert sign * (start - loss_of(policy).item()) > 0.01 * start
    assert all(0 < norm < math.inf for norm in norms)


def test_gradients_gather_until_an_update(policy):
    """Two halves of a batch, each weighed by a half, are one batch."""
    x = policy.sample(PROMPTS, seeds=SEEDS).x[:, 1]
    policy.optimizer(1e-2)
    policy.backward(policy.predict(x, 1, PROMPTS).x0.square().mean())
    full = torch.cat([p.grad.flatten() for p in policy.adapters.parameters])
    for p in policy.adapters.parameters:
        p.grad = None
    for b in range(2):
        policy.backward(policy.predict(x[b : b + 1], 1, PROMPTS[b : b + 1]).x0.square().mean() / 2)
    halves = torch.cat([p.grad.flatten() for p in policy.adapters.parameters])
    assert torch.allclose(full, halves, atol=1e-4 * full.abs().max())
    assert policy.update() == pytest.approx(float(full.norm()), rel=1e-3)
    assert all(p.grad is None for p in policy.adapters.parameters)


def test_a_gradient_that_is_not_finite_is_not_stepped_on(policy):
    optimizer = policy.optimizer(1e-2)
    train(policy, 1)
    before, state = policy.adapters.content_hash(), copy.deepcopy(optimizer.state_dict())
    for bad in (math.nan, math.inf):
        policy.backward(loss_of(policy) * bad)
        assert math.isnan(policy.update())
    assert policy.adapters.content_hash() == before and policy.updates == 1
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    assert train(policy, 1) > 0 and policy.adapters.content_hash() != before


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(pipe):
    """With an eps that drowns the gradient, AdamW's step is as long as the clipped gradient."""
    change = []
    for clip in (1e-5, 1e-6):
        policy = trainable(SD, copy.deepcopy(pipe), clip=clip)
        policy.optimizer(1.0, eps=1e3, weight_decay=0.0)
        before = values(policy)
        assert train(policy, 1) > clip
        change.append(float((values(policy) - before).norm()))
    assert change[0] == pytest.approx(10 * change[1], rel=1e-2)


def test_an_update_needs_an_optimiser_and_a_gradient(policy):
    with pytest.raises(RuntimeError, match="before optimizer"):
        policy.update()
    policy.optimizer(1e-2)
    before = policy.adapters.content_hash()
    assert policy.update() == 0.0 and policy.adapters.content_hash() == before and policy.updates == 0


def test_a_loss_scaler_changes_nothing_but_skips_what_overflows(pipe):
    """float16 weights get it; here it is put on a float32 policy, so that the two can be compared."""
    plain, scaled = (trainable(SD, copy.deepcopy(pipe)) for _ in range(2))
    scaled._scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=True)
    norms = []
    for policy in (plain, scaled):
        policy.optimizer(1e-2)
        norms.append(train(policy, 1))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert torch.allclose(values(plain), values(scaled), atol=1e-5)
    before = scaled.adapters.content_hash()
    scaled.backward(loss_of(scaled) * 1e38)
    assert math.isnan(scaled.update()) and scaled.adapters.content_hash() == before
    assert scaled._scaler.get_scale() == 512.0


def test_an_average_follows_the_updates_with_a_warm_up(pipe):
    policy = trainable(SD, copy.deepcopy(pipe), ema=0.9)
    policy.optimizer(1e-2)
    train(policy, 1)
    first = values(policy)
    train(policy, 2)
    with policy.use(EMA):
        mean = values(policy)
    assert torch.allclose(mean, 0.25 * first + 0.75 * values(policy), atol=1e-6)  # (1 + 2) / (10 + 2)
    assert not torch.equal(mean, values(policy))


def test_training_goes_on_as_if_it_had_never_stopped(pipe):
    """Through a file that is read with weights only, into another policy, optimiser made afterwards as a method makes
    it."""
    policy = trainable(SD, copy.deepcopy(pipe), ema=0.9)
    policy.optimizer(1e-2)
    train(policy, 1)
    policy.take_copy("old")
    train(policy, 2)
    file = io.BytesIO()
    torch.save(policy.state_dict(), file)
    train(policy, 3)
    draws = torch.rand(3)

    resumed = trainable(SD, copy.deepcopy(pipe), ema=0.9)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    resumed.optimizer(1.0)  # the state's own rate wins
    train(resumed, 3)
    assert torch.equal(torch.rand(3), draws)
    assert resumed.adapters.content_hash() == policy.adapters.content_hash()
    assert (resumed.updates, resumed.nfe) == (policy.updates, policy.nfe)
    for name in ("old", EMA):
        with policy.use(name), resumed.use(name):
            assert policy.adapters.content_hash() == resumed.adapters.content_hash()
    unresumed = trainable(
        SD, copy.deepcopy(pipe), ema=0.9
    )  # a control: without the optimiser's state it goes elsewhere
    unresumed.adapters.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True)["adapters"])
    unresumed.optimizer(1e-2)
    train(unresumed, 3)
    assert unresumed.adapters.content_hash() != policy.adapters.content_hash()


def test_a_state_of_another_training_is_refused(pipe, policy):
    state = trainable(SD, copy.deepcopy(pipe), lora=Lora(rank=2)).state_dict()
    before = policy.adapters.content_hash()
    with pytest.raises(BadInput, match="rank"):
        policy.load_state_dict(state)
    state["lora"] = policy.state_dict()["lora"]
    with pytest.raises(BadInput, match="the same rank and targets"):
        policy.load_state_dict(state)
    assert policy.adapters.content_hash() == before


def test_eight_bit_moments_train_and_go_on_as_if_never_stopped(pipe):
    """bitsandbytes' own optimiser; tensors of fewer than 4096 values it keeps in 32 bits."""
    pytest.importorskip("bitsandbytes", reason="of the extra `gpu`; it trains on CPUs too")

    def fresh():
        return trainable(SD, copy.deepcopy(pipe), lora=Lora(rank=256))

    policy = fresh()
    untrained = policy.adapters.content_hash()
    policy.optimizer(1e-2, eight_bit=True)
    train(policy, 2)
    state = policy.state_dict()
    moments = [m for m in tree_leaves(state["optimizer"]["state"]) if torch.is_tensor(m)]
    assert any(m.dtype == torch.uint8 for m in moments)
    file = io.BytesIO()
    torch.save(state, file)
    train(policy, 2)
    resumed = fresh()
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    resumed.optimizer(1.0, eight_bit=True)
    train(resumed, 2)
    assert resumed.adapters.content_hash() == policy.adapters.content_hash() != untrained


def test_eight_bit_moments_need_their_library(policy, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="bitsandbytes, which is not installed"):
        policy.optimizer(1e-3, eight_bit=True)


class Saved:
    def __init__(self, tensor):
        self.tensor = tensor


def held(policy, grad):
    """Bytes that the graph of a sample keeps for its backward pass, besides the weights."""
    saved = weakref.WeakSet()

    def pack(tensor):
        saved.add(previous := Saved(tensor.detach()))  # with its graph it would hold itself
        return previous

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        trajectory = policy.sample(PROMPTS, seeds=SEEDS, grad=grad)
    assert trajectory.media.data.requires_grad
    original = {p.untyped_storage().data_ptr() for m in policy.adapters.denoisers.values() for p in m.parameters()}
    storages = {s.data_ptr(): s.nbytes() for s in (previous.tensor.untyped_storage() for previous in saved)}
    return sum(size for pointer, size in storages.items() if pointer not in original)


def test_the_memory_of_one_live_step_does_not_grow_with_the_steps(pipe):
    """DRaFT-1; all steps live, without recomputation, is the control that grows."""
    short, long = (trainable(SD, copy.deepcopy(pipe), steps=n, checkpoint=False) for n in (2, 5))
    assert held(long, 1) == pytest.approx(held(short, 1), rel=0.02)
    full = held(long, 5)
    assert full > 1.8 * held(short, 2) > 1.8 * held(short, 1)
    long.checkpoint = True
    assert held(long, 5) < 0.5 * full


def test_blocks_that_recompute_give_the_same_gradient_and_the_same_scores_for_less_memory(pipe):
    plain, blocks = (trainable(SD, copy.deepcopy(pipe), blocks=b) for b in (False, True))
    for policy in (plain, blocks):
        nudge(policy)
    trajectory = blocks.sample(PROMPTS, seeds=SEEDS)
    assert not ratios(blocks, trajectory).any()
    ours, theirs = (torch.autograd.grad(loss_of(p), p.adapters.parameters) for p in (blocks, plain))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
    assert held(blocks, 1) < 0.8 * held(plain, 1)


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_a_half_precision_pipeline_trains_adapters_in_single_precision(name):
    policy = trainable(name, tiny.build(name).to(torch.bfloat16))
    assert {p.dtype for p in policy.adapters.parameters} == {torch.float32}
    nudge(policy)
    trajectory = policy.sample(PROMPTS, seeds=SEEDS)
    results = ratios(policy, trajectory)
    assert trajectory.x.dtype == torch.bfloat16 and torch.equal(results, torch.zeros_like(results))
    policy.optimizer(1e-5)
    policy.backward(results.sum())
    before = policy.adapters.content_hash()
    assert 0 < policy.update() < math.inf and policy.adapters.content_hash() != before


def test_whole_weights_can_be_trained_too(pipe):
    policy = trainable(SD, copy.deepcopy(pipe), lora=Lora(targets="weights"))
    before = tiny.policy(SD, pipe).sample(PROMPTS, seeds=SEEDS).media.data
    trajectory = policy.sample(PROMPTS, seeds=SEEDS)
    assert not ratios(policy, trajectory).any()
    policy.optimizer(1e-3)
    train(policy, 1)
    assert ratios(policy, trajectory).any() and 0 < policy.adapters.distance_from_base() < 0.1
    policy.kernel = None
    with policy.reference():
        assert torch.equal(policy.sample(PROMPTS, seeds=SEEDS).media.data, before)
    assert not torch.equal(policy.sample(PROMPTS, seeds=SEEDS).media.data, before)
