"""Messages about versions between an endpoint and its clients, either of which may be of the version before."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from triptych.artifact_kinds import current_kind, former_kind
from triptych.registry.records import AdapterVersion


@dataclass(frozen=True)
class VersionMessage:
    """An AdapterVersion, with the fields that the version before reads and writes."""

    name: str
    version: int
    kind: str
    """Artifact kind in the words of the version before."""
    base: str
    base_fingerprint: str
    url: str
    sha256: str
    lineage: dict[str, Any]
    metrics: dict[str, Any]
    created_at: datetime
    servable: bool
    why_not: str | None
    """Verdict of the version before on serving it; None: it can be served."""
    artifact_kind: str | None = None
    """Artifact kind; None from an endpoint of the version before."""


def to_message(version: AdapterVersion) -> VersionMessage:
    """Message that an endpoint sends about a version."""
    return VersionMessage(
        name=version.name,
        version=version.version,
        kind=former_kind(version.kind),
        base=version.base,
        base_fingerprint=version.base_fingerprint,
        url=version.url,
        sha256=version.sha256,
        lineage=version.lineage,
        metrics=version.metrics,
        created_at=version.created_at,
        servable=version.recorded_why_not is None,
        why_not=version.recorded_why_not,
        artifact_kind=version.kind,
    )


def from_message(message: VersionMessage) -> AdapterVersion:
    """Version that a client reads from a message."""
    return AdapterVersion(
        name=message.name,
        version=message.version,
        kind=message.artifact_kind or current_kind(message.kind),
        base=message.base,
        base_fingerprint=message.base_fingerprint,
        url=message.url,
        sha256=message.sha256,
        lineage=message.lineage,
        metrics=message.metrics,
        created_at=message.created_at,
        recorded_why_not=message.why_not,
    )
