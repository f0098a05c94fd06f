"""The studio's editor: prompts, a pipeline, contestants and rewards as fields, and back from what was asked to the fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from workbench.ui.studio_comparison import Asked

SLOTS = 4  # contestants, and rewards in the mix
FIRST = (("sample", {}), ("best_of_n", {"n": 21}), ("reno", {"iterations": 20, "lr": 5.0, "momentum": 0.9}))
PIPELINE, REWARD, WATCH = "starter-image", "starter_clip", ("oracle", "saturated_pixels")
PROMPTS = (
    "a blue circle above a red triangle\nthree green circles\na white square and a green triangle\na large purple cross"
)
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def first() -> Asked:
    """The comparison that the page offers to whoever comes for the first time."""
    from workbench.ui.studio_comparison import Asked

    lines = [" ".join([name, *(f"{k}={v}" for k, v in settings.items())]) for name, settings in FIRST]
    return Asked(PROMPTS.splitlines(), PIPELINE, lines, {REWARD: 1.0}, WATCH)


class Editor:
    """Names of fields are those of `Asked`. Nothing is imported for it before the page stands: until then its choices are
    those of the first comparison."""

    def __init__(self, runs: Path):
        self.runs = runs

    def above(self) -> None:
        """What stands over the buttons."""
        self.prompts = gr.Textbox(PROMPTS, label="Prompts, one a line", lines=4, max_lines=12)
        with gr.Row():
            self.listed = gr.Dropdown([("the prompts above", "")], value="", label="Or a list", min_width=150)
            self.pipeline = gr.Dropdown([PIPELINE], value=PIPELINE, label="Pipeline", min_width=150)

    def below(self) -> None:
        gr.HTML('<h3 style="margin:6px 0 0;font-size:15px">Contestants</h3>')
        self.slots = [self._slot(n, *(FIRST[n] if n < len(FIRST) else (None, {}))) for n in range(SLOTS)]
        self.add = gr.Button("Add a contestant", size="sm")
        with gr.Accordion("A LoRA of your own", open=False):
            self.lora = gr.File(label="A .safetensors file for this pipeline", file_types=[".safetensors"], height=110)
            self.kept = gr.HTML("")
        gr.HTML('<h3 style="margin:6px 0 0;font-size:15px">Rewards</h3>')
        self.mix = [self._weight(REWARD if n == 0 else None) for n in range(SLOTS)]
        self.more = gr.Button("Add a reward", size="sm")
        self.watch = gr.Dropdown(
            list(WATCH), value=list(WATCH), multiselect=True, label="Only watched, never optimised"
        )
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=150)
            self.seeds = gr.Number(1, label="Seeds a prompt", precision=0, minimum=1, min_width=150)
            self.calls = gr.Number(
                0, label="Denoiser calls a sample (0: as set)", precision=0, minimum=0, min_width=150
            )
            self.batch = gr.Number(16, label="Samples made at once", precision=0, minimum=1, min_width=150)

    def _slot(self, number: int, method: str | None, settings: Mapping[str, float]) -> dict[str, Any]:
        slot: dict[str, Any] = {}
        with gr.Group(visible=method is not None) as slot["box"]:
            with gr.Row(equal_height=True):
                names = [name for name, _ in FIRST]
                slot["method"] = gr.Dropdown(
                    names, value=method, label=f"Contestant {number + 1}", scale=6, min_width=180
                )
                slot["away"] = gr.Button("✕", size="sm", scale=0, min_width=40, elem_classes=["wb-away"])
            with gr.Row():
                names, values = [*settings, "", "", ""][:3], [*settings.values(), None, None, None][:3]
                slot["knobs"] = [
                    gr.Number(v, label=n or "–", visible=v is not None, min_width=80)
                    for n, v in zip(names, values, strict=True)
                ]
            with gr.Accordion("About it, and more settings", open=False):
                slot["about"] = gr.HTML("")
                slot["rest"] = gr.Textbox("", label="Further settings, key=value", max_lines=2)
                slot["on"] = gr.Dropdown([("the same pipeline", "")], value="", label="Runs on")
        return slot

    def _weight(self, name: str | None) -> dict[str, Any]:
        part: dict[str, Any] = {}
        with gr.Group(visible=name is not None) as part["box"], gr.Row(equal_height=True):
            part["name"] = gr.Dropdown([REWARD], value=name, label="Optimised", scale=5, min_width=140)
            part["weight"] = gr.Number(1.0, label="Weight", scale=2, min_width=70)
            part["away"] = gr.Button("✕", size="sm", scale=0, min_width=40, elem_classes=["wb-away"])
        return part

    def wire(self) -> None:
        """What a choice changes in the other choices."""
        choices = [
            self.watch,
            *(s["method"] for s in self.slots),
            *(s["on"] for s in self.slots),
            *(m["name"] for m in self.mix),
        ]
        mixed = [m["name"] for m in self.mix]
        methods = [s["method"] for s in self.slots]
        self.pipeline.input(self.refitted, [self.pipeline, *methods, *mixed], choices, **QUIET)
        gr.on(
            [m.input for m in mixed], self.rewarded, [self.pipeline, *methods, *mixed], [self.watch, *methods], **QUIET
        )
        for slot in self.slots:
            fields = [*slot["knobs"], slot["about"], slot["rest"]]
            slot["method"].input(self.turned, [slot["method"]], fields, **QUIET)
            slot["away"].click(
                lambda: (None, gr.update(visible=False)), None, [slot["method"], slot["box"]], queue=False, **QUIET
            )
        for part in self.mix:
            part["away"].click(
                lambda: (None, gr.update(visible=False)), None, [part["name"], part["box"]], queue=False, **QUIET
            )
        opened = [c for s in self.slots for c in (s["box"], s["method"], *s["knobs"], s["about"], s["rest"])]
        self.add.click(self.added, [self.pipeline, *methods, *mixed], opened, **QUIET)
        self.lora.upload(
            self.given,
            [self.lora, self.pipeline],
            [self.kept, *(s["on"] for s in self.slots)],
            api_name="lora",
            show_progress="hidden",
        )
        boxes = [c for m in self.mix for c in (m["box"], m["name"])]
        self.more.click(self.weighed, [self.pipeline, *mixed], boxes, **QUIET)

    def inputs(self) -> list:
        slots = [c for s in self.slots for c in (s["method"], *s["knobs"], s["rest"], s["on"])]
        mix = [c for m in self.mix for c in (m["name"], m["weight"])]
        numbers = [self.seed, self.seeds, self.calls, self.batch]
        return [self.prompts, self.listed, self.pipeline, self.watch, *numbers, *slots, *mix]

    def outputs(self) -> list:
        slots = [c for s in self.slots for c in (s["box"], s["method"], *s["knobs"], s["about"], s["rest"], s["on"])]
        mix = [c for m in self.mix for c in (m["box"], m["name"], m["weight"])]
        numbers = [self.seed, self.seeds, self.calls, self.batch]
        return [self.prompts, self.listed, self.pipeline, self.watch, *numbers, *slots, *mix]

    def fields(self, asked: Asked) -> list:
        """The editor, filled with what was asked."""
        from workbench.ui import contestant_choices

        runs, rewards = self.runs, list(asked.rewards)
        watch = contestant_choices.watched(asked.pipeline, rewards, runs) if asked.watch is None else list(asked.watch)
        listed = isinstance(asked.prompts, str)
        names = contestant_choices.rewards(asked.pipeline, runs)
        out = [gr.skip() if listed else "\n".join(asked.prompts)]
        out += [
            gr.update(
                choices=[("the prompts above", ""), *contestant_choices.lists()], value=asked.prompts if listed else ""
            )
        ]
        out += [
            gr.update(choices=list(contestant_choices.sources(runs)), value=asked.pipeline),
            gr.update(choices=names, value=watch),
        ]
        out += [asked.seed, asked.seeds, asked.calls, asked.batch]
        methods, on = (
            contestant_choices.methods(asked.pipeline, rewards, runs),
            contestant_choices.beside(asked.pipeline, runs),
        )
        for text in [*asked.contestants, *[""] * SLOTS][:SLOTS]:
            method, values, rest, where = contestant_choices.fields(text) if text else (None, [], "", "")
            out += [gr.update(visible=bool(text)), gr.update(choices=methods, value=method)]
            out += [*self._turned(method, values, rest), gr.update(choices=on, value=where)]
        for name, weight in [*asked.rewards.items(), *[(None, 1.0)] * SLOTS][:SLOTS]:
            out += [gr.update(visible=name is not None), gr.update(choices=names, value=name), weight]
        return out

    def _turned(self, method: str | None, values: Sequence[float | None] = (), rest: str = "") -> list:
        """Updates of a slot's knobs, its words and its further settings."""
        from workbench.ui import contestant_choices
        from workbench.ui.widgets.html import note

        knobs = contestant_choices.knobs(method) if method else []
        given = list(values) or [k.default for k in knobs]
        out = [gr.update(label=k.name, value=v, visible=True) for k, v in zip(knobs, given, strict=True)]
        out += [gr.update(visible=False, value=None)] * (contestant_choices.KNOBS - len(knobs))
        words = f'<div style="font-size:12.5px">{note(contestant_choices.about(method))}</div>' if method else ""
        return [*out, words, gr.update(value=rest, placeholder=contestant_choices.rest(method) if method else "")]

    def turned(self, method: str | None) -> list:
        return self._turned(method)

    def refitted(self, pipeline: str, *chosen: str | None) -> list:
        """What can be chosen once the pipeline is another: choices that no longer fit are given up."""
        from workbench.ui import contestant_choices

        runs, methods, mixed = self.runs, chosen[:SLOTS], chosen[SLOTS:]
        names = contestant_choices.rewards(pipeline, runs)
        known = [name for _, name in names]
        kept = [name if name in known else None for name in mixed]
        if not any(kept):
            kept[0] = known[0]
        optimised = [name for name in kept if name]
        fitting, on = contestant_choices.methods(pipeline, optimised, runs), contestant_choices.beside(pipeline, runs)
        able = [name for _, name in fitting]
        out = [gr.update(choices=names, value=contestant_choices.watched(pipeline, optimised, runs))]
        out += [gr.update(choices=fitting, value=m if m in able else "sample" if m else None) for m in methods]
        return [
            *out,
            *[gr.update(choices=on, value="")] * SLOTS,
            *(gr.update(choices=names, value=name) for name in kept),
        ]

    def rewarded(self, pipeline: str, *chosen: str | None) -> list:
        """What can be watched, and which methods fit, once the rewards are others."""
        from workbench.ui import contestant_choices

        methods, optimised = chosen[:SLOTS], [name for name in chosen[SLOTS:] if name]
        fitting = contestant_choices.methods(pipeline, optimised, self.runs)
        able = [name for _, name in fitting]
        watch = gr.update(value=contestant_choices.watched(pipeline, optimised, self.runs))
        return [
            watch,
            *(gr.update(choices=fitting, value=m if m in able else "sample" if m else None) for m in methods),
        ]

    def added(self, pipeline: str, *chosen: str | None) -> list:
        """One contestant more: the first method that nobody has."""
        from workbench.ui import contestant_choices

        methods, optimised = chosen[:SLOTS], [name for name in chosen[SLOTS:] if name]
        able = [name for _, name in contestant_choices.methods(pipeline, optimised, self.runs)]
        new = next((n for n, m in enumerate(methods) if not m), None)
        method = next((m for m in able if m not in methods), able[0])
        same = [gr.skip()] * (4 + 3)
        return [
            u
            for n in range(SLOTS)
            for u in ([gr.update(visible=True), method, *self._turned(method)] if n == new else same)
        ]

    def given(self, file: str, pipeline: str) -> list:
        """Keep a LoRA in safetensors, for contestants to run on: what became of it, and what can be run on."""
        from workbench.core.types import BadInput
        from workbench.ui import contestant_choices, lora_uploads
        from workbench.ui.widgets.html import bad, note

        try:
            name = lora_uploads.keep(file, self.runs)
        except BadInput as error:
            return [bad(error), *[gr.skip()] * SLOTS]
        on = contestant_choices.beside(pipeline, self.runs)
        return [note(f"Kept as {name}: choose it under “Runs on” of a contestant."), *[gr.update(choices=on)] * SLOTS]

    def weighed(self, pipeline: str, *mixed: str | None) -> list:
        from workbench.ui import contestant_choices

        new = next((n for n, m in enumerate(mixed) if not m), None)
        name = next((r for _, r in contestant_choices.rewards(pipeline, self.runs) if r not in mixed), None)
        return [
            u for n in range(SLOTS) for u in ([gr.update(visible=True), name] if n == new else [gr.skip(), gr.skip()])
        ]

    def asked(self, prompts: str, listed: str, pipeline: str, watch: list[str], *rest) -> Asked:
        """What the editor says. Raises BadInput."""
        from workbench.core.types import BadInput
        from workbench.ui import contestant_choices
        from workbench.ui.studio_comparison import Asked

        numbers, slots, mix = rest[:4], rest[4 : 4 + 6 * SLOTS], rest[4 + 6 * SLOTS :]
        lines = []
        for n in range(SLOTS):
            method, *values, more, on = slots[6 * n : 6 * n + 6]
            if method:
                lines.append(contestant_choices.line(method, values, more or "", on or ""))
        rewards: dict[str, float] = {}
        for name, weight in zip(mix[::2], mix[1::2], strict=True):
            if name in rewards:
                raise BadInput(f"rewards: {name} is in the mix twice; add up its weights")
            if name:
                rewards[name] = weight
        seed, seeds, calls, batch = numbers
        return Asked(
            listed or prompts.splitlines(), pipeline, lines, rewards, watch or [], seed, seeds, calls or 0, batch
        )
