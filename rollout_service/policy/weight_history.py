"""WeightHistory: which parameters weight updates have changed, and where their newest values can be loaded from.

Invariant: loading `source` over the model's own weights gives the newest value of every parameter that any update
changed. The history may keep several updates, but of each only the parts that no later one replaced. So the object
store never holds more buckets than the model has parameters, and none once a later update has all parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from rollout_service.policy.weights import (
    BroadcastTensors,
    Checkpoint,
    Layers,
    StoredTensors,
    WeightSource,
    single_sources,
)

Names = frozenset[str] | None
"""Names of parameters; None: every parameter, including names that are not known."""

_NONE: Names = frozenset()


@dataclass(frozen=True, slots=True)
class _Layer:
    source: Checkpoint | StoredTensors
    names: Names


@dataclass(frozen=True, slots=True)
class WeightHistory:
    """All updates so far; none for a model as stored in its files."""

    changed: Names = _NONE
    """Parameters that an update changed."""
    lost: Names = _NONE
    """Changed parameters whose newest values cannot be loaded again, because they went through a process group."""
    layers: tuple[_Layer, ...] = ()

    @classmethod
    def unknown(cls) -> WeightHistory:
        """The history of replicas that were updated by another service before."""
        return cls(changed=None, lost=None)

    def is_replaced_by(self, names: Names) -> bool:
        """Whether an update of these parameters replaces all earlier ones."""
        return _includes(names, self.changed)

    def followed_by(self, source: WeightSource, names: Names) -> WeightHistory:
        """The history after one more update, of these parameters."""
        changed = _union(self.changed, names)
        if isinstance(source, BroadcastTensors):
            return WeightHistory(changed, _union(self.lost, names), self.layers)
        layers = [*self.layers]
        for single in single_sources(source):
            assert not isinstance(single, BroadcastTensors)
            layers.append(_Layer(single, names))
        return WeightHistory(changed, _without(self.lost, names), _needed(layers))

    @property
    def source(self) -> WeightSource | None:
        """Where to load the newest values from, over the model's own weights. None: not all can be loaded, or nothing
        was changed."""
        if self.lost != _NONE or not self.layers:
            return None
        sources = tuple(layer.source for layer in self.layers)
        return sources[0] if len(sources) == 1 else Layers(sources)


def _needed(layers: list[_Layer]) -> tuple[_Layer, ...]:
    """The layers, and the buckets of stored tensors, that later layers do not fully replace."""
    needed: list[_Layer] = []
    replaced: Names = _NONE
    for layer in reversed(layers):
        if _includes(replaced, layer.names):
            continue
        source = layer.source
        if isinstance(source, StoredTensors):
            buckets = (b for b in source.buckets if not _includes(replaced, frozenset(spec.name for spec in b.specs)))
            source = StoredTensors(tuple(buckets))
        replaced = _union(replaced, layer.names)
        if source != StoredTensors(()):
            needed.append(_Layer(source, layer.names))
    return tuple(reversed(needed))


def _includes(names: Names, others: Names) -> bool:
    return names is None or (others is not None and others <= names)


def _union(names: Names, others: Names) -> Names:
    return None if names is None or others is None else names | others


def _without(names: Names, others: Names) -> Names:
    """`names` without `others`. Stays None if `names` is, because the names of all parameters are not known."""
    if others is None:
        return _NONE
    return None if names is None else names - others
