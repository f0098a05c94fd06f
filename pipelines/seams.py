"""The seam: a diffusers pipeline runs unchanged, with hooks at the four calls that all pipelines make.

`on_draw` is called when the pipeline draws noise, `on_encode` when it encodes prompts, `on_call` when a module runs
forward, `on_latents` when an autoencoder encodes a source, `on_add_noise` when a scheduler noises clean latents,
`on_step` when it takes a step. Guidance, packing, rescaling, sign and time conventions remain the pipeline's own code.
This is the only file that patches `__call__`, `forward`, `encode_prompt`, `vae.encode`, `run_safety_checker`,
`randn_tensor` and methods of schedulers, and it restores them. Not thread-safe: one seam is open at a time in a
process.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pipelines.guards import pass_pictures

TOKEN = "_workbench_seam"  # the attribute that marks a scheduler instance whose steps are hooked


class LeavePipeline(Exception):
    """Raised by a hook to leave the pipeline early; `run_pipeline` returns its value."""

    def __init__(self, value: Any = None):
        super().__init__("left the pipeline early")
        self.value = value


@dataclass
class ModuleCall:
    """A module of the pipeline is about to run forward."""

    module: str  # the component's name, e.g. "unet"
    step: int  # scheduler steps taken so far
    args: tuple
    kwargs: dict

    @property
    def rows(self) -> int:
        """How many samples go through: the length of the first batched input (Z-Image passes a list of samples)."""
        inputs = [*self.args, *self.kwargs.values()]
        return next(len(v) for v in inputs if (isinstance(v, Tensor) and v.dim() > 1) or isinstance(v, list))


@dataclass
class SchedulerStep:
    """A scheduler is about to take a step. `arguments` are bound by name: sample, model_output, timestep, ..."""

    index: int
    scheduler: Any
    arguments: dict[str, Any]
    accepts: frozenset[str]  # the parameters of its `step`
    _original: Callable[..., Any] = field(repr=False)

    @property
    def sample(self) -> Tensor:
        return self.arguments["sample"]

    @property
    def model_output(self) -> Tensor:
        return self.arguments["model_output"]

    def missing_generator(self, generators: list[torch.Generator]) -> dict[str, Any]:
        """{"generator": generators} for a scheduler that accepts them and was given none; else {}."""
        is_missing = "generator" in self.accepts and self.arguments.get("generator") is None
        return {"generator": generators} if is_missing else {}

    def advance(self, **changes: Any) -> Any:
        """The scheduler's own step, with some arguments replaced; returns its whole return value."""
        return self._original(**{**self.arguments, **changes})


Forward = Callable[..., Any]
OnDraw = Callable[[Tensor], Tensor]  # the noise that was drawn -> the noise that the pipeline gets
OnEncode = Callable[[Forward], Any]  # the pipeline's bound encode_prompt -> its return value
OnCall = Callable[[ModuleCall, Forward], Any]
OnLatents = Callable[[str, Callable[[], Any]], Any]  # (component, its encoding by modes) -> that encoding
OnAddNoise = Callable[[int, Tensor], Tensor]  # (steps taken so far, noised latents) -> those that the pipeline gets
OnStep = Callable[[SchedulerStep], Any]  # -> the WHOLE return value of scheduler.step


class KeepGraph(TorchFunctionMode):
    """Lets `.numpy()` accept a tensor with a graph, and keeps the `last` such tensor, for pipelines that only return
    arrays."""

    last: Tensor | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.numpy:
            self.last, args = args[0], (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))


class _Token:
    """The mark on a scheduler. It survives `copy.deepcopy`, which some pipelines apply to their scheduler in a call."""

    def __init__(self, hook: OnStep):
        self.hook, self.steps = hook, 0

    def __deepcopy__(self, memo: dict) -> _Token:
        return self


_open = False


def run_pipeline(
    pipe: Any,
    kwargs: Mapping[str, Any],
    *,
    on_draw: OnDraw | None = None,
    on_encode: OnEncode | None = None,
    on_call: OnCall | None = None,
    on_step: OnStep | None = None,
    on_latents: OnLatents | None = None,
    on_add_noise: OnAddNoise | None = None,
    grad: bool = False,
) -> Any:
    """Run the pipeline's own `__call__`, without its `no_grad`, with hooks.

    Returns what the pipeline returns, or the value of the LeavePipeline that a hook raised. `grad` is the gradient
    mode at the start; a hook may change it by torch.set_grad_enabled for the rest of the loop (truncated
    backpropagation). Raises RuntimeError where a seam is open already.
    """
    global _open
    if _open:
        raise RuntimeError("a seam is open already: one at a time in a process, and a hook can't open another")
    call = inspect.unwrap(type(pipe).__call__)
    token = _Token(on_step or (lambda step: step.advance()))
    _open = True
    try:
        with ExitStack() as stack, torch.set_grad_enabled(grad):
            for patch in _make_patches(pipe, token, on_draw, on_encode, on_call, on_latents, on_add_noise):
                stack.enter_context(patch)
            try:
                return call(pipe, **kwargs)
            except LeavePipeline as stop:
                pipe.maybe_free_model_hooks()  # as the pipeline does at its end
                return stop.value
    finally:
        _open = False


@contextmanager
def encode_sources_by_mode(pipe: Any) -> Iterator[None]:
    """Inside the block `pipe(...)` encodes a source by the mode of its posterior, as behind the seam.

    Many classes sample that posterior, and from the generator of the noise, before the noise. A policy's noise is by
    contract the FIRST draw of a seed, as methods replace it and optimise it; with the mode nothing is drawn before it,
    so that the call of the class and the policy start from the same noise.
    """
    with ExitStack() as stack:
        for name, autoencoder in named_autoencoders(pipe).items():
            encode = _watch_autoencoder(name, autoencoder.encode, lambda _, compute: compute())
            stack.enter_context(_patch_attribute(autoencoder, "encode", encode))
        yield


def named_networks(pipe: Any) -> dict[str, nn.Module]:
    """Name -> network of the pipeline, with the optional ones that `pipe.components` leaves out."""
    return {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}


def any_requires_grad(pipe: Any, names: Collection[str] | None = None, but: Collection[str] = ()) -> bool:
    """Whether a network in `names`, or any network not in `but`, has a parameter that requires grad."""
    networks = {name: network for name, network in named_networks(pipe).items() if name not in but}
    return any(p.requires_grad for name in (networks if names is None else names) for p in networks[name].parameters())


def find_schedulers(pipe: Any) -> list[Any]:
    """The pipeline's schedulers."""
    return [part for part in vars(pipe).values() if callable(getattr(part, "step", None)) and hasattr(part, "config")]


def named_autoencoders(pipe: Any) -> dict[str, Any]:
    """Name -> network that encodes media to latents and decodes them."""
    networks: dict[str, Any] = named_networks(pipe)
    return {n: part for n, part in networks.items() if all(hasattr(part, verb) for verb in ("encode", "decode"))}


def prev_sample(ret: Any) -> Tensor:
    """The next state in a return value of `scheduler.step`."""
    return ret[0] if isinstance(ret, tuple) else ret.prev_sample


def with_sample(ret: Any, x: Tensor, everywhere: bool = False) -> Any:
    """A copy of a return value of `scheduler.step` with the next state replaced by x, in its dtype and shape.
    everywhere: replace all tensors of that shape (LCM and SanaSprint take their picture from the second value)."""
    old = prev_sample(ret)
    x = like_layout(x.to(old).reshape(old.shape), old)

    def swap(value: Any) -> Any:
        hit = value is old or (everywhere and isinstance(value, Tensor) and value.shape == old.shape)
        return x if hit else value

    if isinstance(ret, tuple):
        return tuple(swap(value) for value in ret)
    return type(ret)(**{name: swap(value) for name, value in ret.items()})


def like_layout(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory layout of `like`, on which the last digits of a convolution may depend."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def clone_tensors(tree: Any) -> Any:
    """The nested structure with detached copies of its tensors, as a pipeline may write into its inputs."""
    return tree_map_only(Tensor, lambda t: t.detach().clone(), tree)


def list_tensors(tree: Any) -> list[Tensor]:
    """All tensors in a nested structure."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _patch_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the context an attribute is replaced; afterwards it is exactly as before, on the instance or its class."""
    absent = object()
    old = vars(owner).get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if old is absent else setattr(owner, name, old)


def _make_patches(pipe: Any, token: _Token, on_draw, on_encode, on_call, on_latents, on_add_noise) -> Iterator[Any]:
    for scheduler in find_schedulers(pipe):
        yield _patch_attribute(scheduler, TOKEN, token)
    for cls in {type(scheduler) for scheduler in find_schedulers(pipe)}:
        yield _patch_attribute(cls, "step", _watch_step(cls.step, token))
        for name in ("add_noise", "scale_noise") if on_add_noise else ():
            if hasattr(cls, name):
                yield _patch_attribute(cls, name, _watch_add_noise(getattr(cls, name), token, on_add_noise))
    encoding: list[bool] = []  # not empty inside encode_prompt, where module calls are not hooked
    if on_encode and hasattr(pipe, "encode_prompt"):
        yield _patch_attribute(pipe, "encode_prompt", _watch_encode_prompt(pipe.encode_prompt, on_encode, encoding))
    if getattr(pipe, "safety_checker", None) is not None and hasattr(pipe, "run_safety_checker"):
        yield _patch_attribute(pipe, "run_safety_checker", pass_pictures(pipe.run_safety_checker))
    if on_call:
        for name, module in named_networks(pipe).items():
            compiled = getattr(module, "_compiled_call_impl", None)  # set by module.compile(): it bypasses `forward`
            attribute, original = ("_compiled_call_impl", compiled) if compiled else ("forward", module.forward)
            yield _patch_attribute(module, attribute, _watch_forward(name, original, token, on_call, encoding))
    for name, autoencoder in named_autoencoders(pipe).items() if on_latents else ():
        yield _patch_attribute(autoencoder, "encode", _watch_autoencoder(name, autoencoder.encode, on_latents))
    if on_draw:
        files = {sys.modules[cls.__module__] for cls in type(pipe).__mro__}
        for file in (f for f in files if hasattr(f, "randn_tensor")):
            yield _patch_attribute(file, "randn_tensor", _watch_randn(file.randn_tensor, on_draw))


def _watch_step(original: Callable, token: _Token) -> Callable:
    """A replacement for `step` on the scheduler's class, as pipelines inspect type(scheduler) and the signature of
    `step`. It only acts on instances with our token."""
    signature = inspect.signature(original)
    accepts = frozenset(signature.parameters)

    @functools.wraps(original)
    def step(self, *args, **kwargs):
        if vars(self).get(TOKEN) is not token:
            return original(self, *args, **kwargs)
        arguments = dict(signature.bind(self, *args, **kwargs).arguments)
        scheduler = arguments.pop("self")
        ret = token.hook(
            SchedulerStep(token.steps, scheduler, arguments, accepts, functools.partial(original, scheduler))
        )
        token.steps += 1
        return ret

    return step


def _watch_add_noise(original: Callable, token: _Token, on_add_noise: OnAddNoise) -> Callable:
    @functools.wraps(original)
    def add_noise(self, *args, **kwargs):
        noised = original(self, *args, **kwargs)
        return on_add_noise(token.steps, noised) if vars(self).get(TOKEN) is token else noised

    return add_noise


class PointPosterior:
    """A posterior that is its mode: nothing is drawn from it, so that generators advance as without a source."""

    def __init__(self, mode: Tensor):
        self.mean = mode

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Any = None) -> Tensor:
        return self.mean


@dataclass(frozen=True)
class EncodedSource:
    """What an autoencoder's `encode` returns, as diffusers' AutoencoderKLOutput, by attribute or place."""

    latent_dist: PointPosterior

    def __getitem__(self, place: int) -> PointPosterior:
        return (self.latent_dist,)[place]


def _watch_autoencoder(name: str, original: Callable, on_latents: OnLatents) -> Callable:
    """`encode` of an autoencoder, with the mode of its posterior in place of a sample: a source's latent would
    otherwise be another one whenever it is asked for."""

    @functools.wraps(original)
    def encode(*args, **kwargs):
        def compute_modes() -> tuple[str, Any]:
            out = original(*args, **kwargs)
            if hasattr(out, "latent_dist"):
                return "output", out.latent_dist.mode()
            if isinstance(out, tuple) and hasattr(out[0], "mode"):
                return "tuple", out[0].mode()
            return "plain", out

        kind, value = on_latents(name, compute_modes)
        if kind == "output":
            return EncodedSource(PointPosterior(value))
        return (PointPosterior(value),) if kind == "tuple" else value

    return encode


def _watch_encode_prompt(original: Callable, on_encode: OnEncode, encoding: list) -> Callable:
    @functools.wraps(original)
    def encode_prompt(*args, **kwargs):
        if encoding:  # an encode_prompt that calls itself
            return original(*args, **kwargs)
        encoding.append(True)
        try:
            return on_encode(functools.partial(original, *args, **kwargs))
        finally:
            encoding.clear()

    return encode_prompt


def _watch_forward(name: str, original: Callable, token: _Token, on_call: OnCall, encoding: list) -> Callable:
    @functools.wraps(original)
    def forward(*args, **kwargs):
        if encoding:
            return original(*args, **kwargs)
        return on_call(ModuleCall(name, token.steps, args, kwargs), original)

    return forward


def _watch_randn(original: Callable, on_draw: OnDraw) -> Callable:
    @functools.wraps(original)
    def randn_tensor(*args, **kwargs):
        return on_draw(original(*args, **kwargs))  # the generators advance as without the hook

    return randn_tensor
