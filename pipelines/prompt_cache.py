"""A cache of what a pipeline computes from its prompts alone, as noise optimisation repeats it in every iteration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as checkpointed

from pipelines import seams

ENTRY_BYTES = 1 << 16  # added to the bytes of a batch's encodings, so that the number of small batches is limited too


class PromptCache:
    """The cache of one batch of prompts: encodings, and stand-ins for denoiser outputs that are not used.

    Only the shape of a stand-in matters, so batches with equally many rows share them.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[str, Any]] | None = None  # (name, result) of calls before the denoiser, in order
        self.bytes = ENTRY_BYTES
        self.stand_ins: dict[tuple[int, int], Any] = {}  # by (index of the call in its step, rows)

    def make_hooks(
        self,
        denoisers: Collection[str],
        live: Callable[[int], bool],
        count: Callable[[int, bool], None],
        checkpoint: bool = False,
        same_kernels: bool = False,
    ) -> dict[str, Callable]:
        """on_encode and on_call for one `seams.run_pipeline`: the denoiser runs in the steps with live(i), and
        stand-ins replace it in others.

        `count(rows, live)` is called when the denoiser runs; `checkpoint` recomputes activations in the backward pass.
        `same_kernels` runs the denoiser in grad mode even where no graph is kept: kernels, and so the last digits, may
        depend on it, and log-probabilities with and without a graph are compared.
        """
        answers = None if self.answers is None else iter(self.answers)
        fresh: list[tuple[str, Any]] = []
        calls: Counter[int] = Counter()  # denoiser calls so far, by step

        def remember(name: str, compute: Callable[[], Any]) -> Any:
            if answers is None:
                with torch.inference_mode(False), torch.no_grad():  # inference tensors can't be used in graphs later
                    value = compute()
                    fresh.append((name, seams.clone_tensors(value)))
                return value
            was, value = next(answers, ("nothing more", None))
            if was != name:
                raise RuntimeError(f"the pipeline asked for {name} where it had asked for {was} before")
            return seams.clone_tensors(value)

        def denoise(call: seams.ModuleCall, forward: seams.Forward) -> Any:
            if self.answers is None:
                self.answers = fresh
                self.bytes += sum(t.nbytes for t in seams.list_tensors(fresh))
            is_live = live(call.step)
            call_index, calls[call.step] = calls[call.step], calls[call.step] + 1
            key = (call_index, call.rows)  # not the module: experts of one class share the steps
            if not is_live and key in self.stand_ins:
                return seams.clone_tensors(self.stand_ins[key])
            count(call.rows, is_live)
            graph = torch.is_grad_enabled() and is_live
            with torch.set_grad_enabled(graph or same_kernels):
                if checkpoint and graph:
                    out = checkpointed(forward, *call.args, use_reentrant=False, **call.kwargs)
                else:
                    out = forward(*call.args, **call.kwargs)
            if key not in self.stand_ins:
                self.stand_ins[key] = seams.clone_tensors(out)
            return out if graph or not same_kernels else seams.clone_tensors(out)

        def on_call(call: seams.ModuleCall, forward: seams.Forward) -> Any:
            if call.module in denoisers:
                return denoise(call, forward)
            if calls:  # in or after the loop: a vocoder, for example
                return forward(*call.args, **call.kwargs)
            return remember(call.module, lambda: forward(*call.args, **call.kwargs))

        return {"on_encode": lambda encode: remember("encode_prompt", encode), "on_call": on_call}
