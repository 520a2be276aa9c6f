"""What is refused before anything starts."""

from typing import Any

import pytest

from triptych.errors import UserError
from triptych.plan import Machine, Node
from triptych.plan.machines import GIB, GPUS
from triptych.recipe.serve import ServeConfig
from triptych.serve.preflight import check_room

TWO_NODES = Machine("test", (Node(cpus=2, gpus=1, memory=8 * GIB),) * 2, GPUS["l4-24"])


def asking(replicas: int, **engine: Any) -> ServeConfig:
    return ServeConfig.model_validate(
        {"model": {"base": "b"}, "registry": "r.db", "replicas": replicas, "engine": engine}
    )


@pytest.mark.parametrize(("replicas", "engine"), [(9, {}), (4, {"cpus": 1.0}), (2, {"cpus": 2.0, "gpus": 1})])
def test_replicas_that_fit(replicas: int, engine: dict[str, Any]) -> None:
    check_room(asking(replicas, **engine), TWO_NODES)


@pytest.mark.parametrize(
    ("replicas", "engine"),
    [(1, {"cpus": 2.5}), (5, {"cpus": 1.0}), (2, {"cpus": 1.5, "gpus": 2}), (3, {"cpus": 1.5}), (3, {"gpus": 1})],
)
def test_replicas_that_never_fit_are_refused(replicas: int, engine: dict[str, Any]) -> None:
    with pytest.raises(UserError) as refused:
        check_room(asking(replicas, **engine), TWO_NODES)
    each = f"{engine.get('cpus', 0):g} CPUs and {engine.get('gpus', 0)} GPUs each"
    assert str(refused.value) == (
        f"replicas: {replicas} of {each} do not fit test (2 nodes, 4 CPUs, 2 GPUs l4-24, 16 GiB); "
        "lower replicas, engine.cpus or engine.gpus"
    )
