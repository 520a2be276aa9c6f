"""The four tasks: their rows out of ../shared/data, encoded once, the same for every method."""

import csv
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SHARED = Path(__file__).parents[4] / "shared" / "data"
Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is learned, and what is measured of it."""

    title: str
    kind: Literal["texts", "tags", "sft"]
    figure: str
    """The metric that is compared."""
    best: Literal["max", "min"]
    records: Callable[[], tuple[list[Record], list[Record]]]
    """All training and all held-out rows of the data set."""
    rows: int
    """Training rows that are used, drawn once."""
    heldout: int
    epochs: int
    max_length: int
    batch: int
    """Rows of an optimizer step."""
    labels: tuple[str, ...] = ()

    def better(self, one: float, other: float) -> bool:
        return one > other if self.best == "max" else one < other

    def settings(self) -> dict[str, Any]:
        """What results depend on beside the rows."""
        names = ("rows", "heldout", "epochs", "max_length", "batch")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Prepared:
    """The encoded rows of a task."""

    train: Path
    heldout: Path
    digest: str
    """sha256 of the task's settings and of the rows that are used, as they were before encoding."""


def sst2() -> tuple[list[Record], list[Record]]:
    return _sst2("train"), _sst2("dev")


def _sst2(name: str) -> list[Record]:
    with (SHARED / "sst2" / f"{name}.tsv").open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{"text": row["sentence"].strip(), "label": row["label"]} for row in rows]


def msra() -> tuple[list[Record], list[Record]]:
    """Sentences of the archive's one file; the last tenth is held out."""
    with zipfile.ZipFile(SHARED / "msra-ner" / "dh_msra.zip") as archive:
        text = archive.read("dh_msra.txt").decode("utf-8")
    sentences = list(_sentences(text))
    border = len(sentences) * 9 // 10
    return sentences[:border], sentences[border:]


def _sentences(text: str) -> Iterator[Record]:
    """A character and its tag a line, an empty line between sentences."""
    for block in text.split("\n\n"):
        pairs = [line.split("\t") for line in block.splitlines() if line.strip()]
        if pairs:
            yield {"tokens": [token for token, _ in pairs], "tags": [tag for _, tag in pairs]}


def gsm8k() -> tuple[list[Record], list[Record]]:
    return _gsm8k("train"), _gsm8k("test")


def _gsm8k(name: str) -> list[Record]:
    lines = (SHARED / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    records = map(json.loads, lines)
    return [{"prompt": record["question"], "response": record["answer"]} for record in records]


def hotel() -> tuple[list[Record], list[Record]]:
    """Reviews in an order drawn once, since the file has the good ones first; the last fifth is held out."""
    from triptych.data.batches import epoch_order

    with (SHARED / "chnsenticorp-hotel" / "ChnSentiCorp_htl_all.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["review"].strip()]
    rows = [rows[index] for index in epoch_order(len(rows), 0, 0)]
    records: list[Record] = [{"text": row["review"], "label": row["label"]} for row in rows]
    border = len(records) * 4 // 5
    return records[:border], records[border:]


TASKS: dict[str, Task] = {
    "sst2": Task("SST-2, accuracy", "texts", "accuracy", "max", sst2, 1000, 872, 2, 128, 16, ("negative", "positive")),
    "msra": Task(
        "MSRA NER, entity F1",
        "tags",
        "f1",
        "max",
        msra,
        500,
        300,
        2,
        256,
        8,
        ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
    ),
    "gsm8k": Task("gsm8k, held-out loss", "sft", "loss", "min", gsm8k, 500, 200, 1, 512, 8),
    "hotel": Task(
        "ChnSentiCorp hotels, accuracy",
        "texts",
        "accuracy",
        "max",
        hotel,
        500,
        300,
        2,
        128,
        8,
        ("negative", "positive"),
    ),
}


def prepare(name: str, model: Path, folder: Path) -> Prepared:
    """Encode a task's rows into `folder`, unless they are there."""
    from triptych.data.batches import epoch_order

    task = TASKS[name]
    train, heldout = task.records()
    chosen = [train[index] for index in epoch_order(len(train), 0, 0)[: task.rows]]
    used = {"train": chosen, "heldout": heldout[: task.heldout]}
    digest = hashlib.sha256(json.dumps([task.settings(), used], sort_keys=True).encode()).hexdigest()
    files = {split: folder / f"{name}-{digest[:16]}-{split}.jsonl" for split in used}
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in used.items():
        if not files[split].is_file():
            rows = "".join(json.dumps(row) + "\n" for row in _encoded(task, records, model))
            files[split].write_text(rows, encoding="utf-8")
    return Prepared(files["train"], files["heldout"], digest)


def _encoded(task: Task, records: list[Record], model: Path) -> list[Record]:
    """Rows of tokens with their label, tags or labels, as the stages encode them."""
    from triptych.data.encode import encode_sft, encode_texts
    from triptych.data.labelled import encode_tags
    from triptych.data.rows import parse_sft, parse_tags, parse_text
    from triptych.models.base import load_tokenizer

    tokenizer, length, labels = load_tokenizer(model), task.max_length, task.labels
    if task.kind == "texts":
        texts = encode_texts([parse_text(record, labels) for record in records], tokenizer, length, labels)
        return [{"input_ids": item.input_ids, "label": item.label} for item in texts.items]
    if task.kind == "tags":
        words = encode_tags([parse_tags(record, labels) for record in records], tokenizer, length, labels, "")
        return [{"input_ids": item.input_ids, "tags": item.tags} for item in words.items]
    chats = encode_sft(map(parse_sft, records), tokenizer, length)
    return [{"input_ids": item.input_ids, "labels": item.labels} for item in chats.items]
