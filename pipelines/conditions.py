"""What a pipeline's call takes besides texts: pictures, masks, clips and sounds, which come with the prompts.

diffusers' classes mean different things by a list of pictures: one for each prompt, several for all of them, or nothing
that is allowed. What a class means is found by watching it (`find_grouping`), so there is no list of classes here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
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
SPECIMEN = 64  # pixels, where no size is known


class Conditions:
    """The inputs of one pipeline: `arguments` adds them to a call, row by row, in the size in which the call makes its
    media. Pictures are handed over as a user does, as PIL images; sounds as tensors."""

    def __init__(self, pipe: Any, inputs: Mapping[str, str], call: Mapping[str, Any], modality: Modality, rate: float):
        self.inputs, self.modality, self.rate = dict(inputs), modality, rate
        self.shape = self._sound_shape(pipe, call) if modality == "audio" else _picture_shape(pipe, call)

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
        """The arguments of the call for these rows. Raises BadInput for a prompt without one of the inputs."""
        self.check(prompts)
        values = {}
        for name, argument in self.inputs.items():
            chosen = prompts if grouping == "each" else prompts[:1]
            rows = [read_input(p, name, None if name in FREE_SIZE else self.shape, self.rate) for p in chosen]
            values[argument] = _as_argument(rows, name, argument)
        return values

    def example_prompts(self, texts: Sequence[str], seed: int = 0) -> tuple[str, ...]:
        """The texts as prompts with inputs of noise, by which a pipeline's structure is found."""
        if not self.inputs:
            return tuple(texts)
        return tuple(
            Prompt(text, {name: self._noise(name, seed + 100 * n + k) for k, name in enumerate(self.inputs)})
            for n, text in enumerate(texts)
        )

    def _noise(self, name: str, seed: int) -> MediaInput:
        generator = torch.Generator().manual_seed(seed)
        if self.modality == "audio":
            channels, length = self.shape or (2, round(self.rate))
            sound = 0.5 * torch.randn(1, channels, length, generator=generator)
            return MediaInput.of(Media(sound, "audio", self.rate))
        size = (SPECIMEN, SPECIMEN) if self.shape is None or name in FREE_SIZE else self.shape[-2:]
        picture = torch.rand(1, 3, *size, generator=generator)
        if name == "mask":
            picture = torch.zeros_like(picture)
            picture[..., size[1] // 2 :] = 1
        return MediaInput.of(Media(picture, "image"))

    def _sound_shape(self, pipe: Any, call: Mapping[str, Any]) -> tuple[int, int] | None:
        """(C,L) of the sounds that the call makes; None where it doesn't say how long they are."""
        seconds = next((call[name] for name in SECONDS if call.get(name)), None)
        config = getattr(getattr(pipe, "vae", None), "config", {})
        channels = next((config[k] for k in ("audio_channels", "in_channels") if config.get(k)), 2)
        return None if seconds is None else (int(channels), round(float(seconds) * self.rate))


def _picture_shape(pipe: Any, call: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H,W) of what the call makes: as it is told, by the defaults of its class, or by the size that its denoiser was
    trained on; None where none of them says it."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    told = [call.get(side) or getattr(parameters.get(side), "default", None) for side in ("height", "width")]
    if all(isinstance(side, int) for side in told):
        return told[0], told[1]
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    config = getattr(denoiser, "config", {})
    factor = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "vae_scale_factor_spatial", None)
    if factor is None:
        return None
    if config.get("sample_height") and config.get("sample_width"):
        return config["sample_height"] * factor, config["sample_width"] * factor
    side = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    return (side * factor, side * factor) if isinstance(side, int) else None


def _as_argument(rows: Sequence[Media], name: str, argument: str) -> Any:
    """Rows of an input as the value of an argument: one as it is, several as a list, sounds as one tensor."""
    if rows[0].modality == "audio":
        lengths = {row.data.shape[1:] for row in rows}
        if len(lengths) > 1:
            raise BadInput(f"{name}: sounds of different lengths in one batch; cut them to one length")
        x = torch.cat([row.data for row in rows])
        return x[0] if argument in UNBATCHED else x
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

    The denoiser's outputs at the first step of two rows together must be those of each row apart; where a class gives
    something else, or refuses, the next form is tried. Costs up to six denoiser calls.
    """
    if not policy.conditions:
        return "each"
    a, b = policy.conditions.example_prompts(("a", "a"))
    apart = [replay.first_output(policy, (p,), (seed,), "each") for p, seed in ((a, 0), (b, 1))]
    effect = (replay.first_output(policy, (b,), (0,), "each") - apart[0]).abs().max()  # of the input alone
    if _agrees(lambda: replay.first_output(policy, (a, b), (0, 1), "each"), apart, effect):
        return "each"
    again = [apart[0], replay.first_output(policy, (a,), (1,), "each")]
    return "one" if _agrees(lambda: replay.first_output(policy, (a, a), (0, 1), "one"), again, effect) else "alone"


def _agrees(compute_together: Callable[[], Tensor], apart: Sequence[Tensor], effect: Tensor) -> bool:
    try:
        rows = compute_together()
    except Exception:  # the class refuses the form, each in its own words
        return False
    expected = torch.cat(list(apart))
    if rows.shape != expected.shape:
        return False
    rounding = 64 * torch.finfo(rows.dtype).eps * expected.abs().max()
    return bool((rows - expected).abs().max() <= torch.maximum(0.1 * effect, rounding))
