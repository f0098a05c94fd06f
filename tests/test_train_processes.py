"""Rows shared out among processes and micro-batches: the arithmetic of one process at once; and kills that change
nothing."""

from __future__ import annotations

import copy
import gc
import json
import os
import re
import sys
import time
import weakref

import pytest
import torch
import train_fixtures as small
import yaml
from tiny import PROMPTS, SEEDS
from tiny_trained import SD, nudge, trainable
from torch.nn.utils import parameters_to_vector
from train_fixtures import NFT, folder_of, go, planned, told, weights

from pipelines import DistributedPolicy
from workbench.core.paths import ROOT
from workbench.runs import store


def loss_of(policy, seed):
    return policy.sample(PROMPTS, seeds=(seed, seed + 1), grad=1).media.data.square().mean()


def values(policy):
    return parameters_to_vector(policy.adapters.parameters).detach()[:50]


def gradient(policy, rows, loss):
    rows.backward(loss(rows))
    results = [p.grad.clone() for p in policy.adapters.parameters]
    for p in policy.adapters.parameters:
        p.grad = None
    return results


@pytest.mark.parametrize("what", ["predict", "transition", "sample", "decode"])
def test_a_row_at_a_time_recomputed_gives_the_gradient_of_all_at_once(pipe, what):
    policy = trainable(SD, copy.deepcopy(pipe))
    nudge(policy)
    x = policy.sample(PROMPTS, seeds=SEEDS).x[:, 1].detach()

    def loss(rows):
        if what == "sample":
            return rows.sample(PROMPTS, seeds=SEEDS, grad=2).media.data.square().mean()
        if what == "decode":
            return rows.decode(rows.predict(x, 1, PROMPTS).x0, PROMPTS).data.square().mean()
        message = getattr(rows, what)(x, 1, PROMPTS)
        return (message.x0 if what == "predict" else message.mean).square().mean()

    full, some_rows = DistributedPolicy(policy), DistributedPolicy(policy, micro=1)
    ours, theirs = gradient(policy, some_rows, loss), gradient(policy, full, loss)
    scale = max(float(g.abs().max()) for g in theirs)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(ours, theirs, strict=True)) and scale > 0
    before = policy.nfe
    loss(full)
    once = policy.nfe - before
    before = policy.nfe
    some_rows.backward(loss(some_rows))  # every prompt is known by now
    assert policy.nfe - before == once, "what is recomputed in the backward pass is not counted"


@pytest.mark.parametrize("what", ["sample", "decode"])
def test_what_a_part_recomputes_is_let_go_after_its_backward_pass(pipe, what):
    """A part that kept its own outcome would never be freed: autograd's nodes are not seen by Python's garbage
    collector."""
    policy = trainable(SD, copy.deepcopy(pipe))
    denoiser = weakref.ref(policy.pipe.unet)
    rows = DistributedPolicy(policy, micro=1)
    if what == "sample":
        media = rows.sample(PROMPTS, seeds=SEEDS, grad=1).media
    else:
        x = policy.sample(PROMPTS, seeds=SEEDS).x[:, 1].detach()
        media = rows.decode(rows.predict(x, 1, PROMPTS).x0, PROMPTS)
    outputs = weakref.ref(media.data)
    rows.backward(media.data.square().mean())
    del media, rows, policy
    gc.collect()
    assert outputs() is None and denoiser() is None


def test_judges_see_as_many_rows_at_once_as_the_denoiser(pipe):
    observed, policy = [], trainable(SD, copy.deepcopy(pipe))

    def score(rows):
        observed.append(rows)
        return {"a": torch.tensor([float(n) for n in rows])}

    assert (
        DistributedPolicy(policy, micro=2).score_rows(score, 5)["a"].tolist()
        == DistributedPolicy(policy).score_rows(score, 5)["a"].tolist()
    )
    assert observed == [[0, 1], [2, 3], [4], [0, 1, 2, 3, 4]]


def test_gradients_of_several_rounds_gather_into_one_update(pipe):
    policy = trainable(SD, copy.deepcopy(pipe))
    rows = DistributedPolicy(policy, accumulate=2)
    rows.optimizer(1e-2)
    before = policy.adapters.content_hash()
    for n in (1, 2):
        rows.backward(rows.sample(PROMPTS, seeds=(n, n + 5), grad=1).media.data.square().mean())
        norm = rows.update()
        assert (norm > 0) is (policy.adapters.content_hash() != before) is (n == 2)


def test_two_processes_that_see_different_rows_stay_one_policy(pipe, launcher, tmp_path):
    """Each process has its own half of the gradient; both step on the mean, and an adapter that only one of them
    used."""
    codes, said = launcher.launch(tmp_path / "work", function="test_train_processes:work", out=str(tmp_path))
    assert codes == [0, 0], said
    messages = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    single = trainable(SD, copy.deepcopy(pipe))
    single.optimizer(1e-2)
    for seed in (1, 3):
        single.backward(loss_of(single, seed) / 2)
    norm = single.update()
    assert messages[0]["hash"] == messages[1]["hash"]
    assert messages[0]["norm"] == pytest.approx(norm, rel=1e-4)
    assert torch.allclose(torch.tensor(messages[0]["values"]), values(single), atol=1e-5)
    assert (
        messages[0]["unused"] is messages[1]["unused"] is True and messages[0]["shared"] == messages[1]["shared"] == 0.5
    )


def work(folder):
    """In one process of two: its half of the gradient; what it then has is in FOLDER/RANK.json."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    policy = trainable(SD)
    policy.optimizer(1e-2)
    policy.backward(loss_of(policy, 1 + 2 * rank))
    norm = policy.update()
    messages = {"hash": policy.adapters.content_hash(), "norm": norm, "values": values(policy).tolist()}
    first, second = policy.adapters.parameters[:2]
    if rank == 0:
        first.grad = torch.ones_like(first)
    policy._average_gradients()
    messages |= {"unused": second.grad is None, "shared": float(first.grad.mean())}
    (folder / f"{rank}.json").write_text(json.dumps(messages))
    torch.distributed.destroy_process_group()


def asked_of(folder, settings):
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(small.asked(folder, **settings)))
    return path


def launched(launcher, path, **failure):
    """Exit codes of two processes that run this config, and what they said."""
    arguments = ["run", str(path), "--runs", str(path.parent / "runs")]
    return launcher.launch(path.parent / "launch", arguments=arguments, **failure)


@pytest.mark.parametrize(
    ("rank", "error", "file", "reason"),
    [
        (0, 'RuntimeError("no more of this")', "failure-nft.txt", "RuntimeError: no more of this"),
        (1, 'torch.OutOfMemoryError("full")', "failure-nft-rank1.txt", "the GPU's memory is full.*set train.micro"),
    ],
)
def test_a_process_that_fails_says_why_and_none_waits_for_it(tmp_path, launcher, rank, error, file, reason):
    train = {"rounds": 2, "eval_every": 0, "eval_prompts": 1}
    contestants = {"base": "sample", "nft": NFT, "second": NFT}  # which is not begun
    path = asked_of(tmp_path, dict(method=None, contestants=contestants, train=train, limit=1))
    path.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(path.read_text()).items() if v is not None}))
    started = time.monotonic()
    codes, message = launched(launcher, path, rank=rank, error=error)
    assert all(code > 0 for code in codes) and time.monotonic() - started < 200, (codes, message)
    (line,) = [s for s in message[rank].splitlines() if s.startswith("workbench: ")]
    assert re.search(f"nft failed in process {rank} of 2: .*{reason}", line) and file in line
    (folder,) = store.list_run_folders(tmp_path / "runs")
    assert error.split('"')[1] in (folder.path / file).read_text()
    assert folder.read()["status"] == "failed" and not list(folder.path.glob("failure-second*"))


def test_two_processes_train_the_model_that_one_would(tmp_path, launcher):
    """Launched as `accelerate launch` does it. Three prompts on two processes: their shares are unequal. Only the
    first writes."""
    settings = dict(
        method=NFT, train={"rounds": 2, "prompts_per_round": 3, "eval_every": 0, "eval_prompts": 1}, limit=1
    )
    plan = planned(tmp_path, **settings)
    single = folder_of(plan, tmp_path / "alone")
    go(plan, single)
    codes, message = launched(launcher, asked_of(tmp_path, settings))
    assert codes == [0, 0], message
    (pair,) = store.list_run_folders(tmp_path / "runs")
    for ours, theirs in zip(told(pair, "train"), told(single, "train"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    ours, theirs = weights(pair), weights(single)
    assert all(torch.allclose(ours[k], theirs[k], atol=2e-4) for k in theirs)
    cost = [f.read("summary.json")["contestants"][1]["training"] for f in (pair, single)]
    assert cost[0]["samples"] == cost[1]["samples"] and cost[0]["reward_calls"] == cost[1]["reward_calls"]


def test_a_training_killed_without_warning_ends_with_the_bits_of_an_undisturbed_one(tmp_path, launcher):
    """Killed twice at moments of its work; benchmarks/kills.py does it twenty times to each of six families."""
    codes, (exported,) = launcher.launch(
        tmp_path / "kills", processes=1, function="test_train_processes:kill_trainings", out=str(tmp_path)
    )
    assert codes == [0], exported
    for row in json.loads(exported.splitlines()[-1]):
        assert row["kills"] >= 1 and row["compared"] > 10 and row["different"] == row["torn"] == [], row


def kill_trainings(folder):
    """The benchmark's own command, in a process that need not import anything."""
    sys.path.append(str(ROOT / "benchmarks"))
    import kills

    sys.argv = ["kills.py", "--kills", "2", "--updates", "2", "--methods", "nft", "--json"]
    kills.main()
