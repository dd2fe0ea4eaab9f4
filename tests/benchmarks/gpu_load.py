"""The GPUs of a service's replicas, and how busy they were.

Invariant: only the replicas' own GPUs count, whatever else the machine's other GPUs do.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping

import psutil

from tests.benchmarks.measure import family

READABLE = {"SPT_NOENV": "1"}
"""Variables for a replica whose GPUs shall be found: its engine's processes keep their environment readable."""


def gpus_of(application: str) -> set[str]:
    """GPUs of the Serve application's replicas, as `CUDA_VISIBLE_DEVICES` of their engines' processes names them."""
    found: set[str] = set()
    for process in family():
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::ServeReplica:{application}:"):
                for child in process.children():
                    found |= set(child.environ().get("CUDA_VISIBLE_DEVICES", "").split(",")) - {""}
    return found


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Share of the block's time, 0 to 1, for which each GPU was busy, by its number and by its UUID; empty without
    nvidia-smi. It is there after the block."""
    shares: dict[str, float] = {}
    if shutil.which("nvidia-smi") is None:
        yield shares
        return
    query = ["nvidia-smi", "--query-gpu=index,uuid,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
    with tempfile.TemporaryFile("w+") as written:  # a pipe that nobody reads would become full
        process = subprocess.Popen(query, stdout=written)
        try:
            yield shares
        finally:
            process.terminate()
            process.wait()
            written.seek(0)
            shares |= _means(written.read())


def _means(text: str) -> dict[str, float]:
    samples: dict[str, list[float]] = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # the last line may be cut
            number, uuid, percent = (part.strip() for part in line.split(","))
            share = float(percent) / 100
            for name in (number, uuid):
                samples.setdefault(name, []).append(share)
    return {name: sum(values) / len(values) for name, values in samples.items()}


def shown(shares: Mapping[str, float], gpus: set[str]) -> str:
    """The shares of these GPUs for a table."""
    return " ".join(f"{shares[gpu]:.0%}" for gpu in sorted(gpus) if gpu in shares) or "unknown"
