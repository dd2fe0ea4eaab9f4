"""Loads a tokenizer from a folder or by its hub name.

Invariant: no code of the tokenizer's own is run.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from rollout_service.errors import CodecError, first_line

EMBEDDED_TOKENIZER = Path(__file__).parents[1] / "assets" / "tokenizer"
"""The small tokenizer that ships with the package; the default where no model is named."""


def load_tokenizer(path: str | None) -> tuple[Any, str]:
    """The tokenizer, and where it was loaded from.

    Args:
        path: a folder, or a hub name that `transformers` can find. None: the embedded one.

    Raises:
        CodecError: no tokenizer can be loaded from there.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises torch, which nothing here needs
    import transformers

    source = str(EMBEDDED_TOKENIZER if path is None else path)
    looks_local = path is not None and (path.startswith((".", "/", "~")) or path.count("/") != 1)
    if looks_local and not Path(source).expanduser().is_dir():
        raise CodecError(
            f"policy.tokenizer: there is no folder {source!r}.", "Give the folder that holds tokenizer.json."
        )
    try:
        # AutoTokenizer imports torch where it is installed, which costs each process seconds and 180 MB.
        loader = transformers.PreTrainedTokenizerFast if path is None else transformers.AutoTokenizer
        return loader.from_pretrained(str(Path(source).expanduser()), trust_remote_code=False), source
    except Exception as error:
        said = str(error)
        if "trust_remote_code" in said or "custom code" in said:
            raise CodecError(
                f"policy.tokenizer: no tokenizer can be loaded from {source!r}: it is made by Python code of its own, "
                "which this service does not run.",
                "Convert it once: load it with trust_remote_code=True where you trust it, save a tokenizer.json with "
                "its vocabulary and its chat template (transformers.PreTrainedTokenizerFast), and name that folder.",
            ) from error
        if "backend tokenizer" in said:
            raise CodecError(
                f"policy.tokenizer: no tokenizer can be loaded from {source!r}: it has no tokenizer.json, and none can "
                "be made of the files there.",
                "Save the tokenizer with its fast form: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
            ) from error
        raise CodecError(
            f"policy.tokenizer: no tokenizer can be loaded from {source!r}: {first_line(error)}",
            "Give a folder with a tokenizer, or a model name that this machine can download.",
        ) from error


def recorded_source(name: str) -> str | None:
    """What `load_tokenizer` takes for the tokenizer that a trajectory names: its folder; None: the embedded one.

    Raises:
        CodecError: it is neither the embedded one nor a folder of this machine. Nothing is downloaded because a file
            names it.
    """
    if name == "embedded":
        return None
    folder = os.path.abspath(os.path.expanduser(name))
    if not name or not os.path.isdir(folder):
        raise CodecError(
            f"The tokenizer {name!r} is no folder here, and nothing is downloaded on a file's word.",
            "Name the tokenizer with --tokenizer.",
        )
    return folder


def fingerprint(text: str) -> str:
    """The hash by which a tokenizer's JSON or a chat template is known in trajectories."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
