"""Workers of the tests' cluster begin as forks, and are like Ray's ordinary ones in all that they see."""

from __future__ import annotations

import os
import sys

import psutil
import ray

from rollout_service.cluster import SERVE_ENVIRONMENT
from tests.support.services import wait_until


@ray.remote(num_cpus=0.1)
class Witness:
    """Tells what it sees."""

    def sees(self, *names: str) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in names}

    def process(self) -> tuple[int, int, bool, str]:
        return os.getpid(), os.getpgid(0), "litellm" in sys.modules, ray.get_runtime_context().get_job_id()

    def random_id(self) -> str:
        return ray.ObjectRef.from_random().hex()


def witness(variables: dict[str, str]) -> ray.actor.ActorHandle:
    return Witness.options(runtime_env={"env_vars": variables}).remote()


def test_a_worker_with_the_service_s_variables_is_a_fork_of_this_job_and_sees_them(cluster):
    actor = witness(SERVE_ENVIRONMENT)
    pid, group, has_imported, job = ray.get(actor.process.remote())
    assert has_imported
    assert group == pid, "Ray ends a worker's whole group"
    assert job == ray.get_runtime_context().get_job_id()
    assert ray.get(actor.sees.remote(*SERVE_ENVIRONMENT)) == SERVE_ENVIRONMENT
    ray.kill(actor)
    wait_until(lambda: not psutil.pid_exists(pid))


def test_no_two_forks_make_the_same_random_ids(cluster):
    actors = [witness(SERVE_ENVIRONMENT) for _ in range(4)]
    ids = ray.get([actor.random_id.remote() for actor in actors for _ in range(50)])
    assert len(set(ids)) == len(ids)
    for actor in actors:
        ray.kill(actor)


def test_a_worker_with_variables_of_its_own_starts_in_ray_s_way(cluster):
    actor = witness({"OWN": "1"})
    _, _, has_imported, _ = ray.get(actor.process.remote())
    assert not has_imported
    assert ray.get(actor.sees.remote("OWN", *SERVE_ENVIRONMENT)) == {"OWN": "1"} | dict.fromkeys(SERVE_ENVIRONMENT)
    ray.kill(actor)
