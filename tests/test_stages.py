"""Staged training: what the block says, in which order things happen, and what one task costs another."""

from __future__ import annotations

from collections import Counter

import pytest

from workbench.core.errors import BadInput
from workbench.runs.stages import TaskScores, check_same_weights, read_stages

RUN = {
    "pipeline": "flux-dev",
    "prompts": "p.txt",
    "reward": "clip",
    "method": "nft",
    "watch": "aesthetic",
    "test": "t.txt",
}
TWO = [{"name": "edit", "rounds": 4, "reward": "editscore", "prompts": "edits.txt"}, {"name": "draw", "rounds": 6}]


def test_a_stage_takes_what_it_leaves_out_from_the_run():
    edit, draw = read_stages(TWO, RUN).stages
    assert (edit.reward, edit.prompts, edit.method, edit.pipeline) == ("editscore", "edits.txt", "nft", "flux-dev")
    assert edit.test == "edits.txt" and draw.test == "t.txt" and draw.prompts == "p.txt"


def test_every_task_is_judged_before_training_and_after_each_stage():
    steps = list(read_stages(TWO, RUN).iterate_steps())
    judged = [(n, s.stage) for n, s in enumerate(steps) if s.task is None]
    assert judged == [(0, 0), (5, 0), (12, 1)] and len(steps) == len(read_stages(TWO, RUN)) == 13
    assert [s.task for s in steps if s.task is not None] == [0] * 4 + [1] * 6


def test_earlier_stages_take_their_share_and_go_on_in_their_own_batches():
    block = [{"name": n, "rounds": 40, "rehearse": r} for n, r in (("a", 0), ("b", 0.25), ("c", 0.5))]
    steps = [s for s in read_stages(block, RUN).iterate_steps() if s.task is not None]
    assert Counter(s.task for s in steps[40:80]) == {1: 30, 0: 10}
    late = Counter(s.task for s in steps[80:])
    assert late[2] == 20 and late[0] + late[1] == 20 and min(late.values()) > 3
    assert all(any(s.task != 1 for s in steps[40 + k : 44 + k]) for k in range(0, 40, 4))  # evenly, one in four
    for task in range(3):
        turns = [s.turn for s in steps if s.task == task]
        assert turns == list(range(len(turns)))


def test_a_resumed_order_goes_on_where_it_was():
    block = [{"name": n, "rounds": 20, "rehearse": r} for n, r in (("a", 0), ("b", 0.3))]
    whole = list(read_stages(block, RUN, seed=3).iterate_steps())
    assert all(list(read_stages(block, RUN, seed=3).iterate_steps(n)) == whole[n:] for n in range(len(whole) + 1))


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ([], "expected a list"),
        ("edit", "expected a list"),
        (
            [{"name": "a", "rounds": 3, "rewards": "clip"}],
            r"stages\[0\]: unknown key 'rewards'; did you mean 'reward'",
        ),
        ([{"name": "a"}], r"stages\[0\]: the key 'rounds' is missing"),
        ([{"name": "a", "rounds": 0}], "at least 1"),
        ([{"name": "a b", "rounds": 1}], "a stage's name"),
        ([{"name": "a", "rounds": 1}] * 2, r"stages\[1\] \(a\): another stage"),
        ([{"name": "a", "rounds": 1, "rehearse": 0.5}], "the first has none"),
        ([{"name": "a", "rounds": 1}, {"name": "b", "rounds": 1, "rehearse": 1.0}], "a share in"),
    ],
)
def test_what_is_wrong_with_the_block_is_said(block, said):
    with pytest.raises(BadInput, match=said):
        read_stages(block, RUN)


def test_a_task_that_nobody_rewards_is_refused():
    with pytest.raises(BadInput, match=r"stages\[1\] \(draw\): neither it nor the run says its reward"):
        read_stages(TWO, {k: v for k, v in RUN.items() if k != "reward"})


def test_stages_must_train_the_same_weights():
    stages = read_stages([TWO[0] | {"pipeline": "kontext"}, TWO[1]], RUN)
    flux = ("black-forest-labs/FLUX.1-dev", "FluxTransformer2DModel")
    check_same_weights(stages, {"edit": flux, "draw": flux})
    with pytest.raises(BadInput, match="draw trains .*FLUX.1-dev .*edit .*Kontext"):
        check_same_weights(
            stages, {"edit": ("black-forest-labs/FLUX.1-Kontext-dev", "FluxTransformer2DModel"), "draw": flux}
        )


def test_what_a_stage_brings_its_own_task_and_takes_from_another():
    matrix = TaskScores(("edit", "draw"), ((0.2, 0.5), (0.6, 0.45), (0.5, 0.8)))
    assert [[round(x, 6) for x in row] for row in matrix.stage_gains()] == [[0.4, -0.05], [-0.1, 0.35]]
    assert {k: round(v, 6) for k, v in matrix.forgetting_by_task().items()} == {"edit": 0.1, "draw": 0.0}
