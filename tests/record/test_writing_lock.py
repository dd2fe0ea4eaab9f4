"""Two processes never go on with one file of trajectories at the same time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rollout_service.errors import StorageError
from rollout_service.record.writing_lock import writing_lock

_HOLDS = """
import sys
from pathlib import Path
from rollout_service.record.writing_lock import writing_lock

with writing_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_another_process_writes_to_is_refused_until_that_process_dies(tmp_path):
    path = tmp_path / "x.jsonl"
    asked = [sys.executable, "-c", _HOLDS, str(path)]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=r"Another process writes to .*x\.jsonl"), writing_lock(path):
            pass
        with writing_lock(tmp_path / "y.jsonl"):
            pass
        other.kill()
    with writing_lock(path), pytest.raises(StorageError), writing_lock(path):
        pass
    assert os.listdir(tmp_path) == []


def test_where_no_folder_is_yet_nothing_is_made(tmp_path):
    with writing_lock(tmp_path / "new" / "x.jsonl"):
        pass
    assert os.listdir(tmp_path) == []
