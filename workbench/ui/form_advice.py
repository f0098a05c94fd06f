"""What in the studio's form does not go together, in one line each, and a form in which it does. Nothing is changed
that nobody asked to change."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pipelines
from workbench.core.errors import BadInput
from workbench.engine.plan import plan_run
from workbench.methods import METHODS
from workbench.ui import contestant_choices, pipeline_offers, presets, prompt_choices, reward_offers, studio_comparison
from workbench.ui.context import AppContext
from workbench.ui.form import Form, Slot, request_of, typed_prompts
from workbench.ui.limits import SLOTS

STARTER_LIST = re.compile(r"starter-(image-to-video|image|edit|video|music)\b")
LIST_KINDS = {"image": "image", "edit": "edit", "video": "video", "image-to-video": "video", "music": "audio"}


def find_misfits(form: Form, runs: Path) -> list[str]:
    """What does not apply to the form's pipeline, each in a clause; nothing where all does. Raises BadInput for an
    unknown pipeline."""
    config = contestant_choices.read_pipeline(form.pipeline, runs)
    optimised = [name for name in form.optimised if reward_offers.is_known(name, runs)]
    known_rewards = [*optimised, *(name for name in form.watch if reward_offers.is_known(name, runs))]
    unknown = [name for name in (*form.optimised, *form.watch) if name not in known_rewards]
    clauses = [f"{name} is no reward here" for name in unknown]
    clauses += [
        f"{name} {why}"
        for name in dict.fromkeys(known_rewards)
        if (why := reward_offers.explain_misfit(name, config, runs))
    ]
    clauses += [
        f"{slot.method} {why}"
        for slot in form.slots
        if slot.method in METHODS and (why := contestant_choices.explain_method(slot.method, config, optimised))
    ]
    targets = {name for _, name in contestant_choices.list_alternatives(form.pipeline, runs)}
    clauses += [
        f"{slot.on}, on which {slot.method} runs, makes other media, or from other things, than {form.pipeline}"
        for slot in form.slots
        if slot.method and slot.on not in targets
    ]
    if clause := _explain_prompts(form, config):
        clauses.append(clause)
    return list(dict.fromkeys(clauses))


def _explain_prompts(form: Form, config: pipelines.PipelineConfig) -> str:
    kind = pipeline_offers.pipeline_kind(config)
    if form.prompt_list:
        match = STARTER_LIST.match(form.prompt_list)
        made_for = LIST_KINDS[match[1]] if match else kind
        words = f"the prompts of {form.prompt_list} are"
    else:
        made_for, words = _kind_of_untouched(form.prompts) or kind, "the prompts are"
    is_described = made_for == "image" and kind == "edit" and not config.repo.startswith("starter:")
    if made_for == kind or is_described:  # many editors take descriptions
        return ""
    return f"{words} those for {pipeline_offers.KINDS[made_for]}, and {config.name} makes {pipeline_offers.KINDS[kind]}"


def _kind_of_untouched(text: str) -> str:
    """The kind whose preset these prompts are, as the app offered them; "" for anybody's own."""
    lines = tuple(typed_prompts(text))
    return next((kind for kind, name in presets.KINDS.items() if presets.PRESETS[name].prompts == lines), "")


def describe_plan(form: Form, context: AppContext) -> str:
    """How much the form asks for, or why it can't be made. "" where uploads decide, which are not looked at here."""
    kinds = contestant_choices.list_inputs(form.pipeline, context.runs)
    if kinds and not form.prompt_list:
        return ""
    try:
        request = request_of(form, contestant_lines(form.slots), {})
        plan = plan_run(studio_comparison.build_config(request, context))
    except BadInput as error:
        return str(error)
    return studio_comparison.describe_cost(plan, context.runs)


def contestant_lines(slots: tuple[Slot, ...]) -> list[str]:
    """The contestants of a form as text."""
    return [contestant_choices.format_line(s.method, s.values, s.further, s.on) for s in slots if s.method]


def fit_form(form: Form, runs: Path) -> Form:
    """The same form where what does not apply to its pipeline gives way to what does; all else stays."""
    config = contestant_choices.read_pipeline(form.pipeline, runs)
    usual = presets.PRESETS[presets.KINDS[pipeline_offers.pipeline_kind(config)]]
    suitable = [name for _, name in reward_offers.list_rewards(config, runs) if not reward_offers.is_oracle(name)]
    mix = [(name, weight) for name, weight in form.mix if name in suitable]
    if not mix and suitable:
        mix = [next(((n, w) for n, w in usual.rewards.items() if n in suitable), (suitable[0], 1.0))]
    optimised = [name for name, _ in mix]
    usual_watch = reward_offers.default_watch(config, optimised, runs)
    fitting = {name for _, name in reward_offers.list_rewards(config, runs)} - {*optimised}
    watch = tuple(dict.fromkeys([*(name for name in form.watch if name in fitting), *usual_watch]))
    targets = {name for _, name in contestant_choices.list_alternatives(form.pipeline, runs)}
    slots = tuple(replace(slot, on=slot.on if slot.on in targets else "") for slot in form.slots)
    fitted = replace(form, mix=(*mix, *[(None, 1.0)] * (SLOTS - len(mix))), watch=watch, slots=slots)
    return _fit_prompts(fitted, config, runs)


def _fit_prompts(form: Form, config: pipelines.PipelineConfig, runs: Path) -> Form:
    usual = presets.PRESETS[presets.KINDS[pipeline_offers.pipeline_kind(config)]]
    is_misfit = bool(_explain_prompts(form, config))
    own_list = prompt_choices.suggest_list(form.pipeline, config.inputs, "" if is_misfit else form.prompt_list, runs)
    if not is_misfit and own_list == form.prompt_list:
        return form
    if own_list or not is_misfit:
        return replace(form, prompt_list=own_list)
    if isinstance(usual.prompts, str):
        return replace(form, prompt_list=usual.prompts, numbers=(*form.numbers[:-1], usual.limit))
    return replace(form, prompt_list="", prompts="\n".join(usual.prompts))
