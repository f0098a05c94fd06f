"""Checks of the seam on a given pipeline: every claim on which methods rely is tested, with a control that must fail.

The pipeline's own call is recorded step by step. Then `sample`, `transition`, `predict`, `decode` and `encode` must
reproduce it, and must differ for another state, other weights, another prompt, other inputs or another seed. Gradients
are compared with finite differences, and weights with their files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch

from pipelines.policy import Policy
from pipelines.seam_check import gradient_checks, input_checks, media_checks, step_checks
from pipelines.seam_check.evidence import (
    SEEDS,
    CheckResult,
    Evidence,
    RecordedStep,
    perturbed_weights,
    record_steps,
    try_claim,
)
from workbench.core.types import Modality

__all__ = ["CheckResult", "RecordedStep", "check_pipeline", "perturbed_weights", "record_steps"]

PROMPTS: dict[Modality, tuple[str, str]] = {  # words that the starter pack's tokenizers know
    "image": ("a red circle", "two blue squares"),
    "video": ("a red circle moving left", "a blue square moving right"),
    "audio": ("minor rising low flute", "major falling high organ"),
}
CLAIMS: dict[str, Callable[..., CheckResult]] = {  # besides those on structure, weights and the public call
    "replays every step exactly": step_checks.check_replay,
    "depends on the prompt": step_checks.check_prompts,
    "counts the rows through its denoiser": step_checks.check_count,
    "knows the scheduler's noise levels": step_checks.check_levels,
    "takes the sampled steps again": step_checks.check_transitions,
    "scores the sampled steps": step_checks.check_log_prob,
    "predicts x0, eps and v that agree": step_checks.check_prediction,
    "decodes the last state to the sample": media_checks.check_decoding,
    "encodes to the latents that it decodes": media_checks.check_encoding,
    "gives media back that it encoded": media_checks.check_reconstruction,
    "carries gradient from the media to the noise": gradient_checks.check_gradient,
    "differentiates its denoiser": gradient_checks.check_denoiser_gradient,
    "differentiates its decoder": gradient_checks.check_decoder_gradient,
    "makes each row from its own seed alone": step_checks.check_rows,
}

INPUT_CLAIMS: dict[str, Callable[..., CheckResult]] = {  # of pipelines that take more than a text
    "depends on its inputs": input_checks.check_inputs,
    "makes each row from its own inputs alone": input_checks.check_input_rows,
    "forgets no input": input_checks.check_memory,
}


def check_pipeline(policy: Policy) -> Iterator[CheckResult]:
    """Yields one result per claim. The pipeline is left as it was. A safety checker is off meanwhile: what it flags has
    no picture to compare."""
    if getattr(policy.pipe, "safety_checker", None) is not None:
        policy = copy.copy(policy)
        policy.pipe = copy.copy(policy.pipe)
        policy.pipe.safety_checker = None
    runs = try_claim("structure", partial(media_checks.check_structure, policy=policy))
    yield runs
    yield try_claim("holds the weights of its files", partial(media_checks.check_weights, policy=policy))
    if not runs.holds:
        return  # the pipeline's own call fails, so that there is nothing to compare with
    structure, prompts = policy.structure, policy.example_prompts(*PROMPTS[policy.modality])
    public_call = partial(media_checks.check_public_call, policy=policy, prompts=prompts)
    yield try_claim("reproduces the public call bit for bit", public_call)
    last = structure.steps - 1
    places = (0,) if policy._has_momentum else tuple(sorted({0, min(1, last), last // 2, last}))
    with torch.no_grad():
        recorded, nfe = record_steps(policy, prompts), policy.nfe
        sample = policy.sample(prompts, seeds=SEEDS)
    exact = 3e-5 if sample.x.dtype == torch.float32 else 5e-2
    evidence = Evidence(policy, prompts, recorded, sample, policy.nfe - nfe, places, exact)
    for claim, check in (CLAIMS | (INPUT_CLAIMS if policy.conditions else {})).items():
        yield try_claim(claim, partial(check, evidence=evidence))
