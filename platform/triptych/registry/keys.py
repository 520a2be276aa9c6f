"""API keys.

A key is 32 random bytes, so its plain sha256 is safe at rest: nobody can try 2^256 keys, and a slow or salted hash,
made for passwords that people choose, would only cost every request its time. A key is found by the first digits of its
hash and then compared in constant time, so neither the lookup nor the comparison tells anything about a stored key.
"""

import hashlib
import hmac
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from sqlalchemy import or_, select, update

from triptych.errors import RunError, UserError
from triptych.registry.database import Database
from triptych.registry.records import Key
from triptych.registry.tables import KeyRow

_COARSE = timedelta(minutes=1)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def make_key() -> tuple[str, str]:
    """A new key, and the sha256 by which a registry knows it."""
    key = f"tk-{secrets.token_urlsafe(32)}"
    return key, _hash(key)


def add_key(database: Database, sha256: str, label: str, *, admin: bool) -> None:
    """Accept the key with this sha256 from now on."""
    if not label.strip() or len(label) > 100 or not label.isprintable():
        raise UserError(f"label {label!r}: give 1 to 100 printable characters that say whose key it is")
    if not _SHA256.fullmatch(sha256):
        raise UserError("sha256: of a key, 64 hexadecimal digits in lower case")
    row = KeyRow(id=sha256[:12], sha256=sha256, label=label, created_at=datetime.now(UTC), admin=admin)
    with database.write() as session:
        if session.get(KeyRow, row.id) is not None:
            raise UserError(f"there is a key with id {row.id!r} already")
        session.add(row)


def check_key(database: Database, key: str) -> Key | None:
    """The key's record if it is valid now, else None."""
    digest = _hash(key)
    with database.read() as session:
        row = session.get(KeyRow, digest[:12])
        found = None if row is None or not hmac.compare_digest(row.sha256, digest) else _record(row)
    if found is None or found.revoked_at is not None:
        return None
    now = datetime.now(UTC)
    if found.last_used is None or now - found.last_used > _COARSE:
        _touch(database, found.id, now)
    return found


def list_keys(database: Database) -> list[Key]:
    """All keys, revoked ones too, oldest first."""
    with database.read() as session:
        return [_record(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))]


def revoke_key(database: Database, key_id: str) -> None:
    """Revoke a key, at once and in every process; a key revoked before keeps its date."""
    with database.write() as session:
        row = session.get(KeyRow, key_id)
        if row is None:
            raise UserError(f"there is no key with id {key_id!r}: `triptych keys list` shows them")
        if row.revoked_at is None:
            row.revoked_at = datetime.now(UTC)


def _touch(database: Database, key_id: str, now: datetime) -> None:
    stale = or_(KeyRow.last_used.is_(None), KeyRow.last_used < now - _COARSE)
    with suppress(UserError, RunError), database.write() as session:  # a full disk must not lock the users out
        session.execute(update(KeyRow).where(KeyRow.id == key_id, stale).values(last_used=now))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _record(row: KeyRow) -> Key:
    return Key(row.id, row.label, row.created_at, row.last_used, row.revoked_at, row.admin)
