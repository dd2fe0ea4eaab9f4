"""Pending tokens: those that SGLang's scheduler has sampled and not yet added to their requests when it is frozen.

Invariant: a frozen scheduler has none, so when weights change every token that the old ones sampled is in its request.

SGLang says which version sampled a token by the number of tokens that the request had when the version changed
(`record_weight_version_events`). The overlapped loop (`event_loop_overlap`, SGLang's default) starts a batch before it
reads the result of the one before, so that an `in_place` pause leaves one result in `result_queue`. Its tokens would be
counted as sampled by the new weights. They are counted when the pause begins instead of one step after its end, in the
way SGLang itself reads a result, so also speculative decoding, the first token after a prompt and a request that has
ended are counted exactly. Nobody could predict that: a request that is moved out of memory after the pause loses its
pending token, and samples it again with the new weights. To read a result also means to wait until the GPU has computed
it, so no forward pass is under way when the weights are changed.

SGLang's code was read in release 0.5.23.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any


class _Counted:
    """Stands in `result_queue` for a batch whose result was read: the loop takes one entry out of it in each step."""

    reqs: tuple[Any, ...] = ()
    has_grammar = False


def count_in_pauses(scheduler: type[Any]) -> None:
    """Make SGLang's class `Scheduler` count pending tokens when it is paused. Leaves a class alone that it does not
    know: `reason_against_freezing` refuses those."""
    if not _is_known(scheduler):
        return
    pause, process = scheduler.pause_generation, scheduler.process_batch_result

    @functools.wraps(pause)
    def pause_generation(self: Any, request: Any) -> None:
        pause(self, request)
        for place, (batch, result) in enumerate(list(self.result_queue)):
            self.process_batch_result(batch, result)
            self.result_queue[place] = _Counted(), result

    @functools.wraps(process)
    def process_batch_result(self: Any, batch: Any, result: Any) -> None:
        if not isinstance(batch, _Counted):
            process(self, batch, result)

    scheduler.pause_generation, scheduler.process_batch_result = pause_generation, process_batch_result


def reason_against_freezing(scheduler: type[Any], arguments: Any) -> str | None:
    """Why an engine cannot be frozen so that its tokens have their own versions; None if it can.

    Args:
        scheduler: SGLang's class `Scheduler`.
        arguments: SGLang's `ServerArgs`.
    """
    if not _is_known(scheduler):
        return "this release of SGLang has another scheduler than the one whose pending tokens can be counted"
    if arguments.pp_size > 1:  # `event_loop_pp`
        return f"SGLang's scheduler does not stop for it with pp_size {arguments.pp_size}"
    if arguments.enable_pdmux:  # `event_loop_pdmux`
        return "SGLang's scheduler does not stop for it with enable_pdmux"
    if arguments.disaggregation_mode != "null":
        return f"pending tokens are not counted with disaggregation_mode {arguments.disaggregation_mode}"
    return None


def _is_known(scheduler: type[Any]) -> bool:
    methods = ("pause_generation", "process_batch_result", "event_loop_overlap")
    if not all(hasattr(scheduler, name) for name in methods):
        return False
    return "result_queue" in inspect.unwrap(scheduler.event_loop_overlap).__code__.co_names
