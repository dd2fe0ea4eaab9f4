"""`rollout-service cost` on a tape: what more episodes of it will cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rollout_service.cli.commands.cost import cost
from rollout_service.errors import ConfigError, TapeError
from rollout_service.tape.folder import TapeFolder
from rollout_service.tape.recording import Entry, RecordingWriter, Take
from rollout_service.tape.request import ModelRequest

TAKE = Take("retail", "0", "0" * 64, 0, 7, 1)
REQUEST = ModelRequest("m", {}, None, [])


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def record(tape: Path, usd: float | None, *, outcome: str | None = "completed", **take: object) -> None:
    folder = TapeFolder(tape)
    folder.open_for_writing({})
    one = replace(TAKE, **take)  # type: ignore[arg-type]
    writer = RecordingWriter(folder.put_task(one, {}), one)
    for asked in ("user", "user", "judge"):
        writer.append(Entry(asked, REQUEST.key, REQUEST, {}, 0, 1000, 100, usd))
    if outcome:
        writer.finish(outcome)


def test_the_estimate_and_its_spread_come_from_the_finished_episodes_of_the_chosen_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tape = tmp_path / "tape"
    record(tape, 0.01)
    record(tape, 0.03, task_id="1")
    record(tape, 9.0, task_id="2", outcome=None)
    record(tape, 9.0, domain="airline")
    cost(n=512, tape=tape, domain="retail", split="base")
    told = capsys.readouterr().out
    assert f"2 episodes of 2 tasks, recorded in {tape}" in told
    assert "3,000 sent, 300 written" in told
    assert "$0.0400" in told, "two of the user's requests, $0.02 each on average"
    assert "$30.72 (95% interval" in told
    assert "$0.0300 (retail/0) to $0.0900 (retail/1)" in told


def test_a_model_without_a_price_can_be_priced_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tape = tmp_path / "tape"
    record(tape, None)
    with pytest.raises(ConfigError, match=r"cost of 1 of 1 episodes is not known.*user\.price"):
        cost(n=10, tape=tape, domain="retail", split="base")
    prices = ["user.model=m", "user.price.prompt_usd=1", "user.price.completion_usd=10"]
    judge = ["evaluation.judge.price.prompt_usd=0", "evaluation.judge.price.completion_usd=0"]
    cost(n=10, tape=tape, domain="retail", split="base", settings=prices + judge)
    assert "$0.04 (one episode says nothing about the spread)" in capsys.readouterr().out


def test_what_cannot_be_judged_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to judge by.*--pilot 8"):
        cost(n=10)
    with pytest.raises(ConfigError, match="exclude each other"):
        cost(n=10, tape=tmp_path, pilot=3)
    with pytest.raises(TapeError, match="no tape at"):
        cost(n=10, tape=tmp_path / "none", domain="retail")
    record(tmp_path / "tape", 0.1, domain="airline")
    with pytest.raises(ConfigError, match="no finished episode of retail"):
        cost(n=10, tape=tmp_path / "tape", domain="retail")
