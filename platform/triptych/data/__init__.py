"""Rows to batches: sources, row shapes, tokens, micro-batches. Lists until the last step, no Ray."""

from triptych.data.encode import encode_pairs, encode_prompts, encode_sft, encode_texts
from triptych.data.rows import Message, PairRow, PromptRow, SftRow, SourceRows, TextRow
from triptych.data.sources import load_rows

__all__ = [
    "Message",
    "PairRow",
    "PromptRow",
    "SftRow",
    "SourceRows",
    "TextRow",
    "encode_pairs",
    "encode_prompts",
    "encode_sft",
    "encode_texts",
    "load_rows",
]
