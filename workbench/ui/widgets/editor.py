"""The studio's editor: prompts, a pipeline, contestants and rewards as fields, and back from what was asked to the
fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.context import AppContext
from workbench.ui.limits import SLOTS
from workbench.ui.widgets import html
from workbench.ui.widgets.input_fields import InputFields

FIRST = (("sample", {}), ("best_of_n", {"n": 21}), ("reno", {"iterations": 20, "lr": 5.0, "momentum": 0.9}))
PIPELINE, REWARD, WATCH = "starter-image", "starter_clip", ("oracle", "saturated_pixels")
PROMPTS = (
    "a blue circle above a red triangle\nthree green circles\na white square and a green triangle\na large purple cross"
)
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def first_request() -> ComparisonRequest:
    """The comparison that the page offers to whoever comes for the first time."""
    lines = [" ".join([name, *(f"{k}={v}" for k, v in settings.items())]) for name, settings in FIRST]
    return ComparisonRequest(PROMPTS.splitlines(), PIPELINE, lines, {REWARD: 1.0}, WATCH)


class Editor:
    """Names of fields are those of `ComparisonRequest`. Nothing is imported for it before the page stands: until then
    its choices are those of the first comparison."""

    def __init__(self, context: AppContext):
        self.runs, self.given = context.runs, InputFields(context)

    def draw_prompts(self) -> None:
        """What stands over the buttons."""
        self.prompts = gr.Textbox(PROMPTS, label="Prompts, one a line", lines=4, max_lines=12)
        with gr.Row():
            self.prompt_list = gr.Dropdown([("the prompts above", "")], value="", label="Or a list", min_width=150)
            self.pipeline = gr.Dropdown([PIPELINE], value=PIPELINE, label="Pipeline", min_width=150)
        self.given.draw()

    def draw_contestants(self) -> None:
        gr.HTML('<h3 style="margin:6px 0 0;font-size:15px">Contestants</h3>')
        self.slots = [self._draw_slot(n, *(FIRST[n] if n < len(FIRST) else (None, {}))) for n in range(SLOTS)]
        self.contestant_button = gr.Button("Add a contestant", size="sm")
        with gr.Accordion("A LoRA of your own", open=False):
            self.lora = gr.File(label="A .safetensors file for this pipeline", file_types=[".safetensors"], height=110)
            self.lora_message = gr.HTML("")
        gr.HTML('<h3 style="margin:6px 0 0;font-size:15px">Rewards</h3>')
        self.mix = [self._draw_reward(REWARD if n == 0 else None) for n in range(SLOTS)]
        self.reward_button = gr.Button("Add a reward", size="sm")
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

    def _draw_slot(self, number: int, method: str | None, settings: Mapping[str, float]) -> dict[str, Any]:
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

    def _draw_reward(self, name: str | None) -> dict[str, Any]:
        part: dict[str, Any] = {}
        with gr.Group(visible=name is not None) as part["box"], gr.Row(equal_height=True):
            part["name"] = gr.Dropdown([REWARD], value=name, label="Optimised", scale=5, min_width=140)
            part["weight"] = gr.Number(1.0, label="Weight", scale=2, min_width=70)
            part["away"] = gr.Button("✕", size="sm", scale=0, min_width=40, elem_classes=["wb-away"])
        return part

    def wire_events(self) -> None:
        """What a choice changes in the other choices."""
        choices = [
            self.watch,
            *(s["method"] for s in self.slots),
            *(s["on"] for s in self.slots),
            *(m["name"] for m in self.mix),
        ]
        mixed = [m["name"] for m in self.mix]
        methods = [s["method"] for s in self.slots]
        choices += [self.prompt_list, *self.given.outputs()]
        chosen = [self.pipeline, self.prompt_list, *methods, *mixed]
        self.pipeline.input(self.choose_pipeline, chosen, choices, **QUIET)
        self.given.wire_events(self.pipeline)
        gr.on(
            [m.input for m in mixed],
            self.choose_rewards,
            [self.pipeline, *methods, *mixed],
            [self.watch, *methods],
            **QUIET,
        )
        for slot in self.slots:
            fields = [*slot["knobs"], slot["about"], slot["rest"]]
            slot["method"].input(self.choose_method, [slot["method"]], fields, **QUIET)
            slot["away"].click(
                lambda: (None, gr.update(visible=False)), None, [slot["method"], slot["box"]], queue=False, **QUIET
            )
        for part in self.mix:
            part["away"].click(
                lambda: (None, gr.update(visible=False)), None, [part["name"], part["box"]], queue=False, **QUIET
            )
        opened = [c for s in self.slots for c in (s["box"], s["method"], *s["knobs"], s["about"], s["rest"])]
        self.contestant_button.click(self.add_contestant, [self.pipeline, *methods, *mixed], opened, **QUIET)
        self.lora.upload(
            self.keep_lora,
            [self.lora, self.pipeline],
            [self.lora_message, *(s["on"] for s in self.slots)],
            api_name="lora",
            show_progress="hidden",
        )
        boxes = [c for m in self.mix for c in (m["box"], m["name"])]
        self.reward_button.click(self.add_reward, [self.pipeline, *mixed], boxes, **QUIET)

    def inputs(self) -> list:
        slots = [c for s in self.slots for c in (s["method"], *s["knobs"], s["rest"], s["on"])]
        mix = [c for m in self.mix for c in (m["name"], m["weight"])]
        numbers = [self.seed, self.seeds, self.calls, self.batch]
        given = self.given.inputs()
        return [self.prompts, self.prompt_list, self.pipeline, self.watch, *numbers, *slots, *mix, *given]

    def outputs(self) -> list:
        slots = [c for s in self.slots for c in (s["box"], s["method"], *s["knobs"], s["about"], s["rest"], s["on"])]
        mix = [c for m in self.mix for c in (m["box"], m["name"], m["weight"])]
        numbers = [self.seed, self.seeds, self.calls, self.batch]
        given = self.given.outputs()
        return [self.prompts, self.prompt_list, self.pipeline, self.watch, *numbers, *slots, *mix, *given]

    def fill_fields(self, request: ComparisonRequest) -> list:
        """The editor, filled with what was asked."""
        from workbench.ui import contestant_choices, prompt_choices

        runs, rewards = self.runs, list(request.rewards)
        watch = (
            contestant_choices.default_watch(request.pipeline, rewards, runs)
            if request.watch is None
            else list(request.watch)
        )
        is_list = isinstance(request.prompts, str)
        names = contestant_choices.list_rewards(request.pipeline, runs)
        out = [gr.skip() if is_list else "\n".join(request.prompts)]
        kinds, chosen_list = contestant_choices.list_inputs(request.pipeline, runs), request.prompts if is_list else ""
        out += [gr.update(choices=prompt_choices.offer_lists(kinds, chosen_list, runs), value=chosen_list)]
        out += [
            gr.update(choices=list(contestant_choices.list_pipelines(runs)), value=request.pipeline),
            gr.update(choices=names, value=watch),
        ]
        out += [request.seed, request.seeds, request.calls, request.batch]
        methods = contestant_choices.list_methods(request.pipeline, rewards, runs)
        alternatives = contestant_choices.list_alternatives(request.pipeline, runs)
        for text in [*request.contestants, *[""] * SLOTS][:SLOTS]:
            method, values, further, target = contestant_choices.parse_line(text) if text else (None, [], "", "")
            out += [gr.update(visible=bool(text)), gr.update(choices=methods, value=method)]
            out += [*self._slot_updates(method, values, further), gr.update(choices=alternatives, value=target)]
        for name, weight in [*request.rewards.items(), *[(None, 1.0)] * SLOTS][:SLOTS]:
            out += [gr.update(visible=name is not None), gr.update(choices=names, value=name), weight]
        return [*out, *self.given.fill_fields(request.pipeline, request.inputs)]

    def _slot_updates(self, method: str | None, values: Sequence[float | None] = (), further: str = "") -> list:
        """Updates of a slot's knobs, its words and its further settings."""
        from workbench.ui import contestant_choices

        knobs = contestant_choices.list_knobs(method) if method else []
        knob_values = list(values) or [k.default for k in knobs]
        out = [gr.update(label=k.name, value=v, visible=True) for k, v in zip(knobs, knob_values, strict=True)]
        out += [gr.update(visible=False, value=None)] * (contestant_choices.KNOBS - len(knobs))
        words = (
            f'<div style="font-size:12.5px">{html.hint_html(contestant_choices.describe_method(method))}</div>'
            if method
            else ""
        )
        return [
            *out,
            words,
            gr.update(value=further, placeholder=contestant_choices.other_settings(method) if method else ""),
        ]

    def choose_method(self, method: str | None) -> list:
        return self._slot_updates(method)

    def choose_pipeline(self, pipeline: str, prompt_list: str, *chosen: str | None) -> list:
        """What can be chosen once the pipeline is another: choices that no longer fit are given up."""
        from workbench.ui import contestant_choices, prompt_choices

        runs, methods, mixed = self.runs, chosen[:SLOTS], chosen[SLOTS:]
        names = contestant_choices.list_rewards(pipeline, runs)
        reward_names = [name for _, name in names]
        remaining = [name if name in reward_names else None for name in mixed]
        if not any(remaining):
            remaining[0] = reward_names[0]
        optimised = [name for name in remaining if name]
        fitting = contestant_choices.list_methods(pipeline, optimised, runs)
        alternatives = contestant_choices.list_alternatives(pipeline, runs)
        method_names = [name for _, name in fitting]
        kinds = contestant_choices.list_inputs(pipeline, runs)
        lists = prompt_choices.offer_lists(kinds, prompt_list, runs)
        suggested = prompt_choices.suggest_list(pipeline, kinds, prompt_list, runs)
        out = [gr.update(choices=names, value=contestant_choices.default_watch(pipeline, optimised, runs))]
        out += [gr.update(choices=fitting, value=m if m in method_names else "sample" if m else None) for m in methods]
        return [
            *out,
            *[gr.update(choices=alternatives, value="")] * SLOTS,
            *(gr.update(choices=names, value=name) for name in remaining),
            gr.update(choices=lists, value=suggested),
            *self.given.choose_pipeline(pipeline),
        ]

    def choose_rewards(self, pipeline: str, *chosen: str | None) -> list:
        """What can be watched, and which methods fit, once the rewards are others."""
        from workbench.ui import contestant_choices

        methods, optimised = chosen[:SLOTS], [name for name in chosen[SLOTS:] if name]
        fitting = contestant_choices.list_methods(pipeline, optimised, self.runs)
        method_names = [name for _, name in fitting]
        watch = gr.update(value=contestant_choices.default_watch(pipeline, optimised, self.runs))
        return [
            watch,
            *(gr.update(choices=fitting, value=m if m in method_names else "sample" if m else None) for m in methods),
        ]

    def add_contestant(self, pipeline: str, *chosen: str | None) -> list:
        """One contestant more: the first method that nobody has."""
        from workbench.ui import contestant_choices

        methods, optimised = chosen[:SLOTS], [name for name in chosen[SLOTS:] if name]
        method_names = [name for _, name in contestant_choices.list_methods(pipeline, optimised, self.runs)]
        new = next((n for n, m in enumerate(methods) if not m), None)
        method = next((m for m in method_names if m not in methods), method_names[0])
        same = [gr.skip()] * (4 + 3)
        return [
            u
            for n in range(SLOTS)
            for u in ([gr.update(visible=True), method, *self._slot_updates(method)] if n == new else same)
        ]

    def keep_lora(self, file: str, pipeline: str) -> list:
        """Keep a LoRA in safetensors, for contestants to run on: what became of it, and what can be run on."""
        from workbench.ui import contestant_choices, lora_uploads

        try:
            name = lora_uploads.keep_lora(file, self.runs)
        except BadInput as error:
            return [html.error_html(error), *[gr.skip()] * SLOTS]
        summary = lora_uploads.summarise_lora(file)
        alternatives = contestant_choices.list_alternatives(pipeline, self.runs)
        return [
            html.hint_html(f"Kept as {name} ({summary}): choose it under “Runs on” of a contestant."),
            *[gr.update(choices=alternatives)] * SLOTS,
        ]

    def add_reward(self, pipeline: str, *mixed: str | None) -> list:
        from workbench.ui import contestant_choices

        new = next((n for n, m in enumerate(mixed) if not m), None)
        name = next((r for _, r in contestant_choices.list_rewards(pipeline, self.runs) if r not in mixed), None)
        return [
            u for n in range(SLOTS) for u in ([gr.update(visible=True), name] if n == new else [gr.skip(), gr.skip()])
        ]

    def read_request(
        self, prompts: str, prompt_list: str, pipeline: str, watch: list[str], *further: Any
    ) -> ComparisonRequest:
        """What the editor says. Raises BadInput."""
        from workbench.ui import contestant_choices

        numbers, slots, further = further[:4], further[4 : 4 + 6 * SLOTS], further[4 + 6 * SLOTS :]
        mix, given = further[: 2 * SLOTS], further[2 * SLOTS :]
        lines = []
        for n in range(SLOTS):
            method, *values, more, on = slots[6 * n : 6 * n + 6]
            if method:
                lines.append(contestant_choices.format_line(method, values, more or "", on or ""))
        rewards: dict[str, float] = {}
        for name, weight in zip(mix[::2], mix[1::2], strict=True):
            if name in rewards:
                raise BadInput(f"rewards: {name} is in the mix twice; add up its weights")
            if name:
                rewards[name] = weight
        seed, seeds, calls, batch = numbers
        texts, inputs = prompt_list or prompts.splitlines(), self.given.read_inputs(pipeline, given) if given else {}
        return ComparisonRequest(texts, pipeline, lines, rewards, watch or [], seed, seeds, calls or 0, batch, inputs)
