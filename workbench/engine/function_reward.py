"""Any function of media and prompts as a reward."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Media, Modality, RewardSpec

ALL: frozenset[Modality] = frozenset({"image", "video", "audio"})


class FunctionReward:
    """A callable `(media, prompts) -> scores` as a Reward.

    It is called with a Media of B rows and a list of B prompts, and returns B numbers, HIGHER IS BETTER: a tensor [B],
    a NumPy array or a list. Its exceptions are not caught.
    """

    def __init__(
        self,
        function: Callable[[Media, Sequence[str]], Any],
        *,
        name: str,
        differentiable: bool = False,
        modalities: Collection[Modality] = ALL,
        typical: tuple[float, float] | None = None,
    ):
        self.function = function
        version = f"function {code_digest(function)}"
        self.spec = RewardSpec(name, version, frozenset(modalities), differentiable, typical=typical)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        scores = self._as_tensor(self.function(media, list(prompts)), media)
        if tuple(scores.shape) != (len(media),):
            shape = "one number" if scores.dim() == 0 else f"a shape of {list(scores.shape)}"
            raise BadInput(
                f"reward {self.spec.name}: gave {shape} for {len(media)} sample(s); "
                f"return one number a sample: a list or a tensor of shape [{len(media)}]"
            )
        finite = scores.detach().isfinite()
        if not finite.all():
            n = int((~finite).nonzero()[0])
            raise BadInput(
                f"reward {self.spec.name}: gave {float(scores[n]):g} for sample {n} of {len(media)} "
                f"({prompts[n]!r:.60}); return a finite number for every sample"
            )
        if self.spec.differentiable and media.data.requires_grad and not scores.requires_grad:
            raise BadInput(
                f"reward {self.spec.name}: is said to be differentiable, but its scores have lost the gradient of the "
                "media; compute them with torch, without detach(), item() or numpy()"
            )
        return scores

    def _as_tensor(self, scores: Any, media: Media) -> Tensor:
        try:
            return torch.as_tensor(scores).to(media.data.device, torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise BadInput(
                f"reward {self.spec.name}: returned {type(scores).__name__}, which is no list of numbers; "
                f"return one number a sample: a list or a tensor of shape [{len(media)}]"
            ) from None

    def __repr__(self) -> str:
        return f"<reward {self.spec.name}{', differentiable' if self.spec.differentiable else ''}>"


def code_digest(function: Callable) -> str:
    """Eight hex digits that change with the code of a Python function; the type's name for any other callable."""
    code = getattr(function, "__code__", None)
    if code is None:
        return type(function).__name__
    constants = [c for c in code.co_consts if isinstance(c, (int, float, str, bytes, bool, type(None)))]
    return hashlib.sha256(code.co_code + repr((constants, code.co_names)).encode()).hexdigest()[:8]
