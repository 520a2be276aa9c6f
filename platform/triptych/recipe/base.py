"""Base of all recipe models: unknown keys are refused, and a recipe never changes once loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Closed(BaseModel):
    """A model that refuses unknown keys and is immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        serialize_by_alias=True,  # a field whose name in a recipe is a word of Python has another in the code
    )

    def model_post_init(self, context: Any) -> None:
        """Let a section that is given in part keep what its field's default says, and not what its type's defaults say.

        The learning rate of `train: {optimizer: {schedule: linear}}` is that of a stage which gives no `optimizer`.
        """
        for name, field in type(self).model_fields.items():
            value, default = getattr(self, name), field.default
            if isinstance(default, BaseModel) and type(value) is type(default):
                missing = default.model_fields_set - value.model_fields_set
                if missing:
                    whole = value.model_copy(update={key: getattr(default, key) for key in missing})
                    object.__setattr__(self, name, whole)  # a recipe is frozen once it is made


NAME_PATTERN = r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?"
"""Regular expression of a whole name of a run, stage or adapter; safe in a path and in a URL."""

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
"""A run, stage or adapter name: lower case letters, digits, dot, dash, underscore; safe in a path and in a URL."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

T = TypeVar("T")


def unreserved(names: Sequence[str], why: str) -> AfterValidator:
    """A validator that refuses some names; `why`: what such a name does, for the message."""

    def check(name: str) -> str:
        if name in names:
            raise ValueError(f"{name} {why}; allowed: any name but {', '.join(names)}")
        return name

    return AfterValidator(check)


class _NoEffect:
    """Marker of a field that changes how a stage runs, or what may be done with its result, not the result."""


NoEffect = Annotated[T, _NoEffect()]
"""A field whose value does not change what a stage computes: a run can go on under another value."""


def with_effect(model: BaseModel) -> dict[str, Any]:
    """JSON data of a model without the fields, at any depth, that are marked `NoEffect`."""
    fields = type(model).model_fields
    kept = {name for name, field in fields.items() if not any(isinstance(m, _NoEffect) for m in field.metadata)}
    plain = model.model_dump(mode="json", include=kept, by_alias=False)
    return {
        field.alias or name: _effective(getattr(model, name), plain[name])
        for name, field in fields.items()
        if name in kept
    }


def _effective(value: Any, plain: Any) -> Any:
    if isinstance(value, BaseModel):
        return with_effect(value)
    if isinstance(value, tuple):
        return [_effective(one, other) for one, other in zip(value, plain, strict=True)]
    if isinstance(value, dict):
        return {key: _effective(item, plain[key]) for key, item in value.items()}
    return plain


@dataclass(frozen=True)
class Tagged:
    """Annotation of a field whose model is chosen from a table by the value of one of its keys.

    The table is read when the schema of the model that holds the field is built (`model_rebuild(force=True)`).
    """

    key: str
    table: Mapping[str, type[BaseModel]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {tag: handler.generate_schema(model) for tag, model in self.table.items()}
        return core_schema.tagged_union_schema(choices, discriminator=self.key)


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
