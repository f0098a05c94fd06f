"""What there is, as rows for tables and JSON. Nothing is constructed or loaded for a list."""

from __future__ import annotations

import yaml

from workbench.core.paths import CONFIGS
from workbench.methods import METHODS
from workbench.runs.config import bundled_runs, settings_of
from workbench.runs.registry import judges


def pipelines() -> list[dict]:
    from pipelines import read

    found = []
    for path in sorted((CONFIGS / "pipelines").glob("*.yaml")):
        c = read(path.stem)
        found.append({"name": path.stem, "modality": c.modality, "class": c.pipeline, "steps": c.steps, "repo": c.repo})
    return found


def rewards() -> list[dict]:
    found = []
    for name, cls in judges().items():
        s = cls.spec
        row = {"name": name, "modality": ", ".join(sorted(s.modalities)), "scope": s.scope}
        row |= {"gradient": "yes" if s.differentiable else "no", "needs": ", ".join(sorted(s.needs))}
        row |= {
            "typical": "{:g} … {:g}".format(*s.typical) if s.typical else "",
            "licence": s.licence,
            "paper": s.paper,
        }
        found.append(row | {"what": _first_line(cls)})
    return found


def methods() -> list[dict]:
    found = []
    for name, cls in METHODS.items():
        settings = "; ".join(f"{n}={default} ({help})" for n, default, help in settings_of(cls))
        row = {"name": name, "needs": ", ".join(sorted(cls.needs)), "paper": cls.paper}
        found.append(row | {"what": _first_line(cls), "settings": settings})
    return found


def configs() -> list[dict]:
    found = []
    for name, path in bundled_runs():
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        about = text.splitlines()[0].removeprefix("#").strip() if text.startswith("#") else ""
        found.append({"name": name, "pipeline": values["pipeline"], "what": about})
    return found


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""
