"""One contestant's samples in memory: the driver's own loop without a run folder, and what it returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import pipelines
from pipelines.variants import pipeline_label
from workbench.core.io import media as media_files
from workbench.core.paths import write_atomic
from workbench.core.types import BadInput, Event, Media
from workbench.engine.run import metered_events
from workbench.report import notebook_view
from workbench.runs import prompts, store
from workbench.runs.budget import Cost, Meter
from workbench.runs.controls import CountedReward, apply_control
from workbench.runs.plan import Plan
from workbench.runs.progress import score_samples
from workbench.runs.resolve import resolve_dependencies


@dataclass(frozen=True)
class AlignedSample:
    """One finished sample. A notebook shows it with its scores."""

    media: Media  # one row
    prompt: str
    seed: int  # of its first noise
    scores: Mapping[str, float]

    def __repr__(self) -> str:
        return f"<{self.media.modality} of {self.prompt!r:.60}: {format_scores(self.scores)}>"

    def _repr_html_(self) -> str:
        return notebook_view.media_html(self.media, [self.prompt], [self.scores])


@dataclass(frozen=True)
class Alignment:
    """What a method made of some prompts: N samples, quantised as a file would hold them, and scored as they are.

    Printed, it is one line; in a notebook, pictures, clips or sounds with their scores. It has a length and rows;
    nothing is on disk until `save`.
    """

    method: str
    pipeline: str
    media: Media  # N rows on the CPU: image [N,3,H,W], video [N,T,3,H,W] in [0,1]; audio [N,C,L] in [-1,1]
    scores: Mapping[str, Tensor]  # reward -> float32 [N], higher is better; what was optimised and what only watched
    latents: Tensor | None  # [N,*latent], noises that make these media; None where no noise alone makes them
    prompts: tuple[str, ...]  # N
    seeds: tuple[int, ...]  # N, of the first noise of each
    cost: Cost  # of all N: denoiser rows, samples judged for the method, seconds, peak memory in MB
    optimised: tuple[str, ...] = ()  # the rewards that the method was paid by; the others were held out

    def __len__(self) -> int:
        return len(self.media)

    def __getitem__(self, n: int) -> AlignedSample:
        if not -len(self) <= n < len(self):
            raise IndexError(n)
        n %= len(self)
        scores = {name: float(values[n]) for name, values in self.scores.items()}
        return AlignedSample(self.media[n], self.prompts[n], self.seeds[n], scores)

    def __iter__(self) -> Iterator[AlignedSample]:
        return (self[n] for n in range(len(self)))

    def __repr__(self) -> str:
        means = {name: float(values.nanmean()) for name, values in self.scores.items()}
        count = f"{len(self)} {self.media.modality}{'s' if len(self) > 1 and self.media.modality == 'image' else ''}"
        return (
            f"<{self.method} on {self.pipeline}: {count}, {format_scores(means)}; "
            f"{self.cost.nfe:,} denoiser calls, {self.cost.seconds:.1f} s>"
        )

    def _repr_html_(self) -> str:
        return notebook_view.media_html(self.media, self.prompts, [sample.scores for sample in self], repr(self))

    def _repr_png_(self) -> bytes:
        return notebook_view.contact_sheet(self.media, self.prompts, [sample.scores for sample in self])

    def table(self) -> list[dict[str, Any]]:
        """A dict a sample, for pandas: prompt, seed and every score."""
        return [{"prompt": s.prompt, "seed": s.seed, **s.scores} for s in self]

    def save(self, folder: str | Path) -> Path:
        """Write one file a sample, with its prompt, seed and scores inside (PNG, animated PNG or WAV), `samples.json`,
        and `latents.safetensors` where there are any; returns the folder. Raises BadInput for a folder that has a
        `samples.json`."""
        folder = Path(folder)
        if (folder / "samples.json").exists():
            raise BadInput(f"{folder}: has samples already, and nothing is written over; name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.table()
        for n, (sample, row) in enumerate(zip(self, rows, strict=True)):
            meta = {"prompt": sample.prompt, "seed": sample.seed, "contestant": self.method, "pipeline": self.pipeline}
            path = media_files.write_media(
                sample.media, folder / f"{n:04d}", meta=meta | {"scores": json_scores(sample.scores)}
            )
            row["file"] = path.name
        if self.latents is not None:
            write_atomic(folder / "latents.safetensors", safetensors.torch.save({"noise": self.latents.contiguous()}))
        record = {
            "method": self.method,
            "pipeline": self.pipeline,
            "optimised": list(self.optimised),
            "cost": vars(self.cost),
        }
        write_atomic(folder / "samples.json", store.dump_json(record | {"samples": [json_scores(row) for row in rows]}))
        return folder


def format_scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def json_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without what JSON can't keep: a score that is not a number."""
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}


def align_in_memory(
    plan: Plan,
    name: str,
    load: Callable[..., pipelines.Policy],
    on_event: Callable[[int, Event], None] = lambda number, event: None,
    stop: threading.Event | None = None,
) -> Alignment:
    """The samples of contestant `name` of a plan, made batch by batch as in a run, judged, and kept in memory.

    `on_event(batch, event)` is told of every step. What the method raises goes through.
    """
    config = plan.config
    policy = load(plan.pipelines[name], device=config.device, dtype=config.dtype, attention=config.attention)
    policy.stop = stop
    optimised = CountedReward(apply_control(plan.reward, config, [row[1] for row in plan.rows]))
    method, meter = resolve_dependencies(plan.methods[name]), Meter(policy, optimised)
    finals, scores, cost = [], [], Cost()
    for number, (_, batch) in enumerate(prompts.iterate_batches(plan.rows, config.batch)):
        meter.cost = Cost()
        for event in metered_events(method, policy, optimised, batch, meter, plan.budget, stop):
            on_event(number, event)
            if event.final:
                samples = media_files.quantise_media(event.media.detach())
                scores.append(
                    {n: v.detach().float().cpu() for n, v in score_samples(plan, samples, event.prompts).items()}
                )
                finals.append(replace(event, media=replace(samples, data=samples.data.cpu())))
        cost += meter.cost
    return Alignment(
        method=name,
        pipeline=pipeline_label(config.pipeline),
        media=Media.cat([event.media for event in finals]),
        scores={n: torch.cat([part[n] for part in scores]) for n in scores[0]},
        latents=join_latents([event.latents for event in finals]),
        prompts=tuple(row[1] for row in plan.rows),
        seeds=tuple(row[3] for row in plan.rows),
        cost=cost,
        optimised=tuple(plan.reward.rewards) if "reward" in method.needs else (),
    )


def join_latents(parts: Sequence[Tensor | None]) -> Tensor | None:
    """[N,*latent] on the CPU; None where a batch has none."""
    return None if any(part is None for part in parts) else torch.cat([part.detach().cpu() for part in parts])
