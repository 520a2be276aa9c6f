"""Sources of rows."""

from typing import Literal

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, NoEffect


class Source(Closed):
    """One table of rows.

    Row shapes: SFT `{messages: [...]}` or `{prompt, response}`; classification `{text, label}`; reward
    `{prompt, chosen, rejected, margin?}` or `{prompt, answers: [...], scores: [...]}`, of which every two answers whose
    scores differ are a pair; PPO `{prompt}` or `{messages}`; token classification
    `{tokens: [...], tags: [...]}`; question answering `{question, context, answers: {text: [...], answer_start:
    [...]}}`. A prompt is a string or a list of chat messages. Rows of chats may have `tools`; a message may have
    `tool_calls`, `tool_call_id`, `name`, `reasoning_content`, and an assistant's `weight` (or `train`), 0 where it is
    read and not learned.
    """

    path: str | None = Field(None, min_length=1)
    """A .jsonl, .parquet or .csv file (any fsspec URL), or `hf://owner/name`."""
    stage: str | None = None
    """Stage of the recipe whose data set is read, in place of a path."""
    split: str = "train"
    """Split of an `hf://` data set."""
    columns: dict[str, str] = {}
    """Our column name -> the file's column name, where they differ."""
    control_tokens: NoEffect[Literal["refuse", "escape"]] = "refuse"
    """Chats whose text holds control tokens (`<|im_end|>`): malformed rows, or a space takes each token apart."""
    limit: Count | None = None
    """Use only the first rows."""
    max_bad_rows: NoEffect[int] = Field(0, ge=0)
    """Malformed rows are dropped and counted; more than this many refuse the source."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        if (self.path is None) == (self.stage is None):
            raise ValueError("give exactly one of `path` and `stage`")
        return self

    @property
    def file(self) -> str:
        """Path or URL of the rows. ValueError: the output of a stage, which has no path before its run is known."""
        if self.path is None:
            raise ValueError(f"the output of stage {self.stage} has no path yet")
        return self.path


class Data(Closed):
    """Training and held-out rows of a stage."""

    train: Source
    """Rows that are learned from."""
    heldout: Source | None = None
    """Rows that are only measured on; None: nothing is measured."""

    def splits(self) -> dict[str, Source]:
        """The sources that are there, by name."""
        return {"train": self.train} | ({"heldout": self.heldout} if self.heldout else {})
