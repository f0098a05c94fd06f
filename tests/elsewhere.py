"""A device that is not there, for tests without a GPU: tensors that say they are on it, are computed on the CPU, and
refuse what a GPU refuses.

Inside `elsewhere()`, whatever is moved to or made on GPU is a `There`: its values lie on the CPU beside it, and every
operation, those of the backward pass too, is looked at first. One that takes tensors of both devices raises, as CUDA
would; a number (a tensor without dimensions) may come along, and indices may. What this can't show: memory, speed,
kernels' own limits, and libraries that ask for CUDA by name.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

# a type that torch knows, without kernels of its own, which autograd needs no threads for
GPU = torch.device("lazy", 0)
COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
INDEXING = {getattr(torch.ops.aten, name).default for name in ("index_put", "index_put_", "_index_put_impl_")} | {
    torch.ops.aten.index.Tensor
}


class There(Tensor):
    @staticmethod
    def __new__(cls, here: Tensor):
        told = dict(strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=GPU)
        there = Tensor._make_wrapper_subclass(cls, here.shape, requires_grad=here.requires_grad, **told)
        there.here = here.detach()
        return there

    @property
    def data(self):
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value):
        Tensor.data.__set__(self, value)
        self.here = value.here

    def __reduce_ex__(self, protocol):  # what is saved is read back on the CPU, as checkpoints are
        return self.here.__reduce_ex__(protocol)

    def __repr__(self):
        return f"There({self.here})"

    def tolist(self):
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _each(work, value):
    """`work` on every tensor of an operation's arguments or results, which are nested in lists and tuples alone."""
    if isinstance(value, Tensor):
        return work(value)
    return type(value)(_each(work, v) for v in value) if type(value) in (list, tuple) else value


def _here(t: Tensor) -> Tensor:
    return t.here if isinstance(t, There) else t


def _run(func, args, kwargs):
    tensors = []
    for value in (*args, *kwargs.values()):
        _each(tensors.append, value)
    there = any(isinstance(t, There) for t in tensors)
    strangers = [t for t in tensors if not isinstance(t, There) and t.dim()]
    if there and strangers and func not in COPIES and not (func in INDEXING and isinstance(args[0], There)):
        shapes = ", ".join(f"{'there' if isinstance(t, There) else 'here'} {tuple(t.shape)}" for t in tensors)
        raise RuntimeError(f"expected all tensors to be on the same device: {func} of {shapes}")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == GPU.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], There)
    plain = {key: _each(_here, value) for key, value in kwargs.items()}
    out = func(*(_each(_here, value) for value in args), **plain)
    if not there:
        return out
    out = _each(lambda t: t if isinstance(t, There) else There(t), out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class _Dispatched(TorchDispatchMode):
    """Also what has no tensor among its arguments: torch.zeros(..., device=GPU)."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Called(TorchFunctionMode):
    """What is built before anything is dispatched: tensors of numbers, and indices from lists."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == GPU.type:
            return func(*args, **{**kwargs, "device": "cpu"}).to(GPU)
        if func is Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(GPU)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], There):
            keys = args[1] if isinstance(args[1], tuple) else (args[1],)
            keys = tuple(torch.tensor(k) if isinstance(k, (list, range)) else k for k in keys)
            values = [v if isinstance(v, Tensor) else torch.tensor(v, dtype=args[0].dtype).to(GPU) for v in args[2:]]
            args = (args[0], keys, *values)
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    def __init__(self, device_type, **settings):
        super().__init__("cpu" if device_type == GPU.type else device_type, **settings)


@contextmanager
def elsewhere() -> Iterator[None]:
    module = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False)  # torch.cuda's place
    with (
        mock.patch.object(torch, GPU.type, module, create=True),
        mock.patch.object(torch, "autocast", _Autocast),
        _Dispatched(),
        _Called(),
    ):
        yield
