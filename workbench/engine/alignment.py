"""Alignment in memory: the driver's loop for one contestant without a run folder, and its result."""

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
from workbench.core.errors import BadInput
from workbench.core.finite import find_finite_rows
from workbench.core.io import media as media_files
from workbench.core.io import video as video_files
from workbench.core.paths import write_atomic
from workbench.core.types import Event, Media
from workbench.engine.run import metered_events
from workbench.report import notebook_view
from workbench.runs import prompts, store
from workbench.runs.budget import Cost, Meter
from workbench.runs.controls import CountedReward, apply_control, exchange_inputs
from workbench.runs.plan import Plan
from workbench.runs.progress import score_samples
from workbench.runs.resolve import resolve_dependencies
from workbench.runs.run_inputs import record_inputs, store_inputs

COMPRESSED_WRITERS: dict[str, tuple[str, Callable[..., Path]]] = {  # modality -> suffix, what writes it
    "video": (".mp4", video_files.write_mp4),
    "audio": (".flac", video_files.write_flac),
}


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
    """The result of a method on some prompts: N samples, quantised as in a file, and the scores of these.

    It prints as one line; a notebook shows pictures, clips or sounds with their scores. `len`, indexing and iteration
    go over the samples. Nothing is on disk until `save`.
    """

    method: str
    pipeline: str
    media: Media  # N rows on the CPU: image [N,3,H,W], video [N,T,3,H,W] in [0,1]; audio [N,C,L] in [-1,1]
    scores: Mapping[str, Tensor]  # reward, optimised or held out -> float32 [N], higher is better
    latents: Tensor | None  # [N,*latent], noise from which the pipeline makes these media; None if there is none
    prompts: tuple[str, ...]  # N
    seeds: tuple[int, ...]  # N, of the first noise of each
    cost: Cost  # of all N: denoiser rows, samples scored for the method, seconds, peak memory in MB
    optimised: tuple[str, ...] = ()  # the rewards that the method optimised; the others were held out

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
        blanks = int((~find_finite_rows(self.media)).sum())
        count += f", {blanks} of them not finite" if blanks else ""
        return (
            f"<{self.method} on {self.pipeline}: {count}, {format_scores(means)}; "
            f"{self.cost.nfe:,} denoiser calls, {self.cost.seconds:.1f} s>"
        )

    def _repr_html_(self) -> str:
        return notebook_view.media_html(self.media, self.prompts, [sample.scores for sample in self], repr(self))

    def _repr_png_(self) -> bytes:
        return notebook_view.contact_sheet(self.media, self.prompts, [sample.scores for sample in self])

    def table(self) -> list[dict[str, Any]]:
        """One dict per sample, for pandas: prompt, seed and every score."""
        return [{"prompt": s.prompt, "seed": s.seed, **s.scores} for s in self]

    def save(self, folder: str | Path, *, compressed: bool = False) -> Path:
        """Write one file per sample (PNG, animated PNG or WAV, with prompt, seed and scores as metadata),
        `samples.json`, `inputs/` with what the prompts came with, by digest, and `latents.safetensors` where there are
        latents; returns the folder. A sample that is not finite has no file, and a `reason`. Raises BadInput for a
        folder that has a `samples.json`.

        compressed: also write each clip as MP4 and each sound as FLAC, for players that know neither animated PNG nor
        float32 WAV. For pictures there is no such copy: BadInput.
        """
        folder = Path(folder)
        if (folder / "samples.json").exists():
            raise BadInput(f"{folder}: has samples already, and nothing is written over; name another folder")
        if compressed and self.media.modality not in COMPRESSED_WRITERS:
            raise BadInput("compressed: pictures are PNG already; leave it out")
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row | record_inputs(row["prompt"]) for row in self.table()]
        store_inputs(folder, self.prompts)
        for n, (sample, row) in enumerate(zip(self, rows, strict=True)):
            meta = {"prompt": sample.prompt, **record_inputs(sample.prompt), "seed": sample.seed}
            meta |= {"contestant": self.method, "pipeline": self.pipeline}
            meta["scores"] = json_scores(sample.scores)
            if not find_finite_rows(sample.media).all():
                row |= {"file": None, "reason": "its values are not finite"}
                continue
            path = media_files.write_media(sample.media, folder / f"{n:04d}", meta=meta)
            row["file"] = path.name
            if compressed:
                suffix, write_compressed = COMPRESSED_WRITERS[self.media.modality]
                write_compressed(sample.media, path.with_suffix(suffix), meta=meta)
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
    """Scores as text: clip 0.312, oracle 1.000"""
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def json_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None in place of NaN, which JSON can't hold."""
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}


def align_in_memory(
    plan: Plan,
    name: str,
    load: Callable[..., pipelines.Policy],
    on_event: Callable[[int, Event], None] = lambda number, event: None,
    stop: threading.Event | None = None,
) -> Alignment:
    """The samples of contestant `name` of a plan, made batch by batch as in a run, scored, and kept in memory.

    `on_event(number of the batch, event)` is called for every event. Exceptions of the method are not caught.
    """
    config = plan.config
    policy = load(plan.pipelines[name], device=config.device, dtype=config.dtype, attention=config.attention)
    policy.stop = stop
    optimised = CountedReward(apply_control(plan.reward, config, [row[1] for row in plan.rows]))
    inputs = exchange_inputs(config, [row[1] for row in plan.rows])
    method, meter = resolve_dependencies(plan.methods[name]), Meter(policy, optimised)
    finals, scores, cost = [], [], Cost()
    for number, (_, batch) in enumerate(prompts.iterate_batches(plan.rows, config.batch)):
        meter.cost = Cost()
        events = metered_events(method, policy, optimised, inputs.exchange(batch), meter, plan.budget, stop)
        for event in map(inputs.restore, events):
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
    """The latents of all batches, [N,*latent] on the CPU; None where a batch has none."""
    return None if any(part is None for part in parts) else torch.cat([part.detach().cpu() for part in parts])
