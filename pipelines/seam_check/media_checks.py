"""Checks of whole samples and of media: the public call, the weights, decoding and encoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines import components, encoding, seams
from pipelines.conditions import Grouping, compute_in_groups
from pipelines.policy import Policy
from pipelines.seam_check.evidence import (
    SEEDS,
    CheckResult,
    Evidence,
    NotApplicable,
    absolute_distance,
    compare_steps,
    relative_distance,
)
from workbench.core.errors import BadInput
from workbench.core.paths import STARTER
from workbench.core.types import Media

TAKES: dict[Grouping, str] = {
    "each": "one for each prompt of a batch",
    "one": "one for all prompts of a batch, so those of other inputs are computed apart",
    "alone": "one prompt at a time",
}
PACK = "; all with the fingerprints that were recorded when the pack was built"


def check_structure(claim: str, policy: Policy) -> CheckResult:
    """The pipeline's call is found to have denoisers, noise and steps."""
    structure = policy.structure
    parts = f"denoiser {', '.join(sorted(structure.denoisers))}; noise {list(structure.noise_shape)}"
    taken = f"; takes {' and '.join(policy.conditions.inputs)}: {TAKES[policy.grouping]}" if policy.conditions else ""
    return CheckResult(claim, True, f"{parts}; {structure.steps} steps{taken}")


def check_weights(claim: str, policy: Policy) -> CheckResult:
    """Each network against its files, and against the fingerprints that were recorded when the starter pack was built:
    what no broken loading could bring about."""
    config = policy.config
    if config is None or config.lora or config.file:
        why = (
            "a LoRA is on" if config is not None and config.lora else "there are no files of diffusers to compare with"
        )
        raise NotApplicable(f"not tried: {why}")
    counts = components.verify_components(policy.pipe, config)
    if not counts:
        raise NotApplicable("not tried: its files are not on this machine")
    base = config.folder
    pack = base is not None and base.is_relative_to(STARTER)
    words = ", ".join(f"{name} {seen} of {total}" for name, (seen, total) in sorted(counts.items()))
    return CheckResult(claim, True, f"tensors with the values of their files: {words}{PACK if pack else ''}")


def check_public_call(claim: str, policy: Policy, prompts: Sequence[str]) -> CheckResult:
    """`sample` makes what the pipeline's own call makes, of rows that the class can compute together. Sources are
    encoded by the mode of their posterior."""

    def call_pipeline(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Tensor]:
        return (policy.to_media(policy.pipe(**policy.call_arguments(prompts, seeds))).data,)

    with torch.no_grad(), seams.encode_sources_by_mode(policy.pipe):
        (plain,) = compute_in_groups(call_pipeline, policy.grouping, prompts, SEEDS)
        sample = policy.sample(prompts, seeds=SEEDS)
    ours = sample.media.data
    return compare_steps(
        claim, {0: absolute_distance(ours, plain)}, {0: 0.0}, {"swapped seeds": absolute_distance(ours.flip(0), plain)}
    )


@torch.no_grad()
def check_decoding(claim: str, evidence: Evidence) -> CheckResult:
    policy, expected = evidence.policy, evidence.sample.media.data
    last = evidence.sample.x[:, -1]
    difference = absolute_distance(policy.decode(last, evidence.prompts).data, expected)
    control = absolute_distance(policy.decode(last.flip(0), evidence.prompts).data, expected)
    return compare_steps(claim, {0: difference}, {0: 0.0}, {"another state": control})


def _encode_media(policy: Policy, media: Media) -> Tensor:
    try:
        return policy.encode(media)
    except (BadInput, TypeError) as error:
        raise NotApplicable(f"not tried: {error}") from error


@torch.no_grad()
def check_encoding(claim: str, evidence: Evidence) -> CheckResult:
    """What the pipeline hands its autoencoder for `encode(media)` is what the autoencoder itself makes of the media,
    where the state reaches it: not in a first frame that is given."""
    policy, media = evidence.policy, evidence.sample.media
    latents = _encode_media(policy, media)
    path = policy._decode_path
    handed = torch.cat([encoding.capture_decoder_input(policy, row[None]) for row in latents])
    handed, expected = (
        z.unflatten(0, (len(media), -1)).where(path.reaches, 0.0).flatten(0, 1)
        for z in (handed, encoding.run_autoencoder(policy, path, media))
    )
    control = relative_distance(handed.unflatten(0, (len(media), -1)).flip(0).flatten(0, 1), expected)
    tolerance = 1e-4 if expected.dtype == torch.float32 else 5e-2
    return compare_steps(claim, {0: relative_distance(handed, expected)}, {0: tolerance}, {"the rows swapped": control})


@torch.no_grad()
def check_reconstruction(claim: str, evidence: Evidence) -> CheckResult:
    """decode(encode(media)) is nearer to the media than to the other row's: as near as the autoencoder can bring it."""
    policy, media = evidence.policy, evidence.sample.media
    reconstruction = policy.decode(_encode_media(policy, media), evidence.prompts).data
    error, control = ((rows - media.data).abs().mean().item() for rows in (reconstruction, reconstruction.flip(0)))
    details = f"mean difference {error:.1e}; {control:.1e} with the rows swapped (control)"
    return CheckResult(claim, error < 0.7 * control, details)
