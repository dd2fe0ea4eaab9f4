"""Who starts later ends up with the very weights that the others have, or is offered older ones whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout_service.policy.weight_history import WeightHistory
from rollout_service.policy.weights import (
    BroadcastTensors,
    Bucket,
    Checkpoint,
    StoredTensors,
    TensorSpec,
    WeightSource,
    single_sources,
)

ALL = ("a", "b", "c", "d")
names = st.lists(st.sampled_from(ALL), min_size=1, unique=True).map(tuple)
updates = st.lists(st.tuples(st.sampled_from(["checkpoint", "stored", "broadcast"]), names), max_size=12)


def made(kind: str, chosen: tuple[str, ...], number: int) -> WeightSource:
    """An update whose values are its number."""
    specs = tuple(TensorSpec(name, "int8", (1,)) for name in chosen)
    if kind == "checkpoint":
        return Checkpoint(f"{number}:{','.join(chosen)}")
    if kind == "broadcast":
        return BroadcastTensors("group", specs)
    half = len(specs) // 2
    return StoredTensors(tuple(Bucket(part, number) for part in (specs[:half], specs[half:]) if part))


def loaded(source: WeightSource) -> dict[str, int]:
    """The values of a model of zeros that has loaded the source."""
    model = dict.fromkeys(ALL, 0)
    for single in single_sources(source):
        if isinstance(single, Checkpoint):
            number, _, chosen = single.path.partition(":")
            model |= dict.fromkeys(chosen.split(","), int(number))
        else:
            for bucket in single.buckets:
                model |= {spec.name: bucket.data for spec in bucket.specs}
    return model


@given(updates)
def test_a_later_replica_loads_the_newest_value_of_every_parameter_or_is_offered_nothing(sequence):
    history, truth = WeightHistory(), dict.fromkeys(ALL, 0)
    through_group: set[str] = set()
    for number, (kind, chosen) in enumerate(sequence, 1):
        covered = None if len(chosen) == len(ALL) else frozenset(chosen)
        replaced = history.is_replaced_by(covered)
        assert replaced == (covered is None or {name for name in ALL if truth[name]} <= covered)
        history = history.followed_by(made(kind, chosen, number), covered)
        truth |= dict.fromkeys(chosen, number)
        through_group = through_group | set(chosen) if kind == "broadcast" else through_group - set(chosen)
        if through_group:
            # of a whole broadcast nobody can say which parameters are all, so only a whole update makes up for it
            assert history.source is None
        elif history.source is not None:
            assert loaded(history.source) == truth
        buckets = [
            b for layer in history.layers if isinstance(layer.source, StoredTensors) for b in layer.source.buckets
        ]
        assert len(buckets) <= len(ALL)
        assert len(history.layers) <= len(ALL) + 1, "a whole set, and over it a layer for each parameter at most"


@given(updates)
def test_without_process_groups_there_is_always_something_to_offer(sequence):
    history = WeightHistory()
    for number, (kind, chosen) in enumerate(sequence, 1):
        covered = None if len(chosen) == len(ALL) else frozenset(chosen)
        history = history.followed_by(made("stored" if kind == "broadcast" else kind, chosen, number), covered)
        assert history.source is not None


def test_what_others_gave_before_is_made_up_for_by_a_whole_update_only():
    history = WeightHistory.unknown().followed_by(made("stored", ("a",), 1), frozenset("a"))
    assert history.source is None
    assert not history.is_replaced_by(frozenset(ALL))
    history = history.followed_by(made("stored", ALL, 2), None)
    assert history.source is not None
    assert loaded(history.source) == dict.fromkeys(ALL, 2)
