"""What is refused before anything starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from triptych.errors import UserError
from triptych.plan import Machine, Node
from triptych.plan.machines import GIB, GPUS
from triptych.recipe.serve import ServeConfig
from triptych.registry import Registry
from triptych.serve.preflight import check, check_room

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


def test_an_adapter_that_cannot_be_read_does_not_stop_a_start(
    registry: Registry, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("UPDATE versions SET facts = NULL"))
    shutil.rmtree(registry.get("opinion@2").url)
    config = {"model": {"base": str(tiny_model_dir)}, "registry": registry.url, "adapters": ["opinion"]}
    check(ServeConfig.model_validate(config))
    assert "adapters: opinion is left out" in caplog.text
    with pytest.raises(UserError, match="adapters: toobig cannot be served: its rank is 16"):
        check(ServeConfig.model_validate(config | {"adapters": ["toobig"], "engine": {"max_lora_rank": 8}}))


def test_a_base_with_longrope_serves_as_many_tokens_as_training_may_have(
    registry: Registry, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def asked(base: Path, **engine: Any) -> int | None:
        config = {"model": {"base": str(base)}, "registry": registry.url, "adapters": [], "engine": engine}
        return check(ServeConfig.model_validate(config))[0].engine.max_model_len

    long = shutil.copytree(tiny_model_dir, tmp_path / "long")
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    settings = json.loads((long / "config.json").read_text()) | {"rope_parameters": rope}
    (long / "config.json").write_text(json.dumps(settings))
    assert [asked(tiny_model_dir), asked(long), asked(long, max_model_len=32)] == [None, 64, 32]
    assert "longrope" not in caplog.text
    assert asked(long, max_model_len=128) == 128
    assert "beyond 64 tokens this base takes longrope's long factors" in caplog.text
