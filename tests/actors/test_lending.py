"""The objects that a real coordinator holds, as Ray counts them."""

from __future__ import annotations

from typing import Any

import ray

from tests.support.services import wait_until


def test_a_coordinator_holds_no_object_of_what_its_reader_has(client):
    def objects(coordinator: Any) -> int:  # here, so that it travels with its code
        return int(ray._private.worker.global_worker.core_worker.get_memory_store_size())

    def held() -> int:
        return ray.get(client._coordinator.__ray_call__.remote(objects))

    for collection_id in client.status()["collections"]:  # of earlier tests, whose episodes would come meanwhile
        ray.get(client._coordinator.cancel.remote(collection_id))
    before = held()
    client.collect(24, seed=0, progress=False)
    wait_until(lambda: held() <= before)
