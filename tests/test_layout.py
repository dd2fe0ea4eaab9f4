"""The layout of the packages: which module may import which, and how large a file may be.

Invariant: imports inside functions count like all others; only those for the type checker do not.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("rollout_service", "actors", "deploy")
"""In the order of imports: a package imports only those before it."""

STARTS_A_SERVICE = "rollout_service.embedded"
"""The one module of the library that may import `deploy`."""

WITH_RAY = ("rollout_service.cluster", "rollout_service.policy")
"""The only parts of the library that import Ray."""

MOST_LINES, MOST_FUNCTION_LINES = 400, 60
SAYS_NOTHING = {"utils", "util", "helpers", "common", "misc", "core"}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
"""Path of each module."""


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Each module's syntax. A test asks for it, because every worker of the suite imports this file."""
    return {module: ast.parse(path.read_text()) for module, path in FILES.items()}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those for the type checker only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from nodes(node)


@functools.cache
def imports(module: str) -> list[str]:
    """Dotted names that the module imports: modules, or names in them."""
    found: list[str] = []
    for node in nodes(trees()[module]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_of(name: str) -> str | None:
    """The module of ours that a dotted name is, or is in."""
    return name if name in FILES else next((m for m in [name.rpartition(".")[0]] if m in FILES), None)


@functools.cache
def graph() -> dict[str, set[str]]:
    """Modules of ours that each module imports."""
    return {
        module: {found for name in imports(module) if (found := module_of(name)) is not None and found != module}
        for module in FILES
    }


def is_below(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f"{parent}.")


def rooms() -> list[str]:
    """The library's rooms and the modules beside them, in the order that the architecture page gives."""
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.split("The library's rooms, in order.")[1].split("## ")[0]
    first_columns = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    named = re.findall(r"`rollout_service/(\w+)(?:/|\.py)`", first_columns)
    return [f"rollout_service.{name}" for name in named]


def test_packages_import_one_way():
    against = [
        (module, imported)
        for module, found in graph().items()
        for imported in found
        if PACKAGES.index(imported.split(".")[0]) > PACKAGES.index(module.split(".")[0])
    ]
    assert [pair for pair in against if pair[0] != STARTS_A_SERVICE] == []
    assert {imported.split(".")[0] for _, imported in against} == {"deploy"}


def test_a_room_imports_only_rooms_before_it():
    order = rooms()

    def position(module: str) -> int | None:
        return next((place for place, room in enumerate(order) if is_below(module, room)), None)

    library = {module for module in FILES if is_below(module, "rollout_service")}
    exporting = {"rollout_service", "rollout_service.__main__"}
    assert sorted(module for module in library - exporting if position(module) is None) == []
    assert [
        f"{module} imports {imported}"
        for module in sorted(library - exporting)
        for imported in sorted(graph()[module] & library)
        if imported in exporting or (position(imported) or 0) > (position(module) or 0)
    ] == []


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        raise AssertionError(f"import circle: {' -> '.join(error.args[1])}") from None


def test_tau2_and_ray_are_imported_in_their_places_only():
    def importing(package: str) -> set[str]:
        return {module for module in FILES if any(is_below(name, package) for name in imports(module))}

    assert sorted(module for module in importing("tau2") if not is_below(module, "rollout_service.tau2")) == []
    in_library = {module for module in importing("ray") if is_below(module, "rollout_service")}
    assert sorted(module for module in in_library if not any(is_below(module, place) for place in WITH_RAY)) == []


def test_files_and_functions_are_short_and_every_module_says_what_it_is():
    lengths = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > MOST_LINES} == {}
    assert [
        f"{module}.{node.name}"
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
    ] == []
    assert [module for module, tree in trees().items() if not ast.get_docstring(tree)] == []
    assert [module for module in FILES if SAYS_NOTHING & set(module.split("."))] == []


def test_no_function_is_a_stub():
    assert [f"{module}.{name}" for module, tree in trees().items() for name in stubs(tree)] == []


def stubs(tree: ast.AST, protocol: bool = False) -> Iterator[str]:
    """Names of the functions that do nothing but raise `NotImplementedError`, or nothing at all without saying why. The
    methods of a Protocol are its interface, and overloads are for the type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from stubs(node, any("Protocol" in ast.unparse(base) for base in node.bases))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not protocol:
            body = [ast.unparse(statement) for statement in node.body]
            overload = "overload" in map(ast.unparse, node.decorator_list)
            if not overload and ("raise NotImplementedError" in body[-1] or body[0] in ("...", "pass")):
                yield node.name
            yield from stubs(node)
        else:
            yield from stubs(node, protocol)
