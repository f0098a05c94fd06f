"""`workbench list --check`: a healthy pipeline passes every claim, and a fault in anything that methods use fails
one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
import torch
from torch.utils._pytree import tree_map_only

from pipelines import encoding, replay, schedule, seam_check
from pipelines.policy import Policy
from pipelines.seam_check import check_pipeline
from pipelines.transitions import Ancestral, FlowSDE
from workbench.core.types import Prediction, Transition

KINDS = ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline"]
UNTRAINED = "gives media back that it encoded"  # not by an autoencoder of random weights
REPLAY, LEVELS, STEPS = (
    "replays every step exactly",
    "knows the scheduler's noise levels",
    "takes the sampled steps again",
)
SCORES, PREDICTS = "scores the sampled steps", "predicts x0, eps and v that agree"
DECODES, ENCODES = "decodes the last state to the sample", "encodes to the latents that it decodes"
PROMPT, GRADIENT, ROWS = (
    "depends on the prompt",
    "carries gradient from the media to the noise",
    "makes each row from its own seed alone",
)
DENOISER, DECODER = "differentiates its denoiser", "differentiates its decoder"
PUBLIC, WEIGHTS = "reproduces the public call bit for bit", "holds the weights of its files"


@pytest.fixture(scope="module", params=KINDS)
def policy(request) -> Policy:
    return tiny.policy(request.param)


def failing_claims(policy: Policy) -> set[str]:
    return {result.claim for result in check_pipeline(policy) if result.holds is False} - {UNTRAINED}


def test_a_healthy_pipeline_passes_every_claim_and_is_left_as_it_was(policy):
    parts = [getattr(policy.pipe, name) for name in sorted(policy.structure.denoisers)]
    weights = [p.clone() for part in parts for p in part.parameters()]
    results = list(check_pipeline(policy))
    assert [r.claim for r in results if r.holds is False and r.claim != UNTRAINED] == []
    assert len(results) == 17 and [r.claim for r in results if r.holds is None] == [WEIGHTS]  # it has no files
    assert all(any(c.isdigit() for c in r.evidence) for r in results if r.holds is not None)
    assert all(torch.equal(p, was) for p, was in zip((p for m in parts for p in m.parameters()), weights, strict=True))
    assert policy.kernel is None


def check_only(claims, monkeypatch):
    monkeypatch.setattr(seam_check, "CLAIMS", {c: check for c, check in seam_check.CLAIMS.items() if c in claims})


def scaled(owner, name, factor=1.3):
    """The function, with what it returns off by a factor."""
    original = getattr(owner, name)
    return lambda *args, **kwargs: factor * original(*args, **kwargs)


def wrong_prediction(*fields, factor=1.1):
    original = Policy.predict

    def predict(self, *args, **kwargs):
        forms = vars(original(self, *args, **kwargs))
        return Prediction(**{name: factor * x if name in fields else x for name, x in forms.items()})

    return predict


def wrong_transition(self, x, i, prompts, original=Policy.transition):
    law = original(self, x, i, prompts)
    return replace(law, std=1.2 * law.std)


def summed_log_prob(self, x_next, original=Transition.log_prob):
    return original(self, x_next) * x_next[0].numel()


def shared_noise(self, seeds, original=Policy.noise):
    noise = original(self, seeds)
    return noise + 0.1 * noise.mean(0)


class Magnify(torch.autograd.Function):
    """The identity, whose gradient is 1.3 times what it should be."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.3 * gradient


def magnified_gradient(owner, name):
    original = getattr(owner, name)
    return lambda *args, **kwargs: magnify_tensors(original(*args, **kwargs))


def magnify_tensors(out):
    return (
        tree_map_only(torch.Tensor, Magnify.apply, out)
        if isinstance(out, torch.Tensor | tuple)
        else type(out)(**tree_map_only(torch.Tensor, Magnify.apply, dict(out)))
    )


def brighter_sample(self, *args, original=Policy.sample, **kwargs):
    trajectory = original(self, *args, **kwargs)
    return replace(trajectory, media=replace(trajectory.media, data=1.3 * trajectory.media.data))


def detached_decode(self, prompts, *args, original=Policy.run_pipeline, on_draw=None, **kwargs):
    return original(self, prompts, *args, on_draw=on_draw and (lambda drawn: on_draw(drawn).detach()), **kwargs)


FAULTS = {
    "output": (Policy, "_model_output", lambda: scaled(Policy, "_model_output"), {REPLAY, LEVELS, STEPS, SCORES}),
    "log_prob": (Transition, "log_prob", lambda: summed_log_prob, {SCORES}),
    "std": (Policy, "transition", lambda: wrong_transition, {SCORES}),
    "x0": (Policy, "predict", lambda: wrong_prediction("x0"), {PREDICTS}),
    "eps": (Policy, "predict", lambda: wrong_prediction("eps"), {PREDICTS}),
    "v": (Policy, "predict", lambda: wrong_prediction("v"), {PREDICTS}),
    "nan": (Policy, "predict", lambda: wrong_prediction("x0", "eps", "v", factor=float("nan")), {PREDICTS}),
    "noised": (schedule, "add_noise", lambda: scaled(schedule, "add_noise", 1.01), {PREDICTS}),
    "clean": (schedule, "predict_x0", lambda: scaled(schedule, "predict_x0", 1.1), {PREDICTS}),
    "encode": (Policy, "encode", lambda: scaled(Policy, "encode"), {ENCODES}),
    "autoencoder": (encoding, "encode_media", lambda: scaled(encoding, "encode_media", 1.01), {ENCODES}),
    "decode": (
        replay,
        "run_decoder",
        lambda: lambda policy, x, prompts, was=replay.run_decoder: was(policy, 1.1 * x, prompts),
        {DECODES},
    ),
    "gradient": (Policy, "run_pipeline", lambda: detached_decode, {GRADIENT}),
    "denoiser's gradient": (Policy, "_model_output", lambda: magnified_gradient(Policy, "_model_output"), {DENOISER}),
    "decoder's gradient": (replay, "run_decoder", lambda: magnified_gradient(replay, "run_decoder"), {DECODER}),
    "media": (Policy, "sample", lambda: brighter_sample, {PUBLIC, DECODES}),
    "noise": (Policy, "noise", lambda: shared_noise, {ROWS}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_the_claim_that_it_breaks(policy, monkeypatch, fault):
    owner, name, make, claims = FAULTS[fault]
    check_only(claims, monkeypatch)
    monkeypatch.setattr(owner, name, make())
    assert claims <= failing_claims(policy)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("StableDiffusionPipeline", Ancestral(0.7)), ("FluxPipeline", FlowSDE()), ("WanPipeline", FlowSDE())],
)
def test_a_policy_with_a_kernel_is_checked_with_its_own(name, kernel, monkeypatch):
    policy = tiny.policy(name, kernel=kernel)
    assert failing_claims(policy) - {PUBLIC, DECODES} == set()


def test_what_cannot_be_tried_is_said_and_does_not_fail(monkeypatch):
    """AudioLDM 2: a vocoder. A scheduler of unknown levels. ACE-Step: guidance with momentum, so the first step
    alone."""
    with monkeypatch.context() as only:
        check_only({ENCODES}, only)
        results = {r.claim: r for r in check_pipeline(tiny.policy("AudioLDM2Pipeline"))}
    assert results[ENCODES].holds is None and "vocoder" in results[ENCODES].evidence
    monkeypatch.delitem(schedule.FAMILIES, "DDIMScheduler")
    with monkeypatch.context() as only:
        check_only({LEVELS, STEPS, SCORES, PREDICTS, REPLAY, DECODES}, only)
        results = {r.claim: r for r in check_pipeline(tiny.policy("StableDiffusionPipeline"))}
    for claim in (LEVELS, STEPS, SCORES, PREDICTS):
        assert results[claim].holds is None and "DDIMScheduler are not known" in results[claim].evidence
    assert results[REPLAY].holds and results[DECODES].holds
    momentum = {r.claim: r for r in check_pipeline(tiny.policy("AceStepPipeline"))}
    assert [c for c, r in momentum.items() if r.holds is False] == [PROMPT, UNTRAINED]  # its tokeniser knows no words
    assert "steps" not in momentum[REPLAY].evidence


def test_an_autoencoder_that_is_trained_gives_the_media_back(monkeypatch):
    import pipelines

    policy = pipelines.load("starter-image")
    results = {r.claim: r for r in check_pipeline(policy)}
    assert results[UNTRAINED].holds
    assert not [c for c, r in results.items() if r.holds is False]
    monkeypatch.setattr(Policy, "encode", lambda self, media, was=Policy.encode: was(self, media).flip(0))
    check_only({UNTRAINED}, monkeypatch)
    assert not {r.claim: r for r in check_pipeline(policy)}[UNTRAINED].holds


def test_a_claim_that_crashes_fails_in_one_line(monkeypatch):
    def crash(*args):
        raise IndexError("out of range\nand more")

    monkeypatch.setattr(Policy, "decode", crash)
    check_only({DECODES}, monkeypatch)
    result = next(r for r in check_pipeline(tiny.policy("StableDiffusionPipeline")) if r.claim == DECODES)
    assert result.holds is False and result.evidence == "IndexError: out of range"


@pytest.mark.parametrize(("holds", "code", "mark"), [(True, 0, "✓"), (False, 1, "✗"), (None, 0, "–")])
def test_the_command_tells_each_claim_and_exits_1_for_one_that_fails(holds, code, mark, monkeypatch, capsys):
    from workbench.cli import main

    monkeypatch.setattr(seam_check, "check_pipeline", lambda policy: iter([("a claim", holds, "a number 0.0")]))
    assert main(["list", "--check", "starter-image"]) == code
    assert f"{mark} a claim: a number 0.0" in capsys.readouterr().out
    assert main(["list", "--check", "starter-image", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == [{"claim": "a claim", "holds": holds, "seen": "a number 0.0"}]


def test_a_pipeline_whose_own_call_fails_is_one_failed_claim(monkeypatch):
    policy = tiny.policy("StableDiffusionPipeline")

    def fail(*_, **__):
        raise AttributeError("the scheduler has no init_noise_sigma")

    monkeypatch.setattr(type(policy.pipe), "__call__", fail)
    policy.__dict__.pop("structure", None)  # not from an earlier call
    result, weights = check_pipeline(policy)
    assert weights.claim == WEIGHTS and result == (
        "structure",
        False,
        "AttributeError: the scheduler has no init_noise_sigma",
    )
