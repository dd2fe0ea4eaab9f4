"""How the models' Serve applications are begun."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ray.serve import RunTarget

from deploy import application, policy
from tests.support.episodes import settings


def test_services_that_start_in_several_threads_do_not_disturb_each_other(monkeypatch):
    begun = []
    monkeypatch.setattr(application.serve, "run_many", lambda targets, **_: begun.extend(targets))
    config = settings()

    def begin(name: str) -> None:
        for _ in range(20):
            application.begin(lambda: RunTarget(policy.service_app(config), name=name), "policy")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(begin, "abcd"))
    assert sorted(target.name for target in begun) == sorted("abcd" * 20)
