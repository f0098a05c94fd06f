"""Classes that users wrote, by the names that configs and the command line give them: `package.module:Class`, or
`./mine.py:Class` for a file that is in no package."""

from __future__ import annotations

import importlib
import importlib.util
import operator
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.text import one_line, quote_value


def import_object(name: str, where: str) -> Any:
    """What `name` stands for. Importing runs the module's own code, which may do anything. Raises BadInput.

    A file is imported once, as a module whose name is its absolute path: so a class of it says where it is from, and
    is found again by what it says.
    """
    module, _, attribute = name.rpartition(":")
    try:
        source = _import_file(module) if module.endswith(".py") else importlib.import_module(module)
        return operator.attrgetter(attribute)(source)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    except (Exception, SystemExit) as error:
        reason = one_line(error, 150) or type(error).__name__
        hint = "; a file is given by its path, as in ./mine.py:Class" if isinstance(error, ModuleNotFoundError) else ""
        raise BadInput(f"{where}: can't import {quote_value(name)}: {reason}{hint}") from None


def _import_file(name: str) -> ModuleType:
    path = Path(name).expanduser().absolute()
    if str(path) in sys.modules:
        return sys.modules[str(path)]
    if not path.is_file():
        raise BadInput(f"{one_line(path, 150)}: no such file")
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None, "a name that ends with .py has a loader"
    module = sys.modules[str(path)] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[str(path)]
        raise
    return module
