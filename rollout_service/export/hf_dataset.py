"""A Hugging Face dataset: a folder that `datasets.load_dataset` reads.

Invariant: its columns are those of a trajectory's own Parquet form, so `rollout_service.record.storage` reads a shard
too. A shard is written whole.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from rollout_service.export.selection import Selected
from rollout_service.record.parquet import ParquetSink
from rollout_service.version import __version__

_SHARD = 512
"""Trajectories of a shard: about 140 MB of arrays in memory at 20,000 tokens each."""

_CARD = """\
---
pretty_name: τ²-bench trajectories
tags:
- tau2-bench
- tool-use
- reinforcement-learning
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

# τ²-bench trajectories

{count} scored episodes, written by tau2-rollout-service {version}. `train` is only the name that a dataset without
splits has here; τ²-bench's own split stands in `task_split`.

| domain | episodes |
|---|---|
{domains}

Left out: {left_out}.

`segments` holds the tokens: `token_ids`, `loss_mask` (1 on what the policy sampled), `logprobs` and `weight_versions`.
Free-form values are JSON text: `messages`, `reward_info`, `database_hashes` and others, for `json.loads`.
"""


def is_dataset(path: Path) -> bool:
    """Whether the folder has nothing but what `write` makes, so that another dataset may take its place."""
    others = {each.name for each in path.iterdir()} - {"README.md", "data"} if path.is_dir() else {path.name}
    data = path / "data"
    return not others and (not data.exists() or (data.is_dir() and all(map(_is_shard, data.iterdir()))))


def _is_shard(path: Path) -> bool:
    return path.suffix == ".parquet" and path.is_file()


def write(selected: Selected, path: Path) -> None:
    """Write the folder."""
    data = path / "data"
    data.mkdir(parents=True)
    sink, domains = ParquetSink(data), Counter[str]()
    rest = iter(selected)
    while shard := list(islice(rest, _SHARD)):
        sink.append(shard)
        domains.update(trajectory.task.domain for trajectory in shard)
    left_out = ", ".join(f"{count} {reason}" for reason, count in selected.left_out.items())
    text = _CARD.format(
        count=selected.taken,
        version=__version__,
        domains="\n".join(f"| {name} | {count} |" for name, count in domains.items()),
        left_out=left_out or "none",
    )
    (path / "README.md").write_text(text, encoding="utf-8")
