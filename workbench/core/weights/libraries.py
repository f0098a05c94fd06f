"""The libraries that hold networks, diffusers and transformers: their classes by name, and quiet while they load."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput


def find_component_class(entry: Sequence[str]) -> Any:
    """The class that an entry [library, class] of model_index.json names. Raises BadInput."""
    import diffusers

    library, name = entry
    try:
        module = getattr(diffusers.pipelines, library, None) or importlib.import_module(library)
        return getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"model_index.json names {library}.{name}, which is not installed here") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside the block diffusers and transformers show no progress bars and log only errors, and torch gives no
    FutureWarnings, which only these libraries could act on."""
    import diffusers
    import transformers

    libraries = [lib.utils.logging for lib in (diffusers, transformers)]
    were = [(lib.is_progress_bar_enabled(), lib.get_verbosity()) for lib in libraries]
    for lib in libraries:
        lib.disable_progress_bar()
        lib.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for lib, (enabled, verbosity) in zip(libraries, were, strict=True):
            lib.set_verbosity(verbosity)
            if enabled:
                lib.enable_progress_bar()


def find_snapshot(repo: str) -> Path | None:
    """The folder of the hub's cache that holds a repository, if it is there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (OSError, ValueError):
        return None
