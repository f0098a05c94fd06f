"""What a pipeline's call takes besides texts: pictures, masks, clips and sounds, which come with the prompts.

diffusers' classes mean different things by a list of pictures: one for each prompt, several for all of them, or nothing
that is allowed. What a class means is found by watching it (`find_grouping`), so there is no list of classes here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines import replay
from workbench.core.errors import BadInput
from workbench.core.inputs import MediaInput, prompt_inputs, read_input
from workbench.core.types import Media, Modality, Prompt

# each: a call takes an input for each prompt; one: a call takes one input for all of its prompts; alone: one prompt
Grouping = Literal["each", "one", "alone"]
SECONDS = ("audio_end_in_s", "audio_duration", "duration")  # arguments that say how long a sound is
FREE_SIZE = ("reference",)  # inputs that classes bring to the size of an encoder of their own
UNBATCHED = ("reference_audio",)  # arguments that are one sound [C,L]
CLIPS = ("video",)  # arguments that are clips
RATES = {"initial_audio_waveforms": "initial_audio_sampling_rate"}  # arguments that say the rate of a sound
AREA = "max_area"  # an argument by which a class overrides the height and width of a call (Kontext)
SPECIMEN = 64  # pixels, where no size is known
ROUNDING = 1e-5  # of an output in float32 by which rows that are computed together and apart may differ


class Conditions:
    """The inputs of one pipeline: `arguments` adds them to a call, row by row, in the size in which the call makes its
    media, or in `size`, [H,W] of pictures or [T,H,W] of clips. Pictures are handed over as a user does, as PIL images;
    sounds as tensors."""

    def __init__(
        self,
        pipe: Any,
        inputs: Mapping[str, str],
        call: Mapping[str, Any],
        modality: Modality,
        rate: float,
        size: Sequence[int] = (),
    ):
        self.inputs, self.modality, self.rate, self.size = dict(inputs), modality, rate, tuple(size)
        self.shape: tuple[int, ...] | None = None  # (C,L) of sounds, (H,W) of pictures and clips
        if inputs and modality == "audio":
            self.channels = _count_channels(pipe)
            self.shape = _sound_shape(pipe, call, self.channels, rate)
        elif inputs:
            self.shape = self.size[-2:] or _picture_shape(pipe, call)
        self.frames = self.size[0] if len(self.size) == 3 else call.get("num_frames")  # of clips
        told = {argument: RATES[argument] for argument in self.inputs.values() if argument in RATES}
        self.implied: dict[str, Any] = {name: round(rate) for name in told.values() if name not in call}
        has_area = AREA not in call and AREA in inspect.signature(type(pipe).__call__).parameters
        if has_area and (shape := self.shape or _picture_shape(pipe, call)):  # also where nothing comes with prompts
            self.implied[AREA] = shape[0] * shape[1]

    def __bool__(self) -> bool:
        return bool(self.inputs)

    def check(self, prompts: Sequence[str]) -> None:
        """Raises BadInput for a prompt without one of the inputs."""
        for prompt in prompts:
            for name in self.inputs:
                if name not in prompt_inputs(prompt):
                    raise BadInput(
                        f"{str(prompt)[:60]!r}: this pipeline makes its samples from a {name}, and the prompt comes "
                        f"without one; give each prompt its {name}, by a column of that name in the prompt file"
                    )

    def arguments(self, prompts: Sequence[str], grouping: Grouping) -> dict[str, Any]:
        """The arguments of the call for these rows. Raises BadInput for a prompt without one of the inputs, and for
        one of another kind."""
        self.check(prompts)
        values = dict(self.implied)
        for name, argument in self.inputs.items():
            chosen = prompts if grouping == "each" else prompts[:1]
            rows = [self._read(p, name, argument) for p in chosen]
            values[argument] = _as_sounds(rows, name, argument) if self.modality == "audio" else _as_list(rows, name)
        return values

    def _read(self, prompt: str, name: str, argument: str) -> Media:
        """One row of an input as the argument takes it."""
        kind = self._kind(argument)
        size = None if name in FREE_SIZE or kind == "audio" else self.shape  # a large picture isn't kept as it is
        row = read_input(prompt, name, size, self.rate if kind == "audio" else 0.0)
        if row.modality != kind:
            is_called = {"image": "a picture", "video": "a clip", "audio": "a sound"}
            raise BadInput(
                f"{str(prompt)[:60]!r}: {name}: {is_called[row.modality]} was given where this pipeline takes "
                f"{is_called[kind]}"
            )
        if kind == "audio":
            length = row.data.shape[-1] if name in FREE_SIZE or self.shape is None else self.shape[-1]
            return read_input(prompt, name, (self.channels, length), self.rate)
        if kind == "video" and self.frames:
            if row.data.shape[1] < self.frames:
                raise BadInput(
                    f"{str(prompt)[:60]!r}: {name}: a clip of {row.data.shape[1]} frames is too short for this "
                    f"pipeline, which takes {self.frames}"
                )
            row = replace(row, data=row.data[:, : self.frames])
        return row

    def _kind(self, argument: str) -> Modality:
        """What an argument takes."""
        if self.modality == "audio":
            return "audio"
        return "video" if argument in CLIPS else "image"

    def example_prompts(self, texts: Sequence[str], seed: int = 0) -> tuple[str, ...]:
        """The texts as prompts with inputs of noise, by which a pipeline's structure is found."""
        if not self.inputs:
            return tuple(texts)
        return tuple(
            Prompt(text, {name: self._make_noise(name, seed + 100 * n + k) for k, name in enumerate(self.inputs)})
            for n, text in enumerate(texts)
        )

    def _make_noise(self, name: str, seed: int) -> MediaInput:
        generator = torch.Generator().manual_seed(seed)
        if self.modality == "audio":
            length = self.shape[-1] if self.shape else round(self.rate)
            sound = 0.5 * torch.randn(1, self.channels, length, generator=generator)
            return MediaInput.of(Media(sound, "audio", self.rate))
        size = (SPECIMEN, SPECIMEN) if self.shape is None or name in FREE_SIZE else self.shape[-2:]
        frames = self.frames if self._kind(self.inputs[name]) == "video" else 1
        if frames is None:
            raise BadInput(
                f"this pipeline takes a clip as its {name}, and no argument of its call says of how many frames; say "
                "input_size: [frames, height, width]"
            )
        # in patches, as encoders see little of what differs from pixel to pixel
        picture = F.interpolate(torch.rand(frames, 3, 8, 8, generator=generator), size)
        if name == "mask":
            picture = torch.zeros_like(picture)
            picture[..., size[1] * (1 + seed // 100 % 3) // 4 :] = 1  # another width for another prompt
        kind = self._kind(self.inputs[name])
        return MediaInput.of(Media(picture[None], kind, self.rate) if kind == "video" else Media(picture, kind))


def _count_channels(pipe: Any) -> int:
    """Of the sounds that the pipeline's autoencoder takes."""
    config = getattr(getattr(pipe, "vae", None), "config", {})
    return int(next((config[key] for key in ("audio_channels", "in_channels") if config.get(key)), 2))


def _sound_shape(pipe: Any, call: Mapping[str, Any], channels: int, rate: float) -> tuple[int, int] | None:
    """(C,L) of the sounds that the call makes: as long as it is told, by the default of its class, or as its denoiser
    can make; None where none of them says it."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    told = [call.get(name) or getattr(parameters[name], "default", None) for name in SECONDS if name in parameters]
    seconds = next((value for value in told if isinstance(value, (int, float)) and value > 0), None)
    if seconds is not None:
        return channels, round(seconds * rate)
    latents, hop = getattr(pipe.transformer, "config", {}).get("sample_size"), getattr(pipe.vae, "hop_length", None)
    return (channels, latents * hop) if latents and hop else None


def _picture_shape(pipe: Any, call: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H,W) of what the call makes: as it is told, by the defaults of its class, or by the size that its denoiser was
    trained on; None where none of them says it."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    height, width = (call.get(s) or getattr(parameters.get(s), "default", None) for s in ("height", "width"))
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    config = getattr(denoiser, "config", {})
    factor = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "vae_scale_factor_spatial", None)
    if factor is None:
        return None
    if config.get("sample_height") and config.get("sample_width"):
        return config["sample_height"] * factor, config["sample_width"] * factor
    side = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    return (side * factor, side * factor) if isinstance(side, int) else None


def _as_sounds(rows: Sequence[Media], name: str, argument: str) -> Tensor:
    """Sounds as the value of an argument: one tensor."""
    if len({row.data.shape for row in rows}) > 1:
        raise BadInput(f"{name}: sounds of different lengths in one batch; cut them to one length")
    if argument in UNBATCHED and len(rows) > 1:
        raise ValueError(f"{argument} is one sound for all rows of a call, got {len(rows)}")
    x = torch.cat([row.data for row in rows])
    return x[0] if argument in UNBATCHED else x


def _as_list(rows: Sequence[Media], name: str) -> Any:
    """Pictures or clips as the value of an argument: one as it is, several as a list."""
    values = [_as_pictures(row, name) for row in rows]
    return values if len(values) > 1 else values[0]


def _as_pictures(row: Media, name: str) -> Any:
    """A picture as a PIL image, a clip as a list of them."""
    frames = [_as_picture(frame, name) for frame in (row.data if row.modality == "image" else row.data[0])]
    return frames[0] if row.modality == "image" else frames


def _as_picture(x: Tensor, name: str) -> Image.Image:
    image = Image.fromarray((x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    return image.convert("L") if name == "mask" else image


def group_rows(prompts: Sequence[str], grouping: Grouping) -> list[list[int]]:
    """The rows that one call of the pipeline can compute together."""
    if grouping == "each":
        return [list(range(len(prompts)))]
    if grouping == "alone":
        return [[n] for n in range(len(prompts))]
    groups: dict[tuple, list[int]] = {}
    for n, prompt in enumerate(prompts):
        groups.setdefault(tuple((name, v.digest) for name, v in prompt_inputs(prompt).items()), []).append(n)
    return list(groups.values())


def compute_in_groups(
    compute: Callable[..., tuple[Tensor, ...]], grouping: Grouping, prompts: Sequence[str], *rows: Any
) -> tuple[Tensor, ...]:
    """The results [B,...] of `compute(prompts, *rows)` for all B prompts, in their order, by one call for each group of
    rows that can be computed together. rows: tensors [B,...] or tuples of B."""
    groups = group_rows(prompts, grouping)
    if len(groups) == 1:
        return compute(tuple(prompts), *rows)
    parts = []
    for group in groups:
        chosen = (v[group] if isinstance(v, Tensor) else tuple(v[n] for n in group) for v in rows)
        parts.append(compute(tuple(prompts[n] for n in group), *chosen))
    places = torch.tensor([n for group in groups for n in group]).argsort()
    return tuple(torch.cat(each)[places] for each in zip(*parts, strict=True))


def find_grouping(policy: Any) -> Grouping:
    """How a class takes the inputs of several prompts, by what it makes of two different ones.

    The guided outputs of two rows together must be those of each row apart, to a tenth of what its weakest input
    changes: rows that are mixed are off by about as much. Where a class gives something else, or refuses, the next form
    is tried. `alone` is right for every class, and slow: it remains where half precision rounds more than that tenth.

    Looks at the first step, or the second where inputs don't show before it (a source that is laid under its mask after
    a step). Costs up to six denoiser calls a step, one more for a second input.
    """
    if not policy.conditions:
        return "each"
    a, b = policy.conditions.example_prompts(("a", "a"))
    others = [Prompt("a", {**prompt_inputs(a), name: prompt_inputs(b)[name]}) for name in policy.conditions.inputs]
    for i in range(min(2, policy.steps)):
        compute = partial(replay.early_output, policy, i)
        apart = [compute((a,), (0,), "each"), compute((b,), (1,), "each")]
        effect = min(_measure_rows(compute((p,), (0,), "each") - apart[0]) for p in others)
        if effect > ROUNDING * _measure_rows(apart[0]):
            if _agrees(partial(compute, (a, b), (0, 1), "each"), apart, effect):
                return "each"
            again = [apart[0], compute((a,), (1,), "each")]
            return "one" if _agrees(partial(compute, (a, a), (0, 1), "one"), again, effect) else "alone"
    return "alone"  # what is made doesn't tell how the class takes its inputs


def _agrees(compute_together: Callable[[], Tensor], apart: Sequence[Tensor], effect: float) -> bool:
    try:
        rows = compute_together()
    except Exception:  # the class refuses the form, each in its own words
        return False
    expected = torch.cat(list(apart))
    if rows.shape != expected.shape:
        return False
    return _measure_rows(rows - expected) <= max(0.1 * effect, ROUNDING * _measure_rows(expected))


def _measure_rows(x: Tensor) -> float:
    """The root mean square of the row of x [B,*] in which it is largest."""
    return float(x.flatten(1).double().square().mean(1).sqrt().max())
