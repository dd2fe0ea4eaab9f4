"""What the benchmarks measure with, and how they say it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

QWEN3_4B: dict[str, Any] = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
"""Fields of `Qwen3Config` that give the size of Qwen3-4B, but for the vocabulary."""


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table."""

    what: str
    ours: str
    baseline: str
    """What it is held against; the ideal, where there is one."""
    ratio: str
    target: str
    ok: bool


def show(title: str, rows: list[Row]) -> bool:
    """Print the table. Whether every target was met."""
    table = Table("what", "ours", "baseline", "ratio", "target", "", title=title)
    for row in rows:
        verdict = ("met" if row.ok else "MISSED") if row.target else ""
        table.add_row(row.what, row.ours, row.baseline, row.ratio, row.target, verdict)
    Console(width=130).print(table)
    return all(row.ok for row in rows)


def cpu_seconds(work: Callable[[], Any], times: int) -> float:
    """CPU seconds of this thread that one of `times` runs of `work` takes."""
    start = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - start) / times


def family() -> list[psutil.Process]:
    """This process and all that it started: an embedded Ray, its services and its workers."""
    own = psutil.Process(os.getpid())
    return [own, *own.children(recursive=True)]


def family_cpu_seconds() -> float:
    """CPU seconds that the family has used so far."""
    return cpu_seconds_of(family())


def cpu_seconds_of(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds that the processes have used so far, but for those that have ended."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def family_memory() -> dict[str, int]:
    """Bytes of memory by kind of process, memory that several share counted in parts (PSS)."""
    found: dict[str, int] = {}
    for process in family():
        try:
            name = " ".join(process.cmdline()) or process.name()
            size = process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        kind = "this process" if process.pid == os.getpid() else "Ray"
        if name.startswith("ray::"):
            kind = name.removeprefix("ray::").split(":")[0].split(".")[0].strip()
        found[kind] = found.get(kind, 0) + size
    return found
