"""Artifacts under names: versions, aliases, lineage, facts; and API keys."""

from triptych.registry.records import Adapter, AdapterVersion, Key, UnknownAdapter
from triptych.registry.registry import Registry
from triptych.registry.validation import ArtifactError

__all__ = ["Adapter", "AdapterVersion", "ArtifactError", "Key", "Registry", "UnknownAdapter"]
