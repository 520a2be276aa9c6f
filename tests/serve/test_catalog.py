"""Routes: which engine and version a name means, and how it was chosen."""

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
def catalog(registry: Registry, tiny_model_dir: Path) -> Catalog:
    config = ServeConfig.model_validate({"model": {"base": str(tiny_model_dir)}, "registry": registry.url})
    return Catalog(config, fingerprint(tiny_model_dir), registry, ThreadPoolExecutor(1))


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
    catalog: Catalog, registry: Registry
) -> None:
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("UPDATE versions SET facts = NULL WHERE name = 'opinion'"))
    shutil.move(registry.get("opinion@1").url, f"{registry.get('opinion@1').url}.gone")
    with pytest.raises(ApiError, match="not served here: its files cannot be read"):
        await catalog.resolve("opinion@1")
    assert (await catalog.resolve("opinion")).model == "opinion@2"
    assert "opinion@1" not in {card["id"] for card in await catalog.cards()}

    shutil.move(f"{registry.get('opinion@1').url}.gone", registry.get("opinion@1").url)
    catalog._found._answers.clear()
    assert (await catalog.resolve("opinion@1")).model == "opinion@1"
