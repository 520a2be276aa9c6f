"""Specification of a place in a recipe, in words and as choices, read from the model's annotations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator
from pydantic.fields import FieldInfo

from triptych.recipe.base import Name, TagAt, Tagged

Path = tuple[str | int, ...]

_NAME_PATTERN = next(m.pattern for f in get_args(Name)[1:] for m in f.metadata if hasattr(m, "pattern"))
_NAME_WORDS = "1 to 64 lower case letters, digits, `.`, `_`, `-`, first and last a letter or digit"
_BOUNDS = (("ge", ">= {}"), ("gt", "> {}"), ("le", "<= {}"), ("lt", "< {}"))
_SCALARS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Any: "any value",
}


@dataclass(frozen=True)
class Spec:
    """One place of a model: a type with its constraints."""

    annotation: Any
    metadata: tuple[Any, ...] = ()
    discriminator: str | None = None
    """The key that tells the members of a union apart."""
    default_tag: str | None = None
    """Its value where there is none."""
    list_tag: str | None = None
    """Name that pydantic has in errors for the member that is a list; None if there is none."""

    @classmethod
    def of(cls, annotation: Any) -> "Spec":
        """The place of an annotation, `Annotated` taken off."""
        if get_origin(annotation) is not Annotated:
            return cls(annotation)
        inner, *extras = get_args(annotation)
        spec = cls.of(inner)
        for extra in extras:
            spec = spec._with(extra)
        return spec

    @classmethod
    def of_field(cls, field: FieldInfo) -> "Spec":
        """The place of a model's field."""
        return cls.of(field.annotation)._with(field)

    def _with(self, extra: Any) -> "Spec":
        extras = extra.metadata if isinstance(extra, FieldInfo) else [extra]
        found = replace(self, metadata=(*self.metadata, *extras))
        if isinstance(extra, FieldInfo) and isinstance(extra.discriminator, str):
            return replace(found, discriminator=extra.discriminator)
        for table in (one for one in extras if isinstance(one, Tagged)):
            found = replace(found, discriminator=table.key)
        tags = [one.discriminator for one in extras if isinstance(one, Discriminator)]
        for tag in tags:
            if isinstance(tag, TagAt):
                found = replace(found, discriminator=tag.key, default_tag=tag.default, list_tag=tag.many)
        return found

    def members(self) -> list["Spec"]:
        """The types of a union, None left out; itself where it is no union."""
        tables = [one.table for one in self.metadata if isinstance(one, Tagged)]
        if tables:
            return [Spec(model) for model in tables[0].values()]
        if get_origin(self.annotation) not in (Union, UnionType):
            return [self]
        members = [Spec.of(arg) for arg in get_args(self.annotation) if arg is not NoneType]
        if len(members) == 1:
            return [Spec(members[0].annotation, members[0].metadata + self.metadata, members[0].discriminator)]
        return members

    def tags(self) -> dict[str, "Spec"]:
        """Discriminator value -> member that is a mapping."""
        assert self.discriminator is not None
        return {
            tag: member
            for member in self.members()
            if member.model is not None
            for tag in get_args(member.annotation.model_fields[self.discriminator].annotation)
        }

    def member(self, label: str | int) -> "Spec":
        """The member that pydantic calls `label` in the location of an error."""
        if label == self.list_tag:
            return self.listed()
        if self.discriminator is not None:
            return self.tags()[str(label)]
        return next(m for m in self.members() if str(label).lower().startswith(m._type_name().lower()))

    def listed(self) -> "Spec":
        """The member that is a list."""
        return next(member for member in self.members() if get_origin(member.annotation) is tuple)

    def _type_name(self) -> str:
        origin = get_origin(self.annotation) or self.annotation
        return "literal" if origin is Literal else origin.__name__

    @property
    def model(self) -> type[BaseModel] | None:
        """The model, where this place holds one."""
        only = self.members()
        held = only[0].annotation if len(only) == 1 else None
        return held if isinstance(held, type) and issubclass(held, BaseModel) else None

    def keys(self) -> list[str]:
        """The fields of the models that may stand at this place."""
        models = [member.model for member in self.members()]
        return sorted({name for model in models if model is not None for name in _fields(model)})

    def options(self) -> list[str]:
        """The texts that a literal at this place allows."""
        return [str(v) for m in self.members() if get_origin(m.annotation) is Literal for v in get_args(m.annotation)]

    def is_mapping(self) -> bool:
        """True if the author chooses the keys here."""
        return get_origin(self.members()[0].annotation) is dict

    def child(self, step: str | int) -> "Spec":
        """The place one step further down. KeyError: there is none."""
        if self.model is not None:
            return Spec.of_field(_fields(self.model)[str(step)])
        for member in self.members():
            args = get_args(member.annotation)
            if get_origin(member.annotation) is dict:
                return Spec.of(args[1])
            if get_origin(member.annotation) is tuple and isinstance(step, int):
                return Spec.of(args[0] if args[-1] is ... else args[step])
            if self.discriminator is None and member.model is not None and step in _fields(member.model):
                return Spec.of_field(_fields(member.model)[str(step)])
        raise KeyError(step)

    def key(self) -> "Spec":
        """Specification of a key of this mapping."""
        return Spec.of(get_args(self.members()[0].annotation)[0])

    def describe(self) -> str:
        """Description of what is allowed here, for messages."""
        if self.discriminator is not None:
            words = f"a mapping whose `{self.discriminator}` is {_either(sorted(self.tags()))}"
            words += ", or a list of such" if self.list_tag else ""
        else:
            words = " or ".join(member._describe_one() for member in self.members())
        return words + " or null" if NoneType in get_args(self.annotation) else words

    def _describe_one(self) -> str:
        origin, args = get_origin(self.annotation), get_args(self.annotation)
        if origin is Literal:
            return ", ".join(str(arg) for arg in args)
        if origin is tuple:
            items = "a list" if args[-1] is ... else f"a list of {len(args)}"
            return f"{items}, each {Spec.of(args[0]).describe()}"
        if origin is dict:
            return "a mapping" + (" with at least one entry" if self._bound("min_length") else "")
        if self.model is not None:
            return f"a mapping with the keys {', '.join(self.keys())}"
        if self._bound("pattern") == _NAME_PATTERN:
            return _NAME_WORDS
        words = _SCALARS.get(self.annotation, str(self.annotation))
        if self._bound("min_length"):
            words += ", not empty"
        limits = [text.format(self._bound(name)) for name, text in _BOUNDS if self._bound(name) is not None]
        return " ".join([words, " and ".join(limits)]).strip()

    def _bound(self, name: str) -> Any:
        return next((v for m in self.metadata if (v := getattr(m, name, None)) is not None), None)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A model's fields by their names in a recipe."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """`; did you mean ...` with the closest known names, or nothing."""
    near = get_close_matches(str(word), known, n=2)
    return f"; did you mean {_either([f'`{name}`' for name in near])}?" if near else ""


def dotted(path: Path) -> str:
    """A path as a person writes it."""
    return ".".join(str(step) for step in path)
