"""The transformers engine: samples with a Hugging Face causal LM in this process, on any device torch has.

Invariant: the model, the batch and the prefix cache belong to one thread, which does everything in steps: sample one
token of each running turn, or do what the event loop asked for. Nothing happens inside a step, so the version that
stands beside a token is that of the weights that sampled it.

Why not transformers' own continuous batching (`init_continuous_batching`, tried in 5.23 on a CPU with torch 2.13): its
log-probs are as exact at temperature 1, and it can pause for new weights. But its log-probs are those left after top-p
and top-k, one request with temperature 0 ends its thread, a cancelled request gives back no tokens, and its prefix
cache neither forgets nor marks what older weights computed (log-probs were off by 12 after an update). It is also
slower, since its attention without flash kernels goes over the whole cache of a batch: tokens per CPU second of this
engine over its, on a model of 2 layers and width 64, one thread, 64 new tokens a turn: 1.6 for 1 prompt of 300 tokens,
1.5 for 8 and 2.8 for 32 such, 3.5 for 8 of 2000; 48 new tokens a turn: 3.2 for 8 sessions of 6 turns that share 1500
tokens, 5.3 for 24 of 4 turns (means of two runs with cache pages of 32 tokens, the engines taking turns).
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from deploy.engines import parameters
from deploy.engines.batch import Batch, Turn
from deploy.engines.packed import Context, PackedModel
from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, WeightError, first_line
from rollout_service.policy import process_group
from rollout_service.policy.base import Generation, TurnInfo, check_request
from rollout_service.policy.context import context_length
from rollout_service.policy.replicas import Occupancy
from rollout_service.policy.weight_history import Names
from rollout_service.policy.weights import (
    BroadcastTensors,
    Checkpoint,
    Rendezvous,
    StoredTensors,
    TensorSpec,
    WeightSource,
    single_sources,
    unpacked,
)

_CACHE_BYTES = 4 << 30
"""Size of the key and value cache on a device that does not tell its free memory."""

Named = tuple[str, torch.Tensor]
"""A parameter's name and its new value."""

_CLOSE_SECONDS = 30.0
"""Grace for the thread to end: it may be inside a step, or waiting for a broadcast."""


@dataclass(slots=True, eq=False)
class _Errand:
    """Something to do between two steps."""

    action: Callable[[], None]
    done: Future[None] = field(default_factory=Future)

    def run(self) -> None:
        """Do it, unless nobody waits for it any more."""
        if self.done.set_running_or_notify_cancel():
            try:
                self.action()
            except BaseException as error:
                self.done.set_exception(error)
            else:
                self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Leave it undone."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class TransformersEngine:
    """One model on one device. Batches continuously: turns join and leave between any two tokens."""

    connects = True

    def __init__(self, policy: PolicyConfig) -> None:
        """Load `policy.model`. Blocks until it can sample.

        Args:
            policy: its `engine_arguments` go to `from_pretrained`, but for `device`: by default cuda, mps or cpu, the
                first that there is.

        Raises:
            ConfigError: a model or argument that `from_pretrained` refuses, or a model that `PackedModel` cannot run.
        """
        model = _loaded(policy)
        self.version = policy.weight_version
        self._device: torch.device = model.device
        self._weights: dict[str, torch.Tensor] = model.state_dict()
        self._parameters = [name for name, _ in model.named_parameters()]
        self._stops = _stops(model)
        self._context_length = context_length(policy)
        self._vocabulary: int = model.get_input_embeddings().num_embeddings
        self._groups: dict[str, tuple[Any, Rendezvous]] = {}
        cuda = self._device.type == "cuda"
        self._batch = Batch(PackedModel(model), torch.cuda.mem_get_info(self._device)[0] // 2 if cuda else _CACHE_BYTES)
        self._inbox: queue.SimpleQueue[Turn | _Errand] = queue.SimpleQueue()
        self._frozen = False
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="transformers-engine", daemon=True)
        self._thread.start()

    async def generate(self, input_ids: npt.NDArray[np.int32], sampling: Sampling, info: TurnInfo) -> Generation:
        """Sample one turn, see `Engine`.

        Raises:
            RequestError: no input, ids that the model does not know, or more than the context holds.
            Exception: what went wrong in the model with this turn.
        """
        check_request(input_ids, sampling, vocabulary=self._vocabulary, context_length=self._context_length)
        stops = frozenset() if sampling.ignore_eos else self._stops.union(sampling.stop_token_ids)
        since = info.prefix_version
        turn = Turn(Context(input_ids, sampling.max_new_tokens), len(input_ids), sampling, stops, since)
        self._post(turn)
        return await asyncio.wrap_future(turn.done)  # cancelling it cancels `done`, which the thread sees

    def interrupt(self) -> None:
        """See `Engine`."""
        self._post(_Errand(self._batch.interrupt))

    def check_freeze(self) -> None:
        """See `Engine`."""

    async def freeze(self) -> None:
        """See `Engine`."""
        await self._between_steps(functools.partial(setattr, self, "_frozen", True))

    async def thaw(self) -> None:
        """See `Engine`."""
        await self._between_steps(functools.partial(setattr, self, "_frozen", False))

    def check(self, source: WeightSource) -> Names:
        """See `Engine`."""
        if isinstance(source, BroadcastTensors) and source.group not in self._groups:
            raise WeightError(f"This engine is not in a process group {source.group}.", "Join it first.")
        offered = parameters.described(source)
        parameters.check_shapes({name: tuple(tensor.shape) for name, tensor in self._weights.items()}, offered)
        return parameters.covered(self._parameters, frozenset(name for name, _ in offered))

    async def stage(self, source: WeightSource) -> list[Named]:
        """See `Engine`. Tensors from the object store are views of it, those of a checkpoint may be views of its file,
        and those of a process group have all been received."""
        await asyncio.to_thread(self.check, source)
        staged: list[Named] = []
        for single in single_sources(source):
            if isinstance(single, StoredTensors):
                data = await asyncio.gather(*(bucket.data for bucket in single.buckets))
                for bucket, each in zip(single.buckets, data, strict=True):
                    staged += unpacked(bucket, each)
            elif isinstance(single, Checkpoint):
                staged += await asyncio.to_thread(parameters.tensors, Path(single.path))
            else:
                staged += await asyncio.to_thread(self._received, single)
        return staged

    async def load(self, staged: list[Named], version: int, *, keep_cache: bool) -> None:
        """See `Engine`. Frozen turns whose cache is not kept go on as if new: what they have is their prompt."""
        await self._between_steps(functools.partial(self._write, staged))
        await self._between_steps(functools.partial(self._renew, version, keep_cache))

    async def join(self, rendezvous: Rendezvous, rank: int) -> None:
        """See `Engine`."""
        group = await asyncio.to_thread(process_group.join, rendezvous, rank)
        self._groups[rendezvous.name] = group, rendezvous
        try:
            await asyncio.to_thread(process_group.connect, group, self._sent_to(rendezvous))
        except RuntimeError as error:
            raise WeightError(f"The ranks of {rendezvous.name} did not connect: {error}", "Make a new one.") from error

    async def leave(self, group: str) -> None:
        """See `Engine`."""
        joined = self._groups.pop(group, None)
        if joined is not None:  # a thread may still receive in it
            await asyncio.to_thread(process_group.abort, joined[0])

    def occupancy(self) -> Occupancy:
        """See `Engine`."""
        return self._batch.occupancy()

    def check_health(self) -> None:
        """Raise `RuntimeError` from the cause if the engine's thread has ended."""
        if self._ended is not None:
            raise RuntimeError("the engine's thread has ended") from self._ended

    def close(self) -> None:
        """End the thread; turns in flight fail."""
        self._inbox.put(_Errand(self._end))
        self._thread.join(_CLOSE_SECONDS)

    # On the event loop -----------------------------------------------------------------------------------------------

    def _post(self, item: Turn | _Errand) -> None:
        self._inbox.put(item)
        self.check_health()  # after, not before: the thread answers what was there when it ended

    async def _between_steps(self, action: Callable[[], None]) -> None:
        errand = _Errand(action)
        self._post(errand)
        await asyncio.wrap_future(errand.done)

    # In the engine's thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while self._ended is None:
                    if not self._frozen:
                        self._batch.step(self.version)
                    self._open_inbox()
        except BaseException as error:
            self._ended = error
            raise
        finally:
            gone = RuntimeError("the engine has ended")
            self._batch.fail(gone)
            while not self._inbox.empty():
                self._inbox.get().fail(gone)

    def _open_inbox(self) -> None:
        """Take in what was posted, and wait for it while there is nothing else to do."""
        idle = self._frozen or not len(self._batch)
        while idle or not self._inbox.empty():
            item = self._inbox.get()
            idle = False
            if isinstance(item, Turn):
                self._batch.add(item)
            else:
                item.run()

    def _end(self) -> None:
        self._ended = RuntimeError("it was closed")

    def _write(self, tensors: Iterable[Named]) -> None:
        for name, tensor in tensors:
            self._weights[name].copy_(tensor)

    def _sent_to(self, rendezvous: Rendezvous) -> torch.device:
        return self._device if rendezvous.backend == "nccl" else torch.device("cpu")

    def _received(self, source: BroadcastTensors) -> list[Named]:
        group, rendezvous = self._groups[source.group]
        received = []
        for spec in source.specs:
            tensor = torch.empty(spec.shape, dtype=_dtype(spec), device=self._sent_to(rendezvous))
            with process_group.beside(tensor):
                process_group.broadcast(group, tensor)
            received.append((spec.name, tensor))
        return received

    def _renew(self, version: int, keep_cache: bool) -> None:
        self.version = version
        if not keep_cache:
            self._batch.forget()


def _loaded(policy: PolicyConfig) -> Any:
    """The model, in evaluation mode on its device."""
    arguments = dict(policy.engine_arguments)
    device = arguments.pop("device", None) or _best_device()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(policy.model, **arguments)
    except TypeError as error:  # it names the argument
        raise ConfigError(
            f"policy.engine_arguments: from_pretrained refuses {', '.join(arguments) or 'this model'}: {error}.",
            "Leave out what transformers' from_pretrained does not take.",
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"policy.model: {policy.model!r} cannot be loaded: {first_line(error)}",
            "Give a folder or hub name of a causal LM that transformers knows, readable on every node.",
        ) from error
    return model.eval().requires_grad_(False).to(device)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _stops(model: Any) -> frozenset[int]:
    """The tokens that end a turn, as the model's own files say."""
    named = [model.config.get_text_config().eos_token_id, model.generation_config.eos_token_id]
    return frozenset(
        int(token) for ids in named if ids is not None for token in (ids if isinstance(ids, list) else [ids])
    )


def _dtype(spec: TensorSpec) -> torch.dtype:
    return getattr(torch, spec.dtype)
