"""Prompt files for slime: one JSON line per task.

Invariant: a line names its task completely, so the tasks of several domains and splits can share a file. The prompt is
only a label: what the policy sees is made where the episode runs, from τ²-bench's own task.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from rollout_service.errors import StorageError
from rollout_service.tau2 import tasks


def prepare_data(path: str | Path, domains: Iterable[str], splits: Iterable[str], *, overwrite: bool = False) -> int:
    """Write the tasks of every split of every domain, in τ²'s order, for slime's `--prompt-data` (read with
    `--input-key prompt --metadata-key metadata`; `slime/utils/data.py`, 0.3.1).

    A line is `{"prompt": "3", "metadata": {"domain": "retail", "split": "train", "task_id": "17", "index": 3}}`; the
    index is the task's position in its split.

    Returns:
        Lines written.

    Raises:
        TaskError: unknown domain or split.
        StorageError: the file exists, cannot be written, or does not end in .jsonl.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise StorageError(f"{path} does not end in .jsonl.", "slime tells formats by it.")
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists.", "Pass --overwrite, or choose another name.")
    splits = list(splits)
    found = [task for domain in domains for split in splits for task in tasks.references(domain, split)]
    lines = [
        json.dumps(
            {
                "prompt": str(task.index),
                "metadata": {
                    "domain": task.domain,
                    "split": task.split,
                    "task_id": task.task_id,
                    "index": task.index,
                },
            }
        )
        for task in found
    ]
    try:
        path.write_text("".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error
    return len(lines)
