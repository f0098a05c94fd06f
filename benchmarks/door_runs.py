"""Finished runs whose folders somebody edited: every file of them deleted, cut, or changed to something else, and then
reported, resumed, exported, compared, learned from, and opened in Python and in the app.

The run is tests/data/old-run: three contestants, one of them trained, with checkpoints and an export.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from door_outcomes import Outcome, check_sentence, try_in_process

import workbench.api
from workbench import cli
from workbench.core.errors import BadInput
from workbench.feedback import pairing, vote_export, votes
from workbench.runs import store

OLD_RUN = Path(__file__).resolve().parent.parent / "tests" / "data" / "old-run"
NAME = "20261130-143815-old-run"
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**60,
    1e300,
    "",
    "x",
    "\x1b[31m",
    "../../x",
    [],
    [None],
    {},
    {"a": 1},
    [[]],
)
TEXTS = ("", "null", "[]", "{}", "5", "{", "[" * 3000, '{"a": ' * 200 + "1" + "}" * 200, "9" * 5000, "NaN", '"\\ud800"')
JSON_FILES = (
    "run.json",
    "summary.json",
    "events.jsonl",
    "checkpoints/nft/best.json",
    "checkpoints/nft/done.json",
    "checkpoints/nft/000002.json",
    "export/export.json",
)
OTHER_FILES = (
    "checkpoints/nft/000000.pt",
    "export/pytorch_lora_weights.safetensors",
    "media/base/0000-0.png",
    "media",
    "export",
    "checkpoints",
)


def run(count: int, seed: int) -> list[Outcome]:
    outcomes, doors = [], list(DOORS)
    with tempfile.TemporaryDirectory() as home:
        template, runs = make_runs(Path(home) / "template"), Path(home) / "runs"
        for n, (kind, name, edit) in enumerate(iterate_edits(count, seed)):
            for door in doors if kind == "nothing" else doors[n % 2 :: 2]:
                shutil.rmtree(runs, ignore_errors=True)
                shutil.copytree(template, runs)
                edit(runs)
                call = partial(DOORS[door], runs)
                outcomes.append(try_in_process(door, f"{n}: {kind}, {name}", call, limit_s=120))
    return outcomes


def make_runs(runs: Path) -> Path:
    """A folder of runs that holds the run, its index, and votes on it."""
    shutil.copytree(OLD_RUN, runs / NAME)
    store.sync_index(runs, store.RunFolder(runs / NAME))
    for n in range(4):
        asked = pairing.ask_next_pair(runs, f"rater {n}", lambda pair: pair)
        assert asked is not None
        votes.record_vote(runs, asked[0], ("left", "right", "tie", "bad")[n], f"key-of-vote-{n}")
    return runs


def iterate_edits(count: int, seed: int) -> Iterator[tuple[str, str, Callable[[Path], None]]]:
    """(kind, name, what edits a folder of runs) of `count` edits, the first of which changes nothing."""
    rng = random.Random(seed)
    yield "nothing", "", lambda runs: None
    for n in range(count - 1):
        way = ("value", "value", "value", "key", "text", "cut", "gone", "index", "kind")[n % 9]
        chance, file = rng.random(), rng.choice(JSON_FILES)
        if way not in ("value", "key", "text"):
            file = rng.choice((*JSON_FILES, *(OTHER_FILES[:3] if way == "cut" else OTHER_FILES)))
        if way == "index":
            yield way, f"{chance:.6f}", partial(edit_index, chance=chance)
        else:
            yield way, f"{file} {chance:.6f}", partial(edit_file, file=file, way=way, chance=chance)


def edit_file(runs: Path, file: str, way: str, chance: float) -> None:
    path = runs / NAME / file
    if way in ("value", "key"):
        edit_json(path, chance, way)
    elif way == "text":
        path.write_text(TEXTS[int(chance * len(TEXTS))])
    elif way == "cut":
        path.write_bytes(path.read_bytes()[: int(chance * path.stat().st_size)])
    else:
        was_folder = path.is_dir()
        shutil.rmtree(path) if was_folder else path.unlink()
        if way == "kind":  # a folder in a file's place, or a file in a folder's
            path.write_text("x") if was_folder else path.mkdir()


def edit_json(path: Path, chance: float, way: str) -> None:
    """Replace, rename or remove one value of a JSON file, or of one line of the log."""
    rng = random.Random(chance)
    lines = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
    at = rng.randrange(max(len(lines) - 1, 1))
    value = json.loads(lines[at])
    block, key = rng.choice(list(list_places(value)))
    if way == "value":
        block[key] = copy.deepcopy(rng.choice(VALUES))
    else:
        moved = block.pop(key)
        if isinstance(block, dict) and rng.random() < 0.5:
            block[f"{key}s"] = moved
    lines[at] = json.dumps(value)
    path.write_text("\n".join(lines))


def list_places(block: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(block.items() if isinstance(block, dict) else enumerate(block)):
        yield block, key
        if isinstance(value, (dict, list)):
            yield from list_places(value)


def edit_index(runs: Path, chance: float) -> None:
    """Change one cell of the index, or its bytes."""
    rng, path = random.Random(chance), runs / "workbench.db"
    if rng.random() < 0.2:
        data = bytearray(path.read_bytes())
        for _ in range(40):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        return
    table, column = rng.choice(
        [("runs", "config"), ("runs", "folder"), ("runs", "created"), ("artefacts", "file"), ("artefacts", "sha256")]
        + [
            ("artefacts", "prompt"),
            ("scores", "value"),
            ("battles", "prompt"),
            ("votes", "rater"),
            ("costs", "seconds"),
        ]
    )
    value = rng.choice(("", "null", "{", "../../etc/passwd", "x" * 10_000, b"\xff\x00", 5, 1e300, "[" * 3000))
    with contextlib.closing(sqlite3.connect(path)) as db, db, contextlib.suppress(sqlite3.IntegrityError):
        db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = 1", (value,))


# --- the doors -------------------------------------------------------------------------------------------------------


def call_command(*arguments: str) -> str | None:
    """What is wrong with how the command line answered: several lines of an error, or none at all."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main([str(a) for a in arguments])
    lines = [line for line in said.getvalue().splitlines() if line.startswith("workbench: ")]
    if code == 2 and (len(lines) != 1 or check_sentence(lines[0]) != "sentence"):
        return f"exit code 2 with {len(lines)} sentences: {said.getvalue()[:300]!r}"
    return None if code in (0, 1, 2) else f"exit code {code}"


def read_in_python(runs: Path) -> None:
    result = workbench.api.read_run(runs / NAME)
    result.table(), result.samples(), repr(result), result._repr_html_(), result.status
    for name in result.contestants:
        with contextlib.suppress(BadInput):  # a picture that is gone
            result.media(name)


def open_in_app(runs: Path) -> None:
    """Every page's way of reading runs. The list of runs has to stand whatever one of them holds."""
    from workbench.ui import contestant_choices, run_processes
    from workbench.ui.widgets import curves, run_view

    rows = run_view.list_runs(runs)
    run_view.runs_table(rows)
    contestant_choices.list_trained(runs)
    contestant_choices.list_alternatives("starter-image", runs)
    if (runs / NAME / "run.json").exists():
        folder = run_processes.find_run(runs, NAME)
        series = curves.Series(folder.path / "events.jsonl").read()
        run_view.draw_header(folder, run_processes.run_state(folder), series)


def vote_again(runs: Path) -> None:
    pairing.votable_runs(runs)
    pairing.ask_next_pair(runs, "another", lambda pair: pair)
    votes.rate_contestants(votes.standing_votes(runs))
    vote_export.write_jsonl(votes.standing_votes(runs), runs, runs / "votes.jsonl")


DOORS: dict[str, Callable[[Path], str | None]] = {
    "report": lambda runs: call_command("report", runs / NAME),
    "report as a table": lambda runs: call_command("report", runs / NAME, "--format", "latex"),
    "run FOLDER": lambda runs: call_command("run", runs / NAME),
    "run another beside it": lambda runs: call_command("run", "demo", "--dry-run", "--runs", runs),
    "export": lambda runs: call_command("export", runs / NAME, "--out", runs / "exported"),
    "compare": lambda runs: call_command(
        *("compare", runs / NAME, "--pipeline", "starter-image-base", "--reward", "starter_clip", "--prompts"),
        *("starter-image-test", "--limit", "1", "--dry-run", "--runs", runs),
    ),
    "as a pipeline": lambda runs: call_command("list", "--check", runs / NAME),
    "read_run": read_in_python,
    "the app": open_in_app,
    "votes": vote_again,
}
