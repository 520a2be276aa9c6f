"""Admin routes to read and change the registry, for admin keys only; every change is logged."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from triptych.errors import RunError, UserError
from triptych.registry import Key, RegisteredAdapter, Registry, UnknownAdapter
from triptych.registry.facts import Facts
from triptych.registry.remote import NOT_FOUND, ROUTES
from triptych.registry.wire import VersionMessage, to_message
from triptych.serve import errors
from triptych.serve.caller import caller_of
from triptych.serve.errors import ApiError

logger = logging.getLogger("ray.serve")

_LONGEST = 300


class _Target(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: int


class _NewKey(BaseModel):
    """Request to accept a key by its hash: the endpoint never sees the key itself."""

    model_config = ConfigDict(extra="forbid")
    sha256: str
    label: str
    admin: bool = False


def admin_routes(registry: Registry) -> APIRouter:
    """Routes of the admin API, whose client is `RemoteRegistry`."""
    routes = APIRouter(prefix=ROUTES, route_class=_AdminRoute)

    @routes.get("/adapters")
    def adapters() -> list[RegisteredAdapter]:
        return registry.adapters()

    @routes.get("/adapters/{name}")
    def versions(name: str) -> list[VersionMessage]:
        return [to_message(found) for found in registry.versions(name)]

    @routes.get("/versions/{ref}")
    def version(ref: str) -> VersionMessage:
        return to_message(registry.get(ref))

    @routes.get("/versions/{ref}/facts")
    def facts(ref: str) -> Facts:
        return registry.facts(ref)

    @routes.get("/versions/{ref}/users")
    def users(ref: str) -> list[str]:
        return registry.users(ref)

    @routes.get("/versions/{ref}/ancestors")
    def ancestors(ref: str) -> list[VersionMessage]:
        return [to_message(found) for found in registry.ancestors(ref)]

    @routes.get("/versions/{ref}/descendants")
    def descendants(ref: str) -> list[VersionMessage]:
        return [to_message(found) for found in registry.descendants(ref)]

    @routes.delete("/versions/{ref}")
    def remove(ref: str, force: bool = False) -> VersionMessage:
        return to_message(registry.remove(ref, force=force))

    @routes.put("/adapters/{name}/aliases/{alias}", status_code=204)
    def set_alias(name: str, alias: str, target: _Target) -> None:
        registry.alias(name, alias, target.version)

    @routes.delete("/adapters/{name}/aliases/{alias}", status_code=204)
    def drop_alias(name: str, alias: str) -> None:
        registry.drop_alias(name, alias)

    @routes.post("/adapters/{name}/aliases/{alias}/rollback")
    def rollback(name: str, alias: str) -> VersionMessage:
        return to_message(registry.rollback(name, alias))

    @routes.get("/keys")
    def keys() -> list[Key]:
        return registry.keys()

    @routes.post("/keys", status_code=204)
    def add_key(key: _NewKey) -> None:
        registry.add_key(key.sha256, key.label, admin=key.admin)

    @routes.delete("/keys/{key_id}", status_code=204)
    def revoke_key(key_id: str) -> None:
        registry.revoke_key(key_id)

    return routes


class _AdminRoute(APIRoute):
    """A route that checks the caller before the body, answers refusals in OpenAI's form, and logs changes."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            caller = caller_of(request.scope)
            caller.require_admin()
            path = errors.shown(request.url.path, _LONGEST)
            what = f"{request.method} {path} by key {caller.key_id} ({caller.label})"
            try:
                response = await handle(request)
            except (UserError, RunError, RequestValidationError) as error:
                logger.warning("admin: %s: refused", what)
                raise _refusal(error) from error
            if request.method != "GET":
                logger.warning("admin: %s: done", what)
            return response

        return answer


def _refusal(error: Exception) -> Exception:
    message = errors.shown(str(error), _LONGEST)
    if isinstance(error, UnknownAdapter):
        return ApiError(404, NOT_FOUND, message)
    if isinstance(error, UserError):
        return ApiError(400, "invalid_request", message)
    if isinstance(error, RunError):
        return ApiError(503, "unavailable", message, retry_after=5)
    return error
