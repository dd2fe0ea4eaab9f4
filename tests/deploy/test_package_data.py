"""A wheel brings every file of the packages, so that an installed service has its configurations and scripts too."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("rollout_service", "actors", "deploy")


def test_package_data_covers_every_file_that_is_no_module_and_no_pattern_is_empty():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    covered: set[Path] = set()
    for package, patterns in setuptools["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        assert (folder / "__init__.py").exists(), f"{package} is no package"
        for pattern in patterns:
            found = {path for path in folder.glob(pattern) if path.is_file()}
            assert found, f"{package}: no file is like {pattern}"
            covered |= found
    others = {
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert others - covered == set()


def test_configurations_and_scripts_are_found_as_resources_of_the_package():
    deploy = files("deploy")
    for name in ("configs/laptop.yaml", "slime/run.sh", "verl/agent_loop.yaml", "kuberay/rayjob.yaml"):
        assert deploy.joinpath(name).is_file(), name
