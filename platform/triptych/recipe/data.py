"""Sources of rows."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, NoEffect
from triptych.recipe.spec import Path


class Origin(Closed):
    """One table of rows, and the rows of it that are used."""

    path: str | None = Field(None, min_length=1)
    """A .jsonl, .json, .csv, .tsv, .parquet, .arrow or CoNLL (.conll, .bio, .txt) file at any fsspec URL, also as .gz,
    .zst or .zip; a folder of .parquet or .arrow files; or `hf://owner/name`."""
    stage: str | None = None
    """Stage of the recipe whose data set is read, in place of a path."""
    split: str = "train"
    """Split of an `hf://` data set, perhaps a slice such as `train[:10%]`, or of a folder whose files are named so."""
    config: str | None = None
    """Configuration of an `hf://` data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of an `hf://` data set."""
    columns: dict[str, str] = {}
    """Our column name -> the file's column name, where they differ."""
    sample: Count | None = None
    """Use only so many rows, drawn at random without replacement; they keep their order."""
    shuffle: bool | None = None
    """True: rows come in a random order, and `limit` takes the first of that."""
    seed: int | None = Field(None, ge=0)
    """Seed of `sample`, `shuffle` and weights; None: 0."""
    limit: Count | None = None
    """Use only the first rows."""

    @property
    def file(self) -> str:
        """Path or URL of the rows. ValueError: the output of a stage, which has no path before its run is known."""
        if self.path is None:
            raise ValueError(f"the output of stage {self.stage} has no path yet")
        return self.path

    @model_validator(mode="after")
    def _one_choice(self) -> "Origin":
        if self.sample is not None and self.limit is not None:
            raise ValueError("give one of `sample` and `limit`: a sample has its number of rows already")
        if self.path is not None and not self.path.startswith("hf://"):
            for name in ("config", "revision"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` is of hf:// data sets, and the path is another")
        return self


class MixturePart(Origin):
    """A table in a mixture."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each row is used: 2 is twice, 0.25 a random quarter of the rows."""

    @model_validator(mode="after")
    def _one_origin(self) -> "MixturePart":
        if (self.path is None) == (self.stage is None):
            raise ValueError("give exactly one of `path` and `stage`")
        return self


class Source(Origin):
    """Rows of one table, or of several.

    Row shapes: SFT `{messages: [...]}` or `{prompt, response}`; classification `{text, label}`; reward
    `{prompt, chosen, rejected, margin?}` or `{prompt, answers: [...], scores: [...]}`, of which every two answers whose
    scores differ are a pair; DPO the same; KTO `{prompt, completion, label}` or pairs; RRHF `{prompt, answers: [...],
    scores: [...]}` or pairs; PPO `{prompt}` or `{messages}`; token classification
    `{tokens: [...], tags: [...]}`; question answering `{question, context, answers: {text: [...], answer_start:
    [...]}}`. A prompt is a string or a list of chat messages. Chats, pairs and prompts may also have the shapes of
    alpaca, dolly, ShareGPT, TRL and hh, or be questions with answers: `triptych data check` says which it found. Rows
    of chats may have `tools`; a message may have `tool_calls`, `tool_call_id`, `name`, `reasoning_content`, and an
    assistant's `weight` (or `train`), 0 where it is read and not learned.
    """

    mix: tuple[MixturePart, ...] | None = Field(None, min_length=1)
    """Tables whose rows follow each other, in place of a path: `[{path: a.jsonl, weight: 2}, {path: b.csv}]`."""
    control_tokens: NoEffect[Literal["refuse", "escape"]] = "refuse"
    """Chats whose text holds control tokens (`<|im_end|>`): malformed rows, or a space takes each token apart."""
    max_bad_rows: NoEffect[int] = Field(0, ge=0)
    """Malformed rows are dropped and counted; more than this many refuse the source."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        if sum(given is not None for given in (self.path, self.stage, self.mix)) != 1:
            raise ValueError("give exactly one of `path` and `stage`, or `mix`")
        if self.mix is not None:
            set_here = [name for name in ("columns", "config", "revision") if getattr(self, name)]
            if set_here or self.split != "train":
                raise ValueError(f"with `mix`, `{(set_here or ['split'])[0]}` is set on each of its tables")
        return self

    @property
    def name(self) -> str:
        """Paths of the rows, as messages name them."""
        return " + ".join(origin.file for _, origin in self.origins())

    def origins(self) -> Iterator[tuple[Path, Origin]]:
        """Each table that rows are read from, and the path of its fields below the source."""
        if self.mix is None:
            yield (), self
        else:
            yield from ((("mix", index), part) for index, part in enumerate(self.mix))

    def changed(self, change: Callable[[Origin], dict[str, Any]]) -> "Source":
        """The same source with some fields of each table changed."""
        if self.mix is None:
            return self.model_copy(update=change(self))
        return self.model_copy(update={"mix": tuple(part.model_copy(update=change(part)) for part in self.mix)})


class Data(Closed):
    """Training and held-out rows of a stage."""

    train: Source
    """Rows that are learned from."""
    heldout: Source | None = None
    """Rows that are only measured on; None: nothing is measured."""

    def splits(self) -> dict[str, Source]:
        """The sources that are there, by name."""
        return {"train": self.train} | ({"heldout": self.heldout} if self.heldout else {})
