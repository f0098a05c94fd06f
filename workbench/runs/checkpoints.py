"""Checkpoints of a training: written atomically, verified by a digest when read; the last few and the best stay."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.core.io.media import file_digest
from workbench.core.io.parsing import read_json
from workbench.core.paths import write_atomic
from workbench.core.shapes import check_shape
from workbench.runs.records import BestRecord
from workbench.runs.store import dump_json

BEST, FINISHED = "best.json", "done.json"


class CheckpointStore:
    """The checkpoints of one training: `000020.pt`, and `000020.json` with its digest, which is written last."""

    def __init__(self, folder: Path, keep_last: int):
        self.folder, self.keep_last = folder, keep_last

    def save(self, update: int, state: Mapping[str, Any], **about: Any) -> None:
        """Write a checkpoint with the record `about`; returns once it is on disk. Then all but the last `keep_last` and
        the best are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temp = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            with temp.open("xb") as file:  # straight to disk: the state may be as large as the free memory
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            record = {"update": update, "sha256": file_digest(temp), "bytes": temp.stat().st_size, **about}
            self._checkpoint_path(update, "json").unlink(missing_ok=True)  # it belongs to the old bytes
            os.replace(temp, self._checkpoint_path(update, "pt"))
        finally:
            temp.unlink(missing_ok=True)
        write_atomic(self._checkpoint_path(update, "json"), dump_json(record))
        self._prune_old()

    def mark_best(self, update: int, **about: Any) -> None:
        """Record that this checkpoint is the best."""
        write_atomic(self.folder / BEST, dump_json({"update": update, **about}))
        self._prune_old()

    @property
    def best_record(self) -> dict[str, Any]:
        """What `mark_best` recorded, {"update": ..., ...}; {} before. Raises BadInput for a record that was edited."""
        if not (self.folder / BEST).is_file():
            return {}
        record = read_json(self.folder / BEST)
        check_shape(record, BestRecord, str(self.folder / BEST))
        return record

    def mark_finished(self, about: Mapping[str, Any]) -> None:
        """Record that the training is over and exported."""
        write_atomic(self.folder / FINISHED, dump_json(about))

    @property
    def finished_record(self) -> dict[str, Any]:
        """What `mark_finished` recorded; {} while the training is not over."""
        return read_json(self.folder / FINISHED) if (self.folder / FINISHED).is_file() else {}

    def discard(self, updates: Sequence[int]) -> None:
        """Remove these checkpoints, and temporary files of writers that were killed."""
        for temp_file in self.folder.glob(".*.tmp"):
            temp_file.unlink(missing_ok=True)
        for update in updates:
            self._checkpoint_path(update, "json").unlink(missing_ok=True)
            self._checkpoint_path(update, "pt").unlink(missing_ok=True)

    def load(self, update: int) -> dict[str, Any] | None:
        """The state, or None where it is missing or damaged. Its tensors are mapped from the file, so that several
        processes share one copy in memory."""
        try:
            about = read_json(self._checkpoint_path(update, "json"))
            if file_digest(self._checkpoint_path(update, "pt")) != about["sha256"]:
                return None
            return torch.load(self._checkpoint_path(update, "pt"), map_location="cpu", weights_only=True, mmap=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None

    def load_newest(self) -> tuple[int, dict[str, Any] | None, list[int]]:
        """(update, state, updates of newer checkpoints that are damaged); (0, None, ...) where none can be read."""
        damaged: list[int] = []
        for update in sorted(self, reverse=True):
            if (state := self.load(update)) is not None:
                return update, state, damaged
            damaged.append(update)
        return 0, None, damaged

    def newest_round(self) -> int:
        """The update of the newest checkpoint that can be read; -1 where none can."""
        update, state, _ = self.load_newest()
        return update if state is not None else -1

    def __iter__(self) -> Iterator[int]:
        """The updates of all checkpoints, damaged ones too, in order."""
        return iter(sorted(int(p.stem) for p in self.folder.glob("*.pt") if p.stem.isdigit()))

    def _checkpoint_path(self, update: int, suffix: str) -> Path:
        return self.folder / f"{update:06d}.{suffix}"

    def _prune_old(self) -> None:
        wanted_rounds = {*sorted(self)[-self.keep_last :], self.best_record.get("update")}
        self.discard(sorted(set(self) - wanted_rounds))
