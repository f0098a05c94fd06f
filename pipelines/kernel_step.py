"""A Gaussian kernel's step in place of a scheduler's own, while the pipeline samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines import seams
from pipelines.schedule import NoiseLevel
from pipelines.structure import PipelineStructure
from pipelines.transitions import Kernel


def take_kernel_step(
    kernel: Kernel,
    level: NoiseLevel,
    structure: PipelineStructure,
    step: seams.SchedulerStep,
    ret: Any,
    generators: Sequence[torch.Generator],
) -> tuple[Any, Tensor | None]:
    """(what the scheduler returns instead of `ret`, log-probabilities [B] of the step; None for a deterministic one).

    The scheduler's buffers and index have advanced already. A row's noise is drawn by its own generator, so that it
    depends on its own seed alone.
    """
    x_now, output = (structure.group_rows(x).float() for x in (step.sample, step.model_output))
    law, is_last = kernel(level, x_now, output), step.index == structure.steps - 1
    if not law.std.any():
        return seams.with_sample(ret, law.mean, everywhere=is_last), None
    eps = [torch.randn(law.mean.shape[1:], generator=g) for g in generators]
    x = (law.mean + law.std * torch.stack(eps).to(law.mean)).to(step.sample.dtype).contiguous()
    ret = seams.with_sample(ret, x, everywhere=is_last)
    x_next = structure.group_rows(seams.prev_sample(ret)).detach()  # as rounded in the pipeline's dtype
    return ret, law.log_prob(x_next)
