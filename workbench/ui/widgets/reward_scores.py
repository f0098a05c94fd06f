"""What the tab of rewards does: scores what was handed in, maps where a reward looks, and makes pairs of a log."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards import configure_reward
from rewards.people import curation
from workbench.core.errors import BadInput
from workbench.core.inputs import FileInput
from workbench.core.schema import build_dataclass as settings_of
from workbench.feedback import social
from workbench.runs.media_prompts import find_prompt
from workbench.runs.registry import all_rewards
from workbench.ui import input_uploads, reward_choices, uploads
from workbench.ui.context import AppContext
from workbench.ui.limits import INPUTS, JUDGED_INPUTS, LOG_HINT, MAX_FILES, MAX_PROMPT_LETTERS, SCORE_HINT
from workbench.ui.widgets import reward_tables, saliency
from workbench.ui.widgets.html import error_html, escape_text, hint_html, placeholder_html, table_html
from workbench.ui.widgets.samples import FILL, embed_media


def check_prompt(prompt: str | None) -> str:
    """Raises BadInput for one that is too long to be one."""
    prompt = (prompt or "").strip()
    if len(prompt) > MAX_PROMPT_LETTERS:
        raise BadInput(
            f"the prompt has {len(prompt):,} letters; at most {MAX_PROMPT_LETTERS:,}, for no reward reads more"
        )
    return prompt


def prompt_of_file(path: Path, story: Mapping[str, Any]) -> str:
    """What a file says it was made for, whichever program wrote it; "" for none, for several, and for too long a text.
    story: what its reader has found of the workbench's own metadata."""
    try:
        prompt, _ = find_prompt(path, story)
    except BadInput:  # a graph with several prompts
        return ""
    return prompt if len(prompt) <= MAX_PROMPT_LETTERS else ""


def stream_job(
    context: AppContext,
    title: str,
    work: Callable[[threading.Event], Iterator[Any]],
    render: Callable[[Any], tuple],
    waiting_view: tuple,
) -> Iterator[tuple]:
    """A job in the queue as a handler: what it has so far, its turn while it waits; raises BadInput as the job does."""
    job = context.jobs.submit(title, work)
    for view in job.watch():
        if view is not None:
            yield render(view)
        elif ahead := context.jobs.jobs_ahead(job):
            yield (hint_html(f"Waits for {ahead} other job(s)."), *waiting_view[1:])
        else:
            yield waiting_view


def score_files(
    context: AppContext,
    media: Sequence[str] | None,
    prompt: str,
    examples: Sequence[str] | None,
    space: str,
    *given: str | None,
) -> Iterator[tuple]:
    """(table, thumbnails) as HTML, as they fill. given: what the files were made from, a path or None for each of
    JUDGED_INPUTS."""
    if not media:
        yield placeholder_html(SCORE_HINT), ""
        return
    prompt = check_prompt(prompt)
    if space not in reward_choices.list_embedding_models():
        raise BadInput("examples can only be seen through one of the listed models")
    accepted = uploads.accept_uploads(media, context.temp, MAX_FILES)
    examples_folder = copy_examples(uploads.accept_uploads(examples, context.temp), context.temp)
    names = [u.name for u in accepted]
    sources = {
        name: input_uploads.accept_input(path, name, JUDGED_INPUTS[name], context.temp)
        for name, path in zip(JUDGED_INPUTS, given, strict=False)
        if path
    }
    inputs = {name: FileInput.at(upload.path) for name, upload in sources.items()}

    def work(stop: threading.Event) -> Iterator[tuple]:
        contents = [uploads.read_upload(u) for u in accepted]
        prompts = [prompt or prompt_of_file(u.path, f.story) for u, f in zip(accepted, contents, strict=True)]
        tiles = draw_thumbnails(accepted, contents, prompts, sources)
        for rows in reward_choices.score_uploads(contents, prompts, examples_folder, space, stop, inputs):
            yield reward_tables.scores_table(rows, names), tiles

    yield from stream_job(context, f"score {len(accepted)} file(s)", work, tuple, (hint_html("Reading …"), ""))


def draw_thumbnails(
    accepted: Sequence[uploads.Upload],
    contents: Sequence,
    prompts: Sequence[str],
    sources: Mapping[str, uploads.Upload] | None = None,
) -> str:
    """The files as tiles, after what they were made from."""
    tiles = ""
    for name, upload in (sources or {}).items():
        element = embed_media(upload.path, 0, upload.path.stat().st_size)
        caption = f"<figcaption><b>{escape_text(f'{INPUTS[name][0]}: {upload.name}')}</b></figcaption>"
        tiles += f'<figure class="wb-media wb-given">{element}{caption}</figure>'
    for n, (upload, f, prompt) in enumerate(zip(accepted, contents, prompts, strict=True), 1):
        element = embed_media(upload.path, 0, upload.path.stat().st_size)
        remarks = [prompt and f"“{prompt}”", *f.notes, upload.note]
        label = f"{n}: " if len(accepted) > 1 else ""
        tiles += (
            f'<figure class="wb-media">{element}<figcaption><b>{escape_text(label + upload.name)}</b>'
            f"<span>{f.describe_size()}</span></figcaption>"
            f"{hint_html('; '.join(filter(None, remarks)))}</figure>"
        )
    return f'<div class="wb-grid" style="{FILL}">{tiles}</div>'


def copy_examples(examples: Sequence[uploads.Upload], temp: Path) -> str:
    """A folder that holds the exemplar set and nothing else; "" for none. Raises BadInput for what is no picture."""
    if not examples:
        return ""
    if other_kind := next((u for u in examples if u.modality != "image"), None):
        raise BadInput(f"{other_kind.name}: examples are pictures here, and this is {other_kind.modality}")
    folder = temp / f"examples-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    for n, upload in enumerate(examples):
        shutil.copyfile(upload.path, folder / f"{n:03d}{upload.path.suffix}")
    return str(folder)


def list_differentiable() -> list[str]:
    """The rewards that have a gradient of a single sample and can be had here."""
    candidates = reward_choices.list_candidates(set())
    return [n for n, r, row in candidates if r is not None and row.spec.differentiable and row.spec.scope == "sample"]


def list_scoring() -> list[str]:
    """The rewards that score single samples and can be had here."""
    candidates = reward_choices.list_candidates(set())
    return [n for n, r, row in candidates if r is not None and row.spec.scope == "sample"]


def map_file(
    context: AppContext, media: Sequence[str] | None, number: float, prompt: str, reward: str
) -> Iterator[tuple]:
    """(HTML,) of the map of file `number`, from 1, sharpening as copies are averaged."""
    if not media:
        raise BadInput("drop a picture, a clip or a sound first")
    if number is None or number != number or not 1 <= number <= len(media):
        raise BadInput(f"file {number}: there are {len(media)}, counted from 1")
    if reward not in list_differentiable():
        raise BadInput("a map needs one of the listed rewards, which have a gradient")
    prompt = check_prompt(prompt)
    accepted = uploads.accept_upload(media[int(number) - 1], context.temp)
    scorer = configure_reward(all_rewards()[reward], {}, reward)
    if accepted.modality not in scorer.spec.modalities:
        raise BadInput(
            f"{reward} judges {' and '.join(sorted(scorer.spec.modalities))}, "
            f"and {accepted.name} is {accepted.modality}"
        )

    def work(stop: threading.Event) -> Iterator[tuple]:
        content = uploads.read_upload(accepted)
        words = prompt or prompt_of_file(accepted.path, content.story)
        if "prompt" in scorer.spec.needs and not words:
            raise BadInput(f"{reward} needs a prompt: type one")
        for draws, heat_map in saliency.smooth_gradient(scorer, content.media, words, stop):
            yield (saliency.draw_map(heat_map, reward, draws),)

    yield from stream_job(context, f"where {reward} looks", work, tuple, (hint_html("Reading …"),))


def curate_log(context: AppContext, log: str | None, window: float, views: float, confidence: float) -> Iterator[tuple]:
    """(data card, files) of an interaction log."""
    if not log:
        yield placeholder_html(LOG_HINT), None
        return
    values = {"window": window, "min_views": views, "confidence": confidence, "duplicates": -1}
    how = settings_of(curation.Curation, {k: v for k, v in values.items() if v is not None}, "curation")
    path, name = uploads.accept_text(log, context.temp)

    def work(stop: threading.Event) -> Iterator[tuple]:
        try:
            curated = curation.curate_log(curation.read_log(path), path.parent, how)
            social.write_pairs(curated, path.parent, path.parent)
        except BadInput as error:
            raise BadInput(str(error).replace(str(path), name)) from None
        card_facts = {"made from": name} | curated.card
        files = [path.parent / f"{split}.jsonl" for split in curated.splits]
        (path.parent / "card.md").write_text(social.card_as_markdown(card_facts), encoding="utf-8")
        yield draw_card(card_facts), [str(f) for f in (path.parent / "card.md", *files)]

    yield from stream_job(context, "curate a log", work, tuple, (hint_html("Counting …"), None))


def draw_card(facts: dict) -> str:
    """The data card as HTML."""
    log = facts["log"]
    events = ", ".join(f"{n:,} {e}" for e, n in log["events"].items())
    dropped_users = [
        (escape_text(why), f"{n['users']:,}", f"{n['rows']:,}") for why, n in facts["users left out"].items()
    ]
    dropped_items = [(escape_text(s["left out"]), f"{s['items']:,}", f"{s['left']:,}") for s in facts["items left out"]]
    splits = [
        (escape_text(n), *(f"{s[k]:,}" for k in ("prompts", "items", "pairs"))) for n, s in facts["splits"].items()
    ]
    warning = "" if any(s["pairs"] for s in facts["splits"].values()) else error_html(
        "No pair came out: lower the viewers or the confidence, or shorten the window."
    )  # fmt: skip
    return (
        f'<div class="wb-card"><h3>{escape_text(facts["made from"])}</h3>{warning}'
        + hint_html(f"{log['rows']:,} events ({events}) of {log['users']:,} users on {log['items']:,} pictures for "
                    f"{log['prompts']:,} prompts over {log['days']:g} days.")
        + "".join(f'<div style="margin-top:10px">{t}</div>' for t in (
            table_html(("users left out", "users", "events"), dropped_users) if dropped_users else "",
            table_html(("pictures left out, in this order", "left out", "left"), dropped_items)
            if dropped_items else "",
            table_html(("split", "prompts", "pictures", "pairs"), splits),
        ) if t)
        + hint_html("Next, beside the pictures: workbench social train . model=starter:image/clip --out taste")
        + "</div>"
    )  # fmt: skip
