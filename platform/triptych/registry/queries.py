"""Queries of the registry's tables, each within a transaction of the caller."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from triptych.registry.records import UnknownAdapter
from triptych.registry.tables import AdapterRow, AliasMoveRow, CalibrationRow, ParentRow, VersionRow

_LARGEST = 2**31 - 1
LATEST = 1000
"""Calibration records that are read: older ones say little of today's machines and code."""


def version(session: Session, ref: str) -> VersionRow:
    """The row that `name`, `name@3` or `name@alias` means; UnknownAdapter with what there is instead."""
    name, at, selector = ref.partition("@")
    pointers = aliases(session, name)[name]
    if not at:
        number = pointers.get("default") or _latest(session, name)
    elif selector.isascii() and selector.isdigit() and not selector.startswith("0"):
        number = int(selector[:11])
    else:
        number = pointers.get(selector)
    row = session.get(VersionRow, (name, number)) if number is not None and number <= _LARGEST else None
    if row is None:
        raise _unknown(session, name, selector)
    return row


def unknown_name(session: Session, name: str) -> UnknownAdapter:
    """The error for a name without versions, with near names."""
    names = list(session.scalars(select(VersionRow.name).distinct().order_by(VersionRow.name)))
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names[:10]) or 'none yet'}"
    return UnknownAdapter(f"there is no adapter {name[:80]!r}; {hint}")


def next_version(session: Session, name: str) -> int:
    """Take the next number of a name, which need not exist yet. Rolled back with its transaction: no gaps."""
    if session.get(AdapterRow, name) is None:
        try:
            with session.begin_nested():
                session.add(AdapterRow(name=name, last_version=0, created_at=datetime.now(UTC)))
        except IntegrityError:
            session.expire_all()  # another process added the name meanwhile
    take = update(AdapterRow).where(AdapterRow.name == name).values(last_version=AdapterRow.last_version + 1)
    return session.execute(take.returning(AdapterRow.last_version)).scalar_one()


def aliases(session: Session, name: str | None = None) -> dict[str, dict[str, int]]:
    """Name -> alias -> version, of one name or of all; names without aliases give {}."""
    last = select(func.max(AliasMoveRow.id)).group_by(AliasMoveRow.name, AliasMoveRow.alias)
    if name is not None:
        last = last.where(AliasMoveRow.name == name)
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for move in session.scalars(select(AliasMoveRow).where(AliasMoveRow.id.in_(last)).order_by(AliasMoveRow.alias)):
        found[move.name][move.alias] = move.version
    return found


def moves(session: Session, name: str, alias: str) -> list[AliasMoveRow]:
    """Every time an alias was set, oldest first."""
    query = select(AliasMoveRow).where(AliasMoveRow.name == name, AliasMoveRow.alias == alias)
    return list(session.scalars(query.order_by(AliasMoveRow.id)))


def users(session: Session, row: VersionRow) -> list[str]:
    """References to a version: aliases, then versions that were made from it."""
    pointing = [f"{row.name}@{alias}" for alias, n in aliases(session, row.name)[row.name].items() if n == row.version]
    children = session.scalars(edges(row.name, row.version, up=False))
    return pointing + [f"{edge.name}@{edge.version}" for edge in children]


def edges(name: str, number: int, *, up: bool) -> Select[ParentRow]:
    """The lineage's edges from a version: to its parents, or to its children."""
    if up:
        query = select(ParentRow).where(ParentRow.name == name, ParentRow.version == number)
        return query.order_by(ParentRow.parent_name, ParentRow.parent_version)
    query = select(ParentRow).where(ParentRow.parent_name == name, ParentRow.parent_version == number)
    return query.order_by(ParentRow.name, ParentRow.version)


def delete_version(session: Session, row: VersionRow) -> None:
    """Delete a version, the aliases that point at it, and its place in the history of others."""
    for alias, number in aliases(session, row.name)[row.name].items():
        if number == row.version:
            session.execute(delete(AliasMoveRow).where(AliasMoveRow.name == row.name, AliasMoveRow.alias == alias))
    at_it = (AliasMoveRow.name == row.name, AliasMoveRow.version == row.version)
    session.execute(delete(AliasMoveRow).where(*at_it))
    session.execute(delete(ParentRow).where(ParentRow.name == row.name, ParentRow.version == row.version))
    session.delete(row)


def add_calibration(session: Session, record: Mapping[str, Any]) -> None:
    """Add the record of a stage that ended: predicted and actual figures, as plain JSON."""
    session.add(CalibrationRow(record=dict(record), created_at=datetime.now(UTC)))


def calibrations(session: Session) -> list[dict[str, Any]]:
    """The newest `LATEST` calibration records, newest first."""
    newest = select(CalibrationRow).order_by(CalibrationRow.id.desc()).limit(LATEST)
    return [dict(row.record) for row in session.scalars(newest)]


def _latest(session: Session, name: str) -> int | None:
    return session.scalar(select(func.max(VersionRow.version)).where(VersionRow.name == name))


def _unknown(session: Session, name: str, selector: str) -> UnknownAdapter:
    numbers = list(
        session.scalars(select(VersionRow.version).where(VersionRow.name == name).order_by(VersionRow.version))
    )
    if not numbers:
        return unknown_name(session, name)
    known = [str(number) for number in numbers[-10:]] + sorted(aliases(session, name)[name])
    return UnknownAdapter(f"{name} has no version or alias {selector[:80]!r}; it has {', '.join(known)}")
