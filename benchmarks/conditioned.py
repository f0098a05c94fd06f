"""Does each class that takes an input beside its prompt keep what a policy promises? In figures, seen from outside.

    .venv/bin/python benchmarks/conditioned.py [CLASS...]

Tiny pipelines of the true classes with random weights (tests/tiny_conditioned.py, tests/tiny_conditioned_timed.py), in
float32 (gradients: float64); two rows of one text, each with its own inputs. `workbench list --check NAME` tries a
loaded pipeline through the seam; here the plain call is watched without it: noise comes from a stand-in for diffusers'
own `randn_tensor`, sources are encoded by their mode, the scheduler's `step` is recorded and what enters the denoisers
is counted.

    moves         how far the media move with other inputs: without this, the other figures say nothing
    plain call    states and media of `sample` less those of the plain call with the same noise, row by row
    replay        the model output at a recorded state less the one that was recorded, at every step
    log-prob      of a sampled step, less the one that was recorded while sampling; or why there is none
    gradient      from the media to the noise, relative error against differences
    rows          a row in the batch less the row alone
    other input   what a policy makes that has encoded other inputs of that text, less what a fresh one makes
    calls         rows that a policy counts / rows that entered its denoisers
"""

from __future__ import annotations

import copy
import functools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SEEDS = (11, 12)
ADAPTER = "StableDiffusionPipeline, IP-Adapter"
COLUMNS = ("moves", "plain call", "replay", "log-prob", "gradient", "rows", "other input", "calls")


@dataclass
class PlainCall:
    """What is seen of a class's own call."""

    states: list[Tensor] = field(default_factory=list)  # that its scheduler gets
    outputs: list[Tensor] = field(default_factory=list)  # of its denoiser, with guidance, that its scheduler gets
    media: Tensor | None = None


def difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


@torch.no_grad()
def call_plainly(policy: Any, prompt: str, seed: int, noise: Tensor) -> PlainCall:
    """The class's own call for one prompt, with noise [1,*draw] as the first draw of its shape."""
    from pipelines import seams

    pipe, call, unused = policy.pipe, PlainCall(), [noise]
    scheduler = type(pipe.scheduler)
    step = scheduler.step

    def draw(shape: Sequence[int], *args: Any, original: Any, **kwargs: Any) -> Tensor:
        drawn = original(shape, *args, **kwargs)
        return unused.pop().to(drawn) if unused and tuple(shape) == tuple(noise.shape) else drawn

    @functools.wraps(step)  # some pipelines look at its parameters
    def record(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        call.states.append(sample.clone())
        call.outputs.append(model_output.clone())
        return step(self, model_output, timestep, sample, *args, **kwargs)

    with ExitStack() as stack:
        for kind in type(pipe).__mro__:
            if hasattr(file := sys.modules[kind.__module__], "randn_tensor"):
                stand_in = functools.partial(draw, original=file.randn_tensor)
                stack.enter_context(mock.patch.object(file, "randn_tensor", stand_in))
        stack.enter_context(mock.patch.object(scheduler, "step", record))
        stack.enter_context(seams.encode_sources_by_mode(pipe))
        call.media = policy.to_media(pipe(**policy.call_arguments((prompt,), (seed,)))).data
    return call


@contextmanager
def count_rows(policy: Any) -> Iterator[list[int]]:
    """Rows that enter the policy's denoisers, a number for each of their calls."""
    counts: list[int] = []

    def count(_: Any, args: tuple, kwargs: dict) -> None:
        first = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        counts.append(len(first))

    networks = [getattr(policy.pipe, name) for name in policy.structure.denoisers]
    handles = [network.register_forward_pre_hook(count, with_kwargs=True) for network in networks]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def compare_with_plain_call(policy: Any, prompts: tuple[str, ...], noise: Tensor) -> tuple[float, float]:
    """The figures of `plain call` and `replay`."""
    sampled, replayed = 0.0, 0.0
    for row, prompt in enumerate(prompts):
        rows = slice(row, row + 1)
        plain = call_plainly(policy, prompt, SEEDS[row], noise[rows])
        sample = policy.sample((prompt,), seeds=SEEDS[rows], noise=noise[rows])
        states = [policy.structure.group_rows(x) for x in plain.states]
        sampled = max(sampled, difference(sample.media.data, plain.media), len(states) != policy.steps)
        for i, (x, output) in enumerate(zip(states, plain.outputs, strict=True)):
            sampled = max(sampled, difference(sample.x[:, i], x))
            ours = policy._model_output(x, i, (prompt,))
            replayed = max(replayed, difference(ours, policy.structure.group_rows(output)))
    return sampled, replayed


def compare_log_prob(policy: Any, prompts: tuple[str, ...]) -> float | str:
    from pipelines import Ancestral

    scored = copy.copy(policy)
    scored.kernel = Ancestral()
    try:
        path = scored.sample(prompts, seeds=SEEDS)
    except TypeError as error:
        return f"refused: {str(error).partition(',')[0]}"
    if not path.stochastic:
        return "no step is random"
    return max(
        difference(scored.transition(path.x[:, i], i, prompts).log_prob(path.x[:, i + 1]), path.log_prob[:, i])
        for i in path.stochastic
    )


def compare_gradient(policy: Any, prompts: tuple[str, ...], noise: Tensor) -> float:
    """Along the gradient itself, in float64, in which the pipeline then stays; at the best of three step sizes, for
    some pipelines round to float32 within."""
    policy.pipe.to(torch.float64)
    policy.forget_prompts()
    noise = noise.double()
    shape = policy.sample(prompts, seeds=SEEDS, noise=noise).media.data.shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def value(z: Tensor, grad: int = 0) -> Tensor:
        return (weights.double() * policy.sample(prompts, seeds=SEEDS, noise=z, grad=grad).media.data.double()).sum()

    with torch.enable_grad():
        leaf = noise.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf, policy.steps), leaf)
    errors = []
    for size in (1e-3, 1e-4, 1e-5):
        step = size * noise.norm() * gradient / gradient.norm()
        slope = (value(noise + step) - value(noise - step)) / (2 * step.norm())
        errors.append(abs(slope / gradient.norm() - 1).item())
    return min(errors)


@torch.no_grad()
def measure(policy: Any) -> dict[str, float | str]:
    """The figures of one pipeline."""
    from tiny_conditioned import make_prompts

    from pipelines.prompt_cache import PromptCaches

    prompts, others = make_prompts(policy, 1, 2), make_prompts(policy, 3, 4)
    noise = policy.noise(SEEDS)
    sample = policy.sample(prompts, seeds=SEEDS, noise=noise)
    changed = policy.sample(others, seeds=SEEDS, noise=noise).media.data
    fresh = copy.copy(policy)
    fresh.prompt_caches = PromptCaches(0, 0)
    alone = [policy.sample((p,), seeds=(s,), noise=z[None]) for p, s, z in zip(prompts, SEEDS, noise, strict=True)]
    before = policy.nfe
    with count_rows(policy) as entered:
        policy.sample(prompts, seeds=SEEDS, noise=noise)
    calls = f"{policy.nfe - before}/{sum(entered)}"
    remembered = difference(changed, fresh.sample(others, seeds=SEEDS, noise=noise).media.data)
    plain, replay = compare_with_plain_call(policy, prompts, noise)
    return {
        "moves": difference(changed, sample.media.data),
        "plain call": plain,
        "replay": replay,
        "log-prob": compare_log_prob(policy, prompts),
        "rows": max(difference(alone[row].x[0], sample.x[row]) for row in range(len(SEEDS))),
        "other input": remembered,
        "calls": calls,
        "gradient": compare_gradient(policy, prompts, noise),  # last: it leaves the pipeline in float64
    }


def build_policy(name: str, folder: Path) -> Any:
    """A tiny policy of that name; that with an IP-Adapter is loaded from files in the folder."""
    import tiny
    from tiny_conditioned import save_ip_adapter

    import pipelines

    if name != ADAPTER:
        return tiny.policy(name)
    name = name.partition(",")[0]
    adapter = {"ip_adapter": save_ip_adapter(folder), "inputs": {"reference": "ip_adapter_image"}}
    return pipelines.load(replace(tiny.config(name, tiny.save(name, folder)), steps=2, **adapter), device="cpu")


def main() -> None:
    from tiny_conditioned import CONDITIONED
    from tiny_conditioned_timed import CONDITIONED_TIMED

    torch.set_num_threads(1)
    names = [*CONDITIONED, ADAPTER, *CONDITIONED_TIMED]
    chosen = [name for name in names if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    print(f"| class | takes | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            policy = build_policy(name, Path(folder))
            figures = measure(policy)
        cells = [f"{v:.0e}" if isinstance(v, float) else v for v in map(figures.__getitem__, COLUMNS)]
        inputs = ", ".join(policy.conditions.inputs)
        print(f"| {name} | {inputs} ({policy.grouping}) | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
