"""The trained part of a pipeline: LoRA on its denoisers (or their weights), and named copies of it.

The live values are called "train". Copies ("old" for rollouts, "ema" for evaluation, any name) are plain tensors,
swapped in inside a `with` block. With its adapters switched off, the policy is bit for bit the one before training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.core.errors import BadInput
from workbench.core.types import Count

from . import sharding
from .dials import Dials, dials_disabled, has_dials, install_dials

LIVE, BASE = "train", "base"
KEYWORD_CALLED = {"AnimateDiffTransformer3D": ("proj_in", "proj_out")}  # class of diffusers -> its layers
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (arXiv:2106.09685): a layer's W becomes W + alpha / rank * B A, and only A and B are trained.

    A starts Gaussian and B at 0, so training starts at the policy as it was loaded.
    """

    rank: Count = 32
    alpha: float = 64.0
    # attention: its projections, fused ones too; linear: all linear layers; all: convolutions too; weights: no LoRA
    targets: Literal["attention", "linear", "all", "weights"] = "attention"
    seed: int = 0  # of A

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            effect = "a LoRA of strength 0 has no effect and learns nothing" if self.alpha == 0 else "it is a strength"
            raise BadInput(f"lora: alpha must be a number above 0, got {self.alpha:g}: {effect}")


def find_target_layers(module: nn.Module, kind: str) -> list[str]:
    """Names of the layers to adapt, found by their types. Raises TypeError where there are none of that kind.

    torch's own MultiheadAttention is left out: it reads the weights of its projections and never calls them. So are
    grouped convolutions, which have no low-rank form, layers that diffusers calls as `layer(input=...)`, which
    peft's layers don't take, and those of an IP-Adapter, which is no part of the denoiser that a LoRA is exported for.
    """
    keyword_called = {
        f"{name}.{layer}"
        for name, part in module.named_modules()
        for layer in KEYWORD_CALLED.get(type(part).__name__, ())
    }
    inside = tuple(f"{name}." for name, part in module.named_modules() if _is_attention(part))
    sealed = tuple(f"{name}." for name, part in module.named_modules() if _is_sealed(part))
    kinds = (nn.Linear, *CONVOLUTIONS) if kind == "all" else nn.Linear
    names = [
        name
        for name, part in module.named_modules()
        if isinstance(part, kinds)
        and getattr(part, "groups", 1) == 1
        and not name.startswith(sealed)
        and name not in keyword_called
        and (kind != "attention" or name.startswith(inside))
    ]
    if not names:
        raise TypeError(f"{type(module).__name__} has no layers of the kind {kind!r} to adapt; try: linear")
    return names


def _is_sealed(part: nn.Module) -> bool:
    return isinstance(part, nn.MultiheadAttention) or "IPAdapter" in type(part).__name__


def _is_attention(part: nn.Module) -> bool:
    """Every attention layer of diffusers is a class called ...Attention, or one's subclass."""
    return any(cls.__name__.endswith("Attention") for cls in type(part).__mro__)


def attach_lora(module: Any, lora: Lora) -> None:
    """Put LoRA on a frozen denoiser, in float32 whatever its dtype: bfloat16 would lose updates of A and B."""
    from peft import LoraConfig, inject_adapter_in_model

    names = find_target_layers(module, lora.targets)
    settings: dict[str, Any] = dict(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
    config = LoraConfig(**settings, init_lora_weights="gaussian")
    with torch.random.fork_rng([]):
        torch.manual_seed(lora.seed)
        if hasattr(module, "add_adapter"):
            module.add_adapter(config)
        else:  # some denoisers of diffusers lack its mixin
            inject_adapter_in_model(config, module)
    for p in module.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def lora_layers(module: nn.Module) -> dict[str, Any]:
    """Name -> LoRA layer of a module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, BaseTunerLayer)}


def strip_lora(module: nn.Module) -> nn.Module:
    """Remove the LoRA layers, in place; adapters that were merged into weights stay merged."""
    for name, layer in lora_layers(module).items():
        module.set_submodule(name, layer.get_base_layer())
    for name in {"peft_config", "_hf_peft_config_loaded"} & set(vars(module)):
        delattr(module, name)
    return module.requires_grad_(False)


def copy_to_cpu(value: Tensor) -> Tensor:
    """A copy on the CPU, so that saving needs no GPU memory."""
    return value.detach().to("cpu", copy=True)


class Adapters:
    """The trained part of a pipeline's denoisers, by name, and its copies.

    With `shard`, a device, the weights are trained, each process keeps a part of them (sharding.py), and copies are of
    that part; all processes must then call `gather_full`, `state_dict` and `distance_from_base` together.
    """

    def __init__(self, denoisers: Mapping[str, Any], lora: Lora, shard: torch.device | None = None):
        self.denoisers, self.lora, self.sharded = dict(denoisers), lora, shard is not None
        self.copies: dict[str, dict[str, Tensor]] = {}
        self.dials: list[Dials] = []  # those that are trained
        self._switched_off = self._merged = False
        for module in self.denoisers.values():
            if lora.targets == "weights":
                module.requires_grad_()
                if has_dials(module):  # of the weights that the training starts from
                    module.dials.requires_grad_(False)
            else:
                attach_lora(module.requires_grad_(False), lora)
        self.live = self._trainable_parameters()
        if shard is not None:
            self._loaded = self.content_hash()  # of whole weights: shards of different models would not be noticed
            self.live = {}  # it would keep all whole parameters in memory until the end
            for module in self.denoisers.values():
                sharding.shard_module(module, shard)
            self.live = self._trainable_parameters()
        if lora.targets == "weights":
            self.take_copy(BASE)

    def add_dials(self, axes: Sequence[str], width: int, repeats: int) -> None:
        """Give each denoiser dials of these axes, which are trained too; width and repeats: dials.find_text_layout."""
        self.dials = [install_dials(module, axes, width, repeats) for module in self.denoisers.values()]
        self.live = self._trainable_parameters()
        if self.lora.targets == "weights":
            self.take_copy(BASE)

    def to(self, device: torch.device) -> None:
        """Move unsharded denoisers and the copies. Optimisers that were made before no longer fit the parameters."""
        for module in self.denoisers.values():
            module.to(device)
        self.live = self._trainable_parameters()  # some tensors can't change devices; their parameters are new
        self.copies = {name: {key: v.to(device) for key, v in values.items()} for name, values in self.copies.items()}

    def _trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{key}": p
            for name, module in self.denoisers.items()
            for key, p in module.named_parameters()
            if p.requires_grad
        }

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.live.values())

    def take_copy(self, name: str) -> None:
        """Copy the live values under this name."""
        self.copies[_check_copy_name(name)] = {
            key: sharding.local_part(p).detach().clone() for key, p in self.live.items()
        }

    @torch.no_grad()
    def follow(self, name: str, decay: float) -> None:
        """copy <- decay copy + (1 - decay) live; the first time, it starts at the live values."""
        if _check_copy_name(name) not in self.copies:
            self.take_copy(name)
        for key, average in self.copies[name].items():
            average.lerp_(sharding.local_part(self.live[key]).detach(), 1 - decay)

    def drop_copies(self, but: Collection[str]) -> None:
        """Drop all copies but these and the base."""
        self.copies = {name: values for name, values in self.copies.items() if name in {BASE, *but}}

    def use(self, name: str) -> AbstractContextManager[None]:
        """Inside the block the denoisers compute with that copy. Graphs made inside must be differentiated before it
        ends. Raises KeyError, naming the copies, for an unknown one."""
        if name == LIVE:
            return nullcontext()
        if self._merged:
            raise RuntimeError("copies can't be swapped while the adapters are merged")
        if name not in self.copies:
            raise KeyError(f"there is no copy {name!r} of the adapters; there are: {', '.join((LIVE, *self.copies))}")
        return self._swap_values(self.copies[name])

    def _swap_values(self, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        if self.sharded:
            return sharding.swapped_values(self.live, values, list(self.denoisers.values()))
        return self._swap_storage(values)

    @contextmanager
    def _swap_storage(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        live_data = {key: p.data for key, p in self.live.items()}
        try:
            for key, p in self.live.items():
                p.data = values[key]  # another storage, not other values in it: graphs made outside stay valid
            yield
        finally:
            for key, p in self.live.items():
                p.data = live_data[key]

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Inside the block the denoisers compute what they did before training, bit for bit, and nothing requires
        grad."""
        if self._merged:
            raise RuntimeError("adapters that are merged can't be switched off")
        if self._switched_off:  # nested
            yield
            return
        adapted = self._lora_layers
        self._switched_off = True
        try:
            for layer in adapted:
                layer.enable_adapters(False)
            for p in self.parameters:
                p.requires_grad_(False)
            whole = self._swap_values(self.copies[BASE]) if self.lora.targets == "weights" else nullcontext()
            with whole, dials_disabled(self.dials):
                yield
        finally:
            self._switched_off = False
            for layer in adapted:
                layer.enable_adapters(True)
            for p in self.parameters:
                p.requires_grad_()

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside the block the adapters are merged into the weights, W + scale B A, and cost nothing; afterwards W is
        restored bit for bit. Samples are the same but for rounding, so log-densities must not be compared with ones
        from outside; no gradient reaches the adapters. Only float32 weights, whose rounding is small against an
        adapter, are merged."""
        layer_weights = [(layer, layer.get_base_layer().weight) for layer in self._lora_layers]
        if self._switched_off or self._merged or any(weight.dtype != torch.float32 for _, weight in layer_weights):
            yield
            return
        unmerged = [weight.data for _, weight in layer_weights]
        self._merged = True
        try:
            with torch.no_grad():
                for layer, weight in layer_weights:
                    a, b, scale = lora_factors(layer)
                    weight.data = weight.data + scale * (b.flatten(1) @ a.flatten(1)).view(weight.shape)
                    layer._disable_adapters = True  # its public method also changes which parameters require grad
            yield
        finally:
            self._merged = False
            for (layer, weight), before in zip(layer_weights, unmerged, strict=True):
                weight.data = before
                layer._disable_adapters = False

    @property
    def _lora_layers(self) -> list[Any]:
        return [layer for module in self.denoisers.values() for layer in lora_layers(module).values()]

    def content_hash(self) -> str:
        """A hash of the live values, bit for bit. With shards, which differ between processes: of the whole weights
        before training, and of how they are sharded."""
        digest = hashlib.blake2b(digest_size=16)
        for key in sorted(self.live):
            p: Any = self.live[key].detach()
            how = (
                f"{self._loaded} {tuple(p.shape)} {p.placements} of {p.device_mesh.shape}"
                if sharding.is_sharded(p)
                else ""
            )
            digest.update(key.encode() + (how.encode() or _tensor_bytes(p)))
        return digest.hexdigest()

    @torch.no_grad()
    def distance_from_base(self) -> float:
        """|W - W_base| / |W_base| over the trained layers, Frobenius norms; |B A|^2 = sum(B'B * AA') avoids the
        product."""
        if self.lora.targets == "weights":
            before = self.copies[BASE]
            change = sum(
                float((sharding.local_part(p).double() - before[k]).square().sum()) for k, p in self.live.items()
            )
            base = sum(float(w.double().square().sum()) for w in before.values())
            if self.sharded:
                change, base = sharding.sum_over_processes([change, base], self.parameters[0].device)
            return math.sqrt(change / base)
        change, base = 0.0, 0.0
        for layer in self._lora_layers:
            a, b, scale = lora_factors(layer)
            a, b = a.double().flatten(1), b.double().flatten(1)
            change += float(scale**2 * ((b.T @ b) * (a @ a.T)).sum())
            base += float(layer.get_base_layer().weight.double().square().sum())
        return math.sqrt(max(change, 0.0) / base)

    def gather_full(self) -> dict[str, Tensor]:
        """The live values; shards are put together on the first process."""
        return sharding.gather_full({key: p.detach() for key, p in self.live.items()})

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The live values and the copies without the base, on the CPU. Shards are put together, on the first process
        only, so any number of processes can load them."""
        copies = {name: values for name, values in self.copies.items() if name != BASE}
        if not self.sharded:
            everyone: dict[str, Mapping[str, Tensor]] = {LIVE: self.live, **copies}
            return {name: {key: copy_to_cpu(v) for key, v in values.items()} for name, values in everyone.items()}
        state = {LIVE: self.gather_full()}
        for name, values in copies.items():
            state[name] = {
                key: sharding.gather_full(sharding.join_parts(v, self.live[key])) for key, v in values.items()
            }
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load live values and copies, and drop other copies. Raises BadInput, before anything is loaded, for a state
        of other layers or another rank."""
        for values in state.values():
            if {k: v.shape for k, v in values.items()} != {k: p.shape for k, p in self.live.items()}:
                differing = sorted(set(values) ^ set(self.live)) or [
                    k for k, p in self.live.items() if values[k].shape != p.shape
                ]
                raise BadInput(
                    f"the adapters of this state are not those of this policy: {differing[0]} differs; use the same "
                    "pipeline and the same rank and targets"
                )
        for key, p in self.live.items():
            sharding.local_part(p).copy_(sharding.take_part(state[LIVE][key], p))
        self.drop_copies(set(state))
        for name, values in state.items():
            if name != LIVE:
                self.copies[name] = {key: sharding.take_part(values[key], p).clone() for key, p in self.live.items()}
        sharding.reshard_modules(self.denoisers.values())


def _tensor_bytes(p: Tensor) -> bytes:
    return p.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def lora_factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    """A [rank,in,...], B [out,rank,...] and alpha / rank of a LoRA layer."""
    (name,) = layer.lora_A
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]


def _check_copy_name(name: str) -> str:
    if name == LIVE:
        raise ValueError(f"{LIVE!r} is what the live values are called; give the copy another name")
    return name
