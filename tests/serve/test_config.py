"""The config of an endpoint."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from triptych.errors import UserError
from triptych.recipe.load import load_yaml
from triptych.recipe.serve import EngineConfig, ServeConfig

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("base", "model_id"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/models/tiny/", "tiny"),
        ("./models/tiny", "tiny"),
    ],
)
def test_the_base_is_served_under_its_name(base: str, model_id: str) -> None:
    assert ServeConfig.model_validate({"model": {"base": base}, "registry": "r.db"}).model_id == model_id


def test_a_name_of_its_own() -> None:
    config = ServeConfig.model_validate({"model": {"base": "/models/tiny"}, "registry": "r.db", "name": "house-model"})
    assert config.model_id == "house-model"


def test_a_key_is_required_and_only_this_machine_reached_unless_said_otherwise() -> None:
    config = ServeConfig.model_validate({"model": {"base": "b"}, "registry": "r.db"})
    assert config.require_key
    assert config.host == "127.0.0.1"


def test_replicas_and_engine_ask_for_no_cpu_by_default() -> None:
    assert EngineConfig().cpus == 0
    assert EngineConfig().gpus == 0


def test_adapters_in_a_batch_are_adapters_in_memory() -> None:
    with pytest.raises(ValidationError, match=r"max_cpu_loras \(2\) cannot be smaller than max_loras \(4\)"):
        EngineConfig(max_loras=4, max_cpu_loras=2)


def test_a_rank_that_vllm_has_no_kernel_for() -> None:
    with pytest.raises(ValidationError, match="max_lora_rank"):
        EngineConfig.model_validate({"max_lora_rank": 24})


def test_an_unknown_key_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("model: {base: b}\nregistry: r.db\nengine:\n  max_lora: 4\n")
    with pytest.raises(UserError, match=r"serve.yaml:4: engine.max_lora.*max_loras"):
        load_yaml(path, ServeConfig)


def test_the_example_loads() -> None:
    config = load_yaml(
        REPOSITORY / "examples" / "reviews" / "serve.yaml", ServeConfig, ["port=8123", "engine.threads=1"]
    )
    assert config.port == 8123
    assert config.engine.threads == 1
