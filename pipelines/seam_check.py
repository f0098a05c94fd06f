"""Checks of the seam on a given pipeline: every claim on which methods rely is tested, with a control that must fail.

The pipeline's own call is recorded step by step. Then `sample`, `transition`, `predict`, `decode` and `encode` must
reproduce it, and must differ for another state, other weights, another prompt or another seed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines import encoding, seams
from pipelines.policy import Policy
from pipelines.transitions import Ancestral, Kernel
from workbench.core.errors import BadInput
from workbench.core.types import Media, Modality, Trajectory

SEEDS = (1, 2)
PROMPTS: dict[Modality, tuple[str, str]] = {  # words that the starter pack's tokenizers know
    "image": ("a red circle", "two blue squares"),
    "video": ("a red circle moving left", "a blue square moving right"),
    "audio": ("minor rising low flute", "major falling high organ"),
}
# Schedulers whose step returns x0 besides the next state; that keep it; whose next state is one first-order step.
X0_RETURNED = {"DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "SCM"}
X0_KEPT = {"CosineDPMSolverMultistep"}  # besides solvers whose config says so
FIRST_ORDER = {"FlowMatchEulerDiscrete", "CogVideoXDDIM"}


class CheckResult(NamedTuple):
    claim: str
    holds: bool | None  # None: it can't be tested on this pipeline
    evidence: str  # the numbers in words


class NotApplicable(Exception):  # noqa: N818
    """Raised with the reason why a claim can't be tested on this pipeline."""


@dataclass(frozen=True)
class RecordedStep:
    """One scheduler step of the pipeline's own call."""

    x: Tensor  # [B,*latent], the state before it
    output: Tensor  # [B,*latent], the guided denoiser's output
    x_next: Tensor  # [B,*latent]
    x0: Tensor | None  # [B,*latent], the scheduler's own x0, where it has one


@dataclass(frozen=True)
class Evidence:
    """The data of all tests: two rows of the pipeline's own call, as recorded and as the policy samples them."""

    policy: Policy
    prompts: tuple[str, str]
    recorded: list[RecordedStep]
    sample: Trajectory
    places: tuple[int, ...]  # steps to check, with the last; only the first where guidance has momentum
    exact: float  # relative error allowed at the first step, whose noise is recovered up to rounding


def check_pipeline(policy: Policy) -> Iterator[CheckResult]:
    """Yields one result per claim. The pipeline is left as it was."""
    runs = _try_claim("structure", partial(_check_structure, policy=policy))
    yield runs
    if not runs.holds:
        return  # the pipeline's own call fails, so that there is nothing to compare with
    structure, prompts = policy.structure, PROMPTS[policy.modality]
    yield _try_claim("reproduces the public call bit for bit", lambda claim: _check_public_call(claim, policy, prompts))
    last = structure.steps - 1
    places = (0,) if policy._has_momentum else tuple(sorted({0, min(1, last), last // 2, last}))
    with torch.no_grad():
        recorded = record_steps(policy, prompts)
        sample = policy.sample(prompts, seeds=SEEDS)
    evidence = Evidence(policy, prompts, recorded, sample, places, 3e-5 if sample.x.dtype == torch.float32 else 5e-2)
    claims: dict[str, Callable[..., CheckResult]] = {
        "replays every step exactly": _check_replay,
        "depends on the prompt": _check_prompts,
        "knows the scheduler's noise levels": _check_levels,
        "takes the sampled steps again": _check_transitions,
        "scores the sampled steps": _check_log_prob,
        "predicts x0, eps and v that agree": _check_prediction,
        "decodes the last state to the sample": _check_decoding,
        "encodes to the latents that it decodes": _check_encoding,
        "gives media back that it encoded": _check_reconstruction,
        "carries gradient from the media to the noise": _check_gradient,
        "makes each row from its own seed alone": _check_rows,
    }
    for claim, check in claims.items():
        yield _try_claim(claim, partial(check, evidence=evidence))


def _try_claim(claim: str, check: Callable[[str], CheckResult]) -> CheckResult:
    try:
        return check(claim)
    except NotApplicable as reason:
        return CheckResult(claim, None, str(reason))
    except Exception as error:  # methods would hit it too
        return CheckResult(claim, False, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def record_steps(policy: Policy, prompts: Sequence[str], seeds: Sequence[int] = SEEDS) -> list[RecordedStep]:
    """Every scheduler step of the pipeline's own call, recorded without any policy's hooks."""
    rows, recorded = policy.structure.group_rows, []

    def on_step(step: seams.SchedulerStep) -> Any:
        x, output = map(rows, seams.clone_tensors((step.sample, step.model_output)))
        returned = step.advance()
        x0 = _scheduler_x0(step.scheduler, returned)
        x_next, x0 = seams.clone_tensors((seams.prev_sample(returned), x0))
        recorded.append(RecordedStep(x, output, rows(x_next), None if x0 is None else rows(x0)))
        return returned

    with torch.random.fork_rng(policy._cuda_devices):
        seams.run_pipeline(policy.pipe, policy.call_arguments(prompts, seeds), on_step=on_step)
    return recorded


def _scheduler_x0(scheduler: Any, returned: Any) -> Tensor | None:
    family = type(scheduler).__name__.removesuffix("Scheduler")
    if family in X0_RETURNED:
        return returned[1] if isinstance(returned, tuple) else returned.pred_original_sample
    predicts_x0 = getattr(scheduler, "predict_x0", False) or "++" in str(scheduler.config.get("algorithm_type"))
    return scheduler.model_outputs[-1] if family in X0_KEPT or predicts_x0 else None


def absolute_distance(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def relative_distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference, relative to the largest absolute value of b."""
    return absolute_distance(a, b) / max(b.float().abs().max().item(), 1e-12)


def _largest(*values: float) -> float:
    """NaN counts as larger than any number."""
    return max(values, key=lambda value: (math.isnan(value), value))


def _compare_steps(
    claim: str, differences: Mapping[int, float], allowed: Mapping[int, float], controls: Mapping[str, float]
) -> CheckResult:
    """Holds if each step's difference is allowed, and the controls, at the last step, exceed ten times that."""
    holds = all(differences[i] <= allowed[i] for i in differences)  # NaN does not hold
    holds = holds and all(control > 10 * allowed[max(allowed)] for control in controls.values())
    largest = _largest(*differences.values())
    steps = f" over {len(differences)} steps" if len(differences) > 1 else ""
    control_text = "".join(f"; {value:.1e} with {name} (control)" for name, value in controls.items())
    return CheckResult(claim, holds, f"largest difference {largest:.1e}{steps}{control_text}")


def _allowed_rounding(evidence: Evidence, places: Sequence[int], rounding: float = 0.0) -> dict[int, float]:
    return {i: max(rounding, evidence.exact if i == 0 else 0.0) for i in places}


def _with_kernel(policy: Policy, kernel: Kernel) -> Policy:
    """The same policy, sampling by that kernel. Raises NotApplicable where the scheduler's noise levels are not
    known."""
    _require_levels(policy)
    twin = copy.copy(policy)
    twin.kernel = kernel
    return twin


def _require_levels(policy: Policy) -> None:
    if "stochastic" not in policy.provides:
        raise NotApplicable(f"not tried: the noise levels of {type(policy.structure.scheduler).__name__} are not known")


def _check_structure(claim: str, policy: Policy) -> CheckResult:
    structure = policy.structure
    parts = f"denoiser {', '.join(sorted(structure.denoisers))}; noise {list(structure.noise_shape)}"
    return CheckResult(claim, True, f"{parts}; {structure.steps} steps")


def _check_public_call(claim: str, policy: Policy, prompts: Sequence[str]) -> CheckResult:
    with torch.no_grad():
        sample = policy.sample(prompts, seeds=SEEDS)
        plain = policy.to_media(policy.pipe(**policy.call_arguments(prompts, SEEDS))).data
    ours = sample.media.data
    return _compare_steps(
        claim, {0: absolute_distance(ours, plain)}, {0: 0.0}, {"swapped seeds": absolute_distance(ours.flip(0), plain)}
    )


@torch.no_grad()
def _check_replay(claim: str, evidence: Evidence) -> CheckResult:
    """The denoiser's output that `transition` and `predict` start from, at the recorded states."""
    policy, recorded = evidence.policy, evidence.recorded

    def replay(i: int) -> Tensor:
        return policy._model_output(recorded[i].x, i, evidence.prompts)

    places = (0,) if evidence.places == (0,) else range(len(recorded))
    last = places[-1]
    differences = {i: relative_distance(replay(i), recorded[i].output) for i in places}
    with perturbed_weights(policy):
        other_weights = relative_distance(replay(last), recorded[last].output)
    other_state = policy._model_output(recorded[last].x.flip(0), last, evidence.prompts)
    controls = {
        "weights 5 % off": other_weights,
        "another state": relative_distance(other_state, recorded[last].output),
    }
    return _compare_steps(claim, differences, _allowed_rounding(evidence, places), controls)


@torch.no_grad()
def _check_prompts(claim: str, evidence: Evidence) -> CheckResult:
    policy, x = evidence.policy, evidence.recorded[0].x
    output = policy._model_output(x, 0, evidence.prompts)
    change = relative_distance(policy._model_output(x, 0, evidence.prompts[::-1]), output)
    same = relative_distance(policy._model_output(x, 0, evidence.prompts), output)
    details = f"its output moves by {change:.1e}; {same:.1e} with the same prompts (control)"
    return CheckResult(claim, change > 0 and same == 0, details)


@torch.no_grad()
def _check_levels(claim: str, evidence: Evidence) -> CheckResult:
    """x0 of `predict` against that of the scheduler's own step, or the first-order step against the scheduler's."""
    policy, recorded = evidence.policy, evidence.recorded
    euler = _with_kernel(policy, Ancestral(eta=0.0))

    def difference(i: int, x: Tensor) -> float:
        x0 = recorded[i].x0
        if x0 is None:
            return relative_distance(euler.transition(x, i, evidence.prompts).mean, recorded[i].x_next)
        return relative_distance(policy.predict(x, i, evidence.prompts).x0, x0)

    scheduler = policy.structure.scheduler
    first_order = type(scheduler).__name__.removesuffix("Scheduler") in FIRST_ORDER
    if recorded[-1].x0 is None and (not first_order or scheduler.config.get("stochastic_sampling")):
        raise NotApplicable(f"not tried: a step of {type(scheduler).__name__} does not tell its x0")
    differences = {i: difference(i, recorded[i].x) for i in evidence.places}
    last = evidence.places[-1]
    control = difference(last, recorded[last].x.flip(0))
    allowed = _allowed_rounding(evidence, evidence.places, 1e-4 if evidence.sample.x.dtype == torch.float32 else 5e-2)
    return _compare_steps(claim, differences, allowed, {"another state": control})


@torch.no_grad()
def _check_transitions(claim: str, evidence: Evidence) -> CheckResult:
    """`sample` by deterministic steps, x_i -> x_{i+1}, against the mean of `transition` from x_i."""
    policy = _with_kernel(evidence.policy, Ancestral(eta=0.0))
    x = policy.sample(evidence.prompts, seeds=SEEDS).x
    last = evidence.places[-1]

    def miss_next_state(i: int, state: Tensor) -> float:
        return relative_distance(policy.transition(state, i, evidence.prompts).mean.to(x.dtype), x[:, i + 1])

    differences = {i: miss_next_state(i, x[:, i]) for i in evidence.places}
    control = miss_next_state(last, x[:, last].flip(0))
    return _compare_steps(claim, differences, _allowed_rounding(evidence, evidence.places), {"another state": control})


@torch.no_grad()
def _check_log_prob(claim: str, evidence: Evidence) -> CheckResult:
    """log_prob as it was recorded, as `transition` scores it afterwards, and by torch's own normal distribution."""
    policy = _with_kernel(evidence.policy, evidence.policy.kernel or Ancestral())
    trajectory = policy.sample(evidence.prompts, seeds=SEEDS)
    places = [i for i in evidence.places if i in trajectory.stochastic]
    if not places:
        raise NotApplicable("not tried: none of its steps is stochastic, the last being deterministic")
    laws = {i: policy.transition(trajectory.x[:, i], i, evidence.prompts) for i in places}
    differences = {}
    for i, law in laws.items():
        x_next = trajectory.x[:, i + 1].double()
        normal = torch.distributions.Normal(law.mean.double(), law.std.double())
        by_torch = normal.log_prob(x_next).flatten(1).mean(1)  # [B]
        scores = law.log_prob(trajectory.x[:, i + 1])
        differences[i] = _largest(
            absolute_distance(scores, trajectory.log_prob[:, i]), absolute_distance(scores, by_torch)
        )
    last = places[-1]
    one_off = laws[last].log_prob(trajectory.x[:, last + 1] + laws[last].std)
    swapped = policy.transition(trajectory.x[:, last].flip(0), last, evidence.prompts).log_prob(
        trajectory.x[:, last + 1]
    )
    controls = {
        "the next state one standard deviation off": absolute_distance(one_off, trajectory.log_prob[:, last]),
        "another state": absolute_distance(swapped, trajectory.log_prob[:, last]),
    }
    return _compare_steps(claim, differences, _allowed_rounding(evidence, places, 1e-5), controls)


@torch.no_grad()
def _check_prediction(claim: str, evidence: Evidence) -> CheckResult:
    """x_i = a x0 + s eps (`noised`), v by its definition, and the x0 of `transition`."""
    policy, recorded = evidence.policy, evidence.recorded
    _require_levels(policy)
    differences = {}
    for i in evidence.places:
        x, level = recorded[i].x, policy.levels[i]
        prediction = policy.predict(x, i, evidence.prompts)
        x0, eps = prediction.x0, prediction.eps
        v = eps - x0 if level.is_flow else (level.a * eps - level.s * x0) / math.hypot(level.a, level.s)
        rebuilt = policy.noised(x0, i, eps)
        differences[i] = _largest(
            relative_distance(rebuilt.where(x0.abs() < (level.clip or math.inf), x), x),  # eps is never clipped
            relative_distance(prediction.v, v),
            relative_distance(x0, policy.transition(x, i, evidence.prompts).x0),
        )
    first = policy.predict(recorded[0].x, 0, evidence.prompts)
    control = relative_distance(policy.noised(first.x0, 0, -first.eps), recorded[0].x)
    allowed = dict.fromkeys(differences, max(1e-4, evidence.exact))
    return _compare_steps(claim, differences, allowed, {"the other sign of eps": control})


@torch.no_grad()
def _check_decoding(claim: str, evidence: Evidence) -> CheckResult:
    policy, expected = evidence.policy, evidence.sample.media.data
    last = evidence.sample.x[:, -1]
    difference = absolute_distance(policy.decode(last, evidence.prompts).data, expected)
    control = absolute_distance(policy.decode(last.flip(0), evidence.prompts).data, expected)
    return _compare_steps(claim, {0: difference}, {0: 0.0}, {"another state": control})


def _encode_media(policy: Policy, media: Media) -> Tensor:
    try:
        return policy.encode(media)
    except (BadInput, TypeError) as error:
        raise NotApplicable(f"not tried: {error}") from error


@torch.no_grad()
def _check_encoding(claim: str, evidence: Evidence) -> CheckResult:
    """What the pipeline hands its autoencoder for `encode(media)` is what the autoencoder itself makes of the media."""
    policy, media = evidence.policy, evidence.sample.media
    latents = _encode_media(policy, media)
    expected = encoding.run_autoencoder(policy, policy._decode_path, media)
    handed = torch.cat([encoding.capture_decoder_input(policy, row[None]) for row in latents])
    control = relative_distance(handed.unflatten(0, (len(media), -1)).flip(0).flatten(0, 1), expected)
    tolerance = 1e-4 if expected.dtype == torch.float32 else 5e-2
    return _compare_steps(
        claim, {0: relative_distance(handed, expected)}, {0: tolerance}, {"the rows swapped": control}
    )


@torch.no_grad()
def _check_reconstruction(claim: str, evidence: Evidence) -> CheckResult:
    """decode(encode(media)) is nearer to the media than to the other row's: as near as the autoencoder can bring it."""
    policy, media = evidence.policy, evidence.sample.media
    reconstruction = policy.decode(_encode_media(policy, media), evidence.prompts).data
    error, control = ((rows - media.data).abs().mean().item() for rows in (reconstruction, reconstruction.flip(0)))
    details = f"mean difference {error:.1e}; {control:.1e} with the rows swapped (control)"
    return CheckResult(claim, error < 0.7 * control, details)


def _check_gradient(claim: str, evidence: Evidence) -> CheckResult:
    """Of the first row's media: finite, and not zero, to its own noise, and none to the other row's."""
    policy = evidence.policy
    noise = policy.noise(SEEDS).requires_grad_()
    media = policy.sample(evidence.prompts, seeds=SEEDS, noise=noise, grad=policy.steps).media
    (gradient,) = torch.autograd.grad(media.data[0].square().sum(), noise)
    norm, leak = (gradient[row].double().norm().item() for row in (0, 1))
    holds = math.isfinite(norm) and norm > 0 and leak <= 1e-6 * norm
    return CheckResult(claim, holds, f"norm {norm:.2e}; {leak:.1e} to another row's noise (control)")


@torch.no_grad()
def _check_rows(claim: str, evidence: Evidence) -> CheckResult:
    """One prompt twice, so that padding is the same: the second row against the same seed alone."""
    policy = evidence.policy
    if "stochastic" in policy.provides:  # its noise between the steps, too
        policy = _with_kernel(policy, policy.kernel or Ancestral())
    single_noise, batch_noise = (policy.noise(seeds) for seeds in (SEEDS[1:], SEEDS))
    if not torch.equal(batch_noise[1:], single_noise):
        difference = absolute_distance(batch_noise[1:], single_noise)
        return CheckResult(claim, False, f"noise of one seed in a batch and alone differs by {difference:.1e}")
    one = policy.sample(evidence.prompts[:1], seeds=SEEDS[1:]).x[:, -1].float()
    two = policy.sample(evidence.prompts[:1] * 2, seeds=SEEDS).x[:, -1].float()
    size = one.square().mean().sqrt()
    other, error = (((row - one[0]).square().mean().sqrt() / size).item() for row in two)
    details = f"last state {error:.1e} off in a batch of two; {other:.1e} with another seed (control)"
    return CheckResult(claim, error < 0.1 * other, details)


@contextmanager
def perturbed_weights(policy: Policy) -> Iterator[None]:
    """The denoisers' weights 5 % off inside the block, exactly as they were after it."""
    modules = [seams.named_networks(policy.pipe)[name] for name in policy.structure.denoisers]
    states = [copy.deepcopy(module.state_dict()) for module in modules]
    try:
        with torch.no_grad():
            for p in (p for module in modules for p in module.parameters()):
                p.mul_(1.05)
        yield
    finally:
        for module, state in zip(modules, states, strict=True):
            module.load_state_dict(state)
