"""Sharded weights: each process keeps a part of every parameter, gradient and optimiser state, and a block's weights
are gathered only while it computes. FSDP2 (torch.distributed.fsdp.fully_shard; Zhao et al., VLDB 2023,
arXiv:2304.11277; ZeRO-3, arXiv:1910.02054).

All processes must run a sharded module equally often and in the same order: each call gathers its weights from all of
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map, tree_map_only

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard_module(module: nn.Module, device: torch.device) -> None:
    """Shard a denoiser over all processes, in place. Shards and averaged gradients are float32; a denoiser that was
    loaded in bfloat16 still computes in bfloat16."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    kind = min((p.dtype for p in module.parameters()), key=lambda dtype: dtype.itemsize)  # some may be float32
    rule = MixedPrecisionPolicy()
    if kind != torch.float32:
        rule = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
        module.register_forward_pre_hook(lambda _, args, kwargs: _cast_inputs((args, kwargs), kind), with_kwargs=True)
    for part in (*find_blocks(module), module):
        for p in part.parameters():
            if not is_sharded(p):
                p.data = p.data.float()  # block by block, so that memory never holds the whole twice
        part.register_forward_hook(_own_storage)
        fully_shard(part, mesh=mesh, mp_policy=rule, reshard_after_forward=True)
        part.register_forward_hook(_release_weights)


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together, inner ones first: those of `_no_split_modules`, or else the
    children of the outermost ModuleLists."""
    class_names = set(getattr(module, "_no_split_modules", None) or ())
    parts = [part for part in module.modules() if type(part).__name__ in class_names] or list(_blocks_in_lists(module))
    return [part for part in reversed(parts) if any(True for _ in part.parameters())]


def _blocks_in_lists(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        if isinstance(part, nn.ModuleList):
            yield from (child for child in part if any(True for _ in child.children()))
        else:
            yield from _blocks_in_lists(part)


def _cast_inputs(inputs: Any, kind: torch.dtype) -> Any:
    """Cast states and sequences (tensors of 3 or more dimensions) to the dtype of the weights, but not times."""
    return tree_map_only(Tensor, lambda t: t.to(kind) if t.is_floating_point() and t.dim() > 2 else t, inputs)


def _own_storage(part: nn.Module, _: Any, out: Any) -> Any:
    """Clone views among a block's outputs: FSDP's hook that gathers the weights for the backward pass is on the output,
    and an in-place addition to a view would lose it."""
    return tree_map_only(Tensor, lambda t: t.clone() if t.requires_grad and t._is_view() else t, out)


def _release_weights(part: Any, *_: Any) -> None:
    """Free a block's gathered weights after a forward pass that is recomputed in a backward pass, where FSDP would keep
    them; not where the block's own backward pass has begun, which needs them at once."""
    group = part._get_fsdp_state()._fsdp_param_group
    if group is not None and group._training_state.name != "PRE_BACKWARD":
        part.reshard()


def reshard_modules(modules: Iterable[Any]) -> None:
    """Free all gathered weights, so that changes of the shards take effect."""
    for module in modules:
        for part in module.modules():
            if hasattr(part, "reshard"):
                part.reshard()


def is_sharded(value: Any) -> bool:
    """Whether it is a sharded tensor."""
    from torch.distributed.tensor import DTensor  # a second to import, unless a pipeline has been loaded

    return isinstance(value, DTensor)


@torch.no_grad()
def local_part(value: Any) -> Tensor:
    """This process's shard of a tensor, sharing its storage; the tensor itself if it is not sharded."""
    return value.to_local() if is_sharded(value) else value


def take_part(full: Tensor, like: Any) -> Tensor:
    """This process's shard of a whole tensor that all processes have, sharded as `like` and in its dtype and on its
    device; all of it if `like` is not sharded."""
    from torch.distributed.tensor import distribute_tensor

    full = full.detach().to(like.dtype)
    if not is_sharded(like):
        return full.to(like.device)
    return local_part(distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None))


def take_state_parts(values: Mapping[str, Any], like: DTensor) -> dict[str, Any]:
    """The optimiser state of a parameter, with tensors of the parameter's shape sharded as the parameter `like`."""
    return {
        key: join_parts(take_part(value, like), like)
        if isinstance(value, Tensor) and value.shape == like.shape
        else value
        for key, value in values.items()
    }


def join_parts(part: Tensor, like: Any) -> DTensor:
    """The sharded tensor of which `part` is this process's shard, sharded as `like`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def gather_full(tree: Any) -> Any:
    """The nested structure with sharded tensors put together, one at a time, on the CPU of the first process, and None
    in their place on others. All processes must call this."""
    first = distributed.is_initialized() and distributed.get_rank() == 0

    def put(leaf: Any) -> Any:
        if not is_sharded(leaf):
            return leaf
        full = leaf.detach().full_tensor()
        return full.cpu() if first else None

    return tree_map(put, tree)


def sum_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value summed over processes, which must all call this."""
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return sums.tolist()


@torch.no_grad()
def all_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether all values of the parameters, in all processes, are finite."""
    not_finite = sum(not bool(local_part(p).isfinite().all()) for p in parameters)
    shards = [p for p in parameters if is_sharded(p)]
    return not (sum_over_processes([not_finite], shards[0].device)[0] if shards else not_finite)


@torch.no_grad()
def clip_grad_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """nn.utils.clip_grad_norm_ for sharded gradients; returns the norm before clipping."""
    grads = [local_part(p.grad) for p in parameters if p.grad is not None]
    norm = sum_over_processes([float(nn.utils.get_total_norm(grads)) ** 2], grads[0].device)[0] ** 0.5
    for g in grads:
        g.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


@contextmanager
def swapped_values(
    live: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], modules: Sequence[nn.Module]
) -> Iterator[None]:
    """Inside the context the parameters have these values (shards of this process). Gathered weights are not kept
    between calls, so a graph made outside can be differentiated after the context."""
    previous = {key: local_part(p).clone() for key, p in live.items()}

    def put(new_values: Mapping[str, Tensor]) -> None:
        reshard_modules(modules)
        with torch.no_grad():
            for key, p in live.items():
                local_part(p).copy_(new_values[key])

    put(values)
    try:
        yield
    finally:
        put(previous)
