"""Environments that share one parsed database are official ones in all they do, and share nothing that one writes."""

from __future__ import annotations

import copy
import functools
import os
import random
import sys
import threading
import types
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rollout_service.errors import Tau2Error
from rollout_service.tau2 import compat, domain, environment, source_files, tasks
from rollout_service.tau2.source_files import SourceFiles
from tests.support import episodes

# The digest -----------------------------------------------------------------------------------------------------------

KINDS = ["read", "set", "set", "remove", "add", "move", "clear"]
WRITES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 5000), min_size=2, max_size=7)), min_size=1, max_size=6
)


def keys(place: Any) -> list[Any]:
    if isinstance(place, BaseModel):
        return list(type(place).model_fields)
    return list(place) if isinstance(place, dict) else list(range(len(place)))


def at(place: Any, key: Any) -> Any:
    return getattr(place, key) if isinstance(place, BaseModel) else place[key]


def changed(value: Any) -> Any:
    """Another value of the same type; of a part of the database, an equal copy."""
    if isinstance(value, Enum):
        members = list(type(value))
        return members[members.index(value) - 1]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + " é"
    if isinstance(value, int | float):
        return -value
    return value + timedelta(1) if isinstance(value, date) else copy.deepcopy(value)


def write(database: BaseModel, kind: str, path: list[int]) -> None:
    """Do something of this kind to the part of the database at the end of the path."""
    holder, key = database, keys(database)[path[0] % len(keys(database))]
    for number in path[1:]:
        value = at(holder, key)
        if not isinstance(value, BaseModel | dict | list) or not keys(value):
            break
        holder, key = value, keys(value)[number % len(keys(value))]
    if kind == "read":
        at(holder, key)
    elif isinstance(holder, BaseModel):
        setattr(holder, key, changed(at(holder, key)))
    elif kind == "set":
        holder[key] = changed(holder[key])
    elif kind == "remove":
        del holder[key]
    elif kind == "add" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == "add" and type(key) is str:
        holder[f" {key}"] = copy.deepcopy(holder[key])
    elif kind == "move" and isinstance(holder, dict):
        holder[key] = holder.pop(key)
    elif kind == "clear":
        holder.clear()


def write_all(world: compat.Environment, writes: list[tuple[str, list[int]]]) -> None:
    kits = [kit for kit in (world.tools, world.user_tools) if kit is not None]
    for kind, path in writes:
        write(kits[path[-1] % len(kits)].db, kind, path)


odd_values = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


@odd_values
@pytest.mark.parametrize("name", ["mock", "telecom"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WRITES)
def test_after_any_writes_the_hashes_are_those_of_an_official_environment_after_the_same(name, writes):
    shared, official = domain.get(name), environment.make(name)
    world = shared.environment()
    for each in (world, official):
        write_all(each, writes)
    assert shared.end_state(world).hashes == environment.database_hashes(official)


@odd_values
@pytest.mark.parametrize("name", ["retail", "airline"])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WRITES)
def test_after_any_writes_to_a_large_database_the_hashes_are_tau2_s_own(name, writes):
    shared = domain.get(name)
    world = shared.environment()
    write_all(world, writes)
    assert shared.end_state(world).hashes == environment.database_hashes(world)


@odd_values
@pytest.mark.parametrize("kind", KINDS[2:])
def test_each_kind_of_write_to_a_record_is_hashed_as_tau2_does(kind):
    shared = domain.get("mock")
    world = shared.environment()
    write(world.tools.db, kind, [0, 0])
    write(world.tools.db, kind, [1, 0, 1])
    assert shared.end_state(world).hashes == environment.database_hashes(world)


def test_reading_a_whole_database_leaves_nothing_of_it_changed():
    shared = domain.get("telecom")
    world = shared.environment()
    for kit in (world.tools, world.user_tools):
        copy.deepcopy(kit.db)
    end = shared.end_state(world)
    assert end.hashes == pristine("telecom")
    assert [list(map(bool, own)) for own in end.own] == [[False, False]] * 2


# Episodes -------------------------------------------------------------------------------------------------------------

PLAYED = {"mock": (0, 3, 4, 5), "telecom": (3, 20, 40, 77, 100), "retail": (1, 16, 41), "airline": (8, 17, 44)}
"""Positions of tasks whose gold actions write."""

Result = tuple[list[str], dict[str, str | None]]


@functools.cache
def pristine(name: str) -> dict[str, str | None]:
    return environment.database_hashes(environment.make(name))


def steps(world: compat.Environment, name: str, position: int) -> Iterator[str]:
    """Plays the task's gold actions, one a step; gives what the environment says to each."""
    task = tasks.get(episodes.task(name, position))
    if start := task.initial_state:
        world.set_state(start.initialization_data, start.initialization_actions, start.message_history or [])
    for action in task.evaluation_criteria.actions:
        call = compat.ToolCall(id="x", name=action.name, arguments=action.arguments, requestor=action.requestor)
        yield str(world.get_response(call).content)


@functools.cache
def alone(name: str, position: int) -> Result:
    """What an official environment says and becomes when nothing else is played."""
    world = environment.make(name)
    return list(steps(world, name, position)), environment.database_hashes(world)


def interleaved(name: str, seed: int) -> None:
    """Play each task twice, in one random order of all steps, and compare with what each is alone."""
    rng, shared = random.Random(seed), domain.get(name)
    positions = PLAYED[name] * 2
    worlds = [shared.environment() for _ in positions]
    running = {index: steps(world, name, positions[index]) for index, world in enumerate(worlds)}
    said: list[list[str]] = [[] for _ in worlds]
    while running:
        index = rng.choice(list(running))
        reply = next(running[index], None)
        if reply is None:
            del running[index]
        else:
            said[index].append(reply)
    for position, world, replies in zip(positions, worlds, said, strict=True):
        assert (replies, shared.end_state(world).hashes) == alone(name, position)


@pytest.mark.parametrize("name", PLAYED)
def test_the_episodes_that_are_played_write(name):
    assert all(alone(name, position)[1] != pristine(name) for position in PLAYED[name])


@pytest.mark.parametrize("name", PLAYED)
def test_interleaved_episodes_end_as_if_each_were_alone_and_the_next_begins_as_the_first(name):
    for seed in range(3):
        interleaved(name, seed)
    assert environment.database_hashes(domain.get(name).environment()) == pristine(name)


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads take turns a hundred times as often as they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", ["mock", "telecom", "retail"])
def test_threads_play_at_once_as_if_each_were_alone(eager_switches, name):
    start = threading.Barrier(2)
    for position in PLAYED[name]:
        alone(name, position)

    def work(seed: int) -> None:
        start.wait()
        interleaved(name, seed)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, (10, 11)))
    assert environment.database_hashes(domain.get(name).environment()) == pristine(name)


# Domains that do not share --------------------------------------------------------------------------------------------


@pytest.fixture
def registered() -> str:
    """A domain under a name of its own, which is mock in all else."""
    name = f"mock {uuid.uuid4()}"
    compat.registry.register_domain(compat.registry.get_env_constructor("mock"), name)
    return name


def test_a_domain_that_was_not_shown_gets_official_environments_and_is_warned_of_once(registered, caplog):
    shared, again = domain.get(registered), domain.get(registered)
    assert shared is again
    assert not shared.is_fast
    world = shared.environment()
    assert type(world.tools.db.tasks) is dict
    world.tools.db.tasks.clear()
    assert shared.end_state(world).hashes == environment.database_hashes(world) != pristine("mock")
    assert shared.end_state(shared.environment()).hashes == pristine("mock")
    [said] = [record.getMessage() for record in caplog.records if registered in record.getMessage()]
    assert "the official way, which is slow" in said


def test_a_domain_that_takes_no_database_gets_official_environments(caplog, monkeypatch):
    name = f"mock {uuid.uuid4()}"
    make = compat.registry.get_env_constructor("mock")
    compat.registry.register_domain(lambda solo_mode=False: make(solo_mode=solo_mode), name)
    monkeypatch.setattr(domain, "_PARITY_DOMAINS", {name})
    assert not domain.get(name).is_fast
    assert "its constructor takes no db" in caplog.text


def test_solo_mode_is_refused_where_a_domain_has_none():
    with pytest.raises(Tau2Error, match="agent: the domain retail has no solo mode"):
        domain.get("retail").environment(solo=True)


# Source files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / "here" / name for name in ("db.json", "policy.md")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(path.name)
    return paths


def test_a_touched_file_that_says_the_same_passes(files):
    source = SourceFiles(files)
    os.utime(files[0], ns=(0, 0))
    source.check_unchanged()
    files[0].unlink()
    files[0].write_text("db.json")
    source.check_unchanged()


def test_a_changed_file_is_refused_by_name_with_the_remedy_until_it_is_put_back(files):
    source = SourceFiles(files)
    for text in ("policy.MD", "longer than before", ""):
        files[1].write_text(text)
        os.utime(files[1], ns=(0, len(text)))
        with pytest.raises(Tau2Error, match=r"policy\.md changed while the service was running\. Start the service"):
            source.check_unchanged()
    files[1].write_text("policy.md")
    source.check_unchanged()


def test_a_deleted_file_is_refused_by_name(files):
    source = SourceFiles(files)
    files[0].unlink()
    with pytest.raises(Tau2Error, match=r"db\.json changed"):
        source.check_unchanged()


def test_the_fingerprint_follows_the_contents_and_not_the_place(files, tmp_path):
    first = SourceFiles(files).fingerprint
    moved = [path.rename(tmp_path / path.name) for path in files]
    assert SourceFiles(moved[::-1]).fingerprint == first
    moved[0].write_text("other")
    assert SourceFiles(moved).fingerprint != first


def test_a_domain_s_files_are_those_that_its_utils_module_names(files, monkeypatch):
    utils = types.ModuleType("somewhere.utils")
    vars(utils).update(DB_PATH=files[0], POLICY_PATH=str(files[1]), GONE_PATH="/nowhere", NOTE="/etc/hosts")
    monkeypatch.setitem(sys.modules, utils.__name__, utils)

    def constructor() -> None:
        pass

    constructor.__module__ = "somewhere.environment"
    for each in (constructor, functools.partial(constructor)):
        name = uuid.uuid4().hex
        compat.registry.register_domain(each, name)
        assert source_files.of(name).fingerprint == SourceFiles(files).fingerprint


def test_a_domain_whose_package_has_no_utils_module_has_no_files_to_watch():
    def constructor() -> None:
        pass

    constructor.__module__ = "nowhere.environment"
    name = uuid.uuid4().hex
    compat.registry.register_domain(constructor, name)
    assert source_files.of(name).fingerprint == SourceFiles([]).fingerprint


@pytest.mark.parametrize("name", [*PLAYED, "telecom-workflow"])
def test_each_official_domain_has_files_that_are_watched(name):
    assert domain.get(name).files.fingerprint != SourceFiles([]).fingerprint


def test_a_bad_vpn_in_one_telecom_episode_is_bad_in_no_other():
    shared = domain.get("telecom")
    connected, after = shared.environment(), shared.environment()
    connected.get_response(compat.ToolCall(id="1", name="connect_vpn", arguments={}, requestor="user"))
    before = shared.end_state(connected).hashes
    shared.environment().user_tools.break_vpn()
    environment.make("telecom").user_tools.break_vpn()
    assert shared.end_state(connected).hashes == before
    after.get_response(compat.ToolCall(id="1", name="connect_vpn", arguments={}, requestor="user"))
    assert shared.end_state(after).hashes == before


def test_the_user_s_tools_have_tau2_s_own_schemas_and_what_one_request_changes_reaches_no_other():
    shared = domain.get("telecom")
    official = shared.environment().get_user_tools()
    given = shared.user_tools(tasks.get(tasks.references("telecom")[0]))
    assert [(tool.name, tool.openai_schema) for tool in given] == [(tool.name, tool.openai_schema) for tool in official]
    given[0].openai_schema["function"]["parameters"].clear()
    assert given[0].openai_schema == official[0].openai_schema
