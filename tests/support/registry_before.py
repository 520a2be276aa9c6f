"""A process of the version before: its tables, its check at opening, its queries and its records, frozen.

Copied from revision e7201dd (schema version 3), as far as a registry's rows are read and written.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, String, create_engine, func, inspect, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

SCHEMA_VERSION = 3


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, datetime: DateTime(timezone=True)}


class AdapterRow(Base):
    __tablename__ = "adapters"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    last_version: Mapped[int]
    created_at: Mapped[datetime]


class VersionRow(Base):
    __tablename__ = "versions"
    name: Mapped[str] = mapped_column(ForeignKey("adapters.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(64))
    base: Mapped[str]
    base_fingerprint: Mapped[str]
    location: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    lineage: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    why_not: Mapped[str | None]


@dataclass(frozen=True)
class AdapterVersion:
    """As its remote client reads it from an endpoint's JSON, too."""

    name: str
    version: int
    kind: str
    base: str
    base_fingerprint: str
    url: str
    sha256: str
    lineage: dict[str, Any]
    metrics: dict[str, Any]
    created_at: datetime
    servable: bool
    why_not: str | None


class Registry:
    """Opens the database of a SQLAlchemy URL as it did; AssertionError where it would have refused it."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        with self._engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            query = text("SELECT value FROM meta WHERE key = 'schema_version'")
            found = connection.execute(query).scalar_one_or_none()
        assert "meta" in tables
        assert found is not None
        assert int(found) == SCHEMA_VERSION, "it refuses a higher number, and migrates from a lower one"

    def versions(self, name: str) -> list[AdapterVersion]:
        """All versions of a name, ascending."""
        with Session(self._engine) as session:
            query = select(VersionRow).where(VersionRow.name == name).order_by(VersionRow.version)
            return [_record(row) for row in session.scalars(query)]

    def latest(self, name: str) -> AdapterVersion:
        """What a bare name means where no alias is set."""
        with Session(self._engine) as session:
            number = session.scalar(select(func.max(VersionRow.version)).where(VersionRow.name == name))
            row = session.get(VersionRow, (name, number))
            assert row is not None
            return _record(row)

    def register(self, like: AdapterVersion, why_not: str | None) -> AdapterVersion:
        """The next version of a name, with another version's artifact."""
        with Session(self._engine) as session, session.begin():
            take = update(AdapterRow).where(AdapterRow.name == like.name)
            taken = take.values(last_version=AdapterRow.last_version + 1).returning(AdapterRow.last_version)
            row = VersionRow(
                name=like.name,
                kind=like.kind,
                base=like.base,
                base_fingerprint=like.base_fingerprint,
                location=like.url,
                sha256=like.sha256,
                lineage={},
                metrics={},
                created_at=datetime.now(UTC),
                why_not=why_not,
            )
            row.version = session.execute(taken).scalar_one()
            session.add(row)
            session.flush()
            return _record(row)

    def remove(self, name: str, version: int) -> None:
        """Delete a version's row."""
        with Session(self._engine) as session, session.begin():
            session.delete(session.get(VersionRow, (name, version)))


def _record(row: VersionRow) -> AdapterVersion:
    return AdapterVersion(
        name=row.name,
        version=row.version,
        kind=row.kind,
        base=row.base,
        base_fingerprint=row.base_fingerprint,
        url=row.location,
        sha256=row.sha256,
        lineage=dict(row.lineage),
        metrics=dict(row.metrics),
        created_at=row.created_at,
        servable=row.why_not is None,
        why_not=row.why_not,
    )
