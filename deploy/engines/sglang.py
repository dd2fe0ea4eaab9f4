"""The SGLang engine: SGLang's tokenizer manager runs in the replica's process, its scheduler in another one.

Invariant: ids, log-probs and version spans are passed on exactly as SGLang samples them. The engine runs in the
replica's process and not behind SGLang's HTTP server. So a turn needs one hop less and is never JSON, and weights go
from the object store to the scheduler through memory that both can open.

In an event loop only the tokenizer manager's coroutines may be used, because the Engine's own methods run another loop.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

import rollout_service.logs as logs
from deploy.engines import parameters
from deploy.engines.cache_hits import CacheHits
from deploy.engines.connecting import can_connect
from deploy.engines.launch import launch
from deploy.engines.pending_tokens import reason_against_freezing
from deploy.engines.prefix_use import PrefixUse, fixed_share
from deploy.engines.sglang_weights import SglangWeights, Staged
from deploy.engines.staging import GpuMemory
from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, WeightError
from rollout_service.policy.base import Generation, RequestError, TurnInfo, check_request
from rollout_service.policy.context import context_length
from rollout_service.policy.replica_size import processes
from rollout_service.policy.replicas import Occupancy
from rollout_service.policy.resume import ended_by
from rollout_service.policy.sglang_format import from_answer, sampling_params
from rollout_service.policy.weight_history import Names
from rollout_service.policy.weights import Rendezvous, WeightSource

_log = logs.logger(__name__)

_OURS = {"model_path", "skip_tokenizer_init", "weight_version"}
"""Arguments that the service derives from other settings."""

_REST_SECONDS = 60.0
"""How long the scheduler may take to finish with turns that have left."""

_STALL_SECONDS = 300.0
"""Seconds without a message from the scheduler, while turns run, after which it counts as hanging. It sends one at
least every 50 tokens of a turn."""


class SglangEngine:
    """One SGLang engine, over as many GPUs as its arguments say."""

    def __init__(self, policy: PolicyConfig) -> None:
        """Start the engine. Blocks until the model is loaded.

        Raises:
            ConfigError: unknown engine arguments, weights that do not fit, or a context that the engine does not take.
            ServiceError: SGLang cannot load the model.
        """
        _check_arguments(policy.engine_arguments)
        _check_memory(policy)
        begun = time.monotonic()
        self._policy = policy
        self._engine = launch(  # with its metrics on, an answer says how long the turn was queued
            {"log_level": "warning", "sleep_on_idle": True, "enable_metrics": True}
            | policy.engine_arguments
            | {
                "model_path": policy.model,
                "skip_tokenizer_init": True,
                "weight_version": str(policy.weight_version),
            }
        )
        self.version = policy.weight_version
        self._emptied = policy.weight_version
        """Version of the weights when the prefix cache was last empty."""
        self._manager = self._engine.tokenizer_manager
        self.start_seconds = start_seconds(time.monotonic() - begun, self._manager.startup_time)
        self._ends: set[int] = self._manager.model_config.hf_eos_token_id or set()
        self.connects = can_connect()
        self._weights = SglangWeights(self._engine, processes(policy), _gpu(policy, self._manager.server_args))
        self._hits = CacheHits()
        self._prefixes = PrefixUse(int(self._manager.server_args.page_size or 1))
        self._frozen = False
        self._busy_since = time.monotonic()
        self._word: tuple[float, float] = 0.0, 0.0
        """SGLang's time of the scheduler's last message, and our own time when we first saw it."""
        self._closing = False
        threading.Thread(target=self._end_with, args=(multiprocessing.active_children(),), daemon=True).start()
        self._context_length = wanted = context_length(policy)
        taken = int(self._manager.context_len)
        if wanted > taken:
            self.close()
            raise ConfigError(
                f"policy.context_length is {wanted}, but the engine takes {taken} tokens.",
                f"Set policy.context_length to {taken} or less, or policy.engine_arguments.context_length to more.",
            )

    async def generate(self, input_ids: npt.NDArray[np.int32], sampling: Sampling, info: TurnInfo) -> Generation:
        """Sample one turn, see `Engine`. The prefix cache has a part for each version at which episodes began. Keys and
        values in a part are of that version or of newer ones."""
        from sglang.srt.managers.io_struct import GenerateReqInput

        vocabulary = int(self._manager.model_config.vocab_size)
        check_request(input_ids, sampling, vocabulary=vocabulary, context_length=self._context_length)
        rid = uuid.uuid4().hex
        if not self._manager.rid_to_state:
            self._busy_since = time.monotonic()
        since = max(self.version if info.prefix_version is None else info.prefix_version, self._emptied)
        request = GenerateReqInput(
            input_ids=input_ids.tolist(),
            sampling_params=sampling_params(sampling),
            return_logprob=True,
            rid=rid,
            extra_key=str(since),  # only prompts with the same key share keys and values
        )
        try:
            answer = await anext(self._manager.generate_request(request, None))
        except asyncio.CancelledError:
            self._manager.abort_request(rid=rid)
            raise
        except ValueError as error:  # SGLang refuses a request in this way
            raise RequestError(str(error)) from error
        generation = replace(from_answer(answer), prefix_version=since)
        self._hits.add(generation.cached_tokens, generation.prompt_tokens)
        self._count(generation, info, int(answer["meta_info"].get("num_retractions", 0)))
        return ended_by(generation, () if sampling.ignore_eos else self._ends)

    def interrupt(self) -> None:
        """See `Engine`."""
        self._manager.abort_request(abort_all=True)

    def check_freeze(self) -> None:
        """See `Engine`."""
        from sglang.srt.managers.scheduler import Scheduler

        if reason := reason_against_freezing(Scheduler, self._manager.server_args):
            raise WeightError(
                f"mode 'in_place' would leave tokens whose weights nobody could name: {reason}.",
                "Update with 'abort_and_resume' or 'drain'. After a pause that was refused, call client.resume().",
            )

    async def freeze(self) -> None:
        """See `Engine`."""
        from sglang.srt.managers.io_struct import PauseGenerationReqInput

        self.check_freeze()
        self._frozen = True
        await self._manager.pause_generation(PauseGenerationReqInput(mode="in_place"))

    async def thaw(self) -> None:
        """See `Engine`."""
        from sglang.srt.managers.io_struct import ContinueGenerationReqInput

        await self._manager.continue_generation(ContinueGenerationReqInput())
        self._frozen = False
        self._busy_since = time.monotonic()

    def check(self, source: WeightSource) -> Names:
        """See `Engine`."""
        assert self._policy.model is not None
        self._weights.check_group(source)
        return parameters.check_weights(self._policy.model, source)

    async def stage(self, source: WeightSource) -> Staged:
        """See `Engine`."""
        return await self._weights.stage(source)

    async def load(self, staged: Staged, version: int, *, keep_cache: bool) -> None:
        """See `Engine`."""
        if not keep_cache:
            await self._come_to_rest()
            self._emptied = self.version
        await self._weights.load(staged, version)
        self.version = version
        if not keep_cache:
            self._emptied = version

    async def _come_to_rest(self) -> None:
        """Wait until nothing is left of the turns, and empty the prefix cache. Answers come before the scheduler has
        finished with their turns. If it had to load and to flush then, it would load, but not flush, and fail."""
        result = await self._manager.flush_cache(timeout_s=_REST_SECONDS)
        if not result.success:
            raise WeightError(f"The engine does not come to rest: {result.message}", "See the replica's log.")

    async def join(self, rendezvous: Rendezvous, rank: int) -> None:
        """See `Engine`."""
        await self._weights.join(rendezvous, rank)

    async def leave(self, group: str) -> None:
        """See `Engine`."""
        await self._weights.leave(group)

    def _end_with(self, processes: list[Any]) -> None:
        """End this process as soon as one of the engine's processes ends, because running turns would wait forever.
        SGLang itself sends a signal then, but processes that a shell started in the background ignore it."""
        multiprocessing.connection.wait([process.sentinel for process in processes])
        if not self._closing:
            _log.error("A process of the SGLang engine has died. The replica ends itself and is replaced.")
            os._exit(1)

    def occupancy(self) -> Occupancy | None:
        """See `Engine`. The scheduler writes queue and use into shared memory when it fills prompts, when it comes to
        rest, and every 15 tokens in between. Of its cache's hits it says nothing if SGLang's metrics are off."""
        load = self._load()
        if load is None:
            return None
        capacity, cache = int(getattr(load, "max_total_num_tokens", 0)), None
        if capacity:
            share = fixed_share(getattr(load, "decode_moments", None))  # a release may not have it
            inside = len(self._manager.rid_to_state)  # what the scheduler tells leaves out prompts that it computes
            cache = self._prefixes.figures(capacity, inside, min(inside, int(load.num_running_reqs)), share)
        return Occupancy(int(load.num_waiting_reqs), float(load.token_usage), self._hits.share, cache)

    def _load(self) -> Any:
        """SGLang's `LoadSnapshot`, as the scheduler wrote it last; None: there is none."""
        reader = getattr(self._manager, "load_snapshot_reader", None)  # an inner part, which a release may not have
        loads = None if reader is None else reader.read_all()
        return loads[0] if loads else None  # there is one: a replica is one copy of the model

    def _count(self, generation: Generation, info: TurnInfo, retractions: int) -> None:
        load = self._load()
        if (tokens := getattr(load, "total_prefill_uncached_tokens", 0)) > 0:
            self._prefixes.computed(tokens, load.total_prefill_busy_us / 1e6)
        self._prefixes.add(generation, info, retractions)

    def check_health(self) -> None:
        """See `Engine`. If the scheduler dies, the replica's process ends too; this check finds one that hangs."""
        if self._manager.gracefully_exit:
            raise RuntimeError("the engine is shutting down")
        if self._word[0] != (last := self._manager.last_receive_tstamp):  # wall-clock time, which may be set back
            self._word = last, time.monotonic()
        silent = time.monotonic() - max(self._busy_since, self._word[1])
        if self._manager.rid_to_state and not self._frozen and silent > _STALL_SECONDS:
            raise RuntimeError(f"the scheduler has said nothing for {silent:.0f} s while turns run")

    def close(self) -> None:
        """See `Engine`."""
        self._closing = True
        self._engine.shutdown()


def start_seconds(total: float, startup: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each phase of the engine's start.

    Args:
        total: seconds in which SGLang was imported and the engine started.
        startup: SGLang's own account. Of several schedulers it has the longest time of each phase.
    """
    engine, scheduler = float(startup["tokenizer_e2e"]), float(startup["scheduler_e2e"])
    parts = {
        "weights": float(startup["load_weight"]),
        "key-value memory": float(startup["kv_cache_allocation"]),
        "graphs": sum(map(float, startup["cuda_graph"].values())),
    }
    rest = max(0.0, scheduler - sum(parts.values()))
    before = {"imports": total - engine, "processes and their imports": engine - scheduler}
    return before | parts | {"rest of the scheduler": rest}


def _gpu(policy: PolicyConfig, arguments: Any) -> GpuMemory | None:
    """Where new weights may wait for the turns to stop, of the engine with these `ServerArgs`. The tensors of a model
    that is spread over several GPUs would all be in one of them."""
    import torch

    on_gpu = torch.cuda.is_available() and arguments.device in (None, "cuda")  # None: SGLang takes what there is
    wanted = policy.weight_staging == "auto" and on_gpu and processes(policy) == 1
    return GpuMemory(arguments.base_gpu_id) if wanted else None


def _check_arguments(arguments: dict[str, Any]) -> None:
    from sglang.srt.server_args import ServerArgs

    known = set(inspect.signature(ServerArgs).parameters)
    for name in arguments:
        if name in _OURS:
            raise ConfigError(
                f"policy.engine_arguments.{name} is set by the service.",
                "Use policy.model, policy.weight_version; text never reaches the engine.",
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else "See SGLang's ServerArgs."
            raise ConfigError(f"policy.engine_arguments.{name}: SGLang has no such argument.", hint)
    if arguments.get("dp_size", 1) != 1:
        raise ConfigError(
            f"policy.engine_arguments.dp_size is {arguments['dp_size']}, but a replica is one copy of the model.",
            "Set policy.replicas instead.",
        )


def _check_memory(policy: PolicyConfig) -> None:
    """Check that the weights fit. Otherwise SGLang's scheduler would end, and the replica with it, and only a log would
    say why."""
    import torch

    if policy.engine_arguments.get("device", "cuda") == "cuda" and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory * processes(policy)
        parameters.check_memory(str(policy.model), memory, policy.engine_arguments)
