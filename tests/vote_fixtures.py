"""Finished runs to vote on, made without any model, and votes by people whose taste is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from workbench.core.inputs import MediaInput
from workbench.core.io import media
from workbench.core.types import Media, Prompt
from workbench.feedback import pairing, votes
from workbench.runs import run_inputs, store

PROMPTS = tuple(f"{n} red circles" for n in range(12))
NAMES = ("base", "best_of_n", "reno")


def write_run(
    runs: Path,
    name: str = "demo",
    names=NAMES,
    prompts=PROMPTS,
    modality: str = "image",
    blocks: dict | None = None,
    pipeline: str = "tiny-pipeline",
    inputs: dict[str, Media] | None = None,
) -> store.RunFolder:
    """A finished run on disk and in the index; `level` scores what `names` lists later higher, `noise` knows nothing.
    inputs: what all samples are made from."""
    given = {name: MediaInput.of(row) for name, row in (inputs or {}).items()}
    prompts = [Prompt(prompt, given) for prompt in prompts] if given else prompts
    config = {"pipeline": pipeline, "contestants": blocks or dict.fromkeys(names, "sample")}
    folder = store.RunFolder.open(runs, name, config, fresh=True)
    folder.write("run.json", {"name": name, "created": "2026-01-01T00:00:00", "status": "done", "config": config,
                              "rewards": {"level": "1", "noise": "1"}})  # fmt: skip
    run_inputs.store_inputs(folder.path, prompts)
    g = torch.Generator().manual_seed(len(name))
    for c, contestant in enumerate(names):
        home, samples = folder.path / "media" / contestant, []
        home.mkdir()
        for n, prompt in enumerate(prompts):
            scores = {"level": c / len(names), "noise": torch.rand((), generator=g).item()}
            story = {"prompt": prompt, "seed": n, "contestant": contestant, "pipeline": pipeline, "scores": scores}
            path = media.write_media(make_media(modality, c, n, g), home / f"{n:04d}-0", meta=story)
            file = path.relative_to(folder.path).as_posix()
            samples.append({"index": n, "k": 0, "prompt": prompt, **run_inputs.record_inputs(prompt), "seed": n,
                            "file": file, "scores": scores, "sha256": media.file_digest(path)})  # fmt: skip
        folder.append_event({"contestant": contestant, "batch": 0, "final": True, "samples": samples})
    store.sync_index(runs, folder)
    return folder


def make_media(modality: str, c: int, n: int, g: torch.Generator) -> Media:
    if modality == "audio":  # contestants differ in loudness and length
        length = 8000 + 800 * c
        return Media(0.2 * (c + 1) * torch.rand(1, 1, length, generator=g) - 0.1, "audio", 8000.0)
    if modality == "video":
        return Media(torch.rand(1, 4, 3, 16, 16, generator=g), "video", 4.0)
    return Media((torch.rand(1, 3, 16, 16, generator=g) + c) / 4, "image")


def ask_pair(runs: Path, rater: str = "ada", **only):
    """(battle, pair) without media being shown."""
    question = pairing.ask_next_pair(runs, rater, lambda pair: pair, **only)
    return question[:2] if question else None


def cast_vote(runs: Path, choice: str = "left", rater: str = "ada", **only) -> dict:
    battle, _ = ask_pair(runs, rater, **only)
    return votes.record_vote(runs, battle, choice, f"key-{battle}")


def cast_many_votes(runs: Path, count: int, strengths: dict[str, float], seed: int = 0) -> None:
    """`count` votes on random pairs of these contestants by five people who follow Bradley and Terry; all at once."""
    rng = np.random.default_rng(seed)
    with store.open_index(runs) as db:
        rows = db.execute("SELECT * FROM artefacts").fetchall()
        rows = [r for r in rows if r["contestant"] in strengths]
        for n in range(count):
            one = rows[rng.integers(len(rows))]
            others = [r for r in rows if r["contestant"] != one["contestant"]
                      and (r["run"], r["position"]) == (one["run"], one["position"])]  # fmt: skip
            two, battle, who = (
                others[rng.integers(len(others))],
                f"poll-{seed}-{n}",
                votes.pseudonym_of(f"rater {n % 5}"),
            )
            odds = strengths[one["contestant"]] - strengths[two["contestant"]]
            choice = "left" if rng.random() < 1 / (1 + np.exp(-odds)) else "right"
            db.execute("INSERT INTO battles (id, left_artefact, right_artefact, left_sha256, right_sha256, asker, "
                       "created, prompt) VALUES (?,?,?,?,?,?,?,?)",
                       (battle, one["id"], two["id"], one["sha256"], two["sha256"], who, "",
                        one["prompt"]))  # fmt: skip
            db.execute("INSERT INTO votes (battle, choice, key, reason, dwell_left, dwell_right, rater, created) "
                       "VALUES (?,?,?,'',1,2,?,'')", (battle, choice, f"key-{battle}", who))  # fmt: skip
