"""The studio's editor: prompts, a pipeline, contestants and rewards as fields, and back from what was asked to the
fields. It acts on what a person changed, and changes no other value: what does not go together is marked and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from workbench.core.errors import BadInput
from workbench.ui import presets
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.context import AppContext
from workbench.ui.form import KNOBS, Form, Slot, read_form, request_of
from workbench.ui.handlers import bad_input_shown
from workbench.ui.limits import COVERED, SLOTS
from workbench.ui.widgets import html
from workbench.ui.widgets.choice import Choice
from workbench.ui.widgets.input_fields import InputFields

FIRST = (("sample", {}), ("best_of_n", {"n": 21}), ("reno", {"iterations": 20, "lr": 5.0, "momentum": 0.9}))
TYPED = "Prompts, one a line"
NUMBERS = (  # label, first value, least value
    ("Seed", 0, 0),
    ("Seeds a prompt", 1, 1),
    ("Denoiser calls a sample (0: as set)", 0, 0),
    ("Samples made at once", 16, 1),
    ("Prompts of a list (0: all)", 0, 0),
)
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
LIGHT = QUIET | {"concurrency_limit": None, "trigger_mode": "always_last"}


class Editor:
    """Names of fields are those of `ComparisonRequest`. Nothing is imported for it before the page stands: until then
    its choices are those of the first comparison."""

    def __init__(self, context: AppContext):
        self.context, self.runs, self.given = context, context.runs, InputFields(context)

    def draw_prompts(self) -> None:
        """What stands over the buttons."""
        first = presets.FIRST
        with gr.Row(elem_classes=["wb-presets"]):
            self.presets = {
                name: gr.Button(name, size="sm", min_width=70, elem_classes=["wb-preset"]) for name in presets.PRESETS
            }
        self.prompts = gr.Textbox("\n".join(first.prompts), label=TYPED, lines=4, max_lines=12)
        self.prompt_list = Choice([("the prompts above", "")], value="", label="Or a list")
        self.pipeline = Choice([first.pipeline], value=first.pipeline, label="Pipeline")
        self.given.draw()

    def draw_contestants(self) -> None:
        first = presets.FIRST
        gr.HTML('<h3 style="margin:6px 0 0;font-size:15px">Contestants</h3>')
        self.slots = [self._draw_slot(n, *(FIRST[n] if n < len(FIRST) else (None, {}))) for n in range(SLOTS)]
        self.contestant_button = gr.Button("Add a contestant", size="sm")
        with gr.Accordion("A LoRA of your own", open=False):
            self.lora = gr.File(
                label="A .safetensors file for this pipeline",
                file_types=[".safetensors"],
                height=110,
                elem_id="wb-lora",
            )
            self.lora_message = gr.HTML("")
        gr.HTML('<h3 style="margin:6px 0 0;font-size:15px">Rewards</h3>')
        (reward,) = first.rewards
        self.mix = [self._draw_reward(reward if n == 0 else None) for n in range(SLOTS)]
        self.reward_button = gr.Button("Add a reward", size="sm")
        watch = list(first.watch or ())
        self.watch = Choice(watch, value=watch, multiselect=True, label="Only watched, never optimised")
        with gr.Row():
            self.numbers = [
                gr.Number(value, label=label, precision=0, min_width=150, elem_id=f"wb-number-{n}")
                for n, (label, value, _) in enumerate(NUMBERS)
            ]
        self.shown_pipeline = gr.Textbox(first.pipeline, visible=False)  # whose uploads and canvas stand on the page

    def draw_advice(self) -> None:
        """What stands under the buttons."""
        self.advice = gr.HTML("", elem_id="wb-advice")
        self.fit_button = gr.Button("Take what goes with this pipeline", size="sm", visible=False, elem_id="wb-fit")

    def _draw_slot(self, number: int, method: str | None, settings: Mapping[str, float]) -> dict[str, Any]:
        slot: dict[str, Any] = {}
        with gr.Group(visible=method is not None) as slot["box"]:
            with gr.Row(equal_height=True):
                names = [name for name, _ in FIRST]
                slot["method"] = Choice(names, value=method, label=f"Contestant {number + 1}", scale=6, min_width=180)
                slot["away"] = gr.Button("✕", size="sm", scale=0, min_width=40, elem_classes=["wb-away"])
            with gr.Row():
                names, values = [*settings, "", "", ""][:KNOBS], [*settings.values(), None, None, None][:KNOBS]
                slot["knobs"] = [
                    gr.Number(v, label=n or "–", visible=v is not None, min_width=80)
                    for n, v in zip(names, values, strict=True)
                ]
            with gr.Accordion("About it, and more settings", open=False):
                slot["about"] = gr.HTML("")
                slot["rest"] = gr.Textbox("", label="Further settings, key=value", max_lines=2)
                slot["on"] = Choice([("the same pipeline", "")], value="", label="Runs on")
            # the method whose settings stand in the fields, and those of methods that were looked at before
            slot["memory"] = gr.JSON({"shown": method, "earlier": {}}, visible=False)
        return slot

    def _draw_reward(self, name: str | None) -> dict[str, Any]:
        part: dict[str, Any] = {}
        with gr.Group(visible=name is not None) as part["box"], gr.Row(equal_height=True):
            part["name"] = Choice([name] if name else [], value=name, label="Optimised", scale=5, min_width=140)
            part["weight"] = gr.Number(1.0, label="Weight", scale=2, min_width=70)
            part["away"] = gr.Button("✕", size="sm", scale=0, min_width=40, elem_classes=["wb-away"])
        return part

    # events

    def wire_events(self) -> None:
        """What a choice changes in the other choices: one event for all that depends on several of them."""
        self.given.wire_events(self.pipeline)
        form, advice = self._plain_inputs(), [self.advice, self.fit_button]
        chosen = [self.pipeline, self.prompt_list, self.watch, *(m["name"] for m in self.mix)]
        chosen += [c for s in self.slots for c in (s["method"], s["on"])]
        update = [self.update_choices, self._choice_inputs(), self._choice_outputs()]
        gr.on([c.input for c in chosen], *update, **LIGHT).then(self.advise, form, advice, **LIGHT)
        text_fields = [self.prompts, *self.numbers, *(c for s in self.slots for c in (*s["knobs"], s["rest"]))]
        gr.on([c.blur for c in (*text_fields, *(m["weight"] for m in self.mix))], self.advise, form, advice, **LIGHT)
        for slot in self.slots:
            fields = [*slot["knobs"], slot["about"], slot["rest"], slot["memory"]]
            slot_inputs = [slot["memory"], slot["method"], *slot["knobs"], slot["rest"]]
            slot["method"].input(self.choose_method, slot_inputs, fields, **LIGHT)
        rows = [(s["away"], s["method"], s["box"]) for s in self.slots]
        for away, name, box in [*rows, *((m["away"], m["name"], m["box"]) for m in self.mix)]:
            gone = away.click(lambda: (None, gr.update(visible=False)), None, [name, box], queue=False, **QUIET)
            gone.then(*update, **LIGHT).then(self.advise, form, advice, **LIGHT)
        opened = [
            c for s in self.slots for c in (s["box"], s["method"], *s["knobs"], s["about"], s["rest"], s["memory"])
        ]
        methods, mixed = [s["method"] for s in self.slots], [m["name"] for m in self.mix]
        added = self.contestant_button.click(self.add_contestant, [self.pipeline, *methods, *mixed], opened, **QUIET)
        added.then(self.advise, form, advice, **LIGHT)
        self.lora.upload(
            self.keep_lora,
            [self.lora, self.pipeline],
            [self.lora_message, *(s["on"] for s in self.slots)],
            api_name="lora",
            show_progress="hidden",
        )
        self.reward_button.click(self.add_reward, mixed, [m["box"] for m in self.mix], queue=False, **QUIET)
        filled = [self.fit_button.click(self.fit_fields, form, self.outputs(), **QUIET)]
        filled += [
            button.click(self._preset_filler(name), None, self.outputs(), **QUIET)
            for name, button in self.presets.items()
        ]
        for event in filled:
            event.then(self.advise, form, advice, **LIGHT)

    def draft_fields(self) -> tuple[list, list]:
        """What a browser keeps of the form: the fields in the order of `inputs`, and the contestants' memories."""
        return self._plain_inputs(), [slot["memory"] for slot in self.slots]

    def _plain_inputs(self) -> list:
        slots = [c for s in self.slots for c in (s["method"], *s["knobs"], s["rest"], s["on"])]
        mix = [c for m in self.mix for c in (m["name"], m["weight"])]
        return [self.prompts, self.prompt_list, self.pipeline, self.watch, *self.numbers, *slots, *mix]

    def inputs(self) -> list:
        return [*self._plain_inputs(), *self.given.inputs()]

    def _choice_inputs(self) -> list:
        return [self.shown_pipeline, *self.given.covered(), *self._plain_inputs()]

    def _choice_outputs(self) -> list:
        slots = [c for s in self.slots for c in (s["method"], s["on"])]
        head = [self.advice, self.fit_button, self.shown_pipeline, self.prompts, self.prompt_list, self.watch]
        return [*head, *slots, *(m["name"] for m in self.mix), *self.given.outputs()]

    def outputs(self) -> list:
        slots = [
            c
            for s in self.slots
            for c in (s["box"], s["method"], *s["knobs"], s["about"], s["rest"], s["on"], s["memory"])
        ]
        mix = [c for m in self.mix for c in (m["box"], m["name"], m["weight"])]
        head = [self.prompts, self.prompt_list, self.pipeline, self.watch, *self.numbers]
        advice = [self.advice, self.fit_button, self.shown_pipeline]
        return [*head, *slots, *mix, *advice, *self.given.outputs()]

    # from what was asked to the fields

    def fill_fields(self, request: ComparisonRequest) -> list:
        """Updates of `outputs`: the editor, filled with what was asked. What was typed stays where a list was asked
        for."""
        from workbench.ui import contestant_choices, reward_offers

        is_list, rewards = isinstance(request.prompts, str), list(request.rewards)
        watch = request.watch
        if watch is None:
            config = contestant_choices.read_pipeline(request.pipeline, self.runs)
            watch = reward_offers.default_watch(config, rewards, self.runs)
        slots = []
        for text in [*request.contestants, *[""] * SLOTS][:SLOTS]:
            method, values, further, target = contestant_choices.parse_line(text) if text else (None, [], "", "")
            slots.append(Slot(method, tuple([*values, *[None] * KNOBS][:KNOBS]), further, target))
        mix = tuple([*request.rewards.items(), *[(None, 1.0)] * SLOTS][:SLOTS])
        numbers = (request.seed, request.seeds, request.calls, request.batch, request.limit)
        typed, chosen_list = ("", request.prompts) if is_list else ("\n".join(request.prompts), "")
        form = Form(typed, chosen_list, request.pipeline, tuple(watch), numbers, tuple(slots), mix)
        out = self.fill_form(form, request.inputs)
        if is_list:
            out[0].pop("value")
        return out

    def fill_form(self, form: Form, inputs: Mapping[str, str] | None = None) -> list:
        """Updates of `outputs`: every field of this form; what was uploaded stays unless `inputs` say otherwise."""
        offers = self._offer_choices(form)
        out = [offers["prompts"] | {"value": form.prompts}, offers["prompt_list"] | {"value": form.prompt_list}]
        out += [offers["pipeline"] | {"value": form.pipeline}, offers["watch"] | {"value": list(form.watch)}]
        out += list(form.numbers)
        for slot in form.slots:
            memory = {"shown": slot.method, "earlier": dict(slot.earlier)}
            out += [gr.update(visible=bool(slot.method)), offers["method"] | {"value": slot.method}]
            out += [
                *self._slot_updates(slot.method, slot.values, slot.further),
                offers["on"] | {"value": slot.on},
                memory,
            ]
        for name, weight in form.mix:
            out += [gr.update(visible=name is not None), offers["mix"] | {"value": name}, weight]
        advice = self._advise(form)
        if inputs is None:
            return [*out, *advice, form.pipeline, *self.given.choose_pipeline(form.pipeline)[:-1], gr.skip()]
        return [*out, *advice, form.pipeline, *self.given.fill_fields(form.pipeline, inputs)]

    def offer_choices(self) -> list:
        """Updates of `outputs` for a page that was just opened: all choices and words, and no value."""
        filled = self.fill_fields(presets.FIRST)
        words = [isinstance(component, gr.HTML) for component in self.outputs()]
        return [update if keep else _without_value(update) for update, keep in zip(filled, words, strict=True)]

    def _offer_choices(self, form: Form) -> dict[str, dict]:
        """What can be chosen in the fields beside this form: what is chosen is among it even where it doesn't fit."""
        from workbench.ui import contestant_choices, pipeline_offers, prompt_choices, reward_offers

        runs, config = self.runs, contestant_choices.read_pipeline(form.pipeline, self.runs)
        optimised = [name for name in form.optimised if reward_offers.is_known(name, runs)]
        watchable = reward_offers.offer_rewards(config, form.watch, runs, optimise=False)
        targets = contestant_choices.list_alternatives(form.pipeline, runs)
        targets += [
            (f"{s.on} — does not fit", s.on) for s in form.slots if s.on and s.on not in {name for _, name in targets}
        ]
        lists = prompt_choices.offer_lists(config.inputs, form.prompt_list, runs)
        counts = prompt_choices.count_prompts(form.prompt_list, runs) if form.prompt_list else 0
        label = f"Not used: {form.prompt_list} is chosen, {counts:,} prompts" if form.prompt_list else TYPED
        return {
            "prompts": gr.update(label=label, interactive=not form.prompt_list),
            "prompt_list": gr.update(choices=lists),
            "pipeline": gr.update(choices=pipeline_offers.offer_pipelines(runs)),
            "watch": gr.update(choices=[(label, name) for label, name in watchable if name not in optimised]),
            "method": gr.update(choices=contestant_choices.offer_methods(form.pipeline, optimised, runs)),
            "on": gr.update(choices=targets),
            "mix": gr.update(choices=reward_offers.offer_rewards(config, form.optimised, runs, optimise=True)),
        }

    def _slot_updates(self, method: str | None, values: Sequence[float | None] = (), further: str = "") -> list:
        """Updates of a slot's knobs, its words and its further settings."""
        from workbench.ui import contestant_choices

        knobs = contestant_choices.list_knobs(method) if method else []
        knob_values = [*(values or [k.default for k in knobs])][: len(knobs)]
        out = [gr.update(label=k.name, value=v, visible=True) for k, v in zip(knobs, knob_values, strict=True)]
        out += [gr.update(visible=False, value=None)] * (KNOBS - len(knobs))
        if method is None:
            return [*out, "", gr.update(value=further, placeholder="")]
        words = html.hint_html(contestant_choices.describe_method(method))
        placeholder = contestant_choices.other_settings(method)
        return [
            *out,
            f'<div style="font-size:12.5px">{words}</div>',
            gr.update(value=further, placeholder=placeholder),
        ]

    # what a person's choice changes

    def choose_method(self, memory: Mapping, method: str | None, *field_values: Any) -> list:
        """Another method has fields of its own: what these held is remembered, and what they held for this one is back.
        The event also comes when the field is only left: then nothing changes."""
        from workbench.ui import contestant_choices

        shown_method, earlier = memory["shown"], dict(memory["earlier"])
        if method == shown_method or method not in contestant_choices.METHODS:
            return [gr.skip()] * (KNOBS + 3)
        *values, further = field_values
        if shown_method:
            earlier[shown_method] = [values, further]
        values, further = earlier.pop(method, ((), ""))
        return [*self._slot_updates(method, values, further or ""), {"shown": method, "earlier": earlier}]

    def update_choices(self, shown_pipeline: str, *values: Any) -> list:
        """What can be chosen beside the form as it is now. No value changes but one: what is optimised from now on is
        no longer only watched."""
        covered, form = values[: len(COVERED)], read_form(values[len(COVERED) :])
        with bad_input_shown():
            doubled = [name for name in form.watch if name in form.optimised]
            form = replace(form, watch=tuple(name for name in form.watch if name not in doubled))
            offers = self._offer_choices(form)
            notices = [f"{' and '.join(doubled)}: optimised from now on, no longer only watched"] if doubled else []
            advice = self._advise(form, notices)
            is_other = form.pipeline != shown_pipeline
            given = self.given.choose_pipeline(form.pipeline, *covered) if is_other else self.given.skip_outputs()
        watch = offers["watch"] | ({"value": list(form.watch)} if doubled else {})
        head = [*advice, form.pipeline, offers["prompts"], offers["prompt_list"], watch]
        return [*head, *[offers["method"], offers["on"]] * SLOTS, *[offers["mix"]] * SLOTS, *given]

    def advise(self, *values: Any) -> list:
        """What does not go together, and how much it is."""
        with bad_input_shown():
            return self._advise(read_form(values), with_plan=True)

    def _advise(self, form: Form, notices: Sequence[str] = (), with_plan: bool = False) -> list:
        from workbench.ui import contestant_choices, form_advice, pipeline_offers

        misfits = form_advice.find_misfits(form, self.runs)
        can_fit = bool(misfits) and form_advice.fit_form(form, self.runs) != form
        absent = pipeline_offers.explain_absence(contestant_choices.read_pipeline(form.pipeline, self.runs))
        lines = [*notices, *misfits, *([f"{form.pipeline}: {absent}"] if absent else [])]
        plan = "" if misfits or not with_plan else form_advice.describe_plan(form, self.context)
        words = "".join(f"<li>{html.escape_text(line)}</li>" for line in lines)
        marked = f'<ul class="wb-warn wb-misfits" role="status">{words}</ul>' if words else ""
        return [marked + (html.hint_html(plan) if plan else ""), gr.update(visible=can_fit)]

    def fit_fields(self, *values: Any) -> list:
        """What does not go with the pipeline gives way to what does, because somebody asked for that."""
        from workbench.ui import form_advice

        with bad_input_shown():
            return self.fill_form(form_advice.fit_form(read_form(values), self.runs))

    def _preset_filler(self, name: str) -> Callable[[], list]:
        return lambda: self.fill_fields(presets.PRESETS[name])

    def add_contestant(self, pipeline: str, *chosen: str | None) -> list:
        """One contestant more: the first method that nobody has."""
        from workbench.ui import contestant_choices

        methods, optimised = chosen[:SLOTS], [name for name in chosen[SLOTS:] if name]
        with bad_input_shown():
            method_names = [name for _, name in contestant_choices.list_methods(pipeline, optimised, self.runs)]
        new = next((n for n, m in enumerate(methods) if not m), None)
        method = next((m for m in method_names if m not in methods), method_names[0])
        same, memory = [gr.skip()] * (KNOBS + 5), {"shown": method, "earlier": {}}
        return [
            u
            for n in range(SLOTS)
            for u in ([gr.update(visible=True), method, *self._slot_updates(method), memory] if n == new else same)
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

    def add_reward(self, *mixed: str | None) -> list:
        """One row more, in which nothing is chosen yet."""
        new = next((n for n, m in enumerate(mixed) if not m), None)
        return [gr.update(visible=True) if n == new else gr.skip() for n in range(SLOTS)]

    def read_request(self, *values: Any) -> ComparisonRequest:
        """What the editor says. Raises BadInput."""
        from workbench.ui import form_advice

        form, given = read_form(values), values[len(self._plain_inputs()) :]
        inputs = self.given.read_inputs(form.pipeline, given) if given else {}
        return request_of(form, form_advice.contestant_lines(form.slots), inputs)


def _without_value(update: Any) -> dict:
    return {k: v for k, v in update.items() if k != "value"} if isinstance(update, dict) else gr.skip()
