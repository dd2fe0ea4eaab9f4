"""SamplerClient: what a client does with the service's samplers of tasks: their state out and in, and new weights.

Invariant: a sampler is named by the selection that it draws from, as a collection without a seed names it. Every method
that waits has an async twin with the prefix `a`; both are one definition, see `twins`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rollout_service.attaching as attaching
import rollout_service.config.arguments as arguments
import rollout_service.twins as twins
from rollout_service.cluster import repeated
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.collecting.request import OF_SAMPLER
from rollout_service.config import RolloutConfig
from rollout_service.config.selection import read_task_weights
from rollout_service.errors import TaskError
from rollout_service.redaction import shown


class SamplerClient:
    """The part of a client that reaches the samplers of tasks."""

    _coordinator: CoordinatorHandle
    _settings: RolloutConfig
    config: RolloutConfig

    async def asampler_state(self, /, **selection: Any) -> dict[str, Any]:
        """What the sampler of a selection has learned and how far it has drawn, as values of JSON. A trainer keeps it
        beside its checkpoint, and gives it to `restore_sampler`.

        Args:
            selection: `domain`, `split`, `ids`, `shuffle` and `sampler`, as the collections have them that draw from
                it. What is left out comes from the configuration.

        Raises:
            TaskError: unknown tasks, or an argument has the wrong type.
        """
        return await self._sampler(selection, None, None)

    sampler_state = twins.blocking(asampler_state)

    async def arestore_sampler(self, /, state: Mapping[str, Any], **selection: Any) -> None:
        """Have the sampler of a selection go on from a state, also one of another service. What it knew is forgotten.
        Open collections that draw from it go on from there, too.

        Args:
            state: what `sampler_state` returned.
            selection: as for `sampler_state`.

        Raises:
            TaskError: it is no state of such a sampler, unknown tasks, or an argument has the wrong type.
        """
        if not isinstance(state, Mapping):
            raise TaskError(f"state is {shown(state)}.", "Give what sampler_state() returned.")
        await self._sampler(selection, dict(state), None)

    restore_sampler = twins.blocking(arestore_sampler)

    async def aset_task_weights(self, /, weights: Mapping[str, float], **selection: Any) -> None:
        """Draw tasks by these weights from now on, also for collections that run. They take the place of all earlier
        ones. Groups that have begun are not affected.

        Args:
            weights: by domain, or by task as domain/id, see `tasks.weights`.
            selection: as for `sampler_state`.

        Raises:
            TaskError: a weight is negative or no number, a name is unknown, nothing could be drawn, or the selection's
                sampler is not `weighted`. Nothing was changed.
        """
        await self._sampler(selection, None, read_task_weights(weights, "task_weights"))

    set_task_weights = twins.blocking(aset_task_weights)

    async def _sampler(
        self, selection: Mapping[str, Any], state: dict[str, Any] | None, weights: dict[str, float] | None
    ) -> dict[str, Any]:
        for name in selection:
            arguments.choice("An argument", name, OF_SAMPLER, TaskError)
        request = attaching.collection_request(self._settings, self.config, selection)
        return await repeated(lambda: self._coordinator.sampler.remote(request, state, weights))
