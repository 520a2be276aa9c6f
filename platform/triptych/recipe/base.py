"""What every recipe model shares: unknown keys are refused, and a recipe never changes once loaded."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Closed(BaseModel):
    """A model that refuses unknown keys and is immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]
"""A run, stage or adapter name: lower case letters, digits, dot, dash, underscore; safe in a path and in a URL."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class TagAt:
    """Tells the members of a union apart by the key `key`; `default` stands for a missing one, `many` is a list's tag.

    To be called by pydantic's `Discriminator`: a discriminator that is a field's name knows no default.
    """

    key: str
    default: str
    many: str | None = None

    @property
    def __name__(self) -> str:
        return self.key  # pydantic asks the function for it

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return self.many
        return value.get(self.key, self.default) if isinstance(value, dict) else getattr(value, self.key, None)
