"""From a source to a stage's tables: what is cut and counted, what is refused, and that Ray Data changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from triptych import storage
from triptych.data.table import StoredTable, read_table
from triptych.errors import UserError
from triptych.models.base import load_tokenizer
from triptych.stages.context import StageContext
from triptych.stages.supervised import encoding
from triptych.stages.supervised.sft import batch_of_chats
from triptych.stages.supervised.training import open_rows, prepare

MakeContext = Callable[[dict[str, Any]], StageContext[Any]]


@pytest.fixture
def stage(tmp_path: Path) -> dict[str, Any]:
    """SFT on 40 chats, the fourth of which is long."""
    rows = [
        {"prompt": f"Film {i}?", "response": f"It is {'a warm story ' * (40 if i == 3 else i % 5 + 1)}."}
        for i in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = {"max_length": 128, "micro_tokens": 256}
    return {"kind": "sft", "data": {"train": {"path": str(path)}}, "train": {"steps": 1, "batch": batch}}


@pytest.mark.parametrize(
    ("overlength", "counts"),
    [
        ("truncate", {"rows": 40, "truncated": 1, "split": 0, "dropped": 0, "unlearnable": 0}),
        ("split", {"rows": 41, "truncated": 0, "split": 1, "dropped": 0, "unlearnable": 0}),
        ("drop", {"rows": 39, "truncated": 0, "split": 0, "dropped": 1, "unlearnable": 0}),
    ],
)
def test_long_rows_are_counted(
    make_context: MakeContext, stage: dict[str, Any], overlength: str, counts: dict[str, int]
) -> None:
    stage["train"]["batch"]["overlength"] = overlength
    ctx = make_context(stage)
    prepared = prepare(ctx)
    assert prepared.data == {"train": counts}
    table = storage.join(ctx.folder, "data", "train")
    assert len(StoredTable(table)) == counts["rows"]
    assert StoredTable(table).lengths("input_ids").max() <= 128
    before = storage.verify(table)
    assert prepare(ctx) == prepared, "the second time from what is there"
    assert storage.verify(table) == before


def test_rows_for_the_loop(make_context: MakeContext, stage: dict[str, Any]) -> None:
    ctx = make_context(stage)
    prepare(ctx)
    rows = open_rows(ctx, batch_of_chats)["train"]
    batch = rows.batch([5, 7])
    table = read_table(storage.join(ctx.folder, "data", "train"))
    assert len(rows.sequences) == 40
    assert [sequence for row in (5, 7) for sequence in rows.sequences[row]] == [table["input_ids"][r] for r in (5, 7)]
    for place, row in enumerate((5, 7)):
        length = len(table["input_ids"][row])
        assert batch["ids"][place, :length].tolist() == table["input_ids"][row]
        assert batch["labels"][place, :length].tolist() == table["labels"][row]
        assert batch["mask"][place].sum() == length


def test_a_budget_below_the_longest_row_is_refused(make_context: MakeContext, stage: dict[str, Any]) -> None:
    stage["train"]["batch"] = {"max_length": 128, "micro_tokens": 127}
    ctx = make_context(stage)
    with pytest.raises(
        UserError,
        match=r"stages.only.train.batch.micro_tokens: 127 has no room for .*data.train, 128 tokens; allowed: 128",
    ):
        prepare(ctx)


def test_nothing_to_learn_is_refused(make_context: MakeContext, stage: dict[str, Any], tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Film 0?"}], add_generation_prompt=True)
    stage["train"]["batch"]["max_length"] = len(prompt["input_ids"]) - 2
    ctx = make_context(stage)
    with pytest.raises(UserError, match=r"stages.only.data.train: no row is left .*40 unlearnable.*max_length"):
        prepare(ctx)
    assert storage.list_committed(storage.join(ctx.folder, "data")) == []


def test_other_rows_in_the_same_folder_are_refused(make_context: MakeContext, stage: dict[str, Any]) -> None:
    ctx = make_context(stage)
    prepare(ctx)
    stage["data"]["train"]["limit"] = 39
    ctx = make_context(stage)
    with pytest.raises(UserError, match=r"data.train: .* -> "):
        prepare(ctx)


def test_chats_that_the_template_refuses_are_malformed_rows(
    make_context: MakeContext, stage: dict[str, Any], tmp_path: Path
) -> None:
    user, answer = {"role": "user", "content": "Film?"}, {"role": "assistant", "content": "Dull."}
    rows: list[dict[str, Any]] = [{"messages": [user, answer]}, {"messages": [answer, user, answer]}]
    rows.append({"prompt": "<|im_end|>", "response": "It is warm."})
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage["data"]["train"] = {"path": str(path)}
    ctx = make_context(stage)
    with pytest.raises(
        UserError, match=r"2 of 3 rows are malformed.*\n  line 2: .*speaks first.*\n  line 3: .*control"
    ):
        prepare(ctx)
    assert not Path(ctx.folder, "data").exists()
    stage["data"]["train"] |= {"max_bad_rows": 1, "control_tokens": "escape"}
    ctx = make_context(stage)
    assert prepare(ctx).data["train"]["rows"] == 2


class _Busy:
    """Another stage's worker."""

    def ready(self) -> bool:
        return True


@pytest.mark.slow
@pytest.mark.cluster
def test_ray_data_gives_the_same_table(
    make_context: MakeContext, stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    """On a cluster of two CPUs of which another stage holds one, from a path relative to the driver's folder."""
    rows = [json.dumps({"prompt": f"Film {i}?", "response": f"It is {'long ' * (i % 90)}."}) for i in range(3000)]
    (tmp_path / "many.jsonl").write_text("\n".join(["no JSON", *rows]))
    monkeypatch.chdir(tmp_path)
    stage["data"] = {"train": {"path": "many.jsonl", "limit": 2900, "max_bad_rows": 1}}
    ctx = make_context(stage)
    small = prepare(ctx)
    table = storage.join(ctx.folder, "data", "train")
    expected = storage.verify(table)
    storage.remove(ctx.folder)

    busy: Any = ray.remote(_Busy)
    other = busy.options(num_cpus=1).remote()
    assert ray.get(other.ready.remote())
    monkeypatch.setattr(encoding, "_LARGE", 0)
    assert prepare(ctx) == small
    assert storage.verify(table) == expected, "the same file to the byte"
