"""How much an engine says that its prefix cache helps."""

from __future__ import annotations

from deploy.engines.cache_hits import _LATEST, CacheHits


def test_turns_count_by_the_length_of_their_prompts():
    hits = CacheHits()
    assert hits.share == 0
    hits.add(0, 100)
    hits.add(200, 300)
    assert hits.share == 0.5


def test_only_the_latest_turns_count():
    hits = CacheHits()
    for cached in (0, 10):
        for _ in range(_LATEST):
            hits.add(cached, 10)
    assert hits.share == 1
