"""What a pipeline makes of its prompts alone, kept from call to call: noise optimisation asks for it fifty times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as checkpointed

from pipelines import seams

ENTRY_BYTES = 1 << 16  # bytes that a batch counts for besides its encodings, so that many small ones have a limit too


class PromptCache:
    """The memory of one batch of prompts: their encodings, and stand-ins for denoiser calls whose result is thrown
    away.

    Of a stand-in only the shape matters, so all batches of as many rows share theirs.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[str, Any]] | None = None  # what ran before the denoiser, in order
        self.bytes = ENTRY_BYTES
        self.stand_ins: dict[tuple[int, int], Any] = {}  # by place among the calls of a step, and rows

    def make_hooks(
        self,
        denoisers: Collection[str],
        live: Callable[[int], bool],
        count: Callable[[int, bool], None],
        checkpoint: bool = False,
        same_kernels: bool = False,
    ) -> dict[str, Callable]:
        """on_encode and on_call for one `seams.run_pipeline`, in which the steps with live(i) run the denoiser for real
        and the others don't.

        `count` gets the rows that went through, and whether the step is live; `checkpoint` recomputes activations in
        the backward pass. `same_kernels` runs the denoiser in grad mode even where no graph is kept: with parameters
        that require grad, kernels and so the last digits differ, and log-probabilities are compared across.
        """
        answers = None if self.answers is None else iter(self.answers)
        fresh: list[tuple[str, Any]] = []
        calls: Counter[int] = Counter()  # denoiser calls so far, by step

        def remember(name: str, compute: Callable[[], Any]) -> Any:
            if answers is None:
                with torch.inference_mode(False), torch.no_grad():  # or a later call could not differentiate with it
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
            if calls:  # after the loop, or in it: a vocoder, say
                return forward(*call.args, **call.kwargs)
            return remember(call.module, lambda: forward(*call.args, **call.kwargs))

        return {"on_encode": lambda encode: remember("encode_prompt", encode), "on_call": on_call}
