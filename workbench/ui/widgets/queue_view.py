"""The queue and the machine as a page shows them: HTML. Nothing here imports torch, but what has already."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from workbench.ui.jobs import Job
from workbench.ui.widgets.html import escape_text, hint_html

EMPTY = "Nothing is at work, and nothing waits."
STATES = {"waiting": (0, "waits"), "paused": (2, "paused"), "working": (1, "at work")}
ACTIONS = {  # of a button: its words
    "up": "Earlier",
    "down": "Later",
    "pause": "Pause",
    "resume": "Resume",
    "cancel": "Cancel",
    "stop": "Stop",
}
QUEUE_JS = """element.addEventListener("click", (e) => {
  const node = e.target.closest("[data-job]");
  if (node) trigger("click", { job: node.dataset.job, action: node.dataset.action }); });"""
GIB = 2**30


def describe_job(job: Job) -> dict[str, Any]:
    """A job for other programs: key, title, state, device, seconds at work, and the run folder's name of a run."""
    run = (job.saved or {}).get("run", "")
    return {
        "key": job.key,
        "title": job.title,
        "state": "pausing" if job.pause_asked else "stopping" if job.stop.is_set() else job.state,
        "device": job.device,
        "seconds": round(job.seconds, 1),
        "run": run,
    }


def list_actions(job: Job, position: int, waiting: int) -> list[str]:
    """What can be done about a job now; position: its number among the `waiting` ones, -1 for one at work."""
    if job.stop.is_set():
        return []
    if job.state == "working":
        return (["pause"] if job.has_process else []) + ["stop"]
    moves = (["up"] if position > 0 else []) + (["down"] if position < waiting - 1 else [])
    return [*moves, "resume" if job.state == "paused" else "pause", "cancel"]


def draw_queue(jobs: Sequence[Job]) -> str:
    """The queue with a button for each thing that can be done."""
    if not jobs:
        return hint_html(EMPTY)
    waiting = [job for job in jobs if job.state != "working"]
    items = []
    for job in jobs:
        position = waiting.index(job) if job in waiting else -1
        buttons = "".join(
            f'<button type="button" class="wb-copy" data-job="{escape_text(job.key)}" data-action="{action}" '
            f'aria-label="{escape_text(f"{ACTIONS[action]}: {job.title}")}">{ACTIONS[action]}</button>'
            for action in list_actions(job, position, len(waiting))
        )
        row = describe_job(job)
        tone, words = STATES.get(row["state"], (2, row["state"]))
        time = f" · {job.seconds:.0f} s" if job.state == "working" else ""
        items.append(
            f'<li class="wb-t{tone}" style="margin:0 0 10px"><span class="wb-dot"></span>'
            f"{escape_text(job.title, 160)}<br>"
            f'<span class="wb-note">{escape_text(words)}{time}</span> {buttons}</li>'
        )
    return f'<ol style="padding-left:1.4em;margin:0" aria-label="Queue">{"".join(items)}</ol>'


def measure_machine() -> dict[str, Any]:
    """CPU load and memory of this machine, and of each GPU that torch sees: {"cpu_percent", "memory_used_gb",
    "memory_gb", "gpus": [{"name", "memory_used_gb", "memory_gb", "percent": None where it can't be read}]}."""
    memory = psutil.virtual_memory()
    return {
        "cpu_percent": psutil.cpu_percent(),  # since the last look
        "cores": psutil.cpu_count() or 1,
        "memory_used_gb": (memory.total - memory.available) / GIB,
        "memory_gb": memory.total / GIB,
        "gpus": list_gpus(),
    }


def list_gpus() -> list[dict[str, Any]]:
    """Memory and load of each GPU; None for what can't be read. Nothing before torch was imported, and no memory of a
    GPU that this process does not use: to ask torch for it would take half a gigabyte there."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_available():
        return []
    return _ask_driver() or [_ask_torch(torch, n) for n in range(torch.cuda.device_count())]


def _ask_driver() -> list[dict[str, Any]]:
    """What NVIDIA's own library says of each GPU; nothing where it is not installed, or does not answer."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        gpus = []
        for n in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(n)
            memory, load = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetUtilizationRates(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            name = name.decode() if isinstance(name, bytes) else name
            used, total = memory.used / GIB, memory.total / GIB
            gpus.append({"name": name, "memory_used_gb": used, "memory_gb": total, "percent": load.gpu})
        return gpus
    except pynvml.NVMLError:
        return []


def _ask_torch(torch: Any, n: int) -> dict[str, Any]:
    gpu: dict[str, Any] = {"name": f"GPU {n}", "memory_used_gb": None, "memory_gb": None, "percent": None}
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info(n)
        gpu |= {"name": torch.cuda.get_device_name(n), "memory_used_gb": (total - free) / GIB, "memory_gb": total / GIB}
    return gpu


def draw_machine(machine: Mapping[str, Any]) -> str:
    """Load and memory as bars."""
    parts = [
        _draw_bar(f"CPU, {machine['cores']} cores: {machine['cpu_percent']:.0f} %", machine["cpu_percent"]),
        _draw_memory("memory", machine),
    ]
    for gpu in machine["gpus"]:
        if gpu["percent"] is not None:
            parts.append(_draw_bar(f"{gpu['name']}: {gpu['percent']} %", gpu["percent"]))
        parts.append(_draw_memory(f"memory of {gpu['name']}", gpu))
    return "".join(parts) + ("" if machine["gpus"] else hint_html("no GPU that torch can use"))


def _draw_memory(what: str, part: Mapping[str, Any]) -> str:
    used, total = part["memory_used_gb"], part["memory_gb"]
    if used is None or total is None:
        return hint_html(f"{what}: unknown until this page works on it, or with pip install nvidia-ml-py")
    return _draw_bar(f"{what}: {used:.1f} of {total:.1f} GB", 100 * used / total)


def _draw_bar(words: str, percent: float) -> str:
    return (
        f'<p class="wb-note" style="margin:6px 0 2px">{escape_text(words)}</p>'
        f'<div class="wb-bar"><i style="width:{min(100.0, percent):.0f}%"></i></div>'
    )
