"""What a policy remembers between calls: encodings within bytes, stand-ins by rows and guidance, and never another
answer."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from tiny import PROMPTS, SEEDS
from tiny_trained import trainable

from pipelines import Lora, prompt_cache
from pipelines.prompt_cache import MAX_SHAPES
from pipelines.trainable_policy import TrainablePolicy

SD = "StableDiffusionPipeline"
NINE = [(f"prompt {k}",) for k in range(9)]
MIB = 1 << 20


@pytest.fixture
def policy(pipe):
    return tiny.policy(SD, pipe)


def state(policy, rows=1):
    return policy.start(policy.noise(range(rows)), ["a"] * rows)


def cost(policy, *requested, **changes):
    """Rows of the denoiser that a prediction takes, those that stand in included."""
    before = policy.nfe + policy.warmup_nfe
    policy.predict(*requested, **changes)
    return policy.nfe + policy.warmup_nfe - before


def test_nine_batches_of_prompts_twice_round_are_encoded_once_and_cost_a_denoiser_call_a_prediction(policy, encodings):
    x = state(policy)
    assert cost(policy, x, 1, ("first",)) == 2 + 2  # a guidance pair, and another to stand in for step 0
    before = len(encodings)
    assert [cost(policy, x, 1, batch) for _ in range(2) for batch in NINE] == 18 * [2]
    assert len(encodings) - before == 2 * 9  # positive and negative


def test_other_prompts_at_every_level_cost_no_more(policy):
    x = state(policy)
    cost(policy, x, 1, ("any",))
    assert [cost(policy, x, i, (f"at {i}, {turn}",)) for i in range(3) for turn in range(4)] == 12 * [2]


def test_a_shape_is_a_number_of_rows_with_or_without_guidance(policy):
    one, two = state(policy), state(policy, 2)
    assert [
        cost(policy, one, 2, ("a",)),
        cost(policy, two, 2, PROMPTS),
        cost(policy, one, 2, ("a",), guidance=1.0),
    ] == [4, 8, 2]
    assert [
        cost(policy, one, 2, ("b",)),
        cost(policy, two, 2, ("b", "c")),
        cost(policy, one, 2, ("b",), guidance=1.0),
    ] == [
        2,
        4,
        1,
    ]


def test_a_sample_or_a_first_step_leaves_the_shape_behind(policy):
    policy.sample(("before",), seeds=(1,))
    assert cost(policy, state(policy), 2, ("after",)) == 2
    before = policy.nfe
    policy.decode(state(policy), ("never seen",))
    assert (policy.nfe, policy.warmup_nfe) == (before, 0)


@pytest.mark.parametrize(
    "name",
    [
        SD,
        "StableDiffusion3Pipeline",
        "QwenImagePipeline",  # guidance in two calls of a step
        "ZImagePipeline",  # lists in, lists out
        "WanPipeline:2.2",  # two denoisers
        "AnimateDiffPipeline",  # frames in the batch
        "StableAudio3Pipeline",
        "HunyuanVideo15Pipeline",
    ],
)
def test_what_stands_in_for_a_skipped_step_changes_no_bit(name):
    """The last step's prediction by a policy that has seen only other prompts, and by one that has seen none."""
    pipe = tiny.build(name)
    shapes_known, fresh = tiny.policy(name, pipe), tiny.policy(name, pipe)
    x = state(shapes_known, 2)
    shapes_known.predict(x, 0, ("other words", "and more of them than there were"))
    before = shapes_known.nfe
    ours = shapes_known.predict(x, shapes_known.steps - 1, PROMPTS)
    cost, full = shapes_known.nfe - before, fresh.predict(x, fresh.steps - 1, PROMPTS)
    assert torch.equal(ours.x0, full.x0) and torch.equal(ours.eps, full.eps)
    assert fresh.nfe == fresh.warmup_nfe == cost > 0, "what stood in is no cost of the method's"


def test_a_training_that_goes_on_counts_as_one_that_was_not_stopped(pipe):
    full, resumed = (trainable(SD, copy.deepcopy(pipe)) for _ in range(2))
    x = state(full)
    full.predict(x, 1, ("a",))
    resumed.load_state_dict(full.state_dict())
    for each in (full, resumed):
        each.predict(x, 1, ("b",))
    assert resumed.nfe == full.nfe > 0


def test_in_half_precision_what_stands_in_changes_no_bit_either():
    pipe = tiny.build("StableDiffusionXLPipeline").to(torch.bfloat16)
    shapes_known, fresh = (tiny.policy("StableDiffusionXLPipeline", pipe) for _ in range(2))
    x = shapes_known.sample(("other", "words"), seeds=SEEDS).x[:, 2]
    assert torch.equal(shapes_known.predict(x, 2, PROMPTS).x0, fresh.predict(x, 2, PROMPTS).x0)


def test_a_call_that_was_stopped_halfway_leaves_nothing_wrong_behind():
    """Between the two calls of a guided step: the second is made up for, and stands in from then on."""
    name = "QwenImagePipeline"
    policy = tiny.policy(name)
    x, calls, count = state(policy), [], policy._count_rows

    def stop(*call):
        calls.append(call)
        if len(calls) == 2:
            raise InterruptedError
        count(*call)

    policy._count_rows = stop
    with pytest.raises(InterruptedError):
        policy.predict(x, 1, ("a",))
    policy._count_rows = count
    assert [cost(policy, x, 1, ("a",)), cost(policy, x, 1, ("b",))] == [3, 2]
    assert torch.equal(policy.predict(x, 1, ("b",)).x0, tiny.policy(name, policy.pipe).predict(x, 1, ("b",)).x0)


def test_encodings_are_kept_within_bytes_but_for_the_latest_few(policy):
    x = state(policy)
    for k in range(40):
        policy.predict(x, 1, (f"round {k}",))
    assert len(policy.prompt_caches.caches) == 40  # far from a gibibyte
    each = max(memo.bytes for memo in policy.prompt_caches.caches.values())
    policy.prompt_caches.max_bytes = 12 * each
    for k in range(40):
        policy.predict(x, 1, (f"another round {k}",))
    assert (
        12 <= len(policy.prompt_caches.caches) <= 13
        and sum(memo.bytes for memo in policy.prompt_caches.caches.values()) <= policy.prompt_caches.max_bytes + each
    )
    policy.prompt_caches.max_bytes = 0
    policy.predict(x, 1, ("the last",))
    assert len(policy.prompt_caches.caches) == policy.prompt_caches.batches == 8
    assert ("the last",) in [prompts for prompts, _ in policy.prompt_caches.caches]


def test_bytes_are_those_of_the_encodings_and_a_little_for_the_rest(policy):
    policy.predict(state(policy), 1, ("a",))
    (memo,) = policy.prompt_caches.caches.values()
    bytes_held = [t for t in torch.utils._pytree.tree_leaves(memo.answers) if isinstance(t, torch.Tensor)]
    assert (
        memo.bytes
        == prompt_cache.ENTRY_BYTES + sum(t.untyped_storage().nbytes() for t in bytes_held)
        > prompt_cache.ENTRY_BYTES
    )
    assert policy.prompt_caches.max_bytes / prompt_cache.ENTRY_BYTES <= 1 << 14  # batches, however small


def test_stand_ins_of_ever_new_guidance_do_not_pile_up(policy):
    x = state(policy)
    for k in range(MAX_SHAPES + 5):
        policy.predict(x, 1, ("a",), guidance=2.0 + k)
    assert len(policy.prompt_caches.stand_ins) == MAX_SHAPES


def test_a_text_encoder_in_training_costs_no_denoiser_call_more(policy, encodings):
    x = state(policy)
    cost(policy, x, 1, ("a",))
    policy.pipe.text_encoder.requires_grad_()
    before = len(encodings)
    assert [cost(policy, x, 1, ("a",)) for _ in range(2)] == [2, 2]
    policy.pipe.text_encoder.requires_grad_(False)
    assert len(encodings) == before + 4


def test_processes_with_other_rows_and_other_bytes_run_the_denoiser_equally_often(pipe, monkeypatch):
    """Where weights are sharded a call that one of them leaves out is waited for forever. Two policies here are two
    processes: the second's rows and limits differ, and between the parts both look at the size of a picture, by a
    prompt of their own."""
    monkeypatch.setattr(TrainablePolicy, "sharded", property(lambda self: True))
    ours, theirs = (trainable(SD, copy.deepcopy(pipe), lora=Lora(targets="weights")) for _ in range(2))
    theirs.prompt_caches.batches = theirs.prompt_caches.max_bytes = 0
    ran = ([], [])
    for each, observed in zip((ours, theirs), ran, strict=True):
        each._count_rows = lambda *call, seen=observed: seen.append(call)  # a call of the denoiser each

    def run(rows, words, i):
        scope = tuple(tuple(f"{words} {process} {n}" for n in range(count)) for process, count in enumerate(rows))
        results = []
        for process, each in enumerate((ours, theirs)):
            before, each.cache_scope = len(ran[process]), scope
            with torch.no_grad():
                each.predict(state(each, rows[process]), i, scope[process])
            each.cache_scope = None
            results.append(len(ran[process]) - before)
        return results

    def looks():
        for each in (ours, theirs):
            each.cache_scope = ((None, None), (None,))  # as DistributedPolicy.encode has it
            assert each.size == (3, 16, 16)
            each.cache_scope = None

    results = [run((2, 1), "once", 1), run((2, 2), "once", 1), run((1, 2), "more", 2)]
    looks()
    results += [run((2, 1), w, 1) for w in ("once", "twice", "once")] + [run((2, 2), "twice", 2)]
    assert results == [[2, 2]] * 3 + [[1, 1]] * 4
    assert len(ran[0]) == len(ran[1])
