"""ReNO's published settings, each built and run on a tiny pipeline of its own class, through the whole path."""

from __future__ import annotations

import pytest
import tiny
import torch

import pipelines
from rewards import build
from workbench import config
from workbench.assets import CONFIGS
from workbench.methods import METHODS
from workbench.types import Batch

RUNS = sorted(p.stem for p in (CONFIGS / "runs").glob("reno-*.yaml"))


def test_the_published_models_are_all_here():
    assert {"reno-sd-turbo", "reno-sdxl-turbo", "reno-pixart-dmd", "reno-hyper-sdxl", "reno-flux-schnell"} <= set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_reno_climbs_on_a_tiny_pipeline_with_the_settings_of(name, tmp_path):
    run = config.read(name)
    method = config.contestants(run, METHODS)["reno"]
    assert (method.iterations, method.clip, method.regularise) == (49, 0.1, 0.01)
    assert method.lr == (10.0 if "hyper" in name else 5.0)
    policy = tiny.published(run.pipeline, tmp_path)
    short = METHODS["reno"](iterations=2, lr=method.lr)
    events = list(short(policy, build("brightness"), [Batch(("a cat",), (1,))]))
    assert policy.nfe == short.calls(policy.steps)
    first, last = events[0].scores["reward"], events[-1].scores["reward"]
    assert (last >= first).all() and torch.isfinite(events[-1].media.data).all()
    assert not torch.equal(events[-1].latents, events[0].latents) or torch.equal(first, last)
