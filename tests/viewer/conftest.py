"""One browser for all tests of the viewer, and two pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout_service.record import storage
from rollout_service.viewer.writer import write_page
from tests.support.browser import Browser
from tests.viewer.browsing import stored
from tests.viewer.many import many_episodes


@pytest.fixture(scope="package")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    storage.write(folder / "some.jsonl", stored())
    write_page([folder / "some.jsonl"], folder / "some.html")
    return {"some": folder / "some.html", "many": many_episodes(folder / "many.html", 10_000)}


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        one.resize(1366, 768)
        yield one
        assert one.complaints == []
        assert {url for url in one.requests if not url.startswith(("file://", "about:"))} == set()
