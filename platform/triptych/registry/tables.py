"""The registry's tables. `database.py` migrates the tables of older code to these."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, ForeignKey, ForeignKeyConstraint, Index, String, TypeDecorator, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 3
"""Raised by a change that older code cannot work with; it refuses a registry of a higher number."""


class UtcTime(TypeDecorator[datetime]):
    """A moment with its zone, also in SQLite, which keeps none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The moment in UTC, to be stored."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The stored moment with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base class of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, datetime: UtcTime}


class MetaRow(Base):
    """Facts on the registry itself; the row `schema_version` keeps its name and meaning for good."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(256))


class AdapterRow(Base):
    """A name, and the last version number given out under it: a removed version's number is never used again."""

    __tablename__ = "adapters"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    last_version: Mapped[int]
    created_at: Mapped[datetime]


class VersionRow(Base):
    """An immutable version of an adapter."""

    __tablename__ = "versions"
    name: Mapped[str] = mapped_column(ForeignKey("adapters.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(64))
    """Artifact kind in the words of the version before."""
    base: Mapped[str]
    base_fingerprint: Mapped[str]
    location: Mapped[str]
    """URL of the artifact, or a path relative to the folder of a SQLite registry, so that the two can move together."""
    sha256: Mapped[str] = mapped_column(String(64))
    lineage: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    why_not: Mapped[str | None]
    """Verdict of the version before: see `compat.py`."""
    artifact_kind: Mapped[str | None] = mapped_column(String(64))
    """None in rows of the version before."""
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    """`Facts.record()`; None in rows of the version before. Tens of kilobytes, so it is read where it is needed."""


class ParentRow(Base):
    """An edge of the lineage. It outlives a parent that was removed."""

    __tablename__ = "parents"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent_name: Mapped[str] = mapped_column(String(64), primary_key=True)
    parent_version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    __table_args__ = (
        ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"]),
        Index("parents_by_parent", "parent_name", "parent_version"),
    )


class AliasMoveRow(Base):
    """A move of an alias to a version. The last move of an alias is where it points; rollback takes that move back."""

    __tablename__ = "alias_moves"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    alias: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    moved_at: Mapped[datetime]
    __table_args__ = (
        ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"]),
        Index("alias_moves_by_alias", "name", "alias"),
    )


class KeyRow(Base):
    """An API key: the sha256 of the key, and `id`, the first digits of that hash."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime]
    last_used: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    admin: Mapped[bool] = mapped_column(server_default=false())


class CalibrationRow(Base):
    """Calibration record: predicted and actual figures of a stage."""

    __tablename__ = "calibrations"
    id: Mapped[int] = mapped_column(primary_key=True)
    record: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
