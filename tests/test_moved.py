"""Old import paths say where their contents are now."""

import importlib
import importlib.util

import pytest

from rollout_service.moved import _MOVED


@pytest.mark.parametrize("old", sorted(_MOVED))
def test_an_old_import_path_names_the_new_one_which_can_be_imported(old: str):
    new = f"rollout_service.{_MOVED[old]}"
    with pytest.raises(ModuleNotFoundError, match=rf"rollout_service\.{old} is now {new}: import it from there"):
        importlib.import_module(f"rollout_service.{old}")
    assert importlib.util.find_spec(new) is not None


def test_a_module_that_never_was_is_simply_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'rollout_service.nothing'"):
        importlib.import_module("rollout_service.nothing")
