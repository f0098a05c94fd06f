"""Findings on a run's samples themselves: those that are no media, and rewards that can't tell them apart."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.core.io.parsing import one_line
from workbench.report.estimates import finished_contestants
from workbench.report.formatting import count_things, format_number, join_words, name_in_sentence


def sample_sentences(summary: Mapping) -> list[str]:
    """All sentences on the samples of a run."""
    return [*blank_sentences(summary), *flat_reward_sentences(summary)]


def blank_sentences(summary: Mapping) -> list[str]:
    """Sentences on contestants of which some samples are no media, naming the first of them."""
    owners: dict[tuple, list[str]] = {}  # (count, of all, the samples, reason) -> contestants
    for c in finished_contestants(summary):
        if blank := c.get("blank"):
            samples = [f"{one_line(s['prompt'], 60)!r} with seed {s['seed']}" for s in blank["named"]]
            more = [f"{blank['count'] - len(samples)} more"] if blank["count"] > len(samples) else []
            key = (blank["count"], blank["of"], join_words(samples + more), blank["named"][0]["reason"])
            owners.setdefault(key, []).append(c["name"])
    return [
        f"{count} of {count_things(total, 'sample')} of {'each of ' if len(names) > 1 else ''}{join_words(names)} "
        f"{'is' if count == 1 else 'are'} left out: {samples} ({one_line(reason, 200)})."
        for (count, total, samples, reason), names in owners.items()
    ]


def flat_reward_sentences(summary: Mapping) -> list[str]:
    """A sentence per reward that can't tell the run's samples apart."""
    out = []
    for name, flat in summary.get("flat_rewards", {}).items():
        what = (
            f"the same value, {format_number(flat['value'], 3)}, to all {flat['samples']} samples"
            if "value" in flat
            else f"all samples of a prompt the same value, on each of {count_things(flat['prompts'], 'prompt')}"
        )
        sentence = f"{name_in_sentence(name)} gave {what}: it ranks nothing."
        out.append(sentence[0].upper() + sentence[1:] if sentence.startswith("the ") else sentence)
    return out
