"""What a client asks of `/generate`, read from the body that it sent.

Invariant: bytes in, a `GenerateRequest` or a `RequestError` with the field's name out, whatever the bytes are; nothing
that was asked for is left out in silence. `json` holds the interpreter's lock for a whole document, 7 ms for a MiB of
ids. So the ids, which are all that is large in an honest body, are read in pieces, between which other threads run.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from rollout_service.config.sampling import LARGEST_INT, Sampling
from rollout_service.policy.base import RequestError

_PIECE = 1 << 15
"""Characters that `json` reads at a time: some 0.3 ms."""

_REST = 1 << 16
"""Characters that a body may have beside its ids."""

_IDS = re.compile(r'(?<!\\)"input_ids"\s*:\s*\[')
_NEXT_IS = re.compile(r"\s*(.?)", re.DOTALL)

_OF_TEXT = {"skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "stop"}
"""Sampling parameters that only concern text, which is neither sent nor returned here. `stop` is allowed if empty."""

_FIELDS = {"input_ids", "sampling_params", "rid"}

_OF_ANSWERS = {"return_logprob", "return_text_in_logprobs", "log_metrics", "incremental_streaming_output"}
"""Fields that change nothing: log-probs come always, text never."""

_NOT_AN_ID = "input_ids must be a list of token ids, not empty, or a list of such lists"


@dataclass(frozen=True, slots=True, eq=False)
class GenerateRequest:
    """Prompts to continue, all in the same way."""

    prompts: list[npt.NDArray[np.int32]]
    """Each int32[n], n at least 1."""
    rids: list[str | None]
    """The request id that the client gave each prompt."""
    sampling: Sampling
    is_batch: bool
    """Whether the answer is a list, also of one."""


def read_request(body: bytes, most_prompts: int) -> GenerateRequest:
    """The request in the body. Takes milliseconds for each MiB: not for an event loop's thread.

    Raises:
        RequestError: it cannot be done here, or has more than `most_prompts` prompts; names the field.
    """
    try:
        text = body.decode()
        found = _IDS.search(text)
        if found is None:
            payload, prompts, is_batch = _read_rest(text), None, False
        else:
            prompts, is_batch, end = _read_prompts(text, found.end(), most_prompts)
            payload = _read_rest(text[: found.end()] + text[end:])
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error}") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(payload, dict) or "input_ids" not in payload:
        raise RequestError("input_ids is missing: this endpoint takes token ids, not text")
    if prompts is None or payload["input_ids"] != []:  # it stands there twice, or is something else
        raise RequestError(_NOT_AN_ID)
    for field in payload.keys() - _FIELDS - _OF_ANSWERS:
        if payload[field] and not (field == "logprob_start_len" and payload[field] == -1):
            raise RequestError(f"{field[:100]} is not supported here")
    return GenerateRequest(prompts, _rids(payload.get("rid"), len(prompts)), _sampling(payload), is_batch)


def _read_rest(text: str) -> Any:
    if len(text) > _REST:
        raise RequestError(f"the body has {len(text)} characters beside its input_ids; it may have {_REST}")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # a number of more digits than Python reads
        raise RequestError(f"the body has a number that cannot be read: {error}") from None


def _read_prompts(text: str, start: int, most: int) -> tuple[list[npt.NDArray[np.int32]], bool, int]:
    """The prompts of the list that begins before `start`, whether they are a batch, and where its last bracket is."""
    if _next(text, start)[0] != "[":
        end = text.find("]", start)
        return [_read_ids(text, start, end)], False, end
    prompts: list[npt.NDArray[np.int32]] = []
    mark = ","
    while mark == ",":
        if len(prompts) == most:
            raise RequestError(f"input_ids has more than {most} prompts: send them in several requests")
        mark, start = _next(text, start)
        if mark != "[":
            raise RequestError(_NOT_AN_ID)
        end = text.find("]", start)
        prompts.append(_read_ids(text, start, end))
        mark, start = _next(text, end + 1)
    if mark != "]":
        raise RequestError(_NOT_AN_ID)
    return prompts, True, start - 1


def _next(text: str, start: int) -> tuple[str, int]:
    """The next character that is no space, and where it ends."""
    found = _NEXT_IS.match(text, start)
    assert found is not None
    return found[1], found.end()


def _read_ids(text: str, start: int, end: int) -> npt.NDArray[np.int32]:
    """int32[n], the ids between `start` and the bracket at `end`; -1: there is none."""
    parts = []
    while end >= 0:
        comma = text.find(",", start + _PIECE, end)
        cut = end if comma < 0 else comma
        try:
            ids = json.loads(f"[{text[start:cut]}]")
        except ValueError:
            break
        if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > LARGEST_INT:
            break
        parts.append(np.array(ids, dtype=np.int32))
        if cut == end:
            return np.concatenate(parts)
        start = cut + 1
        time.sleep(0)  # whoever waits for the interpreter's lock has it now
    raise RequestError(_NOT_AN_ID)


def _rids(given: Any, n: int) -> list[str | None]:
    rids = given if isinstance(given, list) else [given] * n
    if len(rids) != n or not all(rid is None or (isinstance(rid, str) and rid.isprintable()) for rid in rids):
        raise RequestError("rid must be text, or a list of as many as there are prompts")
    return rids


def _sampling(payload: dict[str, Any]) -> Sampling:
    given = payload.get("sampling_params") or {}
    if not isinstance(given, dict):
        raise RequestError("sampling_params must be one object, for all prompts of a batch")
    if given.get("stop") or given.get("n") not in (None, 1):
        raise RequestError("sampling_params.stop and n are not supported here: use stop_token_ids, and ask n times")
    chosen = {name: value for name, value in given.items() if name not in _OF_TEXT | {"n"} and value is not None}
    chosen.setdefault("max_new_tokens", 128)  # SGLang's default
    try:
        return Sampling.model_validate(chosen)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise RequestError(f"sampling_params.{str(first['loc'][0])[:100]}: {message}") from None
