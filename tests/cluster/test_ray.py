"""Starting, joining and leaving Ray."""

import os

import pytest
import ray

from triptych.cluster.ray import connect
from triptych.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_local_cluster_ends_with_the_block_and_a_nested_connection_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    @ray.remote(num_cpus=0.5)
    def where() -> int:
        return os.getpid()

    with connect(cpus=3):
        assert ray.cluster_resources()["CPU"] == 3
        with connect(cpus=1):
            assert ray.cluster_resources()["CPU"] == 3
        assert ray.get(where.remote()) != os.getpid()
    assert not ray.is_initialized()


def test_an_error_in_the_block_still_stops_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(KeyboardInterrupt), connect(cpus=1):
        raise KeyboardInterrupt
    assert not ray.is_initialized()


def test_an_address_where_nothing_answers_is_a_wrong_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=127\.0\.0\.1:1"), connect():
        pass
    assert not ray.is_initialized()
