"""All pipelines, rewards, methods and configs, as rows for tables and JSON. Nothing is constructed or loaded."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines import read_config
from pipelines.variants import pipeline_label
from rewards import build
from rewards.people import tastes
from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_yaml, read_text
from workbench.core.paths import CONFIGS
from workbench.core.setting_help import describe_settings, summarise_class
from workbench.methods import METHODS
from workbench.runs.config import bundled_runs
from workbench.runs.registry import all_rewards


def list_pipelines() -> list[dict]:
    """The configs in configs/pipelines: name, modality, class, steps, repo."""
    rows = []
    for path in sorted((CONFIGS / "pipelines").glob("*.yaml")):
        config = read_config(path.stem)
        rows.append(
            {
                "name": path.stem,
                "modality": config.modality,
                "class": config.pipeline,
                "steps": config.steps,
                "repo": config.repo,
            }
        )
    return rows


def list_rewards(runs: Path = tastes.RUNS) -> list[dict]:
    """All rewards, and tastes that were learned from votes here: name, modality, scope, gradient, needs, typical range,
    licence, paper, what it is."""
    rows = []
    for name, cls in (all_rewards() | _learned_tastes(runs)).items():
        s = cls.spec
        row = {"name": name, "modality": ", ".join(sorted(s.modalities)), "scope": s.scope}
        row |= {"gradient": "yes" if s.differentiable else "no", "needs": ", ".join(sorted(s.needs))}
        row |= {
            "typical": "{:g} … {:g}".format(*s.typical) if s.typical else "",
            "licence": s.licence,
            "paper": s.paper,
        }
        rows.append(row | {"what": str(cls.report) if hasattr(cls, "report") else summarise_class(cls)})
    return rows


def _learned_tastes(runs: Path) -> dict[str, Any]:
    """Name -> taste. One that is damaged is left to whoever names it."""
    learned = {}
    for name, folder in tastes.list_tastes(runs).items():
        with suppress(BadInput):
            block = tastes.taste_block(folder)
            learned[f"{tastes.PREFIX}{name}"] = build(block["reward"], path=block["path"])
    return learned


def list_methods() -> list[dict]:
    """All methods: name, needs, paper, what it is and what was measured of it, settings with defaults and help."""
    rows = []
    for name, cls in METHODS.items():
        settings = "; ".join(f"{n}={default} ({help})" for n, default, help in describe_settings(cls))
        row = {"name": name, "needs": ", ".join(sorted(cls.needs)), "paper": cls.paper}
        measured = f" On the starter pictures: {cls.measured} (docs/methods.md)." if cls.measured else ""
        rows.append(row | {"what": summarise_class(cls) + measured, "settings": settings})
    return rows


def list_configs() -> list[dict]:
    """The configs in configs/runs: name, pipeline, and the comment in the first line."""
    rows = []
    for name, path in bundled_runs():
        text = read_text(path)
        values = parse_yaml(text, str(path))
        about = text.splitlines()[0].removeprefix("#").strip() if text.startswith("#") else ""
        rows.append({"name": name, "pipeline": pipeline_label(values["pipeline"]), "what": about})
    return rows
