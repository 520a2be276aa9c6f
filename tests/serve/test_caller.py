"""Who a request comes from: the key's caller, attached once and read by the routes."""

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from triptych.registry import Registry
from triptych.serve.caller import ANONYMOUS, Caller, caller_of
from triptych.serve.errors import ApiError
from triptych.serve.keys import KeyCheck

Ask = Callable[..., Awaitable[Caller]]


@pytest.fixture
def ask(registry: Registry) -> Callable[..., Ask]:
    """`ask(required=...)(path, key)`: the caller of a request."""

    def of(*, required: bool) -> Ask:
        check = KeyCheck(registry, ThreadPoolExecutor(1), required=required)

        async def caller(path: str, key: str | None) -> Caller:
            return await check.caller(path, {} if key is None else {"authorization": f"Bearer {key}"})

        return caller

    return of


async def test_a_key_becomes_its_caller(registry: Registry, ask: Any) -> None:
    made, admin = registry.create_key("laptop"), registry.create_key("operator", admin=True)
    ids = {key.label: key.id for key in registry.keys()}  # noqa: SIM118
    caller = ask(required=True)
    assert await caller("/v1/models", made) == Caller(ids["laptop"], "laptop", "laptop", frozenset({"ask"}))
    assert (await caller("/v1/models", admin)).scopes == {"ask", "admin"}


async def test_without_a_duty_to_show_a_key_everybody_is_anonymous_but_for_the_admin_routes(
    registry: Registry, ask: Any
) -> None:
    admin, caller = registry.create_key("operator", admin=True), ask(required=False)
    for key in (None, "wrong", admin):
        assert await caller("/v1/models", key) == ANONYMOUS
    assert (await caller("/admin/keys", admin)).label == "operator"
    for path, key in (("/admin", None), ("/admin/keys", "wrong")):
        with pytest.raises(ApiError) as refused:
            await caller(path, key)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert await caller("/administration", None) == ANONYMOUS


@pytest.mark.parametrize(
    ("caller", "status"), [(ANONYMOUS, 401), (Caller("id", "laptop", "laptop", frozenset({"ask"})), 403)]
)
def test_a_caller_without_the_admin_scope_is_refused(caller: Caller, status: int) -> None:
    with pytest.raises(ApiError) as refused:
        caller.require_admin()
    assert refused.value.status == status
    Caller("id", "operator", "operator", frozenset({"ask", "admin"})).require_admin()


def test_a_request_that_no_middleware_saw_has_no_caller() -> None:
    with pytest.raises(KeyError):
        caller_of({"type": "http"})
