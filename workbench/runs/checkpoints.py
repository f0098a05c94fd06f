"""Everything that a training is, on disk: whole or not at all, checked when it is read, the last few and the best."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.core.paths import write_atomic
from workbench.runs.store import dump

BEST, DONE = "best.json", "done.json"


class Shelf:
    """The checkpoints of one training: `000020.pt`, and `000020.json` with its digest, which is written last."""

    def __init__(self, home: Path, keep: int):
        self.home, self.keep = home, keep

    def save(self, update: int, state: Mapping[str, Any], **about: Any) -> None:
        """Returns once it is on disk; older ones than the last `keep`, and than the best, are removed afterwards."""
        self.home.mkdir(parents=True, exist_ok=True)
        temp = self.home / f".{uuid.uuid4().hex}.tmp"
        try:
            with temp.open("xb") as file:  # straight to disk: all weights and their optimiser may be most of the memory
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            told = {"update": update, "sha256": _digest(temp), "bytes": temp.stat().st_size, **about}
            self._path(update, "json").unlink(missing_ok=True)  # no digest may vouch for other bytes
            os.replace(temp, self._path(update, "pt"))
        finally:
            temp.unlink(missing_ok=True)
        write_atomic(self._path(update, "json"), dump(told))
        self._prune()

    def choose(self, update: int, **about: Any) -> None:
        """Call this checkpoint the best from now on."""
        write_atomic(self.home / BEST, dump({"update": update, **about}))
        self._prune()

    @property
    def best(self) -> dict[str, Any]:
        return json.loads((self.home / BEST).read_text()) if (self.home / BEST).is_file() else {}

    def finish(self, about: Mapping[str, Any]) -> None:
        """This training is over, and exported."""
        write_atomic(self.home / DONE, dump(about))

    @property
    def finished(self) -> dict[str, Any]:
        """What `finish` was told; {} while the training is not over."""
        return json.loads((self.home / DONE).read_text()) if (self.home / DONE).is_file() else {}

    def discard(self, updates: Sequence[int]) -> None:
        """Remove these, and what a writer that was killed has left."""
        for torn in self.home.glob(".*.tmp"):
            torn.unlink(missing_ok=True)
        for update in updates:
            self._path(update, "json").unlink(missing_ok=True)
            self._path(update, "pt").unlink(missing_ok=True)

    def load(self, update: int) -> dict[str, Any] | None:
        """The state, or None where it is missing or damaged. Its tensors are read where they are used: processes that take their
        parts of them share one copy in memory."""
        try:
            about = json.loads(self._path(update, "json").read_text(encoding="utf-8"))
            if _digest(self._path(update, "pt")) != about["sha256"]:
                return None
            return torch.load(self._path(update, "pt"), map_location="cpu", weights_only=True, mmap=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None

    def newest(self) -> tuple[int, dict[str, Any] | None, list[int]]:
        """(update, state, the newer ones that were damaged); update 0 and None where none can be read."""
        damaged = []
        for update in sorted(self, reverse=True):
            if (state := self.load(update)) is not None:
                return update, state, damaged
            damaged.append(update)
        return 0, None, damaged

    def reached(self) -> int:
        """The newest update that can be read; -1 where none can."""
        update, state, _ = self.newest()
        return update if state is not None else -1

    def __iter__(self) -> Iterator[int]:
        """The updates that there are checkpoints of, damaged ones too."""
        return iter(sorted(int(p.stem) for p in self.home.glob("*.pt") if p.stem.isdigit()))

    def _path(self, update: int, suffix: str) -> Path:
        return self.home / f"{update:06d}.{suffix}"

    def _prune(self) -> None:
        kept = {*sorted(self)[-self.keep :], self.best.get("update")}
        self.discard(sorted(set(self) - kept))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
