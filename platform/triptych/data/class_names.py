"""Names of classes that files of the `datasets` library keep beside the numbers in their columns."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

Names = tuple[str, ...]


class ClassIndex(int):
    """A class by its number in a file that says how its classes are called."""

    names: Names

    def __new__(cls, value: int, names: Names) -> Self:
        index = super().__new__(cls, value)
        index.names = names
        return index

    def label(self, labels: Sequence[str] | None, field: str) -> str | None:
        """The class as one of `labels`; None: none of them is a name of the file's, so the number counts.

        Raises:
            ValueError: some of the file's names are labels, and this one is not.
        """
        name = self.names[self]
        if labels is None or name in labels:
            return name
        if set(self.names).isdisjoint(labels):
            return None
        raise ValueError(f"{field}: {name!r}, as the file calls its class {int(self)}, is none of {', '.join(labels)}")


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Names]:
    """Names of the classes of each column that holds their numbers, out of the metadata of an Arrow schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return names_of_features(features)


def names_of_features(features: Any) -> dict[str, Names]:
    """Names of the classes of each column, out of features as `datasets` writes them."""
    found = {column: _names(feature) for column, feature in features.items()} if isinstance(features, Mapping) else {}
    return {column: names for column, names in found.items() if names}


def _names(feature: Any) -> Names:
    """Names of the classes of a feature that is a class, or a list of classes."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names(feature[0])
    if not isinstance(feature, Mapping):
        return ()
    names = feature.get("names")
    if (
        feature.get("_type") == "ClassLabel"
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
    ):
        return tuple(names)
    inner = feature.get("feature")
    return _names(inner) if isinstance(inner, Mapping) and inner.get("_type") == "ClassLabel" else ()


def named(record: Any, names: Mapping[str, Names]) -> Any:
    """The record with the numbers of classes as such."""
    if not names or not isinstance(record, dict):
        return record
    return record | {column: _named(record[column], known) for column, known in names.items() if column in record}


def _named(value: Any, names: Names) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return ClassIndex(value, names) if whole and 0 <= value < len(names) else value
