"""Where rows come from."""

from pydantic import Field

from triptych.recipe.base import Closed, Count


class Source(Closed):
    """One table of rows.

    Row shapes: SFT `{messages: [...]}` or `{prompt, response}`; classification `{text, label}`; reward
    `{prompt, chosen, rejected, margin?}` or `{prompt, answers: [...], scores: [...]}`, of which every two answers whose
    scores differ are a pair; PPO `{prompt}` or `{messages}`; token classification
    `{tokens: [...], tags: [...]}`; question answering `{question, context, answers: {text: [...], answer_start:
    [...]}}`. A prompt is a string or a list of chat messages.
    """

    path: str = Field(min_length=1)
    """A .jsonl, .parquet or .csv file (any fsspec URL), or `hf://owner/name`."""
    split: str = "train"
    """Split of an `hf://` data set."""
    columns: dict[str, str] = {}
    """Our column name -> the file's column name, where they differ."""
    limit: Count | None = None
    """Use only the first rows."""
    max_bad_rows: int = Field(0, ge=0)
    """Malformed rows are dropped and counted; more than this many refuse the source."""


class Data(Closed):
    """What a stage learns from, and what it is measured on."""

    train: Source
    heldout: Source | None = None

    def splits(self) -> dict[str, Source]:
        """The sources that are there, by name."""
        return {"train": self.train} | ({"heldout": self.heldout} if self.heldout else {})
