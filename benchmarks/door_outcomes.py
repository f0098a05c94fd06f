"""What became of an input at a door of the workbench: an answer, or a fault. Each is tried in its own process.

An answer is a value, or one sentence of a BadInput. Faults are a wrong value, a traceback, a sentence that no terminal
should print (several lines, control characters, longer than 600 characters), a time-out, and the death of the process.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.core.errors import BadInput

Answer = Literal["value", "sentence", "wrong", "bad sentence", "traceback", "time-out", "death"]
GOOD: tuple[Answer, ...] = ("value", "sentence")
LONGEST = 600  # letters of a sentence


@dataclass(frozen=True)
class Outcome:
    """One input and what became of it."""

    kind: str  # of input: a row of the table
    name: str  # which one, so that it can be made again
    answer: Answer
    note: str = ""  # the sentence, what is wrong, or the end of the traceback
    seconds: float = 0.0
    peak_mb: float = 0.0  # of memory, above what the process had before

    @property
    def good(self) -> bool:
        return self.answer in GOOD


def check_sentence(sentence: str) -> Answer:
    """Whether a terminal should print it: not empty, on one line, of at most LONGEST letters, all printable."""
    fits = 0 < len(sentence) <= LONGEST and sentence.isprintable() and "Traceback" not in sentence
    return "sentence" if fits else "bad sentence"


def try_input(call: Callable[[], str | None]) -> tuple[Answer, str]:
    """What `call` answers. It returns None or "" for a right value, else says what is wrong with it; and it raises
    BadInput with one sentence."""
    try:
        wrong = call()
    except BadInput as error:
        return check_sentence(str(error)), str(error)
    except Exception:
        return "traceback", " | ".join(traceback.format_exc().strip().splitlines()[-3:])
    return ("wrong", wrong) if wrong else ("value", "")


def try_in_process(
    kind: str, name: str, call: Callable[[], str | None], *, limit_s: float = 20.0, limit_mb: float | None = None
) -> Outcome:
    """The outcome of `call`, as `try_input` takes it, in a forked process that is killed after `limit_s` seconds.
    `limit_mb` bounds the memory that it may take beyond what this process has."""
    started = time.monotonic()
    pid, answers = _fork_call(call, limit_mb)
    text = _read_all(answers, started + limit_s)
    if text is None:
        os.kill(pid, signal.SIGKILL)
    _, status, _ = os.wait4(pid, 0)
    seconds = time.monotonic() - started
    if text is None:
        return Outcome(kind, name, "time-out", f"no answer in {limit_s:g} s", seconds)
    if not text:
        return Outcome(kind, name, "death", f"the process ended with status {status}", seconds)
    answer, note, peak_mb = json.loads(text)
    return Outcome(kind, name, answer, note, seconds, peak_mb)


def _fork_call(call: Callable[[], str | None], limit_mb: float | None) -> tuple[int, int]:
    """(process id, pipe with its answer as JSON)."""
    answers, out = os.pipe()
    if pid := os.fork():
        os.close(out)
        return pid, answers
    try:
        os.close(answers)
        before = peak_memory_mb()
        if limit_mb is not None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + int(limit_mb * 2**20),) * 2)
        answer, note = try_input(call)
        with os.fdopen(out, "w") as f:
            json.dump([answer, note.encode("utf-8", "backslashreplace").decode(), peak_memory_mb() - before], f)
    finally:
        os._exit(0)


def peak_memory_mb() -> float:
    """The most memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _read_all(pipe: int, deadline: float) -> bytes | None:
    """What is written into the pipe until its other end is closed; None if that is later than the deadline."""
    parts = []
    with os.fdopen(pipe, "rb", buffering=0) as f:
        while select.select([f], [], [], max(deadline - time.monotonic(), 0))[0]:
            if not (part := f.read(1 << 16)):
                return b"".join(parts)
            parts.append(part)
    return None


def print_table(outcomes: Sequence[Outcome], show: int = 20) -> None:
    """A row for each kind: inputs, answered, each sort of fault, the slowest and the most memory. Then the faults."""
    columns = ("inputs", "answered", "wrong", "tracebacks", "time-outs", "deaths", "slowest s", "peak MB")
    print(f"| kind | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    kinds = list(dict.fromkeys(o.kind for o in outcomes))
    for kind in [*kinds, "all"] if len(kinds) > 1 else kinds:
        rows = [o for o in outcomes if kind in (o.kind, "all")]
        answers = [o.answer for o in rows]
        counts = [len(rows), sum(o.good for o in rows), answers.count("wrong") + answers.count("bad sentence")]
        counts += [answers.count("traceback"), answers.count("time-out"), answers.count("death")]
        most = f"{max(o.seconds for o in rows):.1f} | {max(o.peak_mb for o in rows):.0f}"
        print(f"| {kind} | {' | '.join(map(str, counts))} | {most} |")
    for o in [o for o in outcomes if not o.good][:show]:
        print(f"{o.answer}: {o.kind}, {o.name}: {o.note}")
