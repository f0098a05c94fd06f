"""Media from elsewhere, from a folder to a leaderboard and pairs to learn from, timed as whole commands.

    python benchmarks/own_media.py [--pictures 200] [--others 20] [--votes 60]

Makes folders as other programs leave them (AUTOMATIC1111's chunks, ComfyUI's graphs, VBench's names, metadata.jsonl),
of which the second of each two is brighter or louder; then: import, a study of three simulated raters who like what is
brighter or louder, its leaderboard, the votes as pairs, and the report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, whose rewards.py is no package

from workbench.core.io import media, video
from workbench.core.types import Media, derive_seed
from workbench.feedback import raters, studies, study_battles
from workbench.runs import sample_modality

NOUNS = ("cat", "dog", "bird", "horse", "fish", "tree", "house", "car", "boat", "lamp")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "grey", "brown", "pink", "purple")

HEAD = """| folders | files | import s | study s | vote ms | leaderboard | report s | pairs s |
|---|---|---|---|---|---|---|---|"""


def list_prompts(count: int) -> list[str]:
    return [f"a {COLOURS[n % 10]} {NOUNS[n // 10 % 10]} on hill {n // 100 + 1}" for n in range(count)]


def draw_picture(n: int, side: int, size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(derive_seed(n, str(side))).integers(0, 160, (size[1], size[0], 3))
    return Image.fromarray((values + 60 * side).astype(np.uint8))


def write_a1111(folder: Path, prompts: list[str], side: int) -> None:
    for n, prompt in enumerate(prompts):
        info = PngInfo()
        info.add_text("parameters", f"{prompt}\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: {n}")
        draw_picture(n, side, (96, 96) if side else (128, 96)).save(folder / f"{n + side:05d}-{n}.png", pnginfo=info)


def write_comfy(folder: Path, prompts: list[str], side: int) -> None:
    for n, prompt in enumerate(prompts):
        graph = {
            "3": {"class_type": "KSampler", "inputs": {"seed": n, "positive": ["6", 0], "negative": ["7", 0]}},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt}},
            "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry"}},
        }
        info = PngInfo()
        info.add_text("prompt", json.dumps(graph))
        draw_picture(n, side, (64, 64)).save(folder / f"ComfyUI_{n:05d}_.png", pnginfo=info)


def draw_clip(n: int, side: int) -> Media:
    base = torch.rand(1, 1, 3, 48, 64, generator=torch.Generator().manual_seed(n)) * 0.5
    return Media((base + 0.2 * side + torch.linspace(0, 0.2, 9)[None, :, None, None, None]).clamp(0, 1), "video", 8.0)


def write_vbench(folder: Path, prompts: list[str], side: int) -> None:
    for n, prompt in enumerate(prompts):
        video.write_mp4(draw_clip(n, side), folder / f"{prompt}-{n % 5}.mp4")


def write_listed(write: Callable[[int, int, Path], Path]) -> Callable[[Path, list[str], int], None]:
    def write_folder(folder: Path, prompts: list[str], side: int) -> None:
        rows = [{"file_name": write(n, side, folder).name, "text": p} for n, p in enumerate(prompts)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write_folder


def write_clip(n: int, side: int, folder: Path) -> Path:
    return video.write_mp4(draw_clip(n, side), folder / f"clip{side}-{n}.mp4")


def write_sound(n: int, side: int, folder: Path) -> Path:
    tone = torch.sin(torch.arange(8000) / 16000 * 6.2832 * (200 + 10 * n))[None, None] * (0.1 + 0.4 * side)
    if side:
        return video.write_flac(Media(tone, "audio", 16000.0), folder / f"b{n}.flac")
    (folder / f"a{n}.wav").write_bytes(media.encode_wav(Media(tone, "audio", 16000.0)))
    return folder / f"a{n}.wav"


LAYOUTS = {
    "a1111": write_a1111,
    "comfyui": write_comfy,
    "vbench": write_vbench,
    "clips": write_listed(write_clip),
    "sounds": write_listed(write_sound),
}


def time_command(*words: object) -> float:
    """Seconds of a `workbench` command. Raises RuntimeError where it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "workbench", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"workbench {' '.join(map(str, words))}: {done.stderr[-500:]}")
    return time.perf_counter() - began


def measure_taste(path: Path) -> float:
    """What the simulated raters like: loud sounds, bright pictures and clips."""
    data = media.read_media(path).data
    return float(data.square().mean() if sample_modality.read_modality(path) == "audio" else data.mean())


def vote(runs: Path, name: str, votes: int) -> float:
    """Seconds a vote of three raters, who like what is brighter or louder."""
    study, rng = studies.find_study(runs, name), np.random.default_rng(0)
    began, count = time.perf_counter(), 0
    for who in ("ann", "bob", "cyn"):
        entered = raters.find_rater(runs, study, raters.enter_with_name(runs, study, who))
        assert entered is not None
        rater, _ = entered
        for n in range(votes):
            battle, _ = study_battles.ask_battle(runs, name, rater.id, rng=rng)
            if isinstance(battle, str):
                break
            pair, _ = study_battles.read_pair(runs, battle.pair)
            left, right = (measure_taste(runs / side.file) for side in (pair.left, pair.right))
            better = "left" if (left > right) != battle.is_swapped else "right"
            key = f"{name}-{who}-{n}"
            study_battles.record_ballot(runs, name, rater.id, battle.id, {"overall": better}, key)
            count += 1
    return (time.perf_counter() - began) / max(count, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="of each of the first two folders")
    parser.add_argument("--others", type=int, default=20, help="files of each other folder")
    parser.add_argument("--votes", type=int, default=60, help="of each of three raters")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        runs = Path(room) / "runs"
        print(HEAD)
        for layout, write in LAYOUTS.items():
            count = args.pictures if layout == "a1111" else args.others
            sides = [Path(room) / layout / name for name in ("dim", "bright")]
            for side, folder in enumerate(sides):
                folder.mkdir(parents=True)
                write(folder, list_prompts(count), side)
            reward = [] if layout == "sounds" else ["--reward", "brightness"]
            seconds = time_command("import", *sides, "--name", layout, "--pair", "prompt", "--runs", runs, *reward)
            run = max(runs.glob(f"*-{layout}"))
            made = time_command("study", "new", layout, "--runs", run, "--open", "--votes-per-pair", 3)
            per_vote = vote(runs, layout, args.votes)
            shown = subprocess.run(
                [sys.executable, "-m", "workbench", "study", "show", layout, "--runs", str(runs), "--json"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            pairs = time_command("study", "export", layout, "--out", Path(room) / f"{layout}.jsonl", "--runs", runs)
            report = time_command("report", run)
            figures = f"{seconds:.1f} | {made:.1f} | {1000 * per_vote:.0f} | {describe(shown.stdout)}"
            print(f"| {layout} | 2 × {count} | {figures} | {report:.1f} | {pairs:.1f} |", flush=True)


def describe(text: str) -> str:
    """`bright 1243 [1100, 1400], dim 757 [600, 900]` of `study show --json`."""
    (standing,) = json.loads(text)["standings"]
    return ", ".join(f"{r['contestant']} {r['rating']} [{r['low']}, {r['high']}]" for r in standing["rows"])


if __name__ == "__main__":
    main()
