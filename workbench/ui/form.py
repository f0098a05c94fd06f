"""The studio's form as plain values: what a page sends of it, and the comparison that it asks for. Nothing here imports
torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.core.errors import BadInput
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.limits import SLOTS

KNOBS = 3  # settings of a method that have a field of their own
NUMBERS = ("seed", "seeds", "calls", "batch", "limit")
SLOT_VALUES = KNOBS + 3  # that a page sends of a contestant


@dataclass(frozen=True)
class Slot:
    """One contestant as its fields say."""

    method: str | None = None
    values: tuple[float | None, ...] = (None,) * KNOBS  # of its knobs
    further: str = ""  # further settings, key=value
    on: str = ""  # another pipeline than the comparison's
    # method -> [values, further] that these fields had when it was shown last
    earlier: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """All fields but those of uploaded files; names are those of `ComparisonRequest`."""

    prompts: str
    prompt_list: str
    pipeline: str
    watch: tuple[str, ...]
    numbers: tuple[float | None, ...]  # of NUMBERS
    slots: tuple[Slot, ...]  # SLOTS of them
    mix: tuple[tuple[str | None, float | None], ...]  # SLOTS rewards to optimise, each with its weight

    @property
    def optimised(self) -> list[str]:
        return [name for name, _ in self.mix if name]

    @property
    def methods(self) -> list[str]:
        return [slot.method for slot in self.slots if slot.method]


def read_form(values: Sequence[Any]) -> Form:
    """The form of the values that a page sends, in the order of `Editor.inputs`; further ones are left out."""
    prompts, prompt_list, pipeline, watch = values[:4]
    numbers, others = values[4 : 4 + len(NUMBERS)], values[4 + len(NUMBERS) :]
    slots = tuple(_read_slot(others[SLOT_VALUES * n : SLOT_VALUES * (n + 1)]) for n in range(SLOTS))
    mix = others[SLOT_VALUES * SLOTS : (SLOT_VALUES + 2) * SLOTS]
    pairs = tuple(zip(mix[::2], mix[1::2], strict=True))
    return Form(prompts or "", prompt_list or "", pipeline or "", tuple(watch or ()), tuple(numbers), slots, pairs)


def _read_slot(values: Sequence[Any]) -> Slot:
    method, *knobs, further, on = values
    return Slot(method, tuple(knobs), further or "", on or "")


def read_draft(text: str) -> Form | None:
    """The form that a browser kept: the values that a page sends, and the settings of methods that were looked at.
    None where there is none, or where it is that of another version of the app."""
    try:
        draft = json.loads(text)
        values, memories = draft["values"], draft["memories"]
        form = read_form(values)
        slots = tuple(
            Slot(s.method, s.values, s.further, s.on, dict(memory.get("earlier", {})))
            for s, memory in zip(form.slots, memories, strict=True)
        )
        changed = replace(form, slots=slots)
        return changed if _is_plain(changed) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_plain(form: Form) -> bool:
    texts = [form.prompts, form.prompt_list, form.pipeline, *form.watch, *form.methods, *form.optimised]
    texts += [text for slot in form.slots for text in (slot.further, slot.on)]
    numbers = [*form.numbers, *(v for s in form.slots for v in s.values), *(w for _, w in form.mix)]
    return all(isinstance(t, str) for t in texts) and all(v is None or isinstance(v, int | float) for v in numbers)


def typed_prompts(text: str) -> list[str]:
    """The prompts of a text, one a line; a line that begins with # is a remark, as in a file of prompts."""
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def request_of(form: Form, lines: Sequence[str], inputs: Mapping[str, str]) -> ComparisonRequest:
    """What the form asks for. lines: its contestants as text. Raises BadInput."""
    rewards: dict[str, Any] = {}
    for name, weight in form.mix:
        if name in rewards:
            raise BadInput(f"rewards: {name} is in the mix twice; add up its weights")
        if name:
            rewards[name] = weight
    seed, seeds, calls, batch, limit = form.numbers
    texts = form.prompt_list or typed_prompts(form.prompts)
    numbers = (seed, seeds, calls or 0, batch)
    return ComparisonRequest(texts, form.pipeline, lines, rewards, form.watch, *numbers, inputs, limit or 0)
