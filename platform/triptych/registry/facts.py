"""Facts of an artifact: method, configuration, shapes and probes as its files say, read when it is registered."""

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.models.adapter_effect import PROBES_FILE, Probes, read_probes
from triptych.models.peft_files import ADAPTER_CONFIG, FACTS, HEAD_WEIGHTS, largest_rank
from triptych.recipe.method import MERGING

_LONGEST_HEADER = 100_000_000
"""Bytes of the longest safetensors header, by the format's own limit."""


class UnreadableError(RunError):
    """An artifact whose facts are needed is gone or damaged."""


@dataclass(frozen=True)
class Facts:
    """Method, configuration, the shape of every tensor, and probes of an artifact."""

    methods: tuple[str, ...]
    """Triptych's name of its method, or of each part of a hybrid; empty for what was made elsewhere."""
    configs: dict[str, dict[str, Any]]
    """Path of each adapter_config.json -> its content."""
    shapes: dict[str, dict[str, tuple[int, ...]]]
    """Path of each safetensors file -> tensor -> shape."""
    probes: Probes | None = None
    """What its adapter changes, by whoever trained it; None where nobody has measured that."""

    @property
    def config(self) -> dict[str, Any] | None:
        """peft's configuration; None where peft has no format for the artifact, or it is a hybrid."""
        return None if len(self.methods) > 1 else self.configs.get(ADAPTER_CONFIG)

    @property
    def rank(self) -> int | None:
        """Largest rank of a LoRA; None where it is none."""
        config = self.config
        return None if config is None or config.get("peft_type") != "LORA" else largest_rank(config)

    @property
    def has_head(self) -> bool:
        """True where a head of scores or classes comes with the adapter."""
        return HEAD_WEIGHTS in self.shapes

    @property
    def merges(self) -> bool:
        """True where the artifact can be merged into its base, by the methods that Triptych knows."""
        return bool(self.methods) and set(self.methods) <= set(MERGING)

    def record(self) -> dict[str, Any]:
        """The facts as plain JSON."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


ServingCheck = Callable[[str, Facts], str | None]
"""A function from an artifact's kind and facts to the reason why it cannot be served; None if it can."""

_FACTS = TypeAdapter(Facts)


def from_record(record: object) -> Facts | None:
    """The facts that `Facts.record` gave; None where there are none, or other code wrote others."""
    try:
        return _FACTS.validate_python(record)
    except ValidationError:
        return None


def read_facts(url: str) -> Facts:
    """The facts of a committed artifact, from its small files and the headers of its tensors.

    Raises:
        UnreadableError: nothing is committed there, or a file is damaged.
    """
    try:
        manifest = storage.read_manifest(url)
        if manifest is None:
            raise ValueError("it holds no committed folder")
        paths = {name: storage.join(url, *name.split("/")) for name in manifest.files}
        note = json.loads(storage.read_bytes(paths[FACTS])) if FACTS in paths else {}
        return Facts(
            methods=method_names(note),
            configs={
                name: json.loads(storage.read_bytes(path))
                for name, path in paths.items()
                if PurePosixPath(name).name == ADAPTER_CONFIG
            },
            shapes={name: _shapes(path) for name, path in paths.items() if name.endswith(".safetensors")},
            probes=read_probes(storage.read_bytes(paths[PROBES_FILE])) if PROBES_FILE in paths else None,
        )
    except (UserError, RunError, OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UnreadableError(f"{url}: its facts cannot be read ({error})") from error


def method_names(note: dict[str, Any]) -> tuple[str, ...]:
    """The methods that a triptych.json names; none where it names none."""
    method = note.get("method") or []
    return tuple(part["name"] for part in (method if isinstance(method, list) else [method]))


def _shapes(url: str) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape, by the header of a safetensors file; no tensor is read."""
    (length,) = struct.unpack("<Q", storage.read_bytes(url, 0, 8))
    if length > _LONGEST_HEADER:
        raise ValueError(f"{url} is not a sound safetensors file: its header has {length:,} bytes")
    header = json.loads(storage.read_bytes(url, 8, 8 + length))
    return {key: tuple(value["shape"]) for key, value in header.items() if key != "__metadata__"}
