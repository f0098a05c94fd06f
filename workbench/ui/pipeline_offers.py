"""The pipelines that a page offers: grouped by what they make, and marked whether their weights are on this disk."""

from __future__ import annotations

import functools
from pathlib import Path

import pipelines
from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_yaml
from workbench.core.paths import CONFIGS
from workbench.tools import doctor
from workbench.ui import contestant_choices

FACTS = CONFIGS / "weights.yaml"  # hub repository -> {gb: about how large, licence: of its weights}
KINDS = {"image": "pictures", "edit": "edits", "video": "clips", "audio": "music and sound"}


def pipeline_kind(config: pipelines.PipelineConfig) -> str:
    """image, edit, video or audio: what a person looks for."""
    return "edit" if config.modality == "image" and config.inputs else config.modality


def offer_pipelines(runs: Path) -> list[tuple[str, str]]:
    """(label, name): by kind, those that are here first. Labels hold kind, place, size and licence, so all of these can
    be searched for."""
    offers = []
    for name, source in contestant_choices.list_pipelines(runs).items():
        try:
            config = contestant_choices.read_source(source)
        except BadInput:
            continue  # an export that is damaged
        kind, repos = pipeline_kind(config), missing_repositories(config)
        whereabouts = (
            f"to fetch{''.join(f', {fact}' for fact in describe_repository(config.repo))}" if repos else "here"
        )
        label = f"{name.replace('run:', 'trained: ')} · {KINDS[kind]} · {whereabouts}"
        offers.append((list(KINDS).index(kind), bool(repos), not source.startswith("starter"), label, name))
    return [(label, name) for *_, label, name in sorted(offers)]


def missing_repositories(config: pipelines.PipelineConfig) -> list[str]:
    """The hub repositories of a pipeline's weights that this machine lacks."""
    if config.folder is not None:
        return []
    parts = [part.get("repo") if isinstance(part, dict) else part for part in config.components.values()]
    repos = [config.repo, *(part for part in parts if isinstance(part, str))]
    return [repo for repo in dict.fromkeys(repos) if not doctor.is_cached(repo) and not Path(repo).exists()]


def describe_repository(repo: str) -> list[str]:
    """How large its weights are and under which licence, as far as that is known here."""
    facts = _read_facts().get(repo, {})
    size = [f"about {facts['gb']:g} GB"] if "gb" in facts else []
    return size + ([facts["licence"]] if "licence" in facts else [])


@functools.cache
def _read_facts() -> dict[str, dict]:
    return read_yaml(FACTS) if FACTS.is_file() else {}


def explain_absence(config: pipelines.PipelineConfig) -> str:
    """One sentence on weights that are not here: the command that fetches them; "" where all are here."""
    if not (repos := missing_repositories(config)):
        return ""
    facts = describe_repository(config.repo)
    brackets = f" ({', '.join(facts)})" if facts else ""
    return f"its weights are not on this disk{brackets}; fetch them with: " + "; ".join(
        f"hf download {r}" for r in repos
    )
