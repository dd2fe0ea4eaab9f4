"""Secrets are planted in every setting that can hold one; faults are provoked; and all that comes out is searched."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import logging
import threading
import traceback
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
from ray import serve
from ray.experimental import internal_kv

from deploy import fleet_link
from deploy import policy as application
from rollout_service import IncompleteCollection, RolloutClient
from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from rollout_service.cli import doctor
from rollout_service.errors import ConfigError, FaultKind, ServiceError, UserSimulatorError
from rollout_service.policy.sglang_http import SglangHttpPolicy
from rollout_service.record import storage
from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2 import tasks
from tests.support import episodes, openai_server
from tests.support.openai_server import OpenAIServer, always
from tests.support.services import TellingReplica, start

JUDGED = "create_task_1_nl_eval"

USER, JUDGE, REPLICA, POLICY, PROVIDER = (f"canary/{name}+of=this" for name in ("usr", "jdg", "rpl", "pol", "prv"))
"""Passwords and keys. None has the shape of a key, and each looks different in a URL and in JSON."""


def forms(canary: str) -> set[bytes]:
    """How the canary may be written."""
    texts = {canary, urllib.parse.quote(canary, safe=""), json.dumps(canary)[1:-1], canary.replace("/", "\\/")}
    texts |= {base64.b64encode(f"bob:{canary}".encode()).decode(), base64.b64encode(canary.encode()).decode()}
    return {text.encode() for text in texts}


def found_in(data: str | bytes, *canaries: str) -> list[str]:
    data = data.encode() if isinstance(data, str) else data
    return [canary for canary in canaries or ALL if any(form in data for form in forms(canary))]


ALL = (USER, JUDGE, REPLICA, POLICY, PROVIDER)


def with_password(url: str, password: str) -> str:
    return url.replace("://", f"://bob:{urllib.parse.quote(password, safe='')}@")


def told(error: BaseException) -> str:
    """All that is said of an error: itself, its causes, and the lines of the program that raised them."""
    return repr(error) + "".join(traceback.format_exception(error))


class Service:
    """A service with canaries in its settings, and the two models that it asks."""

    def __init__(self, user: OpenAIServer, judge: OpenAIServer) -> None:
        self.user, self.judge = user, judge
        self.settings: dict[str, Any] = {
            "user__model": "openai/some-model",
            "user__base_url": with_password(user.base_url, USER),
            "user__retries": 0,
            "evaluation__type": "all_with_nl_assertions",
            "evaluation__judge__model": "openai/some-judge",
            "evaluation__judge__base_url": judge.base_url,
            "evaluation__judge__api_key_var": "CANARY_OF_THE_JUDGE",
            "evaluation__judge__retries": 0,
            "policy__env_vars_from": ["CANARY_OF_THE_REPLICA"],
            "service__max_attempts": 1,
        }
        self.client = start("canaries", **self.settings)

    def failure(self) -> tuple[Trajectory, IncompleteCollection]:
        with pytest.raises(IncompleteCollection) as caught:
            self.client.collect(1, ids=[JUDGED], progress=False)
        (failure,) = caught.value.failures
        return failure, caught.value


@pytest.fixture(scope="module")
def service(cluster: None) -> Iterator[Service]:
    """The variables are set when Ray runs already: its processes do not inherit them."""
    played = [tasks.get(reference) for reference in tasks.references("mock", "base", [JUDGED])]
    behaviours = iter([openai_server.unauthorized])
    with (
        pytest.MonkeyPatch.context() as patch,
        OpenAIServer(openai_server.gold_user(played), lambda request: next(behaviours, openai_server.ok)) as user,
        OpenAIServer(openai_server.judge(), always(openai_server.failing(500))) as judge,
    ):
        patch.setenv("CANARY_OF_THE_JUDGE", JUDGE)
        patch.setenv("CANARY_OF_THE_REPLICA", REPLICA)
        patch.setattr(application, "PolicyReplica", TellingReplica)
        service = Service(user, judge)
        with service.client:
            yield service


def test_no_secret_comes_out_of_a_service_whose_episodes_fail(service, tmp_path):
    failures, errors = [], []
    for kind in (FaultKind.USER_SIMULATOR, FaultKind.EVALUATOR):
        failure, error = service.failure()
        assert failure.fault is not None
        assert failure.fault.kind is kind
        failures.append(failure)
        errors.append(error)
    # The secrets did reach those for whom they are, who repeated them in their errors.
    basic = base64.b64encode(f"bob:{USER}".encode()).decode()
    assert {request.headers["Authorization"] for request in service.user.requests} == {f"Basic {basic}"}
    assert {request.key for request in service.judge.requests} == {JUDGE}
    assert "your key is Basic [redacted]" in failures[0].fault.message
    assert "your key is [redacted]" in failures[1].fault.message
    for failure in failures:  # a stack quotes what was raised, too
        assert "[redacted]" in failure.fault.traceback
    replicas = serve.get_app_handle("canaries-policy")
    assert replicas.variable.remote("CANARY_OF_THE_REPLICA").result(timeout_s=60) == REPLICA

    for error in (*errors, *refusals(service)):
        assert found_in(told(error)) == []
    for suffix in ("jsonl", "parquet"):
        path = tmp_path / f"failures.{suffix}"
        storage.write(path, failures)
        assert found_in(json.dumps([each.to_dict() for each in storage.read(path)])) == []
    client = service.client
    examined = [each.text for each in doctor.examine(client.config)]
    assert found_in(json.dumps(client.status(), default=str) + repr(client.config) + "".join(examined)) == []
    assert in_files(tmp_path) == {}
    assert in_files(Path(ray._private.worker._global_node.get_session_dir_path())) == {}
    assert [line for line in command_lines() if found_in(line)] == []
    assert [key for key, value in stored_by_ray() if found_in(value)] == []


def refusals(service: Service) -> Iterator[BaseException]:
    """What a user sees who asks the service for something that cannot be."""
    others = service.settings | {"user__base_url": with_password("http://127.0.0.1:9/v1", USER)}
    with pytest.raises(ServiceError, match=r"user\.base_url.*http://\[redacted\]@127\.0\.0\.1:9/v1") as caught:
        RolloutClient("auto", config=episodes.settings(service__name="canaries", tasks__domain="mock", **others))
    yield caught.value
    with pytest.raises(UserSimulatorError, match=r"nothing answers at http://\[redacted\]@127\.0\.0\.1:9/v1") as caught:
        start("nowhere", **others)
    yield caught.value
    config = episodes.settings(policy__env_vars_from=["CANARY_THAT_IS_NOT_SET"])
    with pytest.raises(
        ConfigError, match="CANARY_THAT_IS_NOT_SET is set neither where the service was started"
    ) as found:
        fleet_link.receive_variables(config)
    yield found.value


def in_files(folder: Path) -> dict[str, list[str]]:
    """The canaries in the folder's files, by file: in trajectories, and in all that Ray writes, its logs among it."""
    files = {path: contents(path) for path in folder.rglob("*") if path.is_file()}
    assert sum(map(len, files.values())) > 1000
    return {str(path): found for path, data in files.items() if (found := found_in(data))}


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it went meanwhile
        return b""


def command_lines() -> list[bytes]:
    return [contents(path) for path in Path("/proc").glob("[0-9]*/cmdline")]


def stored_by_ray() -> list[tuple[bytes, bytes]]:
    """What Ray's head keeps by key, Serve's checkpoints with the replicas' settings among it."""
    entries = [
        (key, internal_kv._internal_kv_get(key, namespace=namespace) or b"")
        for namespace in (None, b"serve")
        for key in internal_kv._internal_kv_list(b"", namespace=namespace)
    ]
    assert any(b"checkpoint" in key for key, _ in entries)
    return entries


# Without a service ---------------------------------------------------------------------------------------------------


def test_a_key_that_litellm_finds_by_itself_is_not_in_the_fault(monkeypatch, caplog, capfd):
    played = tasks.references("mock", "base", [JUDGED])[0]
    with OpenAIServer(openai_server.gold_user([tasks.get(played)]), always(openai_server.unauthorized)) as api:
        monkeypatch.setenv("OPENAI_API_KEY", PROVIDER)
        monkeypatch.setenv("OPENAI_BASE_URL", api.base_url)
        config = episodes.settings(user__model="openai/some-model", user__retries=0)
        with caplog.at_level(logging.DEBUG):
            trajectory = episodes.runner(config).run(episodes.request(played))
    assert {request.key for request in api.requests} == {PROVIDER}
    assert "your key is [redacted]" in trajectory.fault.message
    assert "[redacted]" in trajectory.fault.traceback
    printed = capfd.readouterr()
    assert found_in(json.dumps(trajectory.to_dict()) + caplog.text + printed.out + printed.err) == []


class Refusing(http.server.BaseHTTPRequestHandler):
    """A policy's endpoint that refuses every turn, and repeats who asked where a cut would leave half of it."""

    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        who = self.headers["Authorization"] or ""
        self.seen.append(who)
        body = ("x" * 480 + f" you are {who}, {base64.b64decode(who.removeprefix('Basic ')).decode()}").encode()
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_the_password_of_the_policy_s_url_is_used_and_comes_out_nowhere():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        try:
            url = with_password(f"http://127.0.0.1:{endpoint.server_port}", POLICY)
            trajectory = played_over(url)
        finally:
            endpoint.shutdown()
    assert set(Refusing.seen) == {f"Basic {base64.b64encode(f'bob:{POLICY}'.encode()).decode()}"}
    address = f"http://[redacted]@127.0.0.1:{endpoint.server_port}"
    assert trajectory.provenance.model == address
    assert trajectory.fault.message.startswith(f"{address} answered 400 Bad Request: xxx")
    assert "you are" in trajectory.fault.message
    assert "RequestError" in trajectory.fault.traceback
    assert found_in(json.dumps(trajectory.to_dict())) == []
    assert POLICY[:7] not in trajectory.fault.message


def test_the_address_of_a_policy_that_cannot_be_reached_is_named_without_its_password():
    trajectory = played_over(with_password("http://127.0.0.1:9", POLICY))
    assert trajectory.fault.message.startswith("http://[redacted]@127.0.0.1:9 cannot be reached")
    assert found_in(json.dumps(trajectory.to_dict())) == []


def played_over(url: str) -> Trajectory:
    config = episodes.settings(
        policy__engine="http",
        policy__url=url,
        policy__tokenizer=str(EMBEDDED_TOKENIZER),
        policy__context_length=32768,
        policy__retry_seconds=0.0,
    )
    policy = SglangHttpPolicy(url, 0.0)
    try:
        return episodes.runner(config, policy).run(episodes.request(tasks.references("mock", "base", [JUDGED])[0]))
    finally:
        asyncio.run_coroutine_threadsafe(policy.aclose(), episodes.event_loop()).result(timeout=120)
