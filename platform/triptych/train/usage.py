"""Counts of the tokens that a batch holds and computes."""

from itertools import pairwise

from triptych.data.batches import common_prefix
from triptych.methods.flops import TokenCounts
from triptych.objectives import IGNORE
from triptych.train.batch import Batch


def real_tokens(batch: Batch) -> int:
    """Tokens of a batch, padding apart."""
    return int(batch["mask"].sum())


def token_counts(batch: Batch, *, shared: bool) -> TokenCounts:
    """Tokens, logits and attended pairs of a batch on the CPU; `shared`: common prefixes of rows are computed once."""
    lengths = batch["mask"].sum(dim=1).tolist()
    tokens, attended = sum(lengths), sum(_seen(length) for length in lengths)
    if shared:
        rows = sorted(row[kept].tolist() for row, kept in zip(batch["ids"], batch["mask"].bool(), strict=True))
        twice = [common_prefix(one, other) for one, other in pairwise(rows)]
        tokens, attended = tokens - sum(twice), attended - sum(map(_seen, twice))
    return TokenCounts(tokens, _logits(batch), attended)


def _logits(batch: Batch) -> int:
    """Tokens whose logits are made: those with a label, or those of answers."""
    if "labels" in batch:
        return int((batch["labels"][:, 1:] != IGNORE).sum())
    return int(batch["length"].sum()) if "length" in batch else 0


def _seen(length: int) -> int:
    """Pairs of a token and one that it sees, in a causal row of this length."""
    return length * (length + 1) // 2
