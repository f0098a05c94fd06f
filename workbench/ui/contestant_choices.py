"""What a page may ask for: pipelines, methods and rewards that fit one another, and a contestant as one line of text.

A line is `METHOD[@PIPELINE] key=value …`: `reno iterations=20 lr=2`, `fk@starter-image-teacher particles=8`. What was typed
never becomes a path: pipelines are those of configs/pipelines and of the runs folder's trainings, chosen by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pipelines
from pipelines.config import names
from rewards import Judge, configured
from workbench.core.paths import CONFIGS
from workbench.core.schema import nearest
from workbench.core.types import BadInput
from workbench.methods import METHODS, trains
from workbench.runs import config, store
from workbench.runs.registry import judges, own
from workbench.tools import doctor
from workbench.ui import lora_uploads
from workbench.ui.overrides import harmless

SLOTS = 4  # contestants, and rewards in the mix
KNOBS = 3  # settings of a method that have a field of their own
LETTERS = 300  # of a contestant's line
FROM_FILES = frozenset({"nrg", "reuse", "corrected"})  # methods that need a file of this machine
LINE = re.compile(r"([\w-]+)(?:@([\w.:/+-]+))?(?:[\s,:]+(.*))?", re.S)


def trained(runs: Path) -> dict[str, str]:
    """What trainings left in the runs folder: `run:NAME` or `run:NAME/CONTESTANT` -> its export."""
    found = {}
    for folder in store.folders(runs):
        for record in sorted([*folder.path.glob("export/export.json"), *folder.path.glob("export/*/export.json")]):
            home = record.parent
            name = folder.path.name if home.name == "export" else f"{folder.path.name}/{home.name}"
            found[f"run:{name}"] = str(home)
    return found


def sources(runs: Path) -> dict[str, str]:
    """Name -> what a run config calls it: all that the page may load."""
    return {name: name for name in names()} | trained(runs)


def source(name: str, runs: Path) -> str:
    """Raises BadInput for a pipeline that is not configured here."""
    known = sources(runs)
    if name not in known:
        raise BadInput(f"pipeline: only configured ones can be loaded from here; {_near(name, known)}")
    return known[name]


def lists() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "prompts").glob("*.txt"))


def beside(pipeline: str, runs: Path) -> list[tuple[str, str]]:
    """(label, name) of what a contestant may run on instead: pipelines of the same kind of media."""
    kind = pipelines.read(source(pipeline, runs)).modality
    same = [n for n, repo in sources(runs).items() if n != pipeline and _modality(repo) == kind]
    same += lora_uploads.kept(runs)
    return [("the same pipeline", "")] + [
        (n.replace("run:", "trained: ").replace("lora:", "with LoRA: "), n) for n in same
    ]


def _modality(repo: str) -> str | None:
    try:
        return pipelines.read(repo).modality
    except BadInput:
        return None  # an export that is damaged


def rewards(pipeline: str, runs: Path) -> list[tuple[str, str]]:
    """(label, name) of the rewards that can score single samples of this pipeline, without a server or a file to name; those
    whose weights are here come first."""
    made, found = pipelines.read(source(pipeline, runs)), []
    world = made.repo.startswith("starter:")
    for name, cls in judges().items():
        spec = cls.spec
        fits = made.modality in spec.modalities and spec.scope == "sample" and not spec.needs & {"source", "reference"}
        if not fits or issubclass(cls, Judge) or (own(cls) and not world):
            continue
        try:
            configured(cls, {}, name)
        except (BadInput, TypeError):
            continue  # needs settings of its own: a config file can give them
        here = present(cls)
        found.append((not here, not own(cls), name if here else f"{name} (weights to be fetched)", name))
    return [(label, name) for _, _, label, name in sorted(found, key=lambda row: row[:2])]


def present(cls: type) -> bool:
    """Whether a reward's weights, if it has any, are on this machine."""
    return all(map(doctor.installed, doctor.repositories(cls.spec, str(getattr(cls, "model", "")))))


def watched(pipeline: str, optimised: Sequence[str], runs: Path) -> list[str]:
    """Who looks on unless told otherwise: the oracle where there is one, the watchdog of clipped values, and every published
    scorer whose weights are here."""
    offered = [name for label, name in rewards(pipeline, runs) if label == name and name not in optimised]
    scorers = [n for n in offered if not own(judges()[n]) and judges()[n].spec.weights]
    return [n for n in offered if n.endswith("oracle") or n == "saturated_pixels" or n in scorers]


def methods(pipeline: str, optimised: Sequence[str], runs: Path) -> list[tuple[str, str]]:
    """(label, name) of the methods that this pipeline and these rewards can serve."""
    provided = {"latents", "reward"} | pipelines.read(source(pipeline, runs)).provides
    if all(judges()[name].spec.differentiable for name in optimised):
        provided |= {"differentiable"}
    return [
        (f"{name.replace('_', ' ')} · {summary(cls)}", name)
        for name, cls in METHODS.items()
        if name not in FROM_FILES and not trains(cls) and cls.needs <= provided
    ]


def summary(cls: type, most: int = 64) -> str:
    """A method in a few words: the first sentence of its help."""
    first = re.split(r"[:.] |\.$| \(arXiv", (cls.__doc__ or "").strip().splitlines()[0])[0]
    return first if len(first) <= most else first[:most].rsplit(" ", 1)[0] + " …"


@dataclass(frozen=True)
class Knob:
    """A setting that has a field of its own."""

    name: str
    default: float
    help: str


def knobs(method: str) -> list[Knob]:
    """The few settings that matter most: what grows with the budget, then the first numbers that there are."""
    cls = METHODS[method]
    found = [Knob(*row) for row in config.settings_of(cls) if type(row[1]) in (int, float)]
    return sorted(found, key=lambda k: k.name != cls.scales)[:KNOBS]


def rest(method: str) -> str:
    """The settings without a field of their own, as a hint: key=value."""
    taken = {k.name for k in knobs(method)}
    return " ".join(f"{n}={default}" for n, default, _ in config.settings_of(METHODS[method]) if n not in taken)


def about(method: str) -> str:
    """A method and its settings in a few sentences."""
    cls = METHODS[method]
    first = (cls.__doc__ or "").strip().splitlines()[0]
    told = "; ".join(f"{k.name}: {k.help}" for k in knobs(method))
    return f"{first} {told + '.' if told else ''}"


def line(method: str, values: Sequence[float | None], more: str = "", on: str = "") -> str:
    """What the fields of one contestant say, as text."""
    pairs = zip(knobs(method), values, strict=False)
    given = [f"{k.name}={int(v) if float(v).is_integer() else v}" for k, v in pairs if v is not None]
    return " ".join([f"{method}@{on}" if on else method, *given, *more.split()])


def read(lines: Sequence[str], runs: Path) -> dict[str, dict]:
    """Contestant blocks of a RunConfig. Raises BadInput."""
    made: dict[str, dict] = {}
    if not lines:
        raise BadInput("contestants: name at least one")
    if len(lines) > SLOTS:
        raise BadInput(f"contestants: {len(lines)} are too many to look at; name at most {SLOTS}")
    for text in lines:
        if len(text) > LETTERS:
            raise BadInput(f"contestants: a line of {len(text):,} letters; at most {LETTERS}")
        found = LINE.fullmatch(text.strip())
        if not found:
            raise BadInput(
                f"contestants: can't read {text.strip()[:60]!r}; write METHOD key=value, like: reno iterations=20"
            )
        method, on, settings = found.groups()
        if method not in METHODS:
            raise BadInput(f"contestants: unknown method {method!r}; {_near(method, METHODS)}")
        if method in FROM_FILES or trains(METHODS[method]):
            what = "reads a file that it names" if method in FROM_FILES else "trains weights"
            raise BadInput(
                f"contestants: {method} {what}, which a comparison here does not do; give it a config in configs/runs"
            )
        made[_free(_called(method, on), made)] = {"name": method} | _settings(settings) | _on(on, runs)
    return made


def _settings(text: str | None) -> dict:
    tokens = [t for t in re.split(r"[\s,]+(?=[\w.]+\s*=)", (text or "").strip()) if t]
    harmless(tokens)
    values: dict = {}
    for token in tokens:
        key, found, value = token.partition("=")
        config.override(values, f"{key.strip()}{found}{value.strip()}")
    if taken := values.keys() & {"name", "pipeline", "lora"}:
        raise BadInput(f"contestants: {taken.pop()!r} is no setting; write METHOD@PIPELINE key=value")
    return values


def _on(name: str | None, runs: Path) -> dict:
    if name and name.startswith("lora:"):
        known = lora_uploads.kept(runs)
        if name not in known:
            raise BadInput(f"contestants: no such LoRA was given to this page; {_near(name, known)}")
        return {"lora": known[name]}
    return {"pipeline": source(name, runs)} if name else {}


def _called(method: str, on: str | None) -> str:
    if method != "sample":
        return method
    return re.sub(r"[^\w.-]", "-", on.removeprefix("run:").removeprefix("lora:"))[:60] if on else "base"


def _free(name: str, taken: Mapping) -> str:
    return next(n for n in (name, *(f"{name}-{k}" for k in range(2, SLOTS + 2))) if n not in taken)


def lines_of(blocks: Mapping[str, Mapping | str], runs: Path) -> list[str]:
    """The lines that `read` would make these blocks of: a stored comparison back in the editor. Raises BadInput."""
    homes, out = {repo: name for name, repo in (sources(runs) | lora_uploads.kept(runs)).items()}, []
    for label, block in blocks.items():
        block = {"name": block} if isinstance(block, str) else dict(block or {})
        method, on = block.pop("name", label), block.pop("pipeline", None) or block.pop("lora", None)
        if on is not None and on not in homes:
            raise BadInput("this comparison used a pipeline or a LoRA that is not here; repeat it on the command line")
        out.append(
            " ".join([f"{method}@{homes[on]}" if on else method, *(f"{k}={_said(v)}" for k, v in block.items())])
        )
    return out


def _said(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value).replace("'", "")


def fields(text: str) -> tuple[str, list[float | None], str, str]:
    """(method, values of its knobs, the rest as text, the pipeline or '') of a line: what the editor shows of it."""
    method, on, settings = LINE.fullmatch(text.strip()).groups()
    values, own = _settings(settings), [k.name for k in knobs(method)]
    shown = [values.pop(name, None) for name in own]
    defaults = {name: default for name, default, _ in config.settings_of(METHODS[method])}
    shown = [defaults[name] if v is None else v for name, v in zip(own, shown, strict=True)]
    return method, shown, " ".join(f"{k}={_said(v)}" for k, v in values.items() if defaults.get(k) != v), on or ""


def mix(weights: Mapping[str, float]) -> dict[str, float]:
    """The rewards to optimise, each with its weight. Raises BadInput."""
    if not weights:
        raise BadInput("rewards: name at least one to optimise")
    if len(weights) > SLOTS:
        raise BadInput(f"rewards: at most {SLOTS} in one mix")
    for name, weight in weights.items():
        known(name)
        if (
            isinstance(weight, bool)
            or not isinstance(weight, (int, float))
            or not 0 < abs(weight) <= 1e4
            or math.isnan(weight)
        ):
            raise BadInput(
                f"rewards: the weight of {name} is a number between -10,000 and 10,000 other than 0, not {str(weight)[:40]}"
            )
    return {name: float(weight) for name, weight in weights.items()}


def known(name: str) -> str:
    """Raises BadInput for what is not a reward's name: from here no module is imported."""
    if name not in judges():
        raise BadInput(f"rewards: unknown reward {str(name)[:60]!r}; {_near(name, judges())}")
    return name


def _near(word: object, known: Mapping) -> str:
    tail = nearest(str(word)[:60], known)
    return tail if tail.startswith("did you") else "choose one of the list"
