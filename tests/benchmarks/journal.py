"""What the journal costs: an episode's part and entries, written on their own; and the same collections with and
without it, by turns, in one cluster.

Other work on the machine moves the CPU time of an episode by a tenth, which is more than the journal costs. What the
coordinator takes of it is small, so its difference is small as well: with the part, which the environment actor writes,
that is the journal's share where the two services' own figures are too far apart from round to round.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import psutil
import ray

from rollout_service.client import RolloutClient
from rollout_service.collecting.request import CollectionRequest
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.journal.entries import Acknowledged, Asked, Delivered, Stored
from rollout_service.journal.journal import Journal
from rollout_service.journal.place import PARTS, Form
from rollout_service.record.part_files import PartFiles
from tests.benchmarks.measure import Row, cpu_seconds_of, family_cpu_seconds, show
from tests.benchmarks.starvation import IN_FLIGHT, LATENCY, steady
from tests.support.episodes import request, settings
from tests.support.episodes import run as play

_DOMAIN = "retail"
_FORMS: tuple[Form, ...] = ("sqlite", "log")
_ROUNDS, _EPISODES = 10, 240
_TRIES, _ALONE = 5, 100
_STARVING_ROUNDS, _STARVING_EPISODES, _STARVING_WARM_UP = 2, 160, 3.0


@dataclass
class Rounds:
    """What one of the services took, round by round."""

    cpu: list[float] = field(default_factory=list)
    """CPU seconds of an episode."""
    coordinator: list[float] = field(default_factory=list)
    """Those of them that the coordinator took."""
    rate: list[float] = field(default_factory=list)
    """Episodes per second."""
    share: list[float] = field(default_factory=list)
    """Turns per second in steady state, over the ideal."""


def run() -> bool:
    """Measure the writing alone, and collections without and with latency. Takes 7 minutes."""
    alone = {form: _median_alone(form) for form in _FORMS}
    ray.init("local", num_cpus=12, include_dashboard=False, log_to_driver=False)
    with _services(None) as services:
        for number in range(_ROUNDS + 1):  # the first one only warms up
            for rounds, client in services if number % 2 else reversed(services):
                _collect(rounds if number else Rounds(), client, number)
    without, *with_journal = (rounds for rounds, _ in services)
    rows = []
    for form, rounds in zip(_FORMS, with_journal, strict=True):
        part, entries = alone[form]
        rows += [_alone_row(form, part, entries, median(without.cpu)), _coordinator_row(form, part, without, rounds)]
        rows += _rows(form, without, rounds)
    with _services(LATENCY) as services:
        for number in range(_STARVING_ROUNDS):
            for rounds, client in services if number % 2 else reversed(services):
                batch = client.collect(_STARVING_EPISODES, seed=number, progress=False)
                found = steady(batch, _STARVING_WARM_UP)
                rounds.share.append(found.rate / found.ideal)
    ray.shutdown()
    without, *with_journal = (rounds for rounds, _ in services)
    rows += [_starving_row(form, without, rounds) for form, rounds in zip(_FORMS, with_journal, strict=True)]
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    return show(f"{_DOMAIN}: with a journal against without one, round by round (load {load})", rows)


def _median_alone(form: Form) -> tuple[float, float]:
    tries = [asyncio.run(_alone(_ALONE, form)) for _ in range(_TRIES)]
    part, entries = (median(seconds) for seconds in zip(*tries, strict=True))
    return part, entries


def _alone_row(form: Form, part: float, entries: float, episode: float) -> Row:
    share = (part + entries) / episode
    shown = f"{part * 1e3:.2f} + {entries * 1e3:.2f} ms", f"{episode * 1e3:.2f} ms", f"{share:.3f}"
    return Row(f"{form}: part and entries alone: share of an episode's CPU", *shown, "≤ 0.02", share <= 0.02)


def _coordinator_row(form: Form, part: float, without: Rounds, with_journal: Rounds) -> Row:
    ours, theirs = mean(with_journal.coordinator), mean(without.coordinator)  # the kernel counts in steps of 10 ms
    share = (ours - theirs + part) / median(without.cpu)
    shown = f"{ours * 1e3:.2f} + {part * 1e3:.2f} ms", f"{theirs * 1e3:.2f} ms", f"{share:.3f}"
    return Row(f"{form}: coordinator's CPU per episode, and the part: share", *shown, "≤ 0.02", share <= 0.02)


def _rows(form: Form, without: Rounds, with_journal: Rounds) -> list[Row]:
    dearer = [one / other for one, other in zip(with_journal.cpu, without.cpu, strict=True)]
    faster = [one / other for one, other in zip(with_journal.rate, without.rate, strict=True)]
    cpu = [f"{median(rounds.cpu) * 1e3:.2f} ms" for rounds in (with_journal, without)]
    rate = [f"{median(rounds.rate):.1f}/s" for rounds in (with_journal, without)]
    what = f"{_ROUNDS} rounds of {_EPISODES}"
    return [
        Row(f"{form}: CPU per episode, {what}", *cpu, _spread(dearer), "≤ 1.02", mean(dearer) <= 1.02),
        Row(f"{form}: episodes per second, {what}", *rate, _spread(faster), "≥ 0.98", mean(faster) >= 0.98),
    ]


def _starving_row(form: Form, without: Rounds, with_journal: Rounds) -> Row:
    kept = [one / other for one, other in zip(with_journal.share, without.share, strict=True)]
    shares = [f"{median(rounds.share):.4f}" for rounds in (with_journal, without)]
    what = f"{form}: {IN_FLIGHT} in flight, policy latency 0.5 to 1.5 s: share of the ideal turns per second"
    return Row(what, *shares, _spread(kept), "≥ 0.99", mean(kept) >= 0.99)


def _spread(ratios: list[float]) -> str:
    """Mean with twice its standard error, least and greatest."""
    error = 2 * stdev(ratios) / len(ratios) ** 0.5
    return f"{mean(ratios):.3f} ± {error:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


async def _alone(episodes: int, form: Form) -> tuple[float, float]:
    """CPU seconds of an episode's part and of its entries, in groups of one that a reader takes at once."""
    trajectory = play(_DOMAIN, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = Journal(folder, "benchmark", form=form)
        requests = [request(trajectory.task, number) for number in range(episodes)]
        journal.record(Asked("c", "client", CollectionRequest(n=episodes), requests, (), 0, None))
        await journal.durable()
        begun = time.process_time()
        parts, files = [], PartFiles(folder / PARTS, "n" * 56)
        for number in range(episodes):
            trajectory.trajectory_id = f"t-{number}"
            parts.append(files.write(trajectory))
        written = time.process_time()
        summary = EpisodeSummary.of(trajectory)
        for number, part in enumerate(parts):
            journal.record(Stored("c", number, 1, replace(summary, part=part)))
            journal.record(Delivered("c", number))
            await journal.durable()
            journal.record(Acknowledged("c", (number,)))
        await journal.durable()
        ended = time.process_time()
        journal.close()
    return (written - begun) / episodes, (ended - written) / episodes


def _collect(rounds: Rounds, client: RolloutClient, seed: int) -> None:
    actor: Any = client._coordinator
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))  # a function of this module would be imported there
    coordinator = psutil.Process(pid)
    before, cpu, wall = cpu_seconds_of([coordinator]), family_cpu_seconds(), time.perf_counter()
    client.collect(_EPISODES, seed=seed, progress=False)
    rounds.cpu.append((family_cpu_seconds() - cpu) / _EPISODES)
    rounds.coordinator.append((cpu_seconds_of([coordinator]) - before) / _EPISODES)
    rounds.rate.append(_EPISODES / (time.perf_counter() - wall))


@contextlib.contextmanager
def _services(latency: dict[str, object] | None) -> Iterator[list[tuple[Rounds, RolloutClient]]]:
    """A service without a journal and one with each form, side by side."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        services = [_service("without", latency, None)]
        services += [_service(f"with-{form}", latency, Path(folder) / form, form) for form in _FORMS]
        yield [(Rounds(), stack.enter_context(service)) for service in services]


def _service(
    name: str, latency: dict[str, object] | None, journal: Path | None, form: Form | None = None
) -> RolloutClient:
    overrides = {
        "service__name": name,
        "service__actors": 1,
        "service__max_buffered_groups": 1000,
        "tasks__domain": _DOMAIN,
    }
    if journal is not None:
        overrides |= {"service__journal": str(journal), "service__journal_form": form}
    if latency is not None:
        overrides |= {"policy__script": {"latency": latency}, "service__slots": IN_FLIGHT}
    return RolloutClient(config=settings(**overrides))
