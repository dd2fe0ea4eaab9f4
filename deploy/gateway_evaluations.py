"""Evaluations over HTTP: collections that the gateway reads itself, of which it gives only the numbers.

Invariant: a finished group is counted once and let go at once, so an evaluation of any size takes little memory. Like
any collection it ends when nobody asks for it for `gateway.idle_seconds`, and its numbers go with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.gateway_streams import Stream, Streams
from rollout_service.background import BackgroundTasks
from rollout_service.collecting.request import Accepted, CollectionRequest
from rollout_service.errors import RolloutError, ServiceError, last_cause
from rollout_service.gateway.delivery import Missing
from rollout_service.gateway.wire import End, of_error
from rollout_service.record.evaluation import Evaluation


@dataclass(slots=True)
class _Running:
    """One evaluation."""

    stream: Stream
    episodes: int
    counted: Evaluation
    end: End
    over: asyncio.Event = field(default_factory=asyncio.Event)
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while `counted` is changed, or read in another thread."""


class Evaluations:
    """The evaluations that the gateway began. Make and use it on one event loop."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._running: dict[str, _Running] = {}
        self._tasks = BackgroundTasks()

    async def begin(
        self, request: CollectionRequest, owner: str, client: str, key: str | None, limits: Mapping[str, Any]
    ) -> Accepted:
        """Begin an evaluation whose trials are the groups of this collection.

        Args:
            limits: of its episodes, see `conditions`.

        Raises:
            TaskError: the service refuses it.
        """
        accepted = await self._streams.begin(request, owner, client, key)
        stream = await self._streams.find(accepted.collection_id, owner)
        stream.is_kept = False  # its numbers are here alone
        counted = Evaluation(request.group_size, conditions=dict(limits))
        assert accepted.episodes is not None, "an evaluation has an end"
        running = _Running(stream, accepted.episodes, counted, End("open"))
        self._running = {name: each for name, each in self._running.items() if self._streams.has(name)}
        self._running[accepted.collection_id] = running
        self._tasks.start(self._read(running), "reading an evaluation")
        return accepted

    async def report(self, evaluation_id: str, owner: str, wait: float) -> dict[str, Any]:
        """How far it is, and its numbers so far.

        Args:
            wait: seconds for which to wait for its end.

        Raises:
            Missing: there is none that `owner` began.
        """
        stream = await self._streams.find(evaluation_id, owner)
        running = self._running.get(evaluation_id)
        if running is None:
            raise Missing(
                f"There is no evaluation {evaluation_id!r}.", "It is a collection, or the gateway was started again."
            )
        with self._streams.reading(stream), contextlib.suppress(TimeoutError):
            await asyncio.wait_for(running.over.wait(), wait)
        async with running.counting:
            end = running.end  # it may come meanwhile
            # Intervals of a large evaluation take a tenth of a second.
            report = await asyncio.to_thread(running.counted.to_dict)
        return end.to_dict() | {"episodes": running.episodes, "report": report}

    async def _read(self, running: _Running) -> None:
        number, delivery = 0, running.stream.delivery
        try:
            while (group := await delivery.group(number + 1)) is not None:
                number += 1
                trajectories = await running.stream.source.read(group)
                async with running.counting:
                    running.counted.add(trajectories)
                delivery.acknowledge(number)
            await running.stream.source.tell()
            if (missing := running.episodes - running.counted.summary.episodes) > 0:
                text = f"An earlier gateway counted {missing} of {running.episodes} episodes. Its numbers are lost."
                raise ServiceError(text, "Begin another evaluation, with another idempotency-key.")
            running.end = End("ended")
        except RolloutError as error:
            running.end = End("failed", of_error(error))
        except Exception as error:  # whoever asks for the report must not wait for an end that never comes
            problem = f"The gateway could not count the evaluation: {last_cause(str(error)) or type(error).__name__}."
            running.end = End("failed", of_error(ServiceError(problem, "See the gateway's log.")))
            raise
        finally:
            running.over.set()
