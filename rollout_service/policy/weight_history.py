"""WeightHistory: what weight updates have changed of a model, and from where that can be had again.

Invariant: who loads `source` over the model's own weights has the newest values of every parameter that an update ever
changed. So it may hold several updates, but of each only what no later one has replaced: in the object store no more
buckets than the model has parameters, and none of them when a later update has all.
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
"""Names of parameters; None: all that the model has, and those that it is not known to have."""

_NONE: Names = frozenset()


@dataclass(frozen=True, slots=True)
class _Layer:
    source: Checkpoint | StoredTensors
    names: Names


@dataclass(frozen=True, slots=True)
class WeightHistory:
    """All updates so far; of a model as its files have it, none."""

    changed: Names = _NONE
    """Parameters that some update has changed."""
    lost: Names = _NONE
    """The changed parameters whose newest values cannot be had again: they went through a process group."""
    layers: tuple[_Layer, ...] = ()

    @classmethod
    def unknown(cls) -> WeightHistory:
        """The history of replicas that somebody else has updated before."""
        return cls(changed=None, lost=None)

    def is_replaced_by(self, names: Names) -> bool:
        """Whether an update of these parameters leaves nothing of all earlier ones."""
        return _includes(names, self.changed)

    def followed_by(self, source: WeightSource, names: Names) -> WeightHistory:
        """The history with one more update, of these parameters."""
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
        """Where the newest values can be had, over the model's own weights; None where not all can, or none changed."""
        if self.lost != _NONE or not self.layers:
            return None
        sources = tuple(layer.source for layer in self.layers)
        return sources[0] if len(sources) == 1 else Layers(sources)


def _needed(layers: list[_Layer]) -> tuple[_Layer, ...]:
    """The layers, and of tensors in the store the buckets, that later ones do not replace whole."""
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
    """None, if all parameters but some remain: which those are is not known."""
    if others is None:
        return _NONE
    return None if names is None else names - others
