"""Routes: which engine and version a name means, and how it was chosen."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from triptych.models.base import fingerprint
from triptych.recipe.serve import ServeConfig
from triptych.registry import Registry
from triptych.serve.capabilities import VLLM
from triptych.serve.catalog import Catalog
from triptych.serve.errors import ApiError


@pytest.fixture
def counted() -> list[int]:
    """How many versions were left out, each time that it was told."""
    return []


@pytest.fixture
def catalog(registry: Registry, tiny_model_dir: Path, counted: list[int]) -> Catalog:
    config = ServeConfig.model_validate({"model": {"base": str(tiny_model_dir)}, "registry": registry.url})
    return Catalog(config, fingerprint(tiny_model_dir), registry, ThreadPoolExecutor(1), counted.append)


@pytest.mark.parametrize(
    ("name", "model", "version", "chosen_by"),
    [
        ("tiny", "tiny", None, "base"),
        ("opinion@2", "opinion@2", 2, "version"),
        ("opinion@live", "opinion@1", 1, "alias"),
        ("opinion", "opinion@2", 2, "name"),
    ],
)
async def test_a_name_becomes_a_route(
    catalog: Catalog, registry: Registry, name: str, model: str, version: int | None, chosen_by: str
) -> None:
    registry.alias("opinion", "live", 1)
    route = await catalog.resolve(name)
    number = None if route.version is None else route.version.version
    assert (route.engine, route.model, number, route.chosen_by) == (VLLM, model, version, chosen_by)


async def test_a_version_without_facts_or_files_is_left_out_and_the_rest_is_served(
    catalog: Catalog, registry: Registry, counted: list[int]
) -> None:
    assert counted == [0]
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("UPDATE versions SET facts = NULL WHERE name = 'opinion'"))
    shutil.move(registry.get("opinion@1").url, f"{registry.get('opinion@1').url}.gone")
    with pytest.raises(ApiError, match="not served here: its files cannot be read"):
        await catalog.resolve("opinion@1")
    assert (await catalog.resolve("opinion")).model == "opinion@2"
    assert "opinion@1" not in {card["id"] for card in await catalog.cards()}
    assert counted[-1] == 1

    shutil.move(f"{registry.get('opinion@1').url}.gone", registry.get("opinion@1").url)
    catalog._found._answers.clear()
    assert (await catalog.resolve("opinion@1")).model == "opinion@1"
    assert counted[-1] == 0


LORA = {"peft_type": "LORA", "r": 4}


def facts_of(config: dict[str, object], shapes: dict[str, dict[str, list[int]]]) -> str:
    return json.dumps({"methods": ["lora"], "configs": {"adapter_config.json": config}, "shapes": shapes})


@pytest.mark.parametrize(
    "facts",
    [
        facts_of(LORA | {"r": "eight"}, {"adapter_model.safetensors": {}}),
        facts_of(LORA | {"rank_pattern": [1, 2]}, {"adapter_model.safetensors": {}}),
        facts_of(LORA, {}),
    ],
)
async def test_a_version_that_cannot_be_judged_is_left_out_and_the_rest_is_served(
    catalog: Catalog, registry: Registry, counted: list[int], facts: str
) -> None:
    """Whatever is odd about what the registry holds of it."""
    with create_engine(registry.url).begin() as connection:
        connection.execute(
            text("UPDATE versions SET facts = :facts WHERE name = 'opinion' AND version = 1"), {"facts": facts}
        )
    assert {card["id"] for card in await catalog.cards()} == {"tiny", "opinion", "opinion@2", "toobig", "toobig@1"}
    assert (await catalog.resolve("opinion")).model == "opinion@2"
    assert counted[-1] == 1


async def test_an_adapter_that_is_removed_while_the_list_is_made_is_left_out(
    catalog: Catalog, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry.adapters()
    registry.remove("opinion@1", force=True)
    registry.remove("opinion@2", force=True)
    monkeypatch.setattr(registry, "adapters", lambda: known)
    assert {card["id"] for card in await catalog.cards()} == {"tiny", "toobig", "toobig@1"}
