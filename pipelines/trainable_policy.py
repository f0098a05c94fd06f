"""A Policy that can be trained: gradients, optimiser steps, copies of weights and checkpoints, on one or more
devices."""

from __future__ import annotations

import copy
import importlib.util
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pipelines import seams, sharding
from pipelines.adapters import Adapters, Lora, copy_to_cpu, strip_lora
from pipelines.conditions import Grouping
from pipelines.dials import find_text_layout, remove_dials
from pipelines.lora_start import StartLora
from pipelines.policy import Policy
from pipelines.processes import join_processes
from workbench.core.errors import BadInput

EMA = "ema"
COUNTS = ("updates", "overflows", "nfe", "decodes")  # counters that a checkpoint holds


class TrainablePolicy(Policy):
    """A Policy with LoRA on all of its denoisers, or with trainable weights.

    Frozen weights keep their dtype and adapters are float32, so autocast isn't needed; float16 weights get a loss
    scaler. Modules stay in eval mode, so that a step is scored exactly as it was sampled, if the rows of the batch are
    the same.

    `clip` is the largest norm of the gradient (0: no limit), `ema` the decay of the copy "ema" that follows each
    update, warmed up as (1 + n) / (10 + n) (0: no copy). `blocks` makes the denoiser's blocks recompute their
    activations in the backward pass: less memory for about a third more time. `source(components)` loads the
    pipeline again, sharing these components; export uses it. `start_lora` was merged into the weights beforehand:
    the policy starts with it, and the export holds it too, for the base that `source` loads. With `accelerate
    launch` each process holds the whole policy, and computes its own rows; with `shard`, each holds a part of the
    weights, gradients and optimiser state (sharding.py), and all processes must sample, predict, step, save and
    export together. `axes` are those of dials to be trained (dials.py).
    """

    cache_scope: Any = None  # key of the prompt caches in place of the prompts, the same in all processes

    def __init__(
        self,
        pipe: Any,
        *,
        lora: Lora | None = None,
        clip: float = 1.0,
        ema: float = 0.0,
        blocks: bool = False,
        shard: bool = False,
        axes: Sequence[str] = (),
        source: Callable[[Mapping[str, nn.Module]], Any] | None = None,
        start_lora: StartLora | None = None,
        **policy: Any,
    ):
        super().__init__(pipe, **policy)
        self.clip, self.ema, self.source, self.start_lora, self.updates = clip, ema, source, start_lora, 0
        self.overflows = 0  # gradients in a row that were not finite
        denoisers: dict[str, Any] = {
            name: seams.named_networks(pipe)[name] for name in sorted(self.structure.denoisers)
        }
        lora, self._world = lora or Lora(), join_processes(self.device)
        half = any(p.dtype == torch.float16 for module in denoisers.values() for p in module.parameters())
        if shard and (half or lora.targets != "weights"):
            raise BadInput("shard: is for weights that are trained themselves (targets: weights), in fp32 or bf16")
        cut = shard and self._world.num_processes > 1
        self.adapters = Adapters(denoisers, lora, self.device if cut else None)
        if axes:
            self.adapters.add_dials(axes, *find_text_layout(self))
        for module in denoisers.values():
            if blocks:
                module.enable_gradient_checkpointing()
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self._optimizer: torch.optim.Optimizer | None = None
        self._resumed: dict[str, Any] | None = None  # state for an optimiser that is not yet made

    @property
    def provides(self) -> frozenset[str]:
        return super().provides | {"trainable"}

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return self.adapters.sharded

    @property
    def has_loss_scaler(self) -> bool:
        """Whether a loss scaler is used, which at times lets gradients overflow to find its scale."""
        return self._scaler.is_enabled()

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first process, the one that writes."""
        return self._world.process_index == 0

    @cached_property
    def grouping(self) -> Grouping:
        """Which rows one call can compute together. Sharded, where all processes must run the denoiser equally often,
        rows are not grouped by their inputs, which differ from process to process."""
        grouping = super().grouping
        if not self.sharded:
            return grouping
        from accelerate.utils import broadcast_object_list

        return "each" if broadcast_object_list([grouping])[0] == "each" else "alone"

    def _prompt_cache(self, prompts: tuple[str, ...], guidance: float | None) -> Any:
        is_scope = self.sharded and self.cache_scope is not None and prompts in self.cache_scope
        return super()._prompt_cache(self.cache_scope if is_scope else prompts, guidance)

    def reference(self) -> AbstractContextManager[None]:
        """Inside the block this is the policy before training, bit for bit."""
        return self.adapters.switched_off()

    def use(self, name: str) -> AbstractContextManager[None]:
        """Inside the block this is the policy as it was when the copy `name` was taken ("train": as it is)."""
        return self.adapters.use(name)

    def merged(self) -> AbstractContextManager[None]:
        """Inside the block adapters are merged into the weights: faster sampling, the same but for rounding, without
        gradient."""
        return self.adapters.merged()

    def take_copy(self, name: str) -> None:
        """Take a copy of the policy as it is, under that name."""
        self.adapters.take_copy(name)

    def follow(self, name: str, decay: float) -> None:
        """copy <- decay copy + (1 - decay) policy; the first call takes the copy. For DiffusionNFT's old policy, an
        EMA, ..."""
        self.adapters.follow(name, decay)

    def optimizer(self, lr: float, *, eight_bit: bool = False, **settings: Any) -> torch.optim.Optimizer:
        """AdamW (arXiv:1711.05101) on the adapters; `settings`: betas, eps, weight_decay (default 1e-4).

        A fresh optimiser, but the first call after load_state_dict resumes the loaded state, learning rate included.
        Raises BadInput for eight_bit with shards, or without bitsandbytes.
        """
        if eight_bit and importlib.util.find_spec("bitsandbytes") is None:
            raise BadInput("eight_bit: needs bitsandbytes, which is not installed; install it or use: eight_bit: false")
        if eight_bit and self.sharded:
            raise BadInput("eight_bit: its state can't be sharded; use: eight_bit: false")
        if eight_bit:
            from bitsandbytes.optim import AdamW8bit as Adam
        else:
            from torch.optim import AdamW as Adam
        self._optimizer = Adam(self.adapters.parameters, lr=lr, **{"weight_decay": 1e-4, **settings})
        self._resume_optimizer()
        return self._optimizer

    def _resume_optimizer(self) -> None:
        if self._optimizer is not None and self._resumed is not None:
            self._optimizer.load_state_dict(self._resumed)
            self._resumed = None

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of loss [] to the gradients since the last update: several calls make one larger batch,
        whose losses the caller weights."""
        self._scaler.scale(loss).backward()

    def update(self) -> float:
        """One optimiser step on the accumulated gradients, averaged over processes and clipped; returns their norm
        before clipping. NaN: a gradient was not finite, and the step was skipped. 0: there was no gradient."""
        if self._optimizer is None:
            raise RuntimeError("update() before optimizer(lr): there is nothing to step with")
        self._average_gradients()
        if all(p.grad is None for p in self.adapters.parameters):
            return 0.0
        self._scaler.unscale_(self._optimizer)
        clip = sharding.clip_grad_norm if self.sharded else nn.utils.clip_grad_norm_
        norm = float(clip(self.adapters.parameters, self.clip or math.inf))
        finite = math.isfinite(norm)
        if finite:
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self.overflows = 0 if finite else self.overflows + 1
        if not finite:
            return math.nan
        self.updates += 1
        if self.ema:
            self.follow(EMA, min((1 + self.updates) / (10 + self.updates), self.ema))
        return norm

    def _average_gradients(self) -> None:
        """Average gradients over processes, by one all-reduce of all adapters, which are small. DistributedDataParallel
        can't be used, as a forward pass is a pipeline's whole call and not that of one wrapped module. FSDP averages
        gradients of shards itself."""
        if self._world.num_processes == 1 or self.sharded:
            return
        from accelerate.utils import reduce

        params = self.adapters.parameters
        has = torch.tensor([p.grad is not None for p in params], dtype=torch.float32, device=params[0].device)
        rows = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params]
        flat = reduce(torch.cat([has, *rows]), reduction="mean")
        means = flat[len(params) :].split([p.numel() for p in params])
        for p, mean, share in zip(params, means, flat[: len(params)].tolist(), strict=True):
            p.grad = mean.view_as(p) if share else None  # an expert that no process used keeps None, not zero

    def load_base(self) -> Any:
        """A separate pipeline, the base of what is exported: its denoisers, and what else `start_lora` changed, are
        loaded again by `source`, or, without it, copied as before training and stripped of adapters. Raises
        RuntimeError for a sharded policy without `source`."""
        modules = seams.named_networks(self.pipe)
        if self.sharded and self.source is None:
            raise RuntimeError("a sharded policy can't be copied: give it the `source` of its pipeline")
        if self.source is not None:
            changed = {*self.adapters.denoisers, *(self.start_lora.networks if self.start_lora else ())}
            return self.source({name: part for name, part in modules.items() if name not in changed})
        pipe = copy.copy(self.pipe)
        with self.reference():
            for name, module in self.adapters.denoisers.items():
                setattr(pipe, name, strip_lora(copy.deepcopy(module)))
                remove_dials(getattr(pipe, name))
        return pipe

    def state_dict(self) -> dict[str, Any]:
        """The state for an exact resume: adapters and copies, optimiser, loss scaler, counters, random states of torch
        and Python. Tensors and plain values, readable by torch.load(weights_only=True)."""
        return {
            "lora": asdict(self.adapters.lora),
            "adapters": self.adapters.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self._cuda_devices else None,
                "python": random.getstate(),
            },
        } | self.learner_state()

    def learner_state(self) -> dict[str, Any]:
        """The part of the state that policies made by `as_sibling` don't share: optimiser and counters."""
        optimizer_state = self._optimizer.state_dict() if self._optimizer else self._resumed
        optimizer_state = (
            sharding.gather_full(optimizer_state)
            if self.sharded
            else tree_map(lambda v: copy_to_cpu(v) if torch.is_tensor(v) else v, optimizer_state)
        )
        return {
            "optimizer": optimizer_state,
            "counts": {key: getattr(self, key) for key in COUNTS},
        }

    def load_learner_state(self, state: Mapping[str, Any]) -> None:
        """Load what `learner_state` returned."""
        optimizer_state, parameters = state["optimizer"], self.adapters.parameters
        if self.sharded and optimizer_state is not None:
            local_state = {
                n: sharding.take_state_parts(values, parameters[n]) for n, values in optimizer_state["state"].items()
            }
            optimizer_state = {**optimizer_state, "state": local_state}
        self._resumed = optimizer_state if self.sharded else copy.deepcopy(optimizer_state)
        self._resume_optimizer()
        for key in COUNTS:
            setattr(self, key, state["counts"][key])

    def reset_optimizer(self) -> None:
        """Drop the optimiser, accumulated gradients, and all copies but the average (EMA)."""
        self._optimizer = self._resumed = None
        for p in self.adapters.parameters:
            p.grad = None
        self.adapters.drop_copies({EMA})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`. Raises BadInput for the state of another LoRA or another pipeline."""
        if dict(state["lora"]) != asdict(self.adapters.lora):
            raise BadInput(f"this state was trained with {state['lora']}, this policy has {asdict(self.adapters.lora)}")
        self.adapters.load_state_dict(state["adapters"])
        self.load_learner_state(state)
        self._scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"]["torch"].cpu())
        if self._cuda_devices and state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu(), self.device)
        random.setstate(state["random"]["python"])
