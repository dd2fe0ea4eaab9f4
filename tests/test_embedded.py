"""A module of the user's own that hides one of our packages is named before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rollout_service import embedded

ROOT = Path(__file__).parents[1]

START = """
import sys
from rollout_service.client import RolloutClient
from rollout_service.errors import ServiceError
try:
    RolloutClient()
except ServiceError as error:
    print(error)
print("ray started:", "ray" in sys.modules and sys.modules["ray"].is_initialized())
"""


def run(folder: Path, program: list[str], variables: dict[str, str] | None = None) -> str:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"} | (variables or {})
    done = subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["deploy.py", "actors.py", "deploy/__init__.py"])
def test_a_module_beside_the_user_s_script_that_hides_ours_is_named_with_the_remedy(tmp_path, name):
    found = tmp_path / name
    found.parent.mkdir(exist_ok=True)
    found.write_text("")
    package = found.stem if found.stem != "__init__" else found.parent.name
    said = run(tmp_path, ["-c", START])  # -c: the current folder is searched first
    renamed = found.parent if found.stem == "__init__" else found
    assert f"`import {package}` finds {found}, which hides rollout_service's own package {ROOT / package}." in said
    assert f"Rename {renamed}, or start from another folder." in said
    assert "ray started: False" in said


def test_a_module_that_only_ray_s_workers_would_find_is_named_as_well(tmp_path):
    elsewhere = tmp_path / "scripts"
    elsewhere.mkdir()
    (elsewhere / "train.py").write_text(START)
    (tmp_path / "deploy.py").write_text("")  # in the current folder, which the script's own path lacks
    said = run(tmp_path, [str(elsewhere / "train.py")])
    found = tmp_path / "deploy.py"
    assert f"Ray's workers search {tmp_path} first, so their `import deploy` would find {found}" in said
    assert "ray started: False" in said


def test_folders_that_are_no_packages_and_our_own_hide_nothing(tmp_path):
    (tmp_path / "deploy").mkdir()
    assert embedded.hiding("deploy", [str(tmp_path)]) is None
    assert embedded.hiding("deploy", [str(ROOT)]) is None
    assert embedded.hiding("deploy", []) is None
    checkout = tmp_path / "checkout"  # an installed service is started in one: the README's commands are
    for name in ("deploy/__init__.py", "rollout_service/embedded.py"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).write_text("")
    assert embedded.hiding("deploy", [str(checkout)]) is None
    embedded.check_packages()


def test_workers_of_a_job_search_its_working_dir_in_place_of_the_current_folder(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "deploy.py").write_text("")
    (tmp_path / "scripts" / "check.py").write_text("from rollout_service import embedded; embedded.check_packages()")
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"working_dir": "gcs://package.zip"}}'}  # as Ray sets it
    run(tmp_path, [str(tmp_path / "scripts" / "check.py")], job)
