"""Reads a model's parameters from its files, and checks whether new weights belong to that model.

Invariant: nothing here changes a model, and no check reads a tensor: only names and shapes decide.
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
"""Two names of one tensor if the model ties them. Its checkpoint then has only the second."""


def check_weights(model: str, source: WeightSource) -> Names:
    """Check that these weights belong to the model, as far as its files tell.

    Args:
        model: folder or hub name of the model that the engine serves.

    Returns:
        Names of the parameters that they contain; None if these are all of the model's, as its files say.

    Raises:
        WeightError: as `check_shapes` and `described` raise it.
    """
    folder = located(model)
    expected = shapes(folder) if folder else None
    offered = described(source)
    names = frozenset(name for name, _ in offered)
    if folder is None or expected is None:
        return names
    check_shapes(expected, offered)
    return covered(_parameters(folder, expected), names)


def covered(parameters: Iterable[str], offered: frozenset[str]) -> Names:
    """The offered parameters. None: they are all of the parameters."""
    return None if offered.issuperset(parameters) else offered


def _parameters(folder: Path, named: Iterable[str]) -> set[str]:
    """The tensors of a checkpoint that are independent parameters: not a head that the model ties to its embedding, and
    not the tables of positions in old checkpoints, which engines compute."""
    config = json.loads((folder / "config.json").read_text())
    tied = config.get("tie_word_embeddings", False)
    return {name for name in named if not name.endswith(_COMPUTED) and not (tied and name == _HEAD)}


def check_shapes(expected: Mapping[str, Shape], offered: Iterable[tuple[str, Shape]]) -> None:
    """Check that the offered tensors are the model's. They need not be all of them.

    Args:
        expected: shapes of the model's parameters, by name.
        offered: name and shape of each new tensor.

    Raises:
        WeightError: a tensor has another name or shape; names the first, with both shapes.
    """
    for name, shape in offered:
        tied = name == _HEAD and name not in expected
        known = expected.get(_EMBEDDING if tied else name)
        if known is None and not tied:
            raise WeightError(
                f"The new weights have a tensor {name}, which the model has not.",
                f"Use the model's own names, such as {next(iter(expected), 'nothing')}.",
            )
        if known is not None and known != tuple(shape):
            raise WeightError(
                f"{name} is {_written(shape)} in the new weights and {_written(known)} in the model.",
                "Send whole, unsharded tensors of the model that is served.",
            )


def described(source: WeightSource) -> list[tuple[str, Shape]]:
    """Name and shape of each tensor of the source.

    Raises:
        WeightError: the folder does not exist or has no readable weights, or there is no tensor at all.
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
    except Exception as error:  # safetensors and json raise many kinds of errors for an incomplete file
        raise WeightError(f"The weights in {folder} cannot be read: {error}.", "Write the checkpoint again.") from error
    if not found:
        raise WeightError(f"{folder} holds no safetensors.", "Write it with save_pretrained.")
    return list(found.items())


def shapes(folder: Path) -> dict[str, Shape] | None:
    """Shapes by name, from the headers of the folder's safetensors. None: there are none.

    Raises:
        OSError, ValueError, safetensors.SafetensorError: a file is missing or incomplete.
    """
    from safetensors import safe_open

    paths = files(folder)
    found: dict[str, Shape] = {}
    for path in paths:
        with safe_open(path, framework="numpy") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return found if paths else None


def tensors(folder: Path) -> list[tuple[str, Any]]:
    """Name and torch tensor of each tensor in the folder's safetensors. A tensor may be a view of its file.

    Raises:
        OSError, safetensors.SafetensorError: a file is missing or incomplete.
    """
    from safetensors import safe_open

    found = []
    for path in files(folder):
        with safe_open(path, framework="pt") as opened:
            found += [(name, opened.get_tensor(name)) for name in opened.keys()]  # noqa: SIM118
    return found


def check_memory(model: str, memory: int, arguments: Mapping[str, Any]) -> None:
    """Check that a model's weights fit into its devices' memory.

    Passes if the size is not known: there are no safetensors here, or the weights are quantized or kept elsewhere.

    Args:
        model: folder or hub name.
        memory: bytes of memory of all devices of one replica together.
        arguments: the engine's arguments; `dtype` and those that change the size are used.

    Raises:
        ConfigError: the weights do not fit; says both sizes.
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
    """The folder's safetensors files: those that its index names, or the single one, or none."""
    index = folder / _INDEX
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = folder / _SINGLE
    return [single] if single.is_file() else []


def located(model: str) -> Path | None:
    """Folder of a model that is named by its folder or hub name. None: it is not on this machine."""
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
