"""What goes wrong in a way that callers are told of. Standard library only: pages and commands import it at once."""

import errno
import re
from collections.abc import Iterator

from workbench.core.text import one_line


class BadInput(ValueError):
    """What the user gave can't work. One sentence: what, where, what to do. The command line exits with 2.

    Whatever of others it quotes, it stays one line of at most 300 letters.
    """

    def __init__(self, sentence: object = ""):
        super().__init__(one_line(sentence))


class Stopped(Exception):
    """Raised by a policy before a denoiser call, once its `stop` event is set."""


class DiskFull(OSError):
    """The disk filled up during a run; no file is half-written, and the run can be resumed."""


# What libraries say in place of an errno: the system's own words, SQLite's, and those of torch's writer of checkpoints,
# which reports neither cause nor number.
FULL = re.compile(r"no space left on device|disk quota exceeded|database or disk is full|not enough space on the disk")
TORCH_WRITER = re.compile(r"PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full, whatever library raised it and from what."""
    return any(
        getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or FULL.search(str(e).lower())
        or (isinstance(e, RuntimeError) and TORCH_WRITER.search(str(e)))
        for e in _list_causes(error)
    )


def is_read_only(error: BaseException) -> bool:
    """Whether an error says that something can't be written here: a read-only disk, or no permission."""
    readonly = "attempt to write a readonly database"  # SQLite's words
    return (
        isinstance(error, OSError)
        and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        or any(readonly in str(e) for e in _list_causes(error))
    )


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that it was raised from or while handling."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        e = waiting.pop()
        if e is not None and id(e) not in seen:
            seen.add(id(e))
            yield e
            waiting += [e.__cause__, e.__context__]
