"""Opens the registry's database, and gives transactions that many processes can use at once."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, delete, event, insert, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from triptych.errors import RunError, UserError
from triptych.registry.tables import SCHEMA_VERSION, Base, MetaRow

_BUSY_S = 30.0
_ADVISORY_LOCK = 0x74726970  # "trip": the key of PostgreSQL's lock around the creation of the tables
_MIGRATIONS: tuple[tuple[str, ...], ...] = (("ALTER TABLE keys ADD COLUMN admin BOOLEAN NOT NULL DEFAULT false",), ())
"""Statements that migrate schema version 1 to 2, 2 to 3, ...; new tables need none."""
_ADDITIONS: tuple[tuple[str, ...], ...] = (
    ("ALTER TABLE versions ADD COLUMN artifact_kind VARCHAR(64)", "ALTER TABLE versions ADD COLUMN facts JSON"),
)
"""Later changes, in order, that older code can ignore and still read and write. The row `additions` of
`meta` counts them; `schema_version` stays, since older code refuses a higher one."""
_UNUSABLE = {
    "not a database": "it is not a SQLite file",
    "unable to open": "it cannot be opened: check that the file is there, and that its folder is writable",
    "readonly": "it is read-only: make the file and its folder writable",
    "must be owner": "its tables need a change that this user may not make: open it once as their owner",
    "disk is full": "the disk is full: free some space",
    "disk I/O error": "the disk does not take it: check its space and health",
}


class Database:
    """A registry's database, created on first use. Safe for threads; every process opens its own."""

    def __init__(self, url: str, *, create: bool = True) -> None:
        """`url`: a SQLAlchemy URL, or the path of a SQLite file. Without `create` a missing registry is a UserError."""
        self._url = _parse(url)
        self.place = self._url.render_as_string(hide_password=True)
        self.file = Path(self._url.database or "") if self._url.get_backend_name() == "sqlite" else None
        self._may_make_file = create and self.file is not None and not self.file.exists()
        if self.file is not None:
            self._prepare(self.file, create)
        self._engine = self._make_engine()
        self._writing = self._engine.execution_options(triptych_write=True)
        with self._explained():
            if not self._ready():
                self._create(create)

    @property
    def url(self) -> str:
        """URL that opens the same database from any folder; holds the password, if there is one."""
        return self._url.render_as_string(hide_password=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session to read from, on one consistent snapshot."""
        with self._explained(), Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session in one transaction, committed at a clean exit. SQLite: the only writer from its start."""
        with self._explained(), Session(self._writing) as session, session.begin():
            yield session

    def _prepare(self, file: Path, create: bool) -> None:
        if not create and not file.exists():
            raise UserError(f"there is no registry at {self.place}: `triptych run` or `adapters register` makes one")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the registry {self.place} cannot be made: {error}") from error

    def _make_engine(self) -> Engine:
        options: dict[str, Any] = {"pool_pre_ping": True} if self.file is None else {"creator": self._open_file}
        try:
            engine = create_engine(self._url, **options)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise UserError(
                f"no driver for the registry {self.place} ({error}): for PostgreSQL install psycopg, "
                "and write postgresql+psycopg://"
            ) from error
        if self.file is not None:
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _open_file(self) -> sqlite3.Connection:
        """A connection to the file, which only the first one of a new registry makes.

        A file that somebody moves away must not appear again, empty: it would take the other's log of the latest
        changes for its own.
        """
        mode = "rwc" if self._may_make_file else "rw"
        self._may_make_file = False
        return sqlite3.connect(f"file:{quote(str(self.file))}?mode={mode}", uri=True, check_same_thread=False)

    def _ready(self) -> bool:
        """Check for the tables and migrate older ones; False where there are none yet.

        Raises:
            UserError: the tables are not a registry's, or newer than this code.
        """
        with self._engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            if not tables:
                return False
            if MetaRow.__tablename__ not in tables:
                if self.file is None:
                    return False  # a server's database may hold other tables beside ours
                raise UserError(f"{self.place} is a database, but not a registry: it has the tables {sorted(tables)}")
            found, added = _number(connection, "schema_version"), _number(connection, "additions")
        if found is None:
            raise UserError(f"{self.place} is not a registry: its table `meta` has no schema_version")
        if found > SCHEMA_VERSION:
            raise UserError(
                f"the registry {self.place} has schema version {found}, from a newer Triptych; this one knows "
                f"{SCHEMA_VERSION}: upgrade Triptych, or use another registry"
            )
        if found < SCHEMA_VERSION or (added or 0) < len(_ADDITIONS):
            self._migrate()
        return True

    def _migrate(self) -> None:
        """Migrate the tables of an older version, step by step, in one transaction."""
        with self._changing_tables() as connection:
            found, added = (
                _number(connection, "schema_version") or SCHEMA_VERSION,
                _number(connection, "additions") or 0,
            )
            for step in (*_MIGRATIONS[found - 1 :], *_ADDITIONS[added:]):
                for statement in step:
                    connection.execute(text(statement))
            Base.metadata.create_all(connection)  # those that are not there yet
            _write_numbers(connection, schema_version=SCHEMA_VERSION, additions=max(added, len(_ADDITIONS)))

    @contextmanager
    def _changing_tables(self) -> Iterator[Connection]:
        """A transaction that no other process has at the same time."""
        with self._writing.begin() as connection:
            if self.file is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            yield connection

    def _create(self, create: bool) -> None:
        if not create:
            raise UserError(f"there is no registry at {self.place}: `triptych run` or `adapters register` makes one")
        if self.file is not None:
            self._switch_to_wal()
        with self._changing_tables() as connection:
            if MetaRow.__tablename__ in inspect(connection).get_table_names():
                return  # another process was faster
            Base.metadata.create_all(connection)
            _write_numbers(connection, schema_version=SCHEMA_VERSION, additions=len(_ADDITIONS))

    def _switch_to_wal(self) -> None:
        """Write-ahead log: readers and the writer do not block each other. The file keeps this mode."""
        deadline = time.monotonic() + _BUSY_S
        while True:
            raw = self._engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except Exception as error:  # SQLite does not wait here, whatever its busy_timeout
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise UserError(f"the registry {self.place} cannot be made: {error}") from error
                time.sleep(0.05)
            finally:
                raw.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = str(error.orig).strip().partition("\n")[0]
            for sign, meaning in _UNUSABLE.items():
                if sign in reason:
                    raise UserError(f"the registry {self.place}: {meaning} ({reason})") from error
            if "locked" in reason:
                raise RunError(f"the registry {self.place} was busy for {_BUSY_S:.0f} s: try again") from error
            if error.connection_invalidated or "connection" in reason:
                raise RunError(f"the registry {self.place} cannot be reached: {reason}") from error
            raise


def _number(connection: Connection, key: str) -> int | None:
    """A number that `meta` holds; None where it holds none."""
    value = connection.execute(select(MetaRow.value).where(MetaRow.key == key)).scalar_one_or_none()
    return None if value is None else int(value)


def _write_numbers(connection: Connection, **numbers: int) -> None:
    for key, number in numbers.items():
        connection.execute(delete(MetaRow).where(MetaRow.key == key))
        connection.execute(insert(MetaRow).values(key=key, value=str(number)))


def _parse(url: str) -> URL:
    if "://" not in url:
        url = f"sqlite:///{url}"
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UserError("the registry's URL is malformed: give sqlite:///FILE or postgresql+psycopg://...") from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(f"registry {parsed.drivername}://...: sqlite and postgresql are what a registry can live in")
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
            raise UserError("a SQLite registry needs a file: sqlite:///FILE")
        return parsed.set(database=str(Path(parsed.database).expanduser().absolute()))
    return parsed


def _configure_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # or else the driver starts transactions of its own accord
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_S * 1000)}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads and then writes must be the writer from its start: SQLite cannot wait for that later.
    write = connection.get_execution_options().get("triptych_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
