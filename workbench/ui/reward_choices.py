"""Every reward that applies to what somebody handed in, without anything being fetched; and why the others do not."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from rewards import configured
from rewards.sets import exemplar
from workbench.core.io.media import Found
from workbench.core.paths import resolve
from workbench.core.types import BadInput, Reward, RewardSpec
from workbench.report.findings import number
from workbench.runs.registry import judges
from workbench.ui.tabs.rewards import SPACES
from workbench.ui.widgets.html import plain, table

WEIGHTS = ("model", "weights", "backbone", "tokenizer")  # the fields that say what a reward loads
FILES = ("config.json", "tokenizer_config.json", "open_clip_config.json", "model_index.json")
ALTOGETHER = "all together"


@dataclass
class Row:
    """One reward and what it said."""

    name: str
    spec: RewardSpec
    about: str
    values: list[float | None] = field(default_factory=list)  # one a file
    licence: str = ""  # of its weights
    together: float | None = None  # of a reward of sets
    why: str = ""  # there is no value


def absent(reward: object) -> str:
    """The weights that this reward needs and this machine lacks; "" when all are here."""
    named = [getattr(reward, f) for f in WEIGHTS if isinstance(getattr(reward, f, None), str)]
    return next((source for source in named if source and not here(source)), "")


def here(source: str) -> bool:
    """Whether the weights that a string names can be had without a network. The forms are those of rewards/encoders/image_text.py."""
    if source.startswith("starter:"):
        try:
            return bool(resolve(source))
        except FileNotFoundError:
            return False
    kind, colon, rest = source.partition(":")
    rest = rest if colon else source
    if kind == "open_clip" and colon:
        rest = rest.partition("/")[2]
    if Path(rest).expanduser().exists() or rest == "logmel":
        return True
    parts = rest.split("/", 2)
    if len(parts) == 3:
        return _cached("/".join(parts[:2]), parts[2])
    if kind == "open_clip" and colon:
        return False  # a pretrained tag: where open_clip keeps it, only loading tells
    return any(_cached(rest, file) for file in FILES)


def _cached(repo: str, file: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(repo, file), (str, os.PathLike))
    except ValueError:  # no name that the hub could have
        return False


def spaces() -> list[str]:
    return [s for s in SPACES if here(s)]


def candidates(
    modalities: set[str], examples: str = "", space: str = SPACES[0]
) -> Iterator[tuple[str, Reward | None, Row]]:
    """(name, the reward or None where it is not tried, its row with the reason) for every reward of these modalities.

    `examples` is a folder of the exemplar set, "" without one; `space` the model through which sets are seen."""
    for name, cls in judges().items():
        about = (cls.__doc__ or "").strip().split("\n")[0]
        reward, why = _made(name, cls, examples, space)
        row = Row(name, (reward or cls).spec, about, why=why)
        loads = any(getattr(reward or cls, f, "") for f in WEIGHTS)
        row.licence = row.spec.licence or ("that of the model it looks through" if loads else "no weights of its own")
        if not modalities or modalities & row.spec.modalities:
            yield name, reward if not why else None, row


def _made(name: str, cls: type, examples: str, space: str) -> tuple[Reward | None, str]:
    settings: dict = {}
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    if "url" in fields:
        return None, "asks a server, which a page does not; use it in a run or with workbench score"
    if issubclass(cls, exemplar.SetReward) and "audio" not in cls.spec.modalities:
        settings = {"model": space} | ({"reference": examples} if examples and "reference" in fields else {})
    try:
        reward = configured(cls, settings, name)
    except BadInput as error:
        return None, f"needs settings of yours: {str(error).partition(': ')[2]}"
    if "reference" in reward.spec.needs:
        return None, "compares with examples: give some below"
    if "source" in reward.spec.needs or reward.spec.scope == "group":
        return None, "judges an edit or the samples of one prompt together, which single files are not"
    if missing := absent(reward):
        return None, f"its weights are not on this machine: {missing}"
    return reward, ""


def score(
    found: Sequence[Found], prompts: Sequence[str], examples: str, space: str, stop: threading.Event
) -> Iterator[list[Row]]:
    """The rows, again and again as they fill. A reward that fails says why, and the others go on."""
    rows: list[Row] = []
    judged = [*candidates({f.media.modality for f in found}, examples, space)]
    for _, reward, row in judged:
        rows.append(row)
        if reward is not None:
            row.why = "waits"
    for _, reward, row in judged:
        if stop.is_set():
            row.why = row.why.replace("waits", "stopped before its turn")
            continue
        if reward is None:
            continue
        row.why = ""
        try:
            _judge(reward, row, found, prompts)
        except (ValueError, RuntimeError, OSError) as error:  # BadInput is a ValueError
            told = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            row.values, row.why = [], told.replace(examples, "the examples") if examples else told
        yield rows
    yield rows


@torch.no_grad()
def _judge(reward: Reward, row: Row, found: Sequence[Found], prompts: Sequence[str]) -> None:
    fits = [f.media.modality in reward.spec.modalities for f in found]
    if reward.spec.scope == "set":
        features = [reward.features(f.media) for f, ok in zip(found, fits, strict=True) if ok]
        x = torch.cat(features)
        row.together = _finite(reward.of(x, reward.target(None, x.device)))
        row.why = "" if row.together is not None else f"can't judge a set of {len(x)}"
        return
    if "prompt" in reward.spec.needs and not any(prompts):
        row.why = "needs a prompt: type one"
        return
    row.values = [
        _finite(reward(media=f.media, prompts=[p])[0]) if ok and (p or "prompt" not in reward.spec.needs) else None
        for f, p, ok in zip(found, prompts, fits, strict=True)
    ]
    if all(v is None for v in row.values):
        row.why = "found no score: what it reads in the prompt or in the file is not there"


def _finite(value: torch.Tensor) -> float | None:
    number = float(value)
    return number if abs(number) < float("inf") else None


# --- as HTML ---------------------------------------------------------------------------------------------------------


def bar(typical: tuple[float, float] | None, values: Sequence[float | None]) -> str:
    """The typical range as a thick line, each value as a dot; one beyond the drawing becomes an arrow at its end."""
    if typical is None:
        return '<span class="wb-note">not known</span>'
    low, high = typical
    room = (high - low) * 0.25
    drawn, told = "", []
    for value in values:
        if value is None:
            continue
        share = (value - low + room) / (high - low + 2 * room)
        x = 150 * min(max(share, 0.0), 1.0)
        told.append("within" if low <= value <= high else "below" if value < low else "above")
        drawn += (
            f'<circle cx="{x:.1f}" cy="8" r="4.5" fill="var(--wb-t1)"/>'
            if 0 < share < 1
            else f'<path d="M{x:.1f} 8 l{-9 if share >= 1 else 9} -5 v10 z" fill="var(--wb-t2)"/>'
        )
    left, right = 150 * 0.25 / 1.5, 150 * 1.25 / 1.5
    return (
        f'<svg width="150" height="16" viewBox="0 0 150 16" role="img" aria-label="{", ".join(dict.fromkeys(told)) or "no value"}" '
        'style="display:inline-block;overflow:visible"><line x1="0" x2="150" y1="8" y2="8" stroke="var(--wb-rule)" stroke-width="2"/>'
        f'<line x1="{left:.1f}" x2="{right:.1f}" y1="8" y2="8" stroke="var(--wb-t0)" stroke-width="5" opacity=".55"/>{drawn}</svg>'
        f"<small>{number(low)} … {number(high)}</small>"
    )


def results(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Those that judged, then those that did not and why."""
    judged = [r for r in rows if r.together is not None or any(v is not None for v in r.values)]
    waiting = [r for r in rows if r.why == "waits"]
    several = len(names) > 1
    head = (
        "reward",
        *(f"file {n + 1}" if several else "score" for n in range(len(names))),
        "typical range",
        "gradient",
    )
    body = []
    for row in judged:
        values = row.values or [None] * len(names)
        if row.together is not None:
            cells = [f"{_number(row.together)}<small>{ALTOGETHER}</small>", *[""] * (len(names) - 1)]
        else:
            cells = [_number(v) for v in values]
        shown = values if row.together is None else [row.together]
        facts = (
            f"<small>{plain(row.about)}</small><small>version {plain(row.spec.version)} · {plain(row.licence)}</small>"
        )
        gradient = "yes" if row.spec.differentiable else "no"
        body.append(
            (
                f'<div style="min-width:min(15em,40vw)">{plain(row.name)}{facts}</div>',
                *cells,
                bar(row.spec.typical, shown),
                gradient,
            )
        )
    out = table(head, body) if body else ""
    if waiting:
        out += f'<p class="wb-note" style="margin-top:8px">{len(waiting)} more are at work or wait.</p>'
    rest = [r for r in rows if r not in judged and r not in waiting]
    return out + (refused(rest) if rest else "")


def refused(rows: Sequence[Row]) -> str:
    items = "".join(f"<li><b>{plain(r.name)}</b> {plain(r.why)}</li>" for r in rows)
    return f'<details class="wb-note" style="margin-top:12px"><summary style="cursor:pointer">{len(rows)} gave no score</summary><ul style="margin:6px 0 0 18px">{items}</ul></details>'


def _number(value: float | None) -> str:
    return number(value, 3)


def everything() -> str:
    """All rewards with licence and paper, and whether they can be had here."""
    body = []
    for name, reward, row in candidates(set()):
        spec, judged = row.spec, " and ".join(sorted(row.spec.modalities))
        state = "ready" if reward is not None else row.why
        typical = "{:g} … {:g}".format(*spec.typical) if spec.typical else ""
        body.append((f'<div style="min-width:min(15em,40vw)">{plain(name)}<small>{plain(row.about)}</small></div>', plain(judged), plain(typical),
                     "yes" if spec.differentiable else "no", plain(row.licence), _paper(spec.paper), plain(state)))  # fmt: skip
    return _window(table(("reward", "judges", "typical", "gradient", "licence", "paper", "here"), body, left=(1, 4, 6)))


def _window(inner: str) -> str:
    return f'<div style="max-height:70vh;overflow-y:auto">{inner}</div>'


def _paper(paper: str) -> str:
    """A link where it is an arXiv number or a DOI."""
    homes: Mapping[str, str] = {"arXiv:": "https://arxiv.org/abs/", "doi:": "https://doi.org/"}
    for start, home in homes.items():
        if paper.startswith(start):
            return f'<a href="{plain(home + paper.removeprefix(start))}" target="_blank" rel="noopener noreferrer">{plain(paper)}</a>'
    return plain(paper)
