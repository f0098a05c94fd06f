"""Reading the syntax of source files."""

from __future__ import annotations

import ast
import threading

# Python 3.11 counts the depth of a tree for all threads together, so two that parse at once make it fail:
# "AST constructor recursion depth mismatch" (python/cpython issue 106905). `inspect.getsource` of a class parses too.
PARSING = threading.RLock()


def parse_source(text: str) -> ast.Module:
    """The syntax tree of a source text, from any thread."""
    with PARSING:
        return ast.parse(text)
