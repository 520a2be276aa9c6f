"""Classes by number, in files that say what they are called."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from triptych.data.files import records
from triptych.data.rows import parse_tags, parse_text
from triptych.data.sources import load_rows
from triptych.recipe.data import Source

LABEL = {"names": ["neg", "pos"], "_type": "ClassLabel"}


def _write(path: Path, columns: dict[str, Any], features: Any) -> Source:
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pa.parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return Source(path=str(path))


def test_the_file_s_names_are_the_labels(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.parquet", {"text": ["a", "b"], "label": [0, 1]}, {"label": LABEL})
    assert [row.label for row in load_rows(source, "texts").items] == ["neg", "pos"]
    record = [record for _, record in records(source)][1]
    assert parse_text(record, ("pos", "neg")).label == "pos", "by name, whatever its place in the recipe"
    assert parse_text(record, ("bad", "good")).label == "good", "by number, where the recipe has names of its own"
    with pytest.raises(ValueError, match="label: 'pos', as the file calls its class 1, is none of neg, neutral"):
        parse_text(record, ("neg", "neutral"))


@pytest.mark.parametrize("kind", ["List", "Sequence", None])
def test_tags_have_the_file_s_names(tmp_path: Path, kind: str | None) -> None:
    tag = LABEL | {"names": ["O", "B-PER"]}
    feature: Any = {"feature": tag, "_type": kind} if kind else [tag]
    source = _write(tmp_path / "a.parquet", {"tokens": [["Ann", "ran"]], "tags": [[1, 0]]}, {"tags": feature})
    assert load_rows(source, "tags").items[0].tags == ("B-PER", "O")
    assert parse_tags(next(records(source))[1], ("B-PER", "O")).tags == ("B-PER", "O")


@pytest.mark.parametrize("features", [None, [], {"label": None}, {"label": {"names": 3, "_type": "ClassLabel"}}])
def test_features_of_another_form_name_nothing(tmp_path: Path, features: Any) -> None:
    source = _write(tmp_path / "a.parquet", {"text": ["a"], "label": [1]}, features)
    assert load_rows(source, "texts").items[0].label == "1"
    source = _write(tmp_path / "a.parquet", {"text": ["a"], "label": [7]}, {"label": LABEL})
    assert load_rows(source, "texts").items[0].label == "7"
