"""Base of every section of the settings.

Invariant: a section cannot change, has no unknown field and no value that was converted from another type without a
word. One that is built by hand raises the same `ConfigError` as one that was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from rollout_service.config.refusal import Refused, in_words
from rollout_service.redaction import redact

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # it has no public name

_MOST_SECONDS = 1e8
"""Three years. Longer timers overflow, and "for ever" must not fail in the middle of an episode."""

Seconds = Annotated[float, Field(gt=0, le=_MOST_SECONDS)]
Pause = Annotated[float, Field(ge=0, le=_MOST_SECONDS)]
"""Seconds that may be 0."""

MOST_PROCESSES = 10_000
"""Most replicas or environment actors. A larger number is a typing error."""


class _RaisesConfigError(ModelMetaclass):
    """Raises a `ConfigError` for a bad section that is built by hand. pydantic builds sections inside others without
    this call, so their errors still know where they are."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise in_words(error, cast(type[BaseModel], cls)) from None


class Section(BaseModel, metaclass=_RaisesConfigError):
    """Settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Hide the password of a URL."""
        for name, value in super().__repr_args__():
            yield name, redact(value) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _check_type(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as truth values, which Python takes for 1 and 0; pydantic reads 0, 1 and "no"
        as truth values, and decodes bytes."""
        wants_truth = cls.model_fields[str(info.field_name)].annotation is bool
        if isinstance(value, bool) and not wants_truth:
            raise ValueError("a truth value (YAML's true, yes or on) does not fit here; quote it if it is text")
        if wants_truth and not isinstance(value, bool):
            raise ValueError("only true or false fits here")
        if isinstance(value, bytes):
            raise ValueError("bytes do not fit here; decode them")
        return value

    def check_unset(self, names: Iterable[str], prefix: str, why: str, remedy: str) -> None:
        """Check that fields which would have no effect were left at their defaults.

        Args:
            prefix: what stands before a field's name in the whole tree.
            why: why they would have no effect.

        Raises:
            ValueError: names the first one that was set.
        """
        for name, info in type(self).model_fields.items():
            set_here = name in names and name in self.model_fields_set
            if set_here and getattr(self, name) != info.get_default(call_default_factory=True):
                raise Refused(f"is set, but has no effect: {why}.", remedy, f"{prefix}{name}")
