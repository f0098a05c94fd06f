"""What the tab of rewards does: judges what was handed in, maps where a reward looks, and makes pairs of a log."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rewards import configured
from rewards.people import curation
from workbench.core.schema import build as settings_of
from workbench.core.types import BadInput
from workbench.feedback import social
from workbench.runs.registry import judges
from workbench.ui import reward_choices, uploads
from workbench.ui.context import Place
from workbench.ui.tabs.rewards import LOG, MOST, PROMPT, TEACH
from workbench.ui.widgets import saliency
from workbench.ui.widgets.html import bad, empty, note, plain, table
from workbench.ui.widgets.samples import FILL, embedded


def asked_prompt(prompt: str | None) -> str:
    """Raises BadInput for one that is too long to be one."""
    prompt = (prompt or "").strip()
    if len(prompt) > PROMPT:
        raise BadInput(f"the prompt has {len(prompt):,} letters; at most {PROMPT:,}, for no reward reads more")
    return prompt


def own_prompt(story: object) -> str:
    """What a file says it was made for; what is no sensible text is not believed."""
    told = story.get("prompt") if isinstance(story, dict) else None
    return told if isinstance(told, str) and len(told) <= PROMPT else ""


def through(place: Place, title: str, work: Callable, shown: Callable[[Any], tuple], waits: tuple) -> Iterator[tuple]:
    """A job at the desk as a handler: what it has so far, its turn while it waits; raises BadInput as the job does."""
    job = place.desk.submit(title, work)
    for view in job.watch():
        if view is not None:
            yield shown(view)
        elif ahead := place.desk.ahead(job):
            yield (note(f"Waits for {ahead} other job(s)."), *waits[1:])
        else:
            yield waits


def score(
    place: Place, media: Sequence[str] | None, prompt: str, examples: Sequence[str] | None, space: str
) -> Iterator[tuple]:
    """(table, thumbnails) as HTML, as they fill."""
    if not media:
        yield empty(TEACH), ""
        return
    prompt = asked_prompt(prompt)
    if space not in reward_choices.spaces():
        raise BadInput("examples can only be seen through one of the listed models")
    taken = uploads.take_all(media, place.temp, MOST)
    shelf = set_aside(uploads.take_all(examples, place.temp), place.temp)
    names = [u.name for u in taken]

    def work(stop):
        found = [uploads.look(u) for u in taken]
        prompts = [prompt or own_prompt(f.story) for f in found]
        tiles = thumbnails(taken, found, prompts)
        for rows in reward_choices.score(found, prompts, shelf, space, stop):
            yield reward_choices.results(rows, names), tiles

    yield from through(place, f"score {len(taken)} file(s)", work, tuple, (note("Reading …"), ""))


def thumbnails(taken: Sequence[uploads.Upload], found: Sequence, prompts: Sequence[str]) -> str:
    tiles = ""
    for n, (upload, f, prompt) in enumerate(zip(taken, found, prompts, strict=True), 1):
        shown = embedded(upload.path, 0, upload.path.stat().st_size)
        told = [prompt and f"“{prompt}”", *f.notes, upload.note]
        x, rate = f.media.data, f.media.rate
        size = f"{x.shape[-1]} x {x.shape[-2]}" if f.media.modality != "audio" else f"{x.shape[-1] / rate:.1f} s"
        label = f"{n}: " if len(taken) > 1 else ""
        tiles += (
            f'<figure class="wb-media">{shown}<figcaption><b>{plain(label + upload.name)}</b><span>{size}</span></figcaption>'
            f"{note('; '.join(filter(None, told)))}</figure>"
        )
    return f'<div class="wb-grid" style="{FILL}">{tiles}</div>'


def set_aside(examples: Sequence[uploads.Upload], home: Path) -> str:
    """A folder that holds the exemplar set and nothing else; "" for none. Raises BadInput for what is no picture."""
    if not examples:
        return ""
    if odd := next((u for u in examples if u.modality != "image"), None):
        raise BadInput(f"{odd.name}: examples are pictures here, and this is {odd.modality}")
    folder = home / f"examples-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    for n, upload in enumerate(examples):
        shutil.copyfile(upload.path, folder / f"{n:03d}{upload.path.suffix}")
    return str(folder)


def steep() -> list[str]:
    """The rewards that have a gradient of a single sample and can be had here."""
    found = reward_choices.candidates(set())
    return [n for n, r, row in found if r is not None and row.spec.differentiable and row.spec.scope == "sample"]


def look(place: Place, media: Sequence[str] | None, number: float, prompt: str, reward: str) -> Iterator[tuple]:
    """(HTML,) of the map of file `number`, from 1, sharpening as copies are averaged."""
    if not media:
        raise BadInput("drop a picture, a clip or a sound first")
    if number is None or number != number or not 1 <= number <= len(media):
        raise BadInput(f"file {number}: there are {len(media)}, counted from 1")
    if reward not in steep():
        raise BadInput("a map needs one of the listed rewards, which have a gradient")
    prompt = asked_prompt(prompt)
    taken = uploads.take(media[int(number) - 1], place.temp)
    judge = configured(judges()[reward], {}, reward)
    if taken.modality not in judge.spec.modalities:
        raise BadInput(
            f"{reward} judges {' and '.join(sorted(judge.spec.modalities))}, and {taken.name} is {taken.modality}"
        )

    def work(stop):
        found = uploads.look(taken)
        words = prompt or own_prompt(found.story)
        if "prompt" in judge.spec.needs and not words:
            raise BadInput(f"{reward} needs a prompt: type one")
        for done, made in saliency.smooth(judge, found.media, words, stop):
            yield (saliency.draw(made, reward, done),)

    yield from through(place, f"where {reward} looks", work, tuple, (note("Reading …"),))


def curate(place: Place, log: str | None, window: float, views: float, confidence: float) -> Iterator[tuple]:
    """(data card, files) of an interaction log."""
    if not log:
        yield empty(LOG), None
        return
    values = {"window": window, "min_views": views, "confidence": confidence, "duplicates": -1}
    how = settings_of(curation.Curation, {k: v for k, v in values.items() if v is not None}, "curation")
    path, name = uploads.text(log, place.temp)

    def work(stop):
        try:
            made = curation.curate(curation.read_log(path), path.parent, how)
            social.write_pairs(made, path.parent, path.parent)
        except BadInput as error:
            raise BadInput(str(error).replace(str(path), name)) from None
        told = {"made from": name} | made.card
        files = [path.parent / f"{split}.jsonl" for split in made.splits]
        (path.parent / "card.md").write_text(social.markdown(told), encoding="utf-8")
        yield card(told), [str(f) for f in (path.parent / "card.md", *files)]

    yield from through(place, "curate a log", work, tuple, (note("Counting …"), None))


def card(told: dict) -> str:
    """The data card as HTML."""
    log = told["log"]
    events = ", ".join(f"{n:,} {e}" for e, n in log["events"].items())
    lost = [(plain(why), f"{n['users']:,}", f"{n['rows']:,}") for why, n in told["users left out"].items()]
    less = [(plain(s["left out"]), f"{s['items']:,}", f"{s['left']:,}") for s in told["items left out"]]
    splits = [(plain(n), *(f"{s[k]:,}" for k in ("prompts", "items", "pairs"))) for n, s in told["splits"].items()]
    few = "" if any(s["pairs"] for s in told["splits"].values()) else bad(
        "No pair came out: lower the viewers or the confidence, or shorten the window."
    )  # fmt: skip
    return (
        f'<div class="wb-card"><h3>{plain(told["made from"])}</h3>{few}'
        + note(f"{log['rows']:,} events ({events}) of {log['users']:,} users on {log['items']:,} pictures for {log['prompts']:,} prompts over {log['days']:g} days.")  # fmt: skip
        + "".join(f'<div style="margin-top:10px">{t}</div>' for t in (
            table(("users left out", "users", "events"), lost) if lost else "",
            table(("pictures left out, in this order", "left out", "left"), less) if less else "",
            table(("split", "prompts", "pictures", "pairs"), splits),
        ) if t)
        + note("Next, beside the pictures: workbench social train . model=starter:image/clip --out taste") + "</div>"
    )  # fmt: skip
