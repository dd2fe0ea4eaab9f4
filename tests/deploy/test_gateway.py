"""The gateway's routes in front of a real service: who is let in, what is refused, and what a cut costs."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray import serve
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig

from deploy import gateway
from rollout_service.cluster import gateway_name
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError
from rollout_service.gateway.tokens import SCOPES, digest_of, new_token
from rollout_service.gateway.wire import ARROW, NDJSON, read_arrow
from rollout_service.record.trajectory import Trajectory
from tests.support.gateway import TOKENS, bearer, serving
from tests.support.services import HTTP_PORT


@pytest.fixture(scope="module")
def url(client):
    with serving(client, requests_per_second=1e6, body_bytes=4096, most_held_groups=4) as found:
        yield found


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, headers=bearer("all"), timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def openapi(url) -> dict[str, Any]:
    return httpx.get(f"{url}/openapi.json", headers=bearer("read")).json()


def begin(http: httpx.Client, n: int, group_size: int = 1) -> str:
    response = http.post("/v1/collections", json={"n": n, "group_size": group_size, "seed": 1})
    assert response.status_code == 201, response.text
    assert response.json()["episodes"] == n
    return response.json()["collection_id"]


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


def said(response: httpx.Response) -> str:
    error = response.json()["error"]
    return f"{error['problem']} {error['remedy']}".strip()


def test_every_route_refuses_wrong_missing_and_insufficient_tokens(openapi, url):
    routes = [(method, path) for path, found in openapi["paths"].items() for method in found]
    assert len(routes) > 10
    with httpx.Client(base_url=url) as anybody:
        for method, path in [*routes, ("get", "/openapi.json"), ("get", "/"), ("get", "/docs")]:
            at = path.replace("{collection_id}", "x")
            for token in (None, TOKENS["all"][:-2], new_token(), "x"):
                headers = {} if token is None else {"authorization": f"Bearer {token}"}
                response = anybody.request(method, at, headers=headers)
                assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
                assert said(response).endswith(".")
                assert token is None or len(token) < 5 or token[4:12] not in response.text
        for method, path in routes:
            allowed = [
                scope
                for scope in SCOPES
                if anybody.request(method, path.replace("{collection_id}", "x"), headers=bearer(scope)).status_code
                != 403
            ]
            assert len(allowed) == 1, f"{method} {path} needs one scope"


def test_a_collection_comes_the_same_in_both_forms_and_ends_with_a_mark(http):
    collection = begin(http, 6, 2)
    as_lines = http.get(f"/v1/collections/{collection}/groups", params={"acknowledged": 0})
    assert as_lines.headers["content-type"].startswith(NDJSON)
    *groups, mark = lines(as_lines)
    assert (mark, [group["group"] for group in groups]) == ({"state": "ended"}, [1, 2, 3])
    as_arrow = http.get(f"/v1/collections/{collection}/groups", params={"form": "arrow", "acknowledged": 0})
    assert as_arrow.headers["content-type"].startswith(ARROW)
    batches, end = read_arrow(as_arrow.content)
    assert (end.state, [batch.number for batch in batches]) == ("ended", [1, 2, 3])
    assert [group["trajectories"] for group in groups] == [[t.to_dict() for t in group] for _, group, *_ in batches]
    assert all(Trajectory.from_dict(record).reward is not None for line in groups for record in line["trajectories"])


async def test_a_stream_that_is_cut_50_times_delivers_all_once(url, http):
    groups = 12
    collection = begin(http, groups)
    path = f"/v1/collections/{collection}/groups"
    size = len(http.get(path, params={"limit": 1}).content)
    assert size > 1000
    numbers: list[int] = []
    ids: list[str] = []
    random_ = random.Random(0)
    cuts = 0
    async with httpx.AsyncClient(base_url=url, headers=bearer("all"), timeout=60) as reader:
        ended = False
        while not ended:
            asked = reader.stream("GET", path, params={"after": len(numbers), "wait": 0.5})
            async with asked as response:
                assert response.status_code == 200
                early = cuts < 5 * (len(numbers) + 1)  # each group is cut some times before it may come whole
                left = random_.randrange(1, 1000 if early else size * 6 // 5) if cuts < 50 else 10**9
                rest = b""
                async for piece in response.aiter_raw():
                    rest += piece[:left]
                    left -= len(piece)
                    *whole, rest = rest.split(b"\n")
                    for line in map(json.loads, whole):
                        ended = line.get("state") == "ended"
                        if "group" in line:
                            numbers.append(line["group"])
                            ids += [record["trajectory_id"] for record in line["trajectories"]]
                    if left <= 0:
                        cuts += 1
                        break
    assert cuts == 50
    assert numbers == list(range(1, groups + 1))
    assert len(set(ids)) == len(ids) == groups


async def test_200_slow_readers_hold_no_more_than_the_limit_and_one_acknowledgement_lets_all_go_on(url, http, client):
    collection = begin(http, 6)
    async with httpx.AsyncClient(
        base_url=url, headers=bearer("all"), timeout=60, limits=httpx.Limits(max_connections=200)
    ) as readers:
        path = f"/v1/collections/{collection}/groups"
        assert lines(http.get(path, params={"acknowledged": 0, "limit": 4}))[-2]["group"] == 4
        slow = [readers.get(path, params={"acknowledged": 0, "wait": 0.05, "form": "arrow"}) for _ in range(200)]
        for response in await asyncio.gather(*slow):
            batches, end = read_arrow(response.content)
            assert ([batch.number for batch in batches], end.state) == ([1, 2, 3, 4], "open")
        assert collection in client.status()["collections"], "the service still has the groups that nobody can take"
        rest = await readers.get(path, params={"after": 4})
    assert [line.get("group", line.get("state")) for line in lines(rest)] == [5, 6, "ended"]


def test_groups_that_were_acknowledged_are_gone_and_those_not_given_yet_are_refused(http):
    collection = begin(http, 3)
    path = f"/v1/collections/{collection}"
    assert lines(http.get(f"{path}/groups", params={"limit": 2}))[-1] == {"state": "open"}
    for after, text in [(3, "Group 3 was not given yet; the last one was 2"), (10**30, "Group 10000")]:
        response = http.get(f"{path}/groups", params={"after": after})
        assert response.status_code == 409
        assert text in said(response)
    assert http.post(f"{path}/acknowledge", json={"number": 1}).status_code == 204
    assert http.post(f"{path}/acknowledge", json={"number": 1}).status_code == 204
    assert http.post(f"{path}/acknowledge", json={"number": 3}).status_code == 409
    assert "Read on after 1" in said(http.get(f"{path}/groups"))
    assert lines(http.get(f"{path}/groups", params={"after": 1, "limit": 1}))[0]["group"] == 2
    assert http.delete(path).status_code == 204
    assert http.get(f"{path}/groups", params={"after": 2}).status_code == 404


def test_a_request_that_is_sent_again_with_its_key_begins_one_collection(http, client):
    def ask(key: str) -> str:
        headers = {"idempotency-key": key}
        return http.post("/v1/collections", json={"n": 1}, headers=headers).json()["collection_id"]

    first = ask("a")
    assert ask("a") == first
    assert ask("b") != first
    refused = http.post("/v1/weights", json={"path": "ckpt/step_40"}, headers={"idempotency-key": "a"})
    assert refused.status_code == 409, "a key is of one route"
    assert http.post("/v1/collections", json={"n": 1}, headers=bearer("other") | {"idempotency-key": "a"}).json()[
        "collection_id"
    ] not in (first, None)


def test_nobody_reads_or_ends_what_another_token_began(http):
    path = f"/v1/collections/{begin(http, 1)}"
    for method, at in [("GET", f"{path}/groups"), ("DELETE", path)]:
        assert http.request(method, at, headers=bearer("other")).status_code == 404
    assert http.delete(path).status_code == 204


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"n": 7, "group_size": 2}, 422, "n=7 is not a positive multiple of group_size=2. Ask for 8"),
        ({"n": 2, "domain": "retial"}, 422, "retial"),
        ({"n": 2, "sampling": {"temperature": -1}}, 422, "sampling.temperature"),
        ({"n": 2, "nn": 2}, 422, "nn: Unexpected"),
        ({"n": 2, "split": "\ud800"}, 422, "no split"),
        ({"n": 2, "ids": ["x" * 5000]}, 413, "The body has more than gateway.body_bytes=4096"),
    ],
)
def test_a_collection_that_cannot_be_made_is_refused_in_words(http, body, status, text):
    response = http.post("/v1/collections", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == status
    assert text in said(response)


def test_weights_pause_and_resume_reach_the_replicas(http, client):
    version = http.get("/v1/weights").json()["version"]
    assert version == client.weight_version()
    assert http.post("/v1/pause", json={"mode": "drain"}).json()[0]["paused"] is True
    assert client.replicas()[0].paused
    assert http.post("/v1/resume").json()[0]["paused"] is False
    refused = http.post("/v1/weights", json={"path": "ckpt/step_40"})
    assert (refused.status_code, "Give the absolute path" in said(refused)) == (409, True)
    assert http.post("/v1/weights", json={"path": "/nowhere", "version": 0}).status_code == 409


def test_status_metrics_and_settings(http, client):
    assert http.get("/v1/status").json()["slots"] == client.status()["slots"]
    metrics = http.get("/v1/metrics").text.splitlines()
    assert f"rollout_service_slots {client.status()['slots']}" in metrics
    assert "# TYPE rollout_service_finished_total counter" in metrics
    assert "# TYPE rollout_service_episodes_total counter" in metrics
    kinds = [line for line in metrics if line.startswith("# TYPE")]
    assert len(kinds) == len({line.split()[2] for line in kinds}), "Prometheus takes each name once"
    assert http.get("/v1/configuration").json()["service"]["name"] == "shared"


def test_requests_beyond_the_rate_are_told_when_to_come_back(client):
    with serving(client, requests_per_second=0.01) as url, httpx.Client(base_url=url) as http:
        statuses = [http.get("/v1/weights", headers=bearer("read")) for _ in range(3)]
        assert [response.status_code for response in statuses] == [200, 429, 429]
        assert int(statuses[-1].headers["retry-after"]) >= 1
        assert "ask again in" in said(statuses[-1])
        assert http.get("/v1/weights", headers=bearer("all")).status_code == 200, "each token has a limit of its own"


@pytest.fixture(scope="module")
def through_serve(client, tmp_path_factory):
    """The gateway of the shared service on Ray Serve, and its token file."""
    path = tmp_path_factory.mktemp("gateway") / "tokens.yaml"
    path.write_text(entry("trainer"))
    loaded = RolloutConfig.load(overrides={"gateway": {"port": HTTP_PORT, "tokens_file": str(path)}}, environ={})
    config = client.config.model_copy(update={"gateway": loaded.gateway})
    gateway.run(config)
    yield f"http://127.0.0.1:{HTTP_PORT}/shared", path
    serve.delete(gateway_name("shared"))


def entry(name: str, token: str | None = None) -> str:
    return f'{name}: {{sha256: "{digest_of(token or TOKENS["all"])}", scopes: [read, collect]}}\n'


def test_through_ray_serve_a_stream_goes_on_while_its_token_is_rotated(through_serve):
    url, tokens = through_serve
    new = new_token()
    with httpx.Client(base_url=url, headers=bearer("all"), timeout=60) as reader:
        began = reader.post("/v1/collections", json={"n": 3, "sampling": {"temperature": 0.5}})
        assert began.status_code == 201, began.text
        path = f"/v1/collections/{began.json()['collection_id']}/groups"
        assert lines(reader.get(path, params={"limit": 1}))[0]["group"] == 1

        def status(token: str) -> int:
            return reader.get("/v1/weights", headers={"authorization": f"Bearer {token}"}).status_code

        tokens.write_text(entry("trainer", new) + entry("old"))
        while status(new) == 401:  # the file is looked at once a second
            time.sleep(0.1)
        tokens.write_text(entry("trainer", new))
        while status(TOKENS["all"]) == 200:
            time.sleep(0.1)
        found = lines(reader.get(path, params={"after": 1}, headers={"authorization": f"Bearer {new}"}))
    assert [line.get("group", line.get("state")) for line in found] == [2, 3, "ended"]
    assert found[0]["trajectories"][0]["provenance"]["sampling"]["temperature"] == 0.5


def test_a_service_whose_gateway_s_name_is_taken_is_refused(through_serve, client):
    asked = RolloutConfig.load(overrides={"gateway": {"port": HTTP_PORT}, "service": {"name": "shared"}}, environ={})
    with pytest.raises(ServiceError, match=r"has an application shared-gateway already\. Another service\.name"):
        gateway.check_free(asked)
    gateway.check_free(asked.model_copy(update={"service": asked.service.model_copy(update={"name": "free"})}))


@pytest.fixture(scope="module")
def operations(openapi, url) -> dict[str, Any]:
    """The routes, as schemathesis reads them from the gateway's description, with collections that are small where they
    are valid."""
    narrow = copy.deepcopy(openapi)
    few = {"type": "integer", "minimum": 1, "maximum": 4}
    for body, counts in {"CollectionBody": ("n", "group_size"), "EvaluationBody": ("trials", "tasks")}.items():
        narrow["components"]["schemas"][body]["properties"] |= dict.fromkeys(counts, few)
    described = schemathesis.openapi.from_dict(narrow, config=SchemathesisConfig.from_dict({"base-url": url}))
    found = [result.ok() for result in described.get_all_operations()]
    return {each.label: each for each in found}


STOP = ("POST /v1/pause", "POST /v1/resume")
"""Routes that stop the shared service and let it go on: no collection of another request would end between them."""


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as kept:
        yield kept


def check_answered(case: Any, http: httpx.Client, session: requests.Session | None = None) -> int:
    """Send the request, on a connection of its own without `session`. Its answer is no error of the server's, and what
    it began is ended. What is no HTTP request reaches no route: the server itself refuses it."""
    response = case.call(session=session, headers=bearer("all"), timeout=60)
    case.validate_response(response, checks=[not_a_server_error])
    assert response.status_code < 400 or response.text == "Invalid HTTP request received." or said(response)
    if response.status_code == 201:
        began = response.json()
        kind = "collection" if "collection_id" in began else "evaluation"
        ended = http.delete(f"/v1/{kind}s/{began[f'{kind}_id']}").status_code
        assert ended in (204, 404), "a key that was drawn before names a collection that has ended"
    return response.status_code


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_nothing_that_the_description_allows_or_forbids_breaks_a_route(operations, http, mode):
    @given(data=st.data())
    @settings(max_examples=100, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def try_routes(data: st.DataObject) -> None:
        operation = operations[data.draw(st.sampled_from(sorted(operations.keys() - STOP)))]
        check_answered(data.draw(operation.as_strategy(mode)), http)

    assert len(operations) > 14
    try_routes()


def test_no_boundary_of_any_field_breaks_a_route_also_of_those_that_stop_the_service(operations, http, session):
    modes, statuses = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], Counter()
    try:
        for label in [*sorted(operations.keys() - STOP), *STOP]:
            schema, generation = operations[label].schema, operations[label].schema.config.generation
            for case in schema.iter_coverage_cases(
                operations[label], generation_modes=modes, generation_config=generation
            ):
                statuses[label, check_answered(case, http, session)] += 1
    finally:
        assert http.post("/v1/resume").json()[0]["paused"] is False
    assert {label for label, _ in statuses} == operations.keys()
    assert {200, 422} <= {status for label, status in statuses if label == "POST /v1/pause"}


def test_an_evaluation_gives_the_numbers_and_keeps_nothing_else(http, client):
    body = {"trials": 2, "tasks": 3, "domain": "mock"}
    began = http.post("/v1/evaluations", json=body, headers={"idempotency-key": "e"}).json()
    assert began == http.post("/v1/evaluations", json=body, headers={"idempotency-key": "e"}).json()
    assert began["episodes"] == 6
    path = f"/v1/evaluations/{began['evaluation_id']}"
    found = http.get(path).json()
    assert (found["state"], found["episodes"]) == ("ended", 6)
    report = found["report"]
    assert [(rate["k"], rate["value"], rate["tasks"]) for rate in report["pass"]] == [(1, 1.0, 3), (2, 1.0, 3)]
    assert (report["tasks"], report["episodes"], report["scored"]) == (3, 6, 6)
    assert began["evaluation_id"] not in client.status()["collections"]
    assert http.get(path, headers=bearer("other")).status_code == 404
    assert http.delete(path).status_code == 204
    assert http.get(path).status_code == 404
    refused = http.post("/v1/evaluations", json=body | {"ids": ["nobody"]})
    assert (refused.status_code, "nobody" in said(refused)) == (422, True)
