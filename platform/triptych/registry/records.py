"""Records that the registry returns: plain and immutable."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from triptych.errors import UserError


class UnknownAdapter(UserError):  # noqa: N818 - reads as what it says where it is caught
    """No such adapter, version or alias; the message offers near names."""


@dataclass(frozen=True)
class AdapterVersion:
    """One immutable version of an adapter."""

    name: str
    version: int
    kind: str
    """One of `artifact_kinds.KINDS`, or another word that older code registered."""
    base: str
    base_fingerprint: str
    """Identifies the base model's weights: an adapter fits no other."""
    url: str
    """Folder of the committed artifact."""
    sha256: str
    """Digest of the artifact's manifest: the content, whatever the place."""
    lineage: dict[str, Any]
    """Origin of the version: digests of recipe and data, code version, `parents` (a list of `name@version`)."""
    metrics: dict[str, Any]
    created_at: datetime
    recorded_why_not: str | None
    """Verdict of the version before on serving it, for its processes and for want of facts; else judge anew from
    `Registry.facts`."""

    @property
    def ref(self) -> str:
        """Reference to the version: `name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class RegisteredAdapter:
    """A registered name with its versions (ascending, never empty) and aliases (alias -> version)."""

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    created_at: datetime

    @property
    def plain(self) -> int:
        """The version that the bare name means: alias `default` where set, else the latest."""
        return self.aliases.get("default", self.versions[-1])


@dataclass(frozen=True)
class Key:
    """An API key as the registry knows it: never the key itself."""

    id: str
    label: str
    created_at: datetime
    last_used: datetime | None
    """Time of the last use, exact to a minute."""
    revoked_at: datetime | None
    admin: bool
    """True for a key that may change aliases, versions and keys through the endpoint's admin routes."""
