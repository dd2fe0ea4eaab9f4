"""Token texts: what each token id that occurs in the page reads as.

Invariant: a text is the tokenizer's own, and only of the tokenizer that made the trajectory. Where that one cannot be
loaded, and for a token that is only a part of a character, there is no text, and the page shows the id.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rollout_service.chat.tokenizer_files import fingerprint, load_tokenizer, recorded_source
from rollout_service.errors import CodecError
from rollout_service.record.trajectory import Provenance

_REPLACEMENT = "\ufffd"
"""What decoding gives for bytes that are no whole character."""


@dataclass(slots=True)
class Vocabulary:
    """The ids of one tokenizer that occur."""

    name: str
    fingerprint: str
    used: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """bool[largest id + 1]: whether the id occurs."""

    def note(self, token_ids: npt.NDArray[np.int32]) -> None:
        """Note that these ids occur. A negative one, which no tokenizer has, is passed over."""
        valid = token_ids[token_ids >= 0]
        if len(valid) and (largest := int(valid.max())) >= len(self.used):
            self.used = np.concatenate([self.used, np.zeros(largest + 1 - len(self.used), np.bool_)])
        self.used[valid] = True


class Vocabularies:
    """One vocabulary for each tokenizer that made a trajectory."""

    def __init__(self, named: str | None) -> None:
        """
        Args:
            named: folder or hub name of the tokenizer that made the tokens, where the recorded name is no folder here.

        Raises:
            CodecError: it cannot be loaded.
        """
        self._named = None if named is None else (named, _backend(named))
        self._places: dict[tuple[str, str], int] = {}
        self.all: list[Vocabulary] = []

    def of(self, made: Provenance) -> tuple[int, Vocabulary]:
        """The vocabulary of a trajectory's tokenizer, and its place in `all`."""
        key = made.tokenizer, made.tokenizer_fingerprint
        if key not in self._places:
            self._places[key] = len(self.all)
            self.all.append(Vocabulary(*key))
        return self._places[key], self.all[self._places[key]]

    def texts(self, vocabulary: Vocabulary) -> tuple[dict[str, Any], str]:
        """The `ids` and their `texts` (None: it has none), and why there are no texts; empty: there are."""
        try:
            source, backend = self._named or (vocabulary.name, _backend(recorded_source(vocabulary.name)))
            if fingerprint(backend.to_str()) != vocabulary.fingerprint:
                made = f"{vocabulary.name!r}, {vocabulary.fingerprint}"
                raise CodecError(
                    f"The tokenizer {source!r} is not the one that made the tokens ({made}).",
                    "Name the right one with --tokenizer.",
                )
        except CodecError as error:
            return {"ids": [], "texts": []}, f"{error} Token ids are shown in place of texts."
        ids = np.flatnonzero(vocabulary.used).tolist()
        return {"ids": ids, "texts": _texts(backend, ids)}, ""


def _backend(source: str | None) -> Any:
    """A tokenizer as `tokenizers.Tokenizer`; None: the embedded one."""
    tokenizer, _ = load_tokenizer(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CodecError(f"The tokenizer {source!r} has no fast version.", "Save it with a tokenizer.json.")
    backend.no_truncation()
    backend.no_padding()
    return backend


def _texts(backend: Any, ids: list[int]) -> list[str | None]:
    """Text of each id, as it reads inside a sequence: some tokenizers drop a space before the first token."""
    anchor = next((i for i in ids if (text := backend.decode([i], skip_special_tokens=False)) and text.isalnum()), None)
    before = [] if anchor is None else [anchor]
    start = backend.decode(before, skip_special_tokens=False) if before else ""
    decoded = backend.decode_batch([[*before, i] for i in ids], skip_special_tokens=False)
    texts: list[str | None] = []
    for i, text in zip(ids, decoded, strict=True):
        known = backend.id_to_token(i) is not None and text.startswith(start)
        own = text[len(start) :]
        texts.append(own if known and own and _REPLACEMENT not in own else None)
    return texts
