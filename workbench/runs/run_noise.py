"""The noise that a contestant of an earlier run ended with, read from its run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json
from workbench.core.types import prompt_key
from workbench.runs.run_inputs import restore_prompt


class RunNoise:
    """The noise of RUN_FOLDER/CONTESTANT, by prompt and seed. Raises BadInput where there is none."""

    def __init__(self, path: str):
        self.path = path
        self.rows = _find_rows(Path(path).parent, Path(path).name)
        if not self.rows:
            raise BadInput(f"noise: {path} holds no finished noise; give RUN_FOLDER/CONTESTANT of an earlier run")

    def __str__(self) -> str:
        return self.path

    def input_files(self) -> list[Path]:
        """The files that hold the noise."""
        return sorted({file for file, _ in self.rows.values()})

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """[B,*latent]. Raises BadInput for a prompt and seed that the run did not make."""
        keys = list(zip(map(prompt_key, prompts), seeds, strict=True))
        if missing := [key for key in keys if key not in self.rows]:
            (prompt, _, _), seed = missing[0][0].partition("\0"), missing[0][1]
            raise BadInput(
                f"noise: {self.path} has none for {prompt!r} and seed {seed}; give that run's prompts and seed"
            )
        rows = [self.rows[key] for key in keys]
        files = {file: safetensors.torch.load_file(file)["noise"] for file, _ in rows}
        return torch.stack([files[file][row] for file, row in rows])


def _find_rows(folder: Path, contestant: str) -> dict[tuple[str, int], tuple[Path, int]]:
    """(key of the prompt, seed) -> (file of its noise, row in the file); empty where the run's log can't be read."""
    try:
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").split("\n")[:-1]  # the last may be cut short
        events = [parse_json(line, str(folder)) for line in lines]
    except (OSError, ValueError):
        return {}
    finals = [e for e in events if isinstance(e, dict) and e.get("contestant") == contestant and e.get("final")]
    return {
        (prompt_key(restore_prompt(folder, sample)), sample["seed"]): (folder / sample["latents"], row)
        for final in finals
        for row, sample in enumerate(final["samples"])
        if sample["latents"]
    }
