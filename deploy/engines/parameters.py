"""Which parameters a model has, read from its files, and whether new weights are weights of that model.

Invariant: nothing here reads a tensor or touches a model: names and shapes alone decide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rollout_service.errors import ConfigError, WeightError
from rollout_service.policy.weight_history import Names
from rollout_service.policy.weights import Checkpoint, Layers, WeightSource

Shape = tuple[int, ...]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}

_COMPUTED = ".rotary_emb.inv_freq"

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
"""One tensor under two names, where the model ties them; its checkpoint then has the second only."""


def check(model: str, source: WeightSource) -> Names:
    """See that these weights are that model's, as far as its files tell.

    Args:
        model: folder or hub name of what the engine serves.

    Returns:
        Which of its parameters they are; not all where its files do not tell what all are.

    Raises:
        WeightError: as `refuse_others` and `described` do.
    """
    folder = located(model)
    expected = shapes(folder) if folder else None
    offered = described(source)
    names = frozenset(name for name, _ in offered)
    if folder is None or expected is None:
        return names
    refuse_others(expected, offered)
    return covered(_parameters(folder, expected), names)


def covered(parameters: Iterable[str], offered: frozenset[str]) -> Names:
    """Which parameters those are that are offered: None for all."""
    return None if offered.issuperset(parameters) else offered


def _parameters(folder: Path, named: Iterable[str]) -> set[str]:
    """The tensors of a checkpoint that are parameters of their own: not a head that the model ties to its embedding,
    and no tables of positions, which old checkpoints have and engines compute."""
    config = json.loads((folder / "config.json").read_text())
    tied = config.get("tie_word_embeddings", False)
    return {name for name in named if not name.endswith(_COMPUTED) and not (tied and name == _HEAD)}


def refuse_others(expected: Mapping[str, Shape], offered: Iterable[tuple[str, Shape]]) -> None:
    """Refuse weights that are not the model's. They need not be all of them.

    Args:
        expected: shapes of the model's parameters, by name.
        offered: name and shape of each new tensor.

    Raises:
        WeightError: one has another name or shape; names the first, with both shapes.
    """
    for name, shape in offered:
        tied = name == _HEAD and name not in expected
        known = expected.get(_EMBEDDING if tied else name)
        if known is None and not tied:
            raise WeightError(
                f"The new weights have a tensor {name}, which the model has not.",
                f"Call tensors what the model calls them, such as {next(iter(expected), 'nothing')}.",
            )
        if known is not None and known != tuple(shape):
            raise WeightError(
                f"{name} is {_written(shape)} in the new weights and {_written(known)} in the model.",
                "Send whole, unsharded tensors of the model that is served.",
            )


def described(source: WeightSource) -> list[tuple[str, Shape]]:
    """Name and shape of each tensor of the source.

    Raises:
        WeightError: a folder that is not there, or without weights that can be read; no tensor at all.
    """
    if isinstance(source, Layers):
        return [item for single in source.sources for item in described(single)]
    if not isinstance(source, Checkpoint):
        if not source.specs:
            raise WeightError("The new weights have no tensor.", "Give at least one.")
        return [(spec.name, tuple(spec.shape)) for spec in source.specs]
    folder = Path(source.path)
    if not folder.is_dir():
        raise WeightError(
            f"There is no folder {folder}.", "Write the checkpoint where every replica's node can read it."
        )
    try:
        found = shapes(folder)
    except Exception as error:  # whatever safetensors and json raise for a file that is cut off
        raise WeightError(f"The weights in {folder} cannot be read: {error}.", "Write the checkpoint again.") from error
    if not found:
        raise WeightError(f"{folder} holds no safetensors.", "Write it with save_pretrained.")
    return list(found.items())


def shapes(folder: Path) -> dict[str, Shape] | None:
    """Shapes by name, from the headers of the folder's safetensors; None where there are none.

    Raises:
        OSError, ValueError, safetensors.SafetensorError: files that are missing or cut off.
    """
    from safetensors import safe_open

    paths = files(folder)
    found: dict[str, Shape] = {}
    for path in paths:
        with safe_open(path, framework="numpy") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return found if paths else None


def refuse_too_large(model: str, memory: int, arguments: Mapping[str, Any]) -> None:
    """Refuse a model whose weights alone are larger than its devices' memory.

    Says nothing where the size is not known: no safetensors here, or weights that are quantized or kept elsewhere.

    Args:
        model: folder or hub name.
        memory: bytes, of all devices of one replica together.
        arguments: of the engine: `dtype` and what changes the size.

    Raises:
        ConfigError: it does not fit; says how large both are.
    """
    folder = located(model)
    known = shapes(folder) if folder else None
    if not folder or not known or any(arguments.get(name) for name in ("quantization", "cpu_offload_gb")):
        return
    config = json.loads((folder / "config.json").read_text())
    dtype = str(arguments.get("dtype", "auto"))
    dtype = str(config.get("dtype") or config.get("torch_dtype")) if dtype == "auto" else dtype
    if dtype not in _DTYPE_BYTES or "quantization_config" in config:
        return
    size = sum(math.prod(shape) for shape in known.values()) * _DTYPE_BYTES[dtype]
    if size > memory:
        raise ConfigError(
            f"policy.model: the weights of {model} take {size / 2**30:.1f} GiB; a replica's GPUs have "
            f"{memory / 2**30:.1f} GiB.",
            "Spread a replica over more GPUs with policy.engine_arguments.tp_size, or serve a smaller model.",
        )


def files(folder: Path) -> list[Path]:
    """The folder's safetensors: those that its index names, or the single one, or none."""
    index = folder / _INDEX
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = folder / _SINGLE
    return [single] if single.is_file() else []


def located(model: str) -> Path | None:
    """Folder of a model that is named by its folder or on the hub; None where it is not on this machine."""
    if Path(model).is_dir():
        return Path(model)
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _written(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
