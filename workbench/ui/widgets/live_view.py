"""A comparison while it works: its contestants, their newest samples and how far they are, as values and as HTML."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

from PIL import Image

from workbench.core.inputs import prompt_inputs, read_input
from workbench.core.io import media
from workbench.core.types import Media
from workbench.report import audio_view, formatting
from workbench.report.sample_inputs import input_title
from workbench.ui.live_comparison import ContestantProgress, LiveComparison, format_duration
from workbench.ui.widgets import curves
from workbench.ui.widgets.html import data_uri, template_environment

SIDE = 256  # pixels of a preview
TINY = 128  # a picture of fewer is shown as squares
STATES = {"waiting": "waits", "not begun": "not begun"}
_macros = template_environment().get_template("live.html").module


def png_bytes(picture: Media, side: int = SIDE) -> bytes:
    """A picture [1,3,H,W] as PNG bytes, no larger than `side`; a smaller one keeps its pixels."""
    pixels = (media.quantise_media(picture).data[0].cpu() * 255).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _middle_frame(clip: Media) -> bytes:
    return png_bytes(Media(clip.data[:, clip.data.shape[1] // 2], "image"))


PREVIEW: dict[str, Callable[[Media], bytes]] = {
    "image": png_bytes,
    "video": _middle_frame,
    "audio": audio_view.sound_picture,
}


class Previews:
    """The previews of a comparison, each drawn once however many look on."""

    def __init__(self, live: LiveComparison):
        self.live, self.cache = live, {}
        self.inputs = _draw_inputs(live.plan.rows[0][1])

    def draw_previews(self, part: ContestantProgress) -> list[dict]:
        turn, frames = part.preview_updates, dict(part.frames)
        if self.cache.get(part.name, (None,))[0] != turn:
            previews = []
            for row, sample in sorted(frames.items()):
                tiny = sample.modality != "audio" and max(sample.data.shape[-2:]) <= TINY
                previews.append(
                    {
                        "uri": data_uri(PREVIEW[sample.modality](sample)),
                        "tiny": tiny,
                        "prompt": str(self.live.plan.rows[row][1]),
                    }
                )
            self.cache[part.name] = (turn, previews)
        return self.cache[part.name][1]


def _draw_inputs(prompt: str) -> list[dict]:
    """What a prompt's samples are made from. From a page, that of one is that of all."""
    inputs = []
    for name in prompt_inputs(prompt):
        content = read_input(prompt, name)
        uri = data_uri(PREVIEW[content.modality](content))
        tiny = content.modality != "audio" and max(content.data.shape[-2:]) <= TINY
        inputs.append({"title": input_title(name), "uri": uri, "tiny": tiny, "sound": content.modality == "audio"})
    return inputs


def live_view(live: LiveComparison, previews: Previews) -> dict:
    """What a comparison shows at this moment, as plain values: for the page and for programs."""
    rows, parts, seconds_left = len(live.plan.rows), [], 0.0
    for n, part in enumerate(live.contestants.values()):
        rows_done, of = live.count_rows(part)
        seconds, more = live.estimate_seconds(part)
        seconds_left += more or 0.0
        part_previews = previews.draw_previews(part)
        sentence = _progress_sentence(part, rows_done, of, seconds, more, rows, live.job.stop.is_set())
        parts.append(
            {
                "name": part.name,
                "tone": n % 8,
                "state": STATES.get(part.state, part.state),
                "told": sentence,
                "rows": rows_done,
            }
            | {"of": of, "seconds": round(seconds, 2), "left": more, "reward": part.reward, "previews": part_previews}
            | {
                "share": 1.0 if part.ended_at else min(1.0, rows_done / of) if of else 0.0,
                "more": max(0, rows - len(part_previews)),
            }
        )
    config, job = live.plan.config, live.job
    total = sum(p["of"] for p in parts)
    rows_spent = sum(p["rows"] for p in parts)
    prompts = len({row[1] for row in live.plan.rows})
    title = (
        f"{formatting.count_things(len(live.contestants), 'contestant')} on "
        f"{formatting.count_things(prompts, 'prompt')}"
    )
    title += f" × {formatting.count_things(config.samples_per_prompt, 'seed')}"
    state = "stopping" if job.stop.is_set() and not job.is_over else job.state
    clock_text = f"{state}: {rows_spent:,} of about {total:,} denoiser rows, {format_duration(job.seconds)}"
    if state == "working" and seconds_left:
        clock_text += f", this contestant about {format_duration(seconds_left)} more"
    return {
        "key": live.key,
        "run": live.folder.path.name if live.folder else "",
        "state": state,
        "kind": live.plan.modality,
        "title": title,
        "clock": clock_text,
        "share": rows_spent / total if total else 0.0,
        "contestants": parts,
        "inputs": previews.inputs,
    }


def _progress_sentence(
    part: ContestantProgress,
    rows_done: int,
    of: int,
    seconds: float,
    seconds_left: float | None,
    rows: int,
    stopping: bool,
) -> str:
    if part.state in STATES:
        return f"{STATES[part.state]}; about {of / max(1, rows):,.0f} denoiser rows a sample"
    if part.state == "failed":
        return f"failed: {part.note}"
    words = [
        f"{rows_done:,} of about {of:,} rows" if part.state == "working" else f"{rows_done:,} rows",
        format_duration(seconds),
    ]
    if part.state == "working" and not part.preview_updates and not rows_done:
        words = ["loading", format_duration(seconds)]
    elif part.state == "working":
        words += [f"about {format_duration(seconds_left)} left"] if seconds_left and not stopping else []
    else:
        words.append(part.state)
    return " · ".join(
        words + ([f"reward {formatting.format_number(part.reward, 3)}"] if part.reward is not None else [])
    )


def render_live(view: Mapping) -> str:
    return str(_macros.live(view))


def render_waiting(view: Mapping, ahead: int, first: str) -> str:
    """First `first`, then `ahead` - 1 others."""
    sentence = f"{formatting.count_things(ahead, 'job')} before this one; at work: {first}." if ahead else "Starting."
    return str(_macros.waiting({**view, "told": sentence, "clock": ""}))


def live_chart(running: LiveComparison) -> str:
    """The reward as it grows, of every contestant."""
    if running.folder is None:
        return ""
    return curves.draw_reward_curves(
        running.folder.path / "events.jsonl", {name: part.mean_reward for name, part in running.contestants.items()}
    )
