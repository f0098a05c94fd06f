"""Does the seam hold on this very pipeline? Each claim is tried, and the one about exactness has a control that must fail."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from pipelines import seams, tape
from pipelines.policy import Policy

PROMPTS, SEEDS = ("a red circle", "two blue squares"), (1, 2)


def check(policy: Policy) -> Iterator[tuple[str, bool, str]]:
    """Yields (claim, whether it held, what was seen). The pipeline is left as it was."""
    pipe, found = policy.pipe, policy.anatomy
    yield (
        "anatomy",
        True,
        f"denoiser {', '.join(sorted(found.denoisers))}; noise {list(found.noise_shape)}; {found.steps} steps",
    )
    with torch.no_grad():
        ours = policy.sample(PROMPTS, seeds=SEEDS)
        plain = policy.media(pipe(**policy.arguments(PROMPTS, SEEDS)))
    same = torch.equal(ours.media.data, plain.data)
    yield (
        "reproduces the public call bit for bit",
        same,
        f"largest difference {distance(ours.media.data, plain.data):.1e}",
    )
    record = tape.record(pipe, policy.arguments(PROMPTS, SEEDS), found.denoisers)
    off = replay_error(record)
    yield "replays every step exactly", off == 0, f"largest difference {off:.1e} over {len(record.steps)} steps"
    with perturbed(pipe, found.denoisers):
        control = replay_error(record)
    yield "notices changed weights (control)", control > 0, f"largest difference {control:.1e} with weights 5 % off"
    noise = policy.noise(SEEDS).requires_grad_()
    media = policy.sample(PROMPTS, seeds=SEEDS, noise=noise, grad=policy.steps).media
    (gradient,) = torch.autograd.grad(media.data.square().sum(), noise)
    fine = bool(gradient.isfinite().all() and gradient.any())
    yield "carries gradient from the media to the noise", fine, f"norm {gradient.norm():.2e}"


def replay_error(record: tape.Tape) -> float:
    """The largest difference between a replayed prediction and the taped one, over all steps."""
    seen = []

    def on_live(step: seams.Step, was: tape.Record) -> None:
        seen.append(distance(step.model_output.detach(), was.model_output))

    tape.replay(record, range(len(record.steps)), on_live)
    return max(seen)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


class perturbed:  # noqa: N801  (reads as a phrase in a with statement)
    """The denoisers' weights 5 % off inside the block, exactly as they were after it."""

    def __init__(self, pipe, denoisers):
        self.modules = [seams.modules(pipe)[name] for name in denoisers]

    def __enter__(self):
        self.kept = [copy.deepcopy(m.state_dict()) for m in self.modules]
        with torch.no_grad():
            for p in (p for m in self.modules for p in m.parameters()):
                p.mul_(1.05)

    def __exit__(self, *_):
        for module, state in zip(self.modules, self.kept, strict=True):
            module.load_state_dict(state)
