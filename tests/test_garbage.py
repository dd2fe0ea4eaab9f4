"""The garbage collector is on again after a start."""

from __future__ import annotations

import contextlib
import gc

import rollout_service.garbage as garbage


def test_collections_are_off_within_and_as_before_afterwards_also_after_an_error() -> None:
    assert gc.isenabled()
    with contextlib.suppress(ValueError), garbage.left_alone():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    with garbage.left_alone(), garbage.left_alone():
        pass
    assert gc.isenabled()


def test_what_exists_is_not_looked_at_again() -> None:
    held: list[object] = [[]]
    try:
        garbage.freeze()
        assert gc.get_freeze_count() > 0
        assert all(each is not held for each in gc.get_objects())
    finally:
        gc.unfreeze()
