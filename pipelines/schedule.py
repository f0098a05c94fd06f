"""Noise levels of a scheduler and the three equivalent forms of a prediction.

A state is x = a x0 + s eps with eps ~ N(0, I). VP schedulers have a^2 + s^2 = 1, VE ones a = 1, flow matching a = 1 -
s (Kingma & Gao 2023, arXiv:2303.00848; Lipman et al. 2022, arXiv:2210.02747). Time is an index i into the schedule, one
per call. Only the schedulers in FAMILIES are known; for any other there is a TypeError that names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workbench.core.types import Prediction


@dataclass(frozen=True)
class NoiseLevel:
    """The signal and noise of x_i and of x_{i+1}, and what the denoiser predicts at x_i."""

    a: float
    s: float
    a_next: float
    s_next: float
    prediction: str  # a key of X0_FORMULAS
    data_std: float = 1.0  # sigma_data of the schedulers that scale by it
    clip: float | None = None  # the scheduler clips x0 to [-clip, clip]

    @property
    def is_flow(self) -> bool:
        """Whether a = 1 - s."""
        return math.isclose(self.a, 1 - self.s, abs_tol=1e-6)


# Prediction type -> function (level, state x, denoiser output) of x0. v was defined for VP states (arXiv:2202.00512);
# sqrt(a^2 + s^2) normalises VE states to these.
X0_FORMULAS: dict[str, Callable[[NoiseLevel, Any, Any], Any]] = {
    "epsilon": lambda n, x, out: (x - n.s * out) / n.a,
    "sample": lambda n, x, out: out,
    "v_prediction": lambda n, x, out: (n.a * x / math.hypot(n.a, n.s) - n.s * out) / math.hypot(n.a, n.s),
    "flow_prediction": lambda n, x, out: x - n.s * out,
    "flow_to_data": lambda n, x, out: x + n.s * out,  # x0 - eps: of schedulers whose sigmas are inverted
    # sCM, arXiv:2410.11081: angles on the circle of radius sigma_data
    "trigflow": lambda n, x, out: n.a * x - n.s / n.data_std * out,
    # EDM preconditioning with a v target, arXiv:2206.00364 Table 1
    "edm_v": lambda n, x, out: (
        (n.data_std**2 * x - n.s * n.data_std * math.hypot(n.s, n.data_std) * out) / (n.s**2 + n.data_std**2)
    ),
}


def predict_x0(level: NoiseLevel, x: Tensor, out: Tensor) -> Tensor:
    """x0 [B,*latent] from state x and the (guided) prediction `out`, clipped where the scheduler clips."""
    x0 = X0_FORMULAS[level.prediction](level, x, out)
    return x0 if level.clip is None else x0.clamp(-level.clip, level.clip)


def predict_eps(level: NoiseLevel, x: Tensor, out: Tensor) -> Tensor:
    """eps [B,*latent] from state x and prediction `out`, never clipped."""
    if level.prediction == "epsilon":
        return out  # (x - a x0) / s would lose digits where s is small
    if level.prediction == "flow_prediction":
        return x + level.a * out
    if level.prediction == "flow_to_data":
        return x - level.a * out
    return (x - level.a * X0_FORMULAS[level.prediction](level, x, out)) / level.s


def make_prediction(level: NoiseLevel, x: Tensor, out: Tensor) -> Prediction:
    """x0, eps and v, each [B,*latent]. v is eps - x0 for flow matching, else (a eps - s x0) / sqrt(a^2 + s^2)."""
    x0, eps = predict_x0(level, x, out), predict_eps(level, x, out)
    v = eps - x0 if level.is_flow else (level.a * eps - level.s * x0) / math.hypot(level.a, level.s)
    return Prediction(x0, eps, v)


def output_scale(level: NoiseLevel) -> float:
    """|d x0 / d out|: errors of x0, divided by this, are errors of the denoiser's own output. Without clipping."""
    x0 = X0_FORMULAS[level.prediction]
    return abs(x0(level, 0.0, 1.0) - x0(level, 0.0, 0.0))


def add_noise(level: NoiseLevel, x0: Tensor, eps: Tensor) -> Tensor:
    """x [B,*latent] = a x0 + s eps."""
    return level.a * x0 + level.s * eps


def _vp_levels(scheduler: Any, before: Callable[[Any, int, int], int], clips: bool = True) -> list[NoiseLevel]:
    """Discrete-time VP: levels from alphas_cumprod; before(scheduler, t, i): the scheduler's own rule for the next
    time."""
    config, alphas = scheduler.config, scheduler.alphas_cumprod.double()
    if clips and getattr(config, "thresholding", False):
        raise TypeError(
            f"{type(scheduler).__name__} with dynamic thresholding has no fixed clip; set thresholding: false"
        )
    clip = float(config.clip_sample_range) if clips and config.clip_sample else None
    final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    times = [int(t) for t in scheduler.timesteps]
    nexts = [before(scheduler, t, i) for i, t in enumerate(times)]
    pairs = [(float(alphas[t]), float(alphas[n]) if n >= 0 else final) for t, n in zip(times, nexts, strict=True)]
    root = math.sqrt
    return [NoiseLevel(root(p), root(1 - p), root(q), root(1 - q), config.prediction_type, clip=clip) for p, q in pairs]


def _next_by_stride(scheduler: Any, t: int, i: int) -> int:
    return t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps


def _next_listed(scheduler: Any, t: int, i: int) -> int:
    return int(scheduler.timesteps[i + 1]) if i + 1 < len(scheduler.timesteps) else -1


def _ddim_levels(scheduler: Any) -> list[NoiseLevel]:
    return _vp_levels(scheduler, _next_by_stride)


def _ddpm_levels(scheduler: Any) -> list[NoiseLevel]:
    return _vp_levels(scheduler, lambda s, t, i: int(s.previous_timestep(t)))


def _cogvideox_levels(scheduler: Any) -> list[NoiseLevel]:
    return _vp_levels(scheduler, _next_by_stride, clips=False)  # the flag is in its config, the code ignores it


def _lcm_levels(scheduler: Any) -> list[NoiseLevel]:
    levels = _vp_levels(scheduler, _next_listed)
    return [*levels[:-1], NoiseLevel(**{**vars(levels[-1]), "a_next": 1.0, "s_next": 0.0})]


def _euler_levels(scheduler: Any) -> list[NoiseLevel]:
    sigmas = [float(s) for s in scheduler.sigmas.double()]
    kind = {"original_sample": "sample"}.get(scheduler.config.prediction_type, scheduler.config.prediction_type)
    return [NoiseLevel(1.0, s, 1.0, n, kind) for s, n in zip(sigmas, sigmas[1:], strict=False)]


def _solver_levels(scheduler: Any) -> list[NoiseLevel]:
    """DPM-Solver++ and its relatives keep sigma = s/a (VP) or s itself (flow)."""
    if scheduler.config.thresholding:
        raise TypeError(
            f"{type(scheduler).__name__} with dynamic thresholding has no fixed clip; set thresholding: false"
        )
    sigmas = scheduler.sigmas.double()
    pairs = [tuple(map(float, scheduler._sigma_to_alpha_sigma_t(s))) for s in sigmas]
    kind = scheduler.config.prediction_type
    return [NoiseLevel(a, s, a_next, s_next, kind) for (a, s), (a_next, s_next) in zip(pairs, pairs[1:], strict=False)]


def _flow_levels(scheduler: Any) -> list[NoiseLevel]:
    """Flow matching. Inverted sigmas (LongCat-AudioDiT) are the signal's share, and the velocity points to the data."""
    turned = getattr(scheduler.config, "invert_sigmas", False)
    sigmas = [1 - float(s) if turned else float(s) for s in scheduler.sigmas.double()]
    kind = "flow_to_data" if turned else "flow_prediction"
    return [NoiseLevel(1 - s, s, 1 - n, n, kind) for s, n in zip(sigmas, sigmas[1:], strict=False)]


def _scm_levels(scheduler: Any) -> list[NoiseLevel]:
    std, angles = float(scheduler.config.sigma_data), [float(t) for t in scheduler.timesteps.double()]
    points = [(math.cos(t), std * math.sin(t)) for t in angles]
    return [NoiseLevel(*p, *q, "trigflow", data_std=std) for p, q in zip(points, points[1:], strict=False)]


def _cosine_levels(scheduler: Any) -> list[NoiseLevel]:
    if scheduler.config.prediction_type != "v_prediction":
        raise TypeError("CosineDPMSolverMultistepScheduler is known with prediction_type v_prediction only")
    sigmas, std = [float(s) for s in scheduler.sigmas.double()], float(scheduler.config.sigma_data)
    return [NoiseLevel(1.0, s, 1.0, n, "edm_v", data_std=std) for s, n in zip(sigmas, sigmas[1:], strict=False)]


FAMILIES: dict[str, Callable[[Any], list[NoiseLevel]]] = {
    "DDIMScheduler": _ddim_levels,
    "DDPMScheduler": _ddpm_levels,
    "CogVideoXDDIMScheduler": _cogvideox_levels,
    "CogVideoXDPMScheduler": _cogvideox_levels,
    "LCMScheduler": _lcm_levels,
    "EulerDiscreteScheduler": _euler_levels,
    "EulerAncestralDiscreteScheduler": _euler_levels,
    "LMSDiscreteScheduler": _euler_levels,
    "DPMSolverMultistepScheduler": _solver_levels,
    "DPMSolverSinglestepScheduler": _solver_levels,
    "UniPCMultistepScheduler": _solver_levels,
    "SASolverScheduler": _solver_levels,
    "FlowMatchEulerDiscreteScheduler": _flow_levels,
    "SCMScheduler": _scm_levels,
    "CosineDPMSolverMultistepScheduler": _cosine_levels,
}


def is_known(scheduler: Any) -> bool:
    """Whether the scheduler's noise levels are known."""
    return type(scheduler).__name__ in FAMILIES


def noise_levels(scheduler: Any) -> list[NoiseLevel]:
    """One NoiseLevel per step of a scheduler whose timesteps are set. Raises TypeError for an unknown scheduler."""
    if not is_known(scheduler):
        raise TypeError(
            f"the noise levels of {type(scheduler).__name__} are not known; known: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[type(scheduler).__name__](scheduler)
