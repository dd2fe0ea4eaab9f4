"""A campaign gives each schedule a result, whatever becomes of its jobs, and goes on where it was ended."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.chaos import campaign
from tests.chaos.campaign import Campaign
from tests.chaos.checker import Violation
from tests.chaos.results import Result, ResultsFile
from tests.chaos.schedule import KINDS, make

SCHEDULES = [make(kind, seed, episodes=20) for seed in range(2) for kind in KINDS]

JOB = """
import json, os, pathlib, sys
folder, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    schedule = json.loads(line)
    with open(folder / "seen", "a") as seen:
        seen.write(f"{number}\\n")
    if schedule["kind"] == "cluster" and number == 0:
        os._exit(1)
    if schedule["kind"] == "client":
        print(json.dumps({"failed": "no room"}), flush=True)
    else:
        print(json.dumps({"result": json.loads((folder / "result").read_text()) | {"schedule": schedule}}), flush=True)
"""


def result(place: int) -> Result:
    violations = (Violation("lost", "an episode"),) if place % 2 else ()
    return Result(SCHEDULES[place], 2, 1, 0, 19, 1, 0.75, violations, (300, 200), (0.5, 12.0), 3.5, 9.25)


@pytest.fixture
def job(tmp_path, monkeypatch) -> str:
    (tmp_path / "chaos_test_job.py").write_text(JOB)
    (tmp_path / "result").write_text(json.dumps(asdict(result(0))))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    monkeypatch.setattr(campaign, "_APART_SECONDS", 0.0)
    return "chaos_test_job"


def test_each_schedule_has_one_outcome_though_a_job_dies(tmp_path: Path, job: str):
    with Campaign(tmp_path, 2, module=job) as both:
        came = list(both.run(SCHEDULES))
    assert sorted(schedule.name for schedule, _ in came) == sorted(schedule.name for schedule in SCHEDULES)
    for schedule, outcome in came:
        assert outcome == ("no room" if schedule.kind == "client" else replace(result(0), schedule=schedule))
    assert set((tmp_path / "seen").read_text().split()) <= {"0", "1", "2"}


def test_jobs_that_all_die_end_the_campaign(tmp_path: Path, job: str):
    (tmp_path / "result").unlink()
    with Campaign(tmp_path, 1, module=job) as alone, pytest.raises(RuntimeError, match="FileNotFoundError"):
        list(alone.run(SCHEDULES[:1]))


def test_results_survive_a_writer_that_is_killed(tmp_path: Path):
    path = tmp_path / "here" / "results.jsonl"
    file = ResultsFile(path)
    for place in range(3):
        file.append(result(place))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again = ResultsFile(path)
    assert again.of(SCHEDULES) == [result(0), result(1)]
    again.append(result(2))
    assert path.read_bytes() == whole
    assert ResultsFile(path).of(SCHEDULES[1:3]) == [result(1), result(2)]
