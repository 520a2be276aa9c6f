"""A registry behind an endpoint's admin routes, reached with an admin key instead of the database's password."""

from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from triptych import credentials
from triptych.errors import RunError, UserError
from triptych.registry.facts import Facts
from triptych.registry.records import AdapterVersion, Key, RegisteredAdapter, UnknownAdapter
from triptych.registry.registry import Registry
from triptych.registry.wire import VersionMessage, from_message

KEY = "TRIPTYCH_KEY"
ROUTES = "/admin"
NOT_FOUND = "adapter_not_found"
"""Error code for an unknown adapter, version or alias."""

_TIMEOUT_S = 60.0
_T = TypeVar("_T")


class RemoteRegistry(Registry):
    """The registry behind the endpoint at a URL; its key is in TRIPTYCH_KEY, or in the file of TRIPTYCH_KEY_PATH.

    Files do not come this way: to register, fetch or export an adapter is a UserError.

    Raises, in all its methods: UserError where the key is refused, RunError where the endpoint does not answer.
    """

    def __init__(self, url: str, artifacts: str | None = None, *, create: bool = True) -> None:
        self._endpoint = url.rstrip("/").removesuffix("/v1")
        key = credentials.read(KEY, f"{self._endpoint} asks for an admin key")
        headers = {"Authorization": f"Bearer {key}"}
        try:
            self._http = httpx.Client(base_url=self._endpoint + ROUTES, headers=headers, timeout=_TIMEOUT_S)
        except httpx.InvalidURL as error:
            raise UserError(f"registry {url}: no URL of an endpoint ({error})") from None

    @property
    def url(self) -> str:
        """URL of the endpoint."""
        return self._endpoint

    def get(self, ref: str) -> AdapterVersion:
        return from_message(self._ask(VersionMessage, "GET", "versions", ref))

    def facts(self, ref: str) -> Facts:
        """Facts of a version; UserError also where the endpoint is of the version before, which has none."""
        return self._ask(Facts, "GET", "versions", ref, "facts")

    def adapters(self) -> list[RegisteredAdapter]:
        return self._ask(list[RegisteredAdapter], "GET", "adapters")

    def versions(self, name: str) -> list[AdapterVersion]:
        return [from_message(found) for found in self._ask(list[VersionMessage], "GET", "adapters", name)]

    def alias(self, name: str, alias: str, version: int) -> None:
        self._ask(None, "PUT", "adapters", name, "aliases", alias, body={"version": version})

    def drop_alias(self, name: str, alias: str) -> None:
        self._ask(None, "DELETE", "adapters", name, "aliases", alias)

    def rollback(self, name: str, alias: str = "default") -> AdapterVersion:
        return from_message(self._ask(VersionMessage, "POST", "adapters", name, "aliases", alias, "rollback"))

    def users(self, ref: str) -> list[str]:
        return self._ask(list[str], "GET", "versions", ref, "users")

    def ancestors(self, ref: str) -> list[AdapterVersion]:
        return [from_message(found) for found in self._ask(list[VersionMessage], "GET", "versions", ref, "ancestors")]

    def descendants(self, ref: str) -> list[AdapterVersion]:
        return [from_message(found) for found in self._ask(list[VersionMessage], "GET", "versions", ref, "descendants")]

    def remove(self, ref: str, *, force: bool = False) -> AdapterVersion:
        return from_message(self._ask(VersionMessage, "DELETE", "versions", ref, force=force))

    def add_key(self, sha256: str, label: str, *, admin: bool = False) -> None:
        self._ask(None, "POST", "keys", body={"sha256": sha256, "label": label, "admin": admin})

    def keys(self) -> list[Key]:
        return self._ask(list[Key], "GET", "keys")

    def revoke_key(self, key_id: str) -> None:
        self._ask(None, "DELETE", "keys", key_id)

    def register(self, *_: Any, **__: Any) -> NoReturn:
        self._no_files()

    def add_probes(self, *_: Any) -> NoReturn:
        self._no_files()

    def fetch(self, ref: str, cache: Path | None = None) -> NoReturn:
        self._no_files()

    def export(self, ref: str, target: str) -> NoReturn:
        self._no_files()

    def check_key(self, key: str) -> NoReturn:
        raise UserError(f"{self._endpoint}: whose key it is, the endpoint does not tell")

    def _no_files(self) -> NoReturn:
        raise UserError(
            f"{self._endpoint}: an adapter's files do not travel through the endpoint; name the registry's database, "
            "or act on the cluster with --address"
        )

    def _ask(self, kind: type[_T] | None, method: str, *parts: str, body: object = None, **query: bool) -> Any:
        """Answer of a route, parsed as `kind`."""
        path = "/".join(quote(part, safe="@") for part in parts)
        try:
            answer = self._http.request(method, f"/{path}", json=body, params=query)
        except httpx.TransportError as error:
            raise RunError(f"{self._endpoint} does not answer: {error}") from None
        if answer.is_success:
            try:
                return None if kind is None else TypeAdapter(kind).validate_json(answer.content)
            except ValidationError:
                raise UserError(f"{self._endpoint} is no Triptych endpoint, or one of another version") from None
        raise self._failure(answer)

    def _failure(self, answer: httpx.Response) -> Exception:
        try:
            error = answer.json()["error"]
            code, message = str(error["code"]), str(error["message"])
        except (ValueError, KeyError, TypeError):
            return UserError(f"{self._endpoint} is no Triptych endpoint: it answered {answer.status_code}")
        if answer.status_code in (401, 403):
            return UserError(f"{self._endpoint}: {message} For another key {credentials.how_to_give(KEY)}")
        if answer.status_code >= 500:
            return RunError(f"{self._endpoint}: {message}")
        return UnknownAdapter(message) if code == NOT_FOUND else UserError(message)
