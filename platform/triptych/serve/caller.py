"""The caller of a request and its permissions, carried with the request in the ASGI scope."""

from dataclasses import dataclass

from starlette.types import Scope as AsgiScope

from triptych.registry import Key
from triptych.serve.errors import invalid_key, not_admin

ADMIN = "admin"
"""Scope of callers that may read and change the registry."""
ASK = "ask"
"""Scope of callers that may ask the models."""

_FIELD = "triptych.caller"


@dataclass(frozen=True)
class Caller:
    """The sender of a request, with its permissions."""

    key_id: str | None
    """Id of the API key; None where the endpoint asks for none."""
    label: str
    """Label of the key, for logs."""
    tenant: str
    """Group of keys that is counted as one; a key's label, as long as keys have no other group."""
    scopes: frozenset[str]
    """Permissions: `ask`, `admin`."""

    def require_admin(self) -> None:
        """Raise ApiError 403 unless the key is an admin's, 401 where there is no key."""
        if ADMIN not in self.scopes:
            raise invalid_key(missing=True) if self.key_id is None else not_admin()


ANONYMOUS = Caller(None, "anonymous", "anonymous", frozenset({ASK}))
"""Caller without a key, at an endpoint that asks for none."""


def caller_with(key: Key) -> Caller:
    """The caller that a valid key stands for."""
    return Caller(key.id, key.label, key.label, frozenset({ASK, ADMIN} if key.admin else {ASK}))


def attach(scope: AsgiScope, caller: Caller) -> None:
    """Attach the caller to a request's ASGI scope."""
    scope[_FIELD] = caller


def caller_of(scope: AsgiScope) -> Caller:
    """The caller that the middleware attached to the request."""
    caller: Caller = scope[_FIELD]
    return caller
