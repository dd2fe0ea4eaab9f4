"""The documents name only what there is, and leave out nothing that a table should hold."""

from __future__ import annotations

import contextlib
import importlib
import re
from pathlib import Path

import pytest
import typer
import yaml

from rollout_service.cli import app
from rollout_service.config import RolloutConfig
from rollout_service.config.variables import TAU2_VARIABLES
from rollout_service.errors import FaultKind
from rollout_service.moved import _MOVED
from tests import settings_tables

ROOT = Path(__file__).parents[1]
README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
ARCHITECTURE, OPERATIONS = ROOT / "docs/architecture.md", ROOT / "docs/operations.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Documents about the present; the changelog names what was, too."""

FOLDERS = ("rollout_service", "actors", "deploy", "tests", "docs")
MOVED_ROW = r"^\| `rollout_service\.([\w.]+)` \| `rollout_service\.([\w.]+)` \|$"
SECTIONS = "tasks|policy|user|evaluation|limits|service"


def by_name(path: Path) -> str:
    return path.name


def prose(path: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def quoted(path: Path, pattern: str) -> set[str]:
    """What the pattern's group matches in the document's inline code."""
    return {found for code in re.findall(r"`([^`\n]+)`", prose(path)) for found in re.findall(pattern, code)}


def anchors(path: Path) -> set[str]:
    """The fragments that links into the document may have, as GitHub makes them of its headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(dotted)
        return True
    module, _, name = dotted.rpartition(".")
    with contextlib.suppress(ModuleNotFoundError):
        return hasattr(importlib.import_module(module), name)
    return False


@pytest.mark.parametrize("path", [*PAGES, CHANGELOG], ids=by_name)
def test_every_link_between_documents_leads_somewhere(path):
    for target, fragment in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose(path)):
        if target.startswith("http"):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name} links to {target}"
        assert not fragment or fragment in anchors(file), f"{path.name} links to {target}#{fragment}"


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_file_that_a_document_names_exists(path):
    named = quoted(path, rf"^((?:{'|'.join(FOLDERS)})/[\w./-]*)")
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_module_that_a_document_names_exists(path):
    named = quoted(path, r"(?<![\w./-])((?:rollout_service|actors|deploy|tests)(?:\.\w+)+)")
    named |= {
        f"{module}.{name.strip()}"
        for module, names in re.findall(r"^from (rollout_service[\w.]*) import (.+)$", path.read_text(), re.MULTILINE)
        for name in names.split(",")
    }
    assert sorted(name for name in named if not name.endswith((".py", ".yaml")) and not exists(name)) == []


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_setting_that_a_document_names_exists(path):
    sections = dict(settings_tables.sections(RolloutConfig))
    known = {f"{name}.{field}" for name, model in sections.items() for field in model.model_fields} | set(sections)
    assert sorted(quoted(path, rf"^((?:{SECTIONS})(?:\.[a-z_]\w*)+)") - known) == []


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_configuration_that_a_document_shows_loads(path, tmp_path):
    for number, text in enumerate(re.findall(r"^```yaml$(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        RolloutConfig.load(file, environ={})


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_command_and_target_that_a_document_names_exists(path):
    commands = typer.main.get_command(app).commands.keys()
    assert sorted(quoted(path, r"rollout-service ([a-z][\w-]*)") - commands) == []
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert sorted(quoted(path, r"^make ([a-z][\w-]*)") - targets) == []


def test_the_readme_is_short_and_names_every_command_and_every_page():
    text = README.read_text()
    assert len(text.splitlines()) <= 250
    assert [name for name in typer.main.get_command(app).commands if f"`rollout-service {name}" not in text] == []
    assert [page.name for page in PAGES[1:] if page.name not in text] == []


def test_the_architecture_page_places_every_room_and_every_module_beside_them():
    library = ROOT / "rollout_service"
    rooms = {f"{path.parent.relative_to(ROOT)}/" for path in library.glob("*/__init__.py")}
    modules = {str(path.relative_to(ROOT)) for path in library.glob("[!_]*.py")}
    text = ARCHITECTURE.read_text()
    assert sorted(name for name in rooms | modules if f"`{name}`" not in text) == []


def test_pre_commit_uses_the_project_s_own_environment_and_downloads_nothing():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repository["repo"] for repository in repositories} == {"local"}
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {hook["entry"].split()[0] for hook in hooks} == {".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/python"}
    assert {hook["language"] for hook in hooks} == {"system"}


def test_the_tables_of_settings_are_up_to_date():
    assert settings_tables.PAGE.read_text() == settings_tables.page(), "run `make docs`"


def test_every_setting_says_what_it_means():
    silent = [
        f"{name}.{field}".lstrip(".")
        for name, model in settings_tables.sections(RolloutConfig)
        for field, info in model.model_fields.items()
        if not info.description and not settings_tables.section_of(info.annotation)
    ]
    assert silent == []


def test_the_environment_variables_of_tau2_are_documented():
    text = settings_tables.PAGE.read_text()
    assert [name for name, setting in TAU2_VARIABLES.items() if f"| `{name}` | `{setting}` |" not in text] == []


def test_every_kind_of_fault_has_its_remedy_in_the_operations_page():
    for kind in FaultKind:
        (row,) = re.findall(rf"^\| `{kind}` \| .+ \| (.+) \|$", OPERATIONS.read_text(), re.MULTILINE)
        assert set(re.findall(r"[a-z]+\.[a-z_]+", kind.remedy)) <= set(re.findall(r"`([a-z]+\.[a-z_]+)", row))


def test_the_changelog_names_every_module_that_moved():
    section = CHANGELOG.read_text().split("**Import paths.**")[1].split("**Names.**")[0]
    rows = re.findall(MOVED_ROW, section, re.MULTILINE)
    assert dict(rows) == _MOVED
