"""Artifacts under names: versions, aliases, lineage, facts; and API keys."""

from triptych.registry.records import AdapterVersion, Key, RegisteredAdapter, UnknownAdapter
from triptych.registry.registry import Registry, registry_url
from triptych.registry.validation import ArtifactError

__all__ = ["AdapterVersion", "ArtifactError", "Key", "RegisteredAdapter", "Registry", "UnknownAdapter", "registry_url"]
