"""Adapters by name: immutable versions, aliases, lineage, and the keys of those who may use them."""

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from triptych import storage
from triptych.artifact_kinds import check_kind, current_kind, former_kind
from triptych.errors import RunError, UserError
from triptych.models.adapter_effect import Probes
from triptych.recipe import Recipe
from triptych.recipe.base import NAME_PATTERN
from triptych.registry import artifacts, compat, keys, queries
from triptych.registry.database import Database
from triptych.registry.facts import Facts, ServingCheck, from_record, read_facts
from triptych.registry.records import AdapterVersion, Key, RegisteredAdapter
from triptych.registry.tables import AdapterRow, AliasMoveRow, ParentRow, VersionRow

_NAME = re.compile(NAME_PATTERN)
_NAME_RULE = "1 to 64 lower-case letters, digits, dots, dashes and underscores, a letter or digit at both ends"


class Registry:
    """The registry at a SQLAlchemy URL, for any number of threads and processes at once.

    `artifacts`: folder or fsspec URL of the adapters' files; None: `artifacts` beside a SQLite file. With the URL of an
    endpoint (https://...) it is a `RemoteRegistry`.
    """

    def __new__(cls, url: str, *_: Any, **__: Any) -> "Registry":
        """An instance of this class, or of `RemoteRegistry` for the URL of an endpoint."""
        if url.startswith(("http://", "https://")):
            from triptych.registry.remote import RemoteRegistry

            return super().__new__(RemoteRegistry)
        return super().__new__(cls)

    def __init__(self, url: str, artifacts: str | None = None, *, create: bool = True) -> None:
        """Open the registry, or create it.

        Raises:
            UserError: it is from a newer version, cannot be used, or does not exist and `create` is off.
        """
        self._database = Database(url, create=create)
        self._home = None if self._database.file is None else str(self._database.file.parent)
        beside = None if self._home is None else storage.join(self._home, "artifacts")
        self._artifacts = storage.absolute(artifacts) if artifacts else beside

    @property
    def url(self) -> str:
        """URL that opens the same registry from any folder; holds the database's password, if there is one."""
        return self._database.url

    def register(
        self,
        name: str,
        folder: Path | str,
        *,
        kind: str,
        base: str,
        base_fingerprint: str,
        lineage: Mapping[str, Any],
        metrics: Mapping[str, Any],
        for_serving: ServingCheck | None = None,
        prepare: Callable[[Path], None] | None = None,
        max_rank: int = compat.MAX_RANK,
    ) -> AdapterVersion:
        """Copy a folder into the artifacts and give it the next version number of `name`.

        Args:
            folder: local folder or fsspec URL of the artifact.
            kind: one of `artifact_kinds.KINDS`.
            base: name or path of the base model.
            base_fingerprint: digest of the base model's weights; see `models.base.fingerprint`.
            lineage: plain JSON on the origin; `parents` are the versions it was made from, as refs (a list, or a
                mapping by ref), and all must be known.
            metrics: plain JSON with finite numbers.
            for_serving: refuses what the caller could not serve; None: everything sound is accepted.
            prepare: given the copy, a sound one: may rewrite its files to others that compute the same, and raises
                UserError where it does not fit its base; None: it is kept as it is.
            max_rank: the largest rank that processes of the version before take as servable.

        Raises:
            UserError: a broken or unsafe artifact, or one that `for_serving` refuses; nothing is stored.
        """
        _check_name("adapter name", name)
        check_kind(kind)
        row = VersionRow(
            name=name,
            kind=former_kind(kind),
            artifact_kind=kind,
            base=base,
            base_fingerprint=base_fingerprint,
            lineage=_plain_json("lineage", lineage),
            metrics=_plain_json("metrics", metrics),
            created_at=datetime.now(UTC),
        )
        with self._database.read() as session:
            found = [queries.version(session, ref) for ref in lineage.get("parents") or ()]
            parents = {(parent.name, parent.version) for parent in found}
        url = storage.join(self._artifact_root(), name, uuid.uuid4().hex)
        facts = artifacts.store(str(folder), url, kind, base_fingerprint, for_serving, prepare)
        row.facts, row.why_not = facts.record(), compat.why_not(kind, facts, max_rank)
        try:
            row.location, row.sha256 = self._relative(url), storage.verify(url).digest
            with self._database.write() as session:
                row.version = queries.next_version(session, name)
                session.add(row)
                session.flush()
                session.add_all(
                    ParentRow(name=name, version=row.version, parent_name=parent, parent_version=number)
                    for parent, number in sorted(parents)
                )
                session.flush()
                return self._record(row)
        except BaseException:
            storage.remove(url)
            raise

    def get(self, ref: str) -> AdapterVersion:
        """The version that `name@3`, `name@alias` or `name` (alias `default` where set, else the latest) means."""
        with self._database.read() as session:
            return self._record(queries.version(session, ref))

    def facts(self, ref: str) -> Facts:
        """Facts of a version's files; those of a version that older code registered are read from the artifact.

        Raises:
            UnreadableError: older code registered it, and its files are damaged or gone.
        """
        with self._database.read() as session:
            row = queries.version(session, ref)
            url, known = self._record(row).url, from_record(row.facts)
        return read_facts(url) if known is None else known

    def add_probes(self, ref: str, probes: Probes) -> None:
        """Keep the probes of a version that came without; the files of a version never change."""
        facts = replace(self.facts(ref), probes=probes)
        with self._database.write() as session:
            queries.version(session, ref).facts = facts.record()

    def fetch(self, ref: str, cache: Path | None = None) -> Path:
        """A local folder with the artifact, every byte of it as it was registered; RunError if that is not so."""
        version = self.get(ref)
        folder = storage.local_copy(version.url, cache)
        if storage.verify(str(folder)).digest != version.sha256:
            raise RunError(f"{version.ref}: {version.url} holds another artifact than the one that was registered")
        return folder

    def export(self, ref: str, target: str) -> AdapterVersion:
        """Copy the verified artifact, whole or not at all, to a folder or URL where nothing is yet."""
        version = self.get(ref)
        if storage.exists(target):
            raise UserError(f"{target} exists already: name a new folder")
        artifacts.copy(self.fetch(version.ref), target)
        return version

    def adapters(self) -> list[RegisteredAdapter]:
        """All names with at least one version, sorted."""
        versions: dict[str, list[int]] = defaultdict(list)
        with self._database.read() as session:
            order = select(VersionRow.name, VersionRow.version).order_by(VersionRow.name, VersionRow.version)
            for name, version in session.execute(order):
                versions[name].append(version)
            aliases = queries.aliases(session)
            made = {row.name: row.created_at for row in session.scalars(select(AdapterRow))}
        return [RegisteredAdapter(name, tuple(found), aliases[name], made[name]) for name, found in versions.items()]

    def versions(self, name: str) -> list[AdapterVersion]:
        """All versions of a name, ascending; UnknownAdapter where there are none."""
        with self._database.read() as session:
            query = select(VersionRow).where(VersionRow.name == name).order_by(VersionRow.version)
            found = [self._record(row) for row in session.scalars(query)]
            if not found:
                raise queries.unknown_name(session, name)
        return found

    def alias(self, name: str, alias: str, version: int) -> None:
        """Point `name@alias` at a version; `default` is what the bare name means."""
        _check_name("alias", alias)
        if alias.isdigit() or alias == "latest":
            raise UserError(f"alias {alias!r}: numbers are versions, and the latest version is what a bare name means")
        with self._database.write() as session:
            row = queries.version(session, f"{name}@{version}")
            if queries.aliases(session, name)[name].get(alias) != row.version:
                session.add(AliasMoveRow(name=name, alias=alias, version=row.version, moved_at=datetime.now(UTC)))

    def rollback(self, name: str, alias: str = "default") -> AdapterVersion:
        """Take the last move of an alias back, and return the version that it points at now."""
        with self._database.write() as session:
            moves = queries.moves(session, name, alias)
            if len(moves) < 2:
                raise UserError(f"{name}@{alias} has not pointed at another version before: nothing to roll back to")
            session.delete(moves[-1])
            return self._record(queries.version(session, f"{name}@{moves[-2].version}"))

    def drop_alias(self, name: str, alias: str) -> None:
        """Remove an alias and its history; the versions stay."""
        with self._database.write() as session:
            queries.version(session, f"{name}@{alias}")
            for move in queries.moves(session, name, alias):
                session.delete(move)

    def users(self, ref: str) -> list[str]:
        """References to a version: aliases (`name@alias`), and versions that were made from it."""
        with self._database.read() as session:
            return queries.users(session, queries.version(session, ref))

    def remove(self, ref: str, *, force: bool = False) -> AdapterVersion:
        """Remove a version and its files; its number is never given out again.

        UserError while an alias or another version's lineage points at it. `force` removes it and such aliases;
        lineages keep its name.
        """
        with self._database.write() as session:
            row = queries.version(session, ref)
            version, users = self._record(row), queries.users(session, row)
            if users and not force:
                raise UserError(f"{version.ref} is used by {', '.join(users)}: remove or move these first")
            queries.delete_version(session, row)
        storage.remove(version.url)
        return version

    def ancestors(self, ref: str) -> list[AdapterVersion]:
        """The versions that a version was made from, and theirs, nearest first; removed ones are left out."""
        return self._walk(ref, up=True)

    def descendants(self, ref: str) -> list[AdapterVersion]:
        """The versions that were made from a version, and from those, nearest first."""
        return self._walk(ref, up=False)

    def create_key(self, label: str, *, admin: bool = False) -> str:
        """A new API key, readable only now: the registry keeps its hash. `admin`: it may change the registry, too."""
        key, sha256 = keys.make_key()
        self.add_key(sha256, label, admin=admin)
        return key

    def add_key(self, sha256: str, label: str, *, admin: bool = False) -> None:
        """Accept a key that was made elsewhere, by its sha256. `admin`: it may change the registry, too."""
        keys.add_key(self._database, sha256, label, admin=admin)

    def check_key(self, key: str) -> Key | None:
        """The record of a key that is valid now; None for any other."""
        return keys.check_key(self._database, key)

    def keys(self) -> list[Key]:
        """All keys, revoked ones too, oldest first."""
        return keys.list_keys(self._database)

    def revoke_key(self, key_id: str) -> None:
        """Revoke a key: every process refuses it from now on."""
        keys.revoke_key(self._database, key_id)

    def add_calibration(self, record: Mapping[str, Any]) -> None:
        """Keep a calibration record: predicted and actual figures of a stage, as plain JSON."""
        content = _plain_json("calibration", record)
        with self._database.write() as session:
            queries.add_calibration(session, content)

    def calibrations(self) -> list[dict[str, Any]]:
        """The newest calibration records, newest first."""
        with self._database.read() as session:
            return queries.calibrations(session)

    def _artifact_root(self) -> str:
        if self._artifacts is None:
            raise UserError(f"the registry {self._database.place} is no file: say where artifacts go (a folder or URL)")
        return self._artifacts

    def _relative(self, url: str) -> str:
        home = f"{self._home}/"
        return url[len(home) :] if self._home is not None and url.startswith(home) else url

    def _record(self, row: VersionRow) -> AdapterVersion:
        absolute = "://" in row.location or row.location.startswith("/")
        return AdapterVersion(
            name=row.name,
            version=row.version,
            kind=row.artifact_kind or current_kind(row.kind),
            base=row.base,
            base_fingerprint=row.base_fingerprint,
            url=row.location if absolute else f"{self._home}/{row.location}",
            sha256=row.sha256,
            lineage=dict(row.lineage),
            metrics=dict(row.metrics),
            created_at=row.created_at,
            recorded_why_not=row.why_not,
        )

    def _walk(self, ref: str, *, up: bool) -> list[AdapterVersion]:
        """Versions along the lineage, breadth first, every version once."""
        with self._database.read() as session:
            start = queries.version(session, ref)
            seen, frontier, found = {(start.name, start.version)}, [(start.name, start.version)], []
            while frontier:
                name, version = frontier.pop(0)
                for edge in session.scalars(queries.edges(name, version, up=up)):
                    end = (edge.parent_name, edge.parent_version) if up else (edge.name, edge.version)
                    row = session.get(VersionRow, end)
                    if row is not None and end not in seen:
                        seen.add(end)
                        frontier.append(end)
                        found.append(self._record(row))
        return found


def registry_url(recipe: Recipe) -> str:
    """SQLAlchemy URL of the recipe's registry.

    Raises:
        UserError: runs go to an object store, which holds no SQLite file, and the recipe names no registry.
    """
    if recipe.storage.registry:
        return recipe.storage.registry
    runs = storage.absolute(recipe.storage.runs)
    if "://" in runs:
        raise UserError(f"storage.registry: needed where storage.runs is an object store ({runs}); a SQLAlchemy URL")
    return f"sqlite:///{runs}/registry.db"


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(f"{what} {name[:80]!r}: {_NAME_RULE}")


def _plain_json(what: str, value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be plain JSON with finite numbers: {error}") from error
    return content
