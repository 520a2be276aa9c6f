"""Model FLOPs: what the mathematics of a pass needs, whatever is computed twice to save memory.

A weight costs two FLOPs a token forward, two more for the gradient of its input, and two more for its own gradient
where it is trained (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Attention's two products cost 4 x width for
each pair of a token and one that it sees, and twice as much backward (Chowdhery et al. 2022, arXiv 2204.02311,
appendix B, but of the causal half alone). Heads that read one token a row are left out.
"""

from dataclasses import dataclass

from triptych.methods.parameters.total import multiplied
from triptych.models.sizes import Sizes
from triptych.recipe.method import Method, trains_base


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of a pass that its FLOPs depend on; expected values may be fractions."""

    tokens: float = 0.0
    """Tokens that go through the blocks."""
    logits: float = 0.0
    """Tokens whose logits are needed."""
    attended: float = 0.0
    """Pairs of a token and a token that it sees, itself included: n (n + 1) / 2 for a row of n."""

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(self.tokens + other.tokens, self.logits + other.logits, self.attended + other.attended)


def forward_flops(sizes: Sizes, method: Method, counts: TokenCounts) -> float:
    """FLOPs of a forward pass."""
    return _base(sizes, counts) + _added(sizes, method, counts) + _attention(sizes, counts)


def train_flops(sizes: Sizes, method: Method, counts: TokenCounts) -> float:
    """FLOPs of a forward and a backward pass: a frozen weight has no gradient, its input has."""
    base, new = _base(sizes, counts), _added(sizes, method, counts)
    trained = base if trains_base(method) else new
    return 2 * (base + new) + trained + 3 * _attention(sizes, counts)


def _base(sizes: Sizes, counts: TokenCounts) -> float:
    return 2 * (sizes.layers * sizes.layer * counts.tokens + sizes.embedding * counts.logits)


def _added(sizes: Sizes, method: Method, counts: TokenCounts) -> float:
    return 2.0 * multiplied(method, sizes) * counts.tokens


def _attention(sizes: Sizes, counts: TokenCounts) -> float:
    return 4 * sizes.layers * sizes.heads * sizes.head_dim * counts.attended
