"""Adapters: versions, aliases, lineage; and API keys."""

from triptych.registry.records import Adapter, AdapterVersion, Key, UnknownAdapter
from triptych.registry.registry import Registry
from triptych.registry.servable import ArtifactError

__all__ = ["Adapter", "AdapterVersion", "ArtifactError", "Key", "Registry", "UnknownAdapter"]
