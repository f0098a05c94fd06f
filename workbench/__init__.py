"""The Media Alignment Workbench: any diffusers pipeline, any reward, any alignment method, verified by judges that were
not optimised.

    import workbench as w

    w.align("starter-image", "reno", reward="starter_clip", prompts=["a red circle"], iterations=20)

Importing it loads nothing: torch and diffusers come with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.api import align, compare, load, read_run, reward, score, train
    from workbench.core.errors import BadInput
    from workbench.core.types import Media

__all__ = ["BadInput", "Media", "align", "compare", "load", "read_run", "reward", "score", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    from importlib import import_module

    module = {"BadInput": "workbench.core.errors", "Media": "workbench.core.types"}.get(name, "workbench.api")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
