"""A contestant whose samples were made elsewhere: a folder of media, in place of a pipeline and a method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from workbench.core.types import Batch, Event
from workbench.methods.common.method import MethodDefaults

PIPELINE = "imported"  # stands where a run names its pipeline


@dataclass(frozen=True)
class ImportedMedia(MethodDefaults):
    """The files of a folder, as they are."""

    media: str  # the folder

    needs: ClassVar[frozenset[str]] = frozenset()
    name: ClassVar[str] = PIPELINE  # by which tables call it

    def calls(self, steps: int) -> int:
        return 0

    def input_files(self) -> list[Path]:
        """None: each file is known by its digest in the run's log."""
        return []

    def __call__(self, policy: Any, reward: Any, batches: Iterable[Batch]) -> Iterator[Event]:
        raise NotImplementedError("imported media are not sampled; workbench.engine.import_media stores them")


def is_imported(block: Any) -> bool:
    """Whether a contestant's block in a run's config names a folder of media."""
    return isinstance(block, dict) and "media" in block and "name" not in block
