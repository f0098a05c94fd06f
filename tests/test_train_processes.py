"""Rows shared out among processes and micro-batches: the arithmetic of one process at once; and kills that change nothing."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys

import pytest
import tiny
import torch
import train_fixtures as small
import yaml
from tiny import PROMPTS, SEEDS
from tiny_trained import SD, nudge, trainable
from train_fixtures import NFT, folder_of, go, planned, told, weights

from pipelines import Rows
from workbench import store
from workbench.assets import ROOT


@pytest.fixture(scope="module")
def pipe():
    return tiny.build(SD)


def gradient(policy, rows, loss):
    rows.backward(loss(rows))
    found = [p.grad.clone() for p in policy.adapters.parameters]
    for p in policy.adapters.parameters:
        p.grad = None
    return found


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
        said = getattr(rows, what)(x, 1, PROMPTS)
        return (said.x0 if what == "predict" else said.mean).square().mean()

    whole, few = Rows(policy), Rows(policy, micro=1)
    ours, theirs = gradient(policy, few, loss), gradient(policy, whole, loss)
    scale = max(float(g.abs().max()) for g in theirs)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(ours, theirs, strict=True)) and scale > 0
    before = policy.nfe
    loss(whole)
    once = policy.nfe - before
    before = policy.nfe
    few.backward(loss(few))  # every prompt is known by now
    assert policy.nfe - before == once, "what is recomputed in the backward pass is not counted"


def test_gradients_of_several_rounds_gather_into_one_update(pipe):
    policy = trainable(SD, copy.deepcopy(pipe))
    rows = Rows(policy, accumulate=2)
    rows.optimizer(1e-2)
    before = policy.adapters.hash()
    for n in (1, 2):
        rows.backward(rows.sample(PROMPTS, seeds=(n, n + 5), grad=1).media.data.square().mean())
        norm = rows.update()
        assert (norm > 0) is (policy.adapters.hash() != before) is (n == 2)


def test_two_processes_train_the_model_that_one_would(tmp_path):
    """Launched as `accelerate launch` does it. Three prompts on two processes: their shares are unequal. Only the first writes."""
    settings = dict(method=NFT, train={"updates": 2, "prompts": 3, "evaluate": 0, "held": 1}, limit=1)
    plan = planned(tmp_path, **settings)
    alone = folder_of(plan, tmp_path / "alone")
    go(plan, alone)
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(small.asked(tmp_path, **settings)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
    command = [sys.executable, "-m", "workbench", "run", str(path), "--runs", str(tmp_path / "runs")]
    each = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | world | {"RANK": str(r), "LOCAL_RANK": str(r), "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in (0, 1)
    ]
    said = [p.communicate(timeout=280)[0] for p in each]
    assert [p.returncode for p in each] == [0, 0], said
    (both,) = store.folders(tmp_path / "runs")
    for ours, theirs in zip(told(both, "train"), told(alone, "train"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    ours, theirs = weights(both), weights(alone)
    assert all(torch.allclose(ours[k], theirs[k], atol=2e-4) for k in theirs)
    spent = [f.read("summary.json")["contestants"][1]["training"] for f in (both, alone)]
    assert spent[0]["samples"] == spent[1]["samples"] and spent[0]["reward_calls"] == spent[1]["reward_calls"]


def test_a_training_killed_without_warning_ends_with_the_bits_of_an_undisturbed_one():
    """Killed twice at moments of its work; benchmarks/kills.py does it twenty times to each of six families."""
    command = [
        sys.executable,
        "benchmarks/kills.py",
        "--kills",
        "2",
        "--updates",
        "2",
        "--methods",
        "nft",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in json.loads(done.stdout):
        assert row["kills"] >= 1 and row["compared"] > 10 and row["different"] == row["torn"] == [], row
