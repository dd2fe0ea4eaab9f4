"""Workers of the tests' cluster begin as forks, and are like Ray's ordinary ones in all that they see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

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

    def random_ids(self) -> list[str]:
        """Some made in this thread, and one in each of many others, one after the other."""
        found = [ray.ObjectRef.from_random().hex() for _ in range(50)]
        for _ in range(50):
            thread = threading.Thread(target=lambda: found.append(ray.ObjectRef.from_random().hex()))
            thread.start()
            thread.join()
        return found


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
    ids = [made for found in ray.get([actor.random_ids.remote() for actor in actors]) for made in found]
    assert len(set(ids)) == len(ids) == 400
    for actor in actors:
        ray.kill(actor)


def test_a_fork_that_exits_leaves_ray_s_own_descriptors_open_so_that_its_threads_find_them(cluster):
    actors = [witness(SERVE_ENVIRONMENT) for _ in range(4)]
    pids = [process[0] for process in ray.get([actor.process.remote() for actor in actors])]
    actors.clear()  # without a handle, they exit in the ordinary way
    wait_until(lambda: not any(map(psutil.pid_exists, pids)))
    logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")
    said = [path.read_text() for pid in pids for path in logs.glob(f"worker-*-{pid}.err")]
    assert len(said) == 4
    assert not [text[:300] for text in said if "Bad file descriptor" in text]


def test_a_worker_with_variables_of_its_own_starts_in_ray_s_way(cluster):
    actor = witness({"OWN": "1"})
    _, _, has_imported, _ = ray.get(actor.process.remote())
    assert not has_imported
    assert ray.get(actor.sees.remote("OWN", *SERVE_ENVIRONMENT)) == {"OWN": "1"} | dict.fromkeys(SERVE_ENVIRONMENT)
    ray.kill(actor)


SPAWNS = """
import json, multiprocessing, os, sys
from tests.support.workers import spare

def tell(to):
    to.send([os.getpid(), os.getppid(), os.environ["SINCE"], hasattr(sys, "imported")])

if __name__ == "__main__":
    sys.imported = True
    spare.keep()
    os.environ["SINCE"] = "then"
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=tell, args=(theirs,))
        process.start()
        pid, parent, since, is_fork = ours.recv()
        process.join()
        print(json.dumps([pid == process.pid, parent == os.getpid(), since, process.exitcode, is_fork]))
"""


def test_a_process_in_reserve_is_the_first_one_that_is_spawned_and_like_any_other(tmp_path):
    script = tmp_path / "spawns.py"
    script.write_text(SPAWNS)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, env=environment)
    assert done.stderr == ""
    alike = [True, True, "then", 0]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[*alike, True], [*alike, False]]
