"""What rewards said, and which rewards there are, as HTML tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.report.formatting import format_number
from workbench.ui import reward_choices
from workbench.ui.widgets.html import escape_text, table_html

ALTOGETHER = "all together"


def draw_range(typical: tuple[float, float] | None, values: Sequence[float | None]) -> str:
    """The typical range as a thick line, each value as a dot; one beyond the drawing becomes an arrow at its end."""
    if typical is None:
        return '<span class="wb-note">not known</span>'
    low, high = typical
    margin = (high - low) * 0.25
    marks, labels = "", []
    for value in values:
        if value is None:
            continue
        share = (value - low + margin) / (high - low + 2 * margin)
        x = 150 * min(max(share, 0.0), 1.0)
        labels.append("within" if low <= value <= high else "below" if value < low else "above")
        marks += (
            f'<circle cx="{x:.1f}" cy="8" r="4.5" fill="var(--wb-t1)"/>'
            if 0 < share < 1
            else f'<path d="M{x:.1f} 8 l{-9 if share >= 1 else 9} -5 v10 z" fill="var(--wb-t2)"/>'
        )
    x_low, x_high = 150 * 0.25 / 1.5, 150 * 1.25 / 1.5
    return (
        '<svg width="150" height="16" viewBox="0 0 150 16" role="img" '
        f'aria-label="{", ".join(dict.fromkeys(labels)) or "no value"}" '
        'style="display:inline-block;overflow:visible">'
        '<line x1="0" x2="150" y1="8" y2="8" stroke="var(--wb-rule)" stroke-width="2"/>'
        f'<line x1="{x_low:.1f}" x2="{x_high:.1f}" y1="8" y2="8" stroke="var(--wb-t0)" stroke-width="5" '
        f'opacity=".55"/>{marks}</svg>'
        f"<small>{format_number(low)} … {format_number(high)}</small>"
    )


def scores_table(rows: Sequence[reward_choices.RewardRow], names: Sequence[str]) -> str:
    """Those that judged, then those that did not and why."""
    scored = [r for r in rows if r.set_score is not None or any(v is not None for v in r.values)]
    waiting = [r for r in rows if r.reason == "waits"]
    several = len(names) > 1
    header = (
        "reward",
        *(f"file {n + 1}" if several else "score" for n in range(len(names))),
        "typical range",
        "gradient",
    )
    body = []
    for row in scored:
        values = row.values or [None] * len(names)
        if row.set_score is not None:
            cells = [f"{_format_number(row.set_score)}<small>{ALTOGETHER}</small>", *[""] * (len(names) - 1)]
        else:
            cells = [_format_number(v) for v in values]
        marked = values if row.set_score is None else [row.set_score]
        facts = (
            f"<small>{escape_text(row.about)}</small>"
            f"<small>version {escape_text(row.spec.version)} · {escape_text(row.licence)}</small>"
        )
        gradient = "yes" if row.spec.differentiable else "no"
        body.append(
            (
                f'<div style="min-width:min(15em,40vw)">{escape_text(row.name)}{facts}</div>',
                *cells,
                draw_range(row.spec.typical, marked),
                gradient,
            )
        )
    out = table_html(header, body) if body else ""
    if waiting:
        out += f'<p class="wb-note" style="margin-top:8px">{len(waiting)} more are at work or wait.</p>'
    unscored = [r for r in rows if r not in scored and r not in waiting]
    return out + (list_unscored(unscored) if unscored else "")


def list_unscored(rows: Sequence[reward_choices.RewardRow]) -> str:
    items = "".join(f"<li><b>{escape_text(r.name)}</b> {escape_text(r.reason)}</li>" for r in rows)
    return (
        '<details class="wb-note" style="margin-top:12px">'
        f'<summary style="cursor:pointer">{len(rows)} gave no score</summary>'
        f'<ul style="margin:6px 0 0 18px">{items}</ul></details>'
    )


def _format_number(value: float | None) -> str:
    return format_number(value, 3)


def all_rewards_table() -> str:
    """All rewards with licence and paper, and whether they can be had here."""
    body = []
    for name, reward, row in reward_choices.list_candidates(set()):
        spec, modalities = row.spec, " and ".join(sorted(row.spec.modalities))
        state = "ready" if reward is not None else row.reason
        typical = "{:g} … {:g}".format(*spec.typical) if spec.typical else ""
        title = (
            f'<div style="min-width:min(15em,40vw)">{escape_text(name)}<small>{escape_text(row.about)}</small></div>'
        )
        gradient = "yes" if spec.differentiable else "no"
        cells = (escape_text(text) for text in (modalities, typical, gradient, row.licence))
        body.append((title, *cells, _paper_link(spec.paper), escape_text(state)))
    return _scrolling(
        table_html(
            ("reward", "judges", "typical", "gradient", "licence", "paper", "here"), body, text_columns=(1, 4, 6)
        )
    )


def _scrolling(inner: str) -> str:
    return f'<div style="max-height:70vh;overflow-y:auto">{inner}</div>'


def _paper_link(paper: str) -> str:
    """A link where it is an arXiv number or a DOI."""
    addresses: Mapping[str, str] = {"arXiv:": "https://arxiv.org/abs/", "doi:": "https://doi.org/"}
    for prefix, address in addresses.items():
        if paper.startswith(prefix):
            return (
                f'<a href="{escape_text(address + paper.removeprefix(prefix))}" target="_blank" '
                f'rel="noopener noreferrer">{escape_text(paper)}</a>'
            )
    return escape_text(paper)
