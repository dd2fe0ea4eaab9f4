"""The viewer with 10 and with 10,000 episodes: how long a page takes to write, and a browser to show it.

The episodes are real scripted ones, repeated under changed identities. Their log-probs and weight versions are drawn at
random, because a scripted policy has the same for every token. `python -m tests.benchmarks.viewer FOLDER` takes the
pictures of docs/viewer.md instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from rollout_service.record import storage
from rollout_service.record.trajectory import Trajectory
from rollout_service.viewer.writer import write_page
from tests.benchmarks.measure import Row, show
from tests.support.browser import CHROMIUM, Browser
from tests.support.episodes import request, runner, settings, task

_TASKS = {"retail": 6, "airline": 2, "telecom": 4}
"""Tasks of each domain that are played."""

_GROUP = 4

_MISBEHAVING: dict[str, Any] = {
    "policy__script__wrong_argument": 0.12,
    "policy__script__malformed_call": 0.1,
    "policy__script__chatter": 0.3,
    "policy__script__latency": {"distribution": "uniform", "mean": 0.06, "spread": 0.05},
    "user__script__latency": {"distribution": "uniform", "mean": 0.04, "spread": 0.03},
    "limits__max_turns": 14,
}


def real_episodes() -> list[Trajectory]:
    """Groups of scripted episodes in which the policy makes mistakes."""
    config = settings(**_MISBEHAVING)
    random, played = np.random.default_rng(0), []
    for domain, position in ((domain, at) for domain, count in _TASKS.items() for at in range(count)):
        for sample in range(_GROUP):
            seed = len(played)
            name = f"{domain}-{position}"
            trajectory = runner(config).run(request(task(domain, position), seed, name, sample))
            played.append(_sampled(trajectory, random))
    return played


def _sampled(trajectory: Trajectory, random: np.random.Generator) -> Trajectory:
    """The trajectory with log-probs and weight versions as a model that is being trained would have them."""
    for segment in trajectory.segments:
        sampled = np.flatnonzero(segment.loss_mask)
        segment.logprobs[sampled] = -random.exponential(0.8, len(sampled))
        segment.weight_versions[sampled] = np.where(np.arange(len(sampled)) < len(sampled) * 2 // 3, 3, 4)
        for turn in segment.turns:
            turn.prefix_version = int(segment.weight_versions[segment.turns[0].start])
    return trajectory


def repeated(episodes: list[Trajectory], count: int) -> Iterator[Trajectory]:
    """So many episodes, each repetition in groups of its own."""
    for number, original in zip(range(count), itertools.cycle(episodes), strict=False):
        again = number // len(episodes)
        names = {"trajectory_id": f"{original.trajectory_id}-{again}", "group_id": f"{original.group_id}-{again}"}
        yield dataclasses.replace(original, **names)


def run() -> bool:
    """Write and open both pages."""
    if CHROMIUM is None:
        print("viewer: left out, because there is no Chromium here (apt-get install chromium)")
        return True
    episodes = real_episodes()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for count in (10, 10_000) for row in _rows(episodes, count, Path(folder))]
    return show("The viewer's page", rows)


def _rows(episodes: list[Trajectory], count: int, folder: Path) -> list[Row]:
    stored, page = folder / f"{count}.parquet", folder / f"{count}.html"
    storage.write(stored, repeated(episodes, count))
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    write_page([stored], page)
    seconds, growth = time.perf_counter() - start, psutil.Process().memory_info().rss - before
    listed, shown = first_sights(page)
    name = f"{count:,} episodes"
    return [
        Row(f"{name}: writing the page", f"{seconds:.1f} s, {growth / 1e6:.0f} MB more memory", "", "", "", True),
        Row(f"{name}: size of the page", f"{page.stat().st_size / 1e6:.1f} MB", "", "", "", True),
        Row(f"{name}: opened until the list is there", f"{listed:.2f} s", "", "", "≤ 2 s", listed <= 2),
        Row(f"{name}: opened until the first conversation", f"{shown:.2f} s", "", "", "≤ 2 s", shown <= 2),
    ]


def first_sights(page: Path) -> tuple[float, float]:
    """Seconds until the list is shown, and until the first conversation is: the medians of three times."""
    found = []
    with Browser() as browser:
        browser.resize(1366, 768)
        for _ in range(3):
            start = time.perf_counter()
            browser.open(page)
            browser.wait_for("document.documentElement.dataset.ready === 'list'")
            listed = time.perf_counter() - start
            browser.wait_for("document.getElementById('detail').dataset.shown")
            found.append((listed, time.perf_counter() - start))
    return sorted(listed for listed, _ in found)[1], sorted(shown for _, shown in found)[1]


_PICTURES = {
    "conversation": ("Conversation", False),
    "reward": ("Reward", False),
    "tokens": ("Tokens", False),
    "timeline": ("Timeline", True),
    "group": ("Group", False),
}
"""Name, tab, and whether it is dark."""

_TO_NEW_WEIGHTS = """{
  const mark = [...document.querySelectorAll(".segment .version")].at(-1);
  mark.scrollIntoView({ block: "center" });
  mark.nextElementSibling.focus({ preventScroll: true });
}"""
"""Scrolls to where sampling goes on with other weights, and points at the first token of these."""


def take_pictures(folder: Path) -> None:
    """Write the pictures of docs/viewer.md into this folder."""
    with tempfile.TemporaryDirectory() as place, Browser() as browser:
        stored, page = Path(place) / "step_40.parquet", Path(place) / "page.html"
        storage.write(stored, real_episodes())
        write_page([stored], page)
        for name, (tab, dark) in _PICTURES.items():
            browser.resize(1280, 720, dark=dark)
            browser.open(page, f"#episode=2&tab={tab}")
            browser.wait_for(f"document.getElementById('detail').dataset.shown === '2 {tab}'")
            if tab == "Tokens":
                browser.ask(_TO_NEW_WEIGHTS)
            picture = folder / f"viewer_{name}.png"
            browser.picture(picture)
            Image.open(picture).convert("RGB").quantize(96).save(picture, optimize=True)  # a third of the size


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
