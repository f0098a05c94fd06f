"""A cache of what a pipeline computes from its prompts and their inputs alone, as noise optimisation repeats it in
every iteration."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint as checkpointed

from pipelines import seams

MAX_SHAPES = 16  # batch shapes (rows, guidance) whose stand-ins are kept
ENTRY_BYTES = 1 << 16  # added to the bytes of a batch's encodings, so that the number of small batches is limited too


class PromptCaches:
    """The caches of the batches that were used last: at least `batches` of them, more within `max_bytes`.

    Encodings are kept by batch, as pipelines pad to the longest prompt of a batch, and stand-ins by shape.
    """

    def __init__(self, batches: int, max_bytes: int):
        self.batches, self.max_bytes = batches, max_bytes
        self.caches: OrderedDict[tuple, PromptCache] = OrderedDict()
        self.stand_ins: OrderedDict[tuple, dict] = OrderedDict()

    def recall(self, prompts: tuple, guidance: float | None, *, encoders_train: bool) -> PromptCache:
        """The cache of these prompts, which are equal only with equal inputs. Where processes must run the denoiser
        equally often, `prompts` are those of all processes (distributed_policy.py), so that all have the same entries.
        `encoders_train`: what encodes prompts is trained, which changes its encodings."""
        key, shape = (prompts, guidance), (tree_map(type, prompts), guidance)  # without the texts
        if key in self.caches and encoders_train:
            self.caches.clear()
        if key not in self.caches:
            total_bytes = sum(cache.bytes for cache in self.caches.values())
            while len(self.caches) >= max(self.batches, 1) and total_bytes > self.max_bytes:
                total_bytes -= self.caches.popitem(last=False)[1].bytes
            self.caches[key] = PromptCache()
        prompt_cache = self.caches[key]
        prompt_cache.stand_ins = self.stand_ins.setdefault(shape, {})
        self.caches.move_to_end(key)
        self.stand_ins.move_to_end(shape)
        if len(self.stand_ins) > MAX_SHAPES:
            self.stand_ins.popitem(last=False)
        return prompt_cache

    def clear(self) -> None:
        self.caches.clear()
        self.stand_ins.clear()


class PromptCache:
    """The cache of one batch of prompts: encodings of texts and inputs, and stand-ins for outputs of the denoiser that
    are not used.

    Only the shape of a stand-in matters, so batches with equally many rows share them.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[str, Any]] | None = None  # (name, result) of calls before the denoiser, in order
        self.bytes = ENTRY_BYTES
        self.stand_ins: dict[tuple, Any] = {}  # by (index of the call in its step, rows, helper)

    def make_hooks(
        self,
        denoisers: Collection[str],
        helpers: Collection[str],
        live: Callable[[int], bool],
        count: Callable[[int, bool], None],
        checkpoint: bool = False,
        same_kernels: bool = False,
    ) -> dict[str, Callable]:
        """on_encode, on_latents and on_call for one `seams.run_pipeline`: the denoiser and its helpers run in the steps
        with live(i), and stand-ins replace them in others.

        `count(rows, live)` is called when the denoiser runs, but not for its helpers (ControlNets); `checkpoint`
        recomputes activations in the backward pass.
        `same_kernels` runs the denoiser in grad mode even where no graph is kept: kernels, and so the last digits, may
        depend on it, and log-probabilities with and without a graph are compared.
        """
        answers = None if self.answers is None else iter(self.answers)
        fresh: list[tuple[str, Any]] = []
        calls: Counter[tuple] = Counter()  # calls so far, by step and helper

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
            is_live, helper = live(call.step), call.module if call.module in helpers else ""
            place = (call.step, helper)
            call_index, calls[place] = calls[place], calls[place] + 1
            key = (call_index, call.rows, helper)  # not the denoiser: experts of one class share the steps
            if not is_live and key in self.stand_ins:
                return seams.clone_tensors(self.stand_ins[key])
            if not helper:
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
            if call.module in denoisers or call.module in helpers:
                return denoise(call, forward)
            if calls:  # in or after the loop: a vocoder, for example
                return forward(*call.args, **call.kwargs)
            return remember(call.module, lambda: forward(*call.args, **call.kwargs))

        def on_latents(name: str, compute_modes: Callable[[], Any]) -> Any:
            return compute_modes() if calls else remember(f"{name}.encode", compute_modes)

        return {
            "on_encode": lambda encode: remember("encode_prompt", encode),
            "on_call": on_call,
            "on_latents": on_latents,
        }
