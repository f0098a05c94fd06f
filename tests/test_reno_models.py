"""ReNO's published settings, each built and run on a tiny pipeline of its own class, through the whole path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import pipelines
from rewards import build
from workbench.core.paths import CONFIGS
from workbench.core.types import Batch
from workbench.methods import METHODS
from workbench.runs import config

RUNS = sorted(p.stem for p in (CONFIGS / "runs").glob("reno-*.yaml"))


def published(name: str, folder) -> pipelines.Policy:
    """The config `name` with only its repositories and picture size replaced by a tiny pipeline's."""
    c = pipelines.read_config(name)
    repo = str(tiny.save(c.pipeline, folder))
    call = c.call | {"height": 32, "width": 32}
    if "use_resolution_binning" in tiny.TINY[c.pipeline].call:
        call["use_resolution_binning"] = False
    scheduler = {k: repo if k == "repo" else v for k, v in c.scheduler.items()}
    return pipelines.load(replace(c, repo=repo, components={}, call=call, scheduler=scheduler), device="cpu")


def test_the_published_models_are_all_here():
    models = ("sd-turbo", "sdxl-turbo", "pixart-dmd", "hyper-sdxl", "flux-schnell", "sana-sprint")
    assert {f"reno-{m}" for m in models} <= set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_reno_climbs_on_a_tiny_pipeline_with_the_settings_of(name, tmp_path):
    run = config.read_run_config(name)
    method = config.build_methods(run, METHODS)["reno"]
    assert (method.iterations, method.max_grad_norm, method.regularise) == (49, 0.1, 0.01)
    assert method.lr == (10.0 if "hyper" in name else 5.0)
    policy = published(run.pipeline, tmp_path)
    short = replace(method, iterations=3, regularise=0.0)
    events = list(short(policy, build("brightness"), [Batch(("a cat", "a dog"), (1, 2))]))
    assert policy.nfe == 2 * short.calls(policy.steps)
    assert (events[-1].scores["reward"] > events[0].scores["reward"]).all()
    assert torch.isfinite(events[-1].media.data).all()
