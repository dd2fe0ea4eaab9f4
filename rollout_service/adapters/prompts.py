"""Prompt files for trainers that read their own: one row for each task.

Invariant: a row names its task completely, so tasks of several domains and splits can share a file. The prompt is only
a label: what the policy sees is made where the episode runs, from τ²-bench's own task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import rollout_service.adapters.rows as rows
import rollout_service.config.arguments as arguments
from rollout_service.config import RolloutConfig
from rollout_service.errors import StorageError, TaskError
from rollout_service.record.trajectory import TaskRef
from rollout_service.tau2 import tasks
from rollout_service.tau2.task_choice import TaskChoice

AGENT_NAME = "tau2"
"""Name of the agent loop, in verl's rows and in its file of agent loops."""


def prepare_data(
    path: str | Path,
    domains: Iterable[str],
    splits: Iterable[str],
    *,
    overwrite: bool = False,
    config: RolloutConfig | None = None,
) -> int:
    """Write the tasks of every split of every domain, in τ²'s order.

    * `.jsonl`, for slime's `--prompt-data` with `--input-key prompt --metadata-key metadata` (`slime/utils/data.py`,
      0.3.1): `{"prompt": "3", "metadata": {"domain": "retail", "split": "train", "task_id": "17", "index": 3}}`.
    * `.parquet`, for verl's `data.train_files` (`verl/utils/dataset/rl_dataset.py`, 0.9.1): `prompt` (a message),
      `agent_name`, `data_source`, `reward_model`, and `extra_info`, which names the task as `metadata` does above.

    The index is the task's position in its split.

    Args:
        config: of the service, which leaves tasks out, see `TaskChoice`; None: all are there.

    Returns:
        Number of rows written.

    Raises:
        TaskError: unknown domain or split; or no task of it is left.
        StorageError: the file exists, cannot be written, or does not end in .jsonl or .parquet.
    """
    path = arguments.path("path", path, StorageError)
    domains = arguments.texts("domains", domains, "retail", TaskError)
    splits = arguments.texts("splits", splits, "train", TaskError)
    arguments.truth("overwrite", overwrite)
    if path.suffix not in _WRITERS:
        raise StorageError(f"{path} does not end in .jsonl or .parquet.", "slime reads the first, verl the second.")
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists.", "Pass --overwrite, or choose another name.")
    choose = tasks.references if config is None else TaskChoice(config).references
    found = [task for domain in domains for split in splits for task in choose(domain, split)]
    try:
        _WRITERS[path.suffix](path, found)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error
    return len(found)


def _for_slime(path: Path, found: Sequence[TaskRef]) -> None:
    lines = ({"prompt": str(task.index), "metadata": rows.fields(task)} for task in found)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _for_verl(path: Path, found: Sequence[TaskRef]) -> None:
    import pyarrow
    import pyarrow.parquet

    table: list[dict[str, Any]] = [
        {
            "prompt": [{"role": "user", "content": str(task)}],
            "agent_name": AGENT_NAME,
            "data_source": f"tau2/{task.domain}",
            "reward_model": {"style": "tau2", "ground_truth": ""},
            "extra_info": rows.fields(task),
        }
        for task in found
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)


_WRITERS: dict[str, Callable[[Path, Sequence[TaskRef]], None]] = {".jsonl": _for_slime, ".parquet": _for_verl}
