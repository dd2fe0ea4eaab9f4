"""A report as a page and as pictures."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import pytest

from rollout_service.record import storage
from rollout_service.record.trajectory import TaskRef
from rollout_service.report import plots
from rollout_service.report.comparison import Comparison
from rollout_service.report.page import page
from rollout_service.report.run import Run
from tests.support.commands import command
from tests.support.trajectories import make_segment, make_trajectory

HOSTILE = "</script><script>alert(1)</script>\u202e"


def training(episodes: int) -> list:
    """Collections of six episodes, each with weights of its own."""
    made = []
    for number in range(episodes):
        segment = make_segment(1)
        segment.weight_versions[segment.loss_mask == 1] = number // 6
        task = TaskRef("retail", "train", f"{HOSTILE}{number % 3}", number % 3)
        fields = {"task": task, "collection_id": f"c{number // 6}", "reward": float(number % 2), "segments": [segment]}
        made.append(make_trajectory(trajectory_id=str(number), **fields))
    return made


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(training(6), name=f"run {HOSTILE}")


def test_a_page_needs_no_network_and_shows_hostile_text_as_text(run):
    text = page(run, Comparison(run, run))
    tags = Tags(text)
    assert "script" not in tags.seen
    assert tags.seen.count("figure") == 2, "pass^k and time"
    assert not [link for link in tags.links if "//" in link]
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "\u202e" not in text
    assert "\\u202e" in text
    for title in ("Episodes", "pass^k, with 95% intervals over tasks", "Tasks, the least solved first", "against"):
        assert title in text


def test_without_matplotlib_the_page_has_its_tables_and_png_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    storage.write(tmp_path / "t.jsonl", training(6))
    done = command("report", tmp_path / "t.jsonl", "--html", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "r.html").read_text()
    assert "svg" not in Tags(text).seen
    assert plots.REMEDY in text.replace("&#x27;", "'")
    refused = command("report", tmp_path / "t.jsonl", "--png", tmp_path / "plots")
    assert (refused.returncode, plots.REMEDY in refused.stderr) == (2, True)
    folder = command("report", tmp_path / "t.jsonl", "--html", tmp_path)
    assert (folder.returncode, "is a folder" in folder.stderr) == (2, True)


def test_each_plot_that_has_numbers_becomes_a_picture(tmp_path):
    late = training(12)
    late[6].segments[0].weight_versions[-3] = 0  # a token of the second version's first episode
    storage.write(tmp_path / "t.jsonl", late)
    done = command("report", tmp_path / "t.jsonl", "--png", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    names = ["pass_k", "reward_by_collection", "reward_by_version", "staleness", "time"]
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == names
    assert (tmp_path / "plots" / "time.png").read_bytes().startswith(b"\x89PNG")
