"""The service behind slime's hooks: one per process, on slime's Ray cluster.

Invariant: nothing here blocks slime's event loop. The service is started or attached to once, in a thread, however many
samples wait for it. If that fails, all of them get the same error. Episodes run in the service's environment actors. If
a wait for an episode ends early, for any reason, the episode ends too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import rollout_service.adapters.slime.settings as slime_settings
import rollout_service.garbage as garbage
import rollout_service.logs as logs
from rollout_service.adapters.checks import check_tokenizers, check_vocabulary, without_scores
from rollout_service.background import BackgroundTasks
from rollout_service.chat.codec import ChatCodec
from rollout_service.client import RolloutClient
from rollout_service.collecting.stream import GroupStream
from rollout_service.config.sampling import Sampling
from rollout_service.errors import CodecError, ServiceError
from rollout_service.policy.context import vocabulary
from rollout_service.record.trajectory import TaskRef, Trajectory
from rollout_service.redaction import safe_cause
from rollout_service.tcp import check_listening

_log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, and what slime's side needs to know."""

    client: RolloutClient
    fingerprint: str
    """Fingerprint of the tokenizer of slime's `--hf-checkpoint`."""
    vocabulary: int | None
    """Rows of that model's embedding. None: its files do not say."""

    @property
    def fans_out(self) -> bool:
        """Whether an episode may give several samples. slime expects all or none of a batch's episodes as lists."""
        return self.client.config.policy.history == "template"

    async def play(self, task: TaskRef, seed: int, sampling: Sampling, n: int = 1) -> list[Trajectory]:
        """Play `n` episodes of the task. Cancelling this coroutine ends them; when it has returned, they send nothing
        more to the engines.

        Returns:
            The trajectories, by sample index.

        Raises:
            RolloutError: no such task, the service is gone, or the episodes' tokenizer is not slime's. What stops a
                single episode is in its trajectory.
        """
        choice: dict[str, Any] = {"domain": task.domain, "split": task.split, "ids": [task.task_id], "seed": seed}
        # slime starts hundreds of samples at once. One is submitted per step, so that the loop never stops for long.
        async with _submitting.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            await asyncio.sleep(0)
            stream = self.client.astream(n, group_size=n, sampling=sampling, **choice)
        finished = False
        trajectories: list[Trajectory] = []
        stream.withheld = lambda group, _: trajectories.extend(without_scores(group))
        try:
            async for group in stream:
                trajectories += group
            finished = True
        finally:
            if not finished:
                await asyncio.shield(_tasks.start(_closed(stream), "cancelling the collection of a stopped rollout"))
        check_tokenizers(trajectories, self.fingerprint)
        check_vocabulary(trajectories, self.vocabulary)
        for trajectory in trajectories:
            if (fault := trajectory.fault) is not None:
                _log.warning("%s of %s: %s: %s", trajectory.trajectory_id, task, fault.kind, fault.message)
        return trajectories


_lock = threading.Lock()
_starting: Future[Service] | None = None
_submitting: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
_tasks = BackgroundTasks()


async def running(args: Any) -> Service:
    """This process's service. The first call starts it or attaches to it.

    Raises:
        RolloutError: slime's arguments or the service's settings cannot be used, the router cannot be reached, the
            service does not come up, or its tokenizer is another model's.
    """
    return await asyncio.shield(asyncio.wrap_future(_once(args)))


def close() -> None:
    """Stop the service if this process started it. The next call of a hook starts one again."""
    global _starting
    with _lock:
        starting, _starting = _starting, None
    if starting is not None and starting.exception() is None:
        starting.result().client.close()


def _once(args: Any) -> Future[Service]:
    global _starting
    with _lock:
        if _starting is None:
            thread = ThreadPoolExecutor(1, thread_name_prefix="rollout-service")
            _starting = thread.submit(_start, args)
            thread.shutdown(wait=False)
        return _starting


def _start(args: Any) -> Service:
    slime_settings.check_arguments(args)
    config = slime_settings.service_config(args)
    _reach(str(config.policy.url))
    own = ChatCodec.load(args.hf_checkpoint).tokenizer_fingerprint
    named = config.policy.tokenizer_name
    if named != args.hf_checkpoint and (other := ChatCodec.load(named).tokenizer_fingerprint) != own:
        raise CodecError(
            f"policy.tokenizer is {named}, and slime's --hf-checkpoint {args.hf_checkpoint} has another: their "
            f"fingerprints are {other} and {own}.",
            "Leave policy.tokenizer out of rollout_service_config.",
        )
    rows = vocabulary(config.policy.model_copy(update={"model": args.hf_checkpoint}))
    service = Service(RolloutClient("auto", config=config, start=True), own, rows)
    # Imported modules stay. A full garbage collection over them would stop slime's loop for a third of a second.
    garbage.freeze()
    return service


def _reach(url: str) -> None:
    try:
        check_listening(url)
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"slime's router at {url} cannot be reached: {error}.",
            "Check --sglang-router-ip and --sglang-router-port, and that the router runs.",
        ) from safe_cause(error)


async def _closed(stream: GroupStream) -> None:
    with contextlib.suppress(Exception):  # the collection was refused or the service is gone, so nothing runs
        await stream.aclose()
