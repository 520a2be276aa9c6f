"""Operations of one worker's optimiser step, counted by kind: each kind has a speed of its own on a machine.

Products of matrices cost arithmetic, reading, and a fixed time each; what stands between them costs bytes; attention,
logits and small operations have rates of their own.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from triptych.methods.parameters.total import adapted, added, trained
from triptych.models.sizes import Sizes
from triptych.plan.activations import BYTES, FP32
from triptych.recipe import Memory, Method
from triptych.recipe.method import Freeze, parts_of, trains_base

_AGAIN = {"none": 0.0, "selective": 0.5, "full": 1.0}
"""Share of the blocks' forward pass that checkpointing computes a second time."""
_ATTENTION_BACKWARD = 2.5
"""FLOPs of attention's backward pass over those of its forward pass: the scores are computed again (Dao 2023,
arXiv 2307.08691, section 4.1)."""
_BLOCK_OPERATIONS, _ADAPTER_OPERATIONS = 100, 6
"""Small operations of a forward pass through a block, and through an adapted layer in it; twice as many backward."""
_MORE_OPERATIONS = {"dora": 14, "lokr": 13, "vera": 20}
"""Small operations of an adapted layer by method, where they are more; derived from times on a GPU."""
_CHOOSING = 1.5
"""Slowdown of an operation under selective checkpointing's dispatch."""
_UPDATE_BYTES = 40
"""Bytes per parameter that AdamW reads and writes, in float32."""
_FORWARD_SHARE = 1 / 3
"""Forward pass's share of the bytes that both passes read and write between products."""


@dataclass(frozen=True)
class Workload:
    """Amounts of each kind of operation; `Rates.seconds` turns them into time."""

    product_flops: float = 0.0
    product_bytes: float = 0.0
    products: float = 0.0
    attention_flops: float = 0.0
    stream_bytes: float = 0.0
    """Bytes read and written by elementwise operations, norms, and the optimizer."""
    logits: float = 0.0
    """Elements of the softmax over the vocabulary."""
    operations: float = 0.0

    def __add__(self, other: "Workload") -> "Workload":
        return Workload(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Workload":
        return Workload(*(amount * times for amount in astuple(self)))


AMOUNTS = tuple(field.name for field in fields(Workload))


@dataclass(frozen=True)
class Micro:
    """Number and size of the micro-batches of one worker's step."""

    count: float
    tokens: float
    """Tokens of each micro-batch, padding included."""
    length: float
    """Tokens of each row."""
    learned: float
    """Tokens of each that have logits."""


@dataclass(frozen=True)
class Computation:
    """Workloads of one role's passes: its sizes, method, precision and memory settings."""

    sizes: Sizes
    method: Method
    dtype: str
    memory: Memory

    def step(self, micro: Micro) -> Workload:
        """Workload of the forward and backward passes and the update."""
        return self.passes(micro) + self.update()

    def passes(self, micro: Micro) -> Workload:
        """Workload of the forward and backward passes."""
        again = _AGAIN[self.memory.checkpointing]
        forward = self._forward(micro)
        backward = self._linears(micro.tokens) * (1 + trains_base(self.method)) + self._thin(micro.tokens) * 2
        backward += self._attention(micro) * _ATTENTION_BACKWARD + self._between(micro.tokens) * (1 - _FORWARD_SHARE)
        blocks = forward * self.sizes.layers + (backward + forward * again) * self._learning_blocks()
        layer = blocks + self._small(again)
        return (layer + self._logits(micro, backward=True) + self._casts()) * micro.count

    def forward(self, micro: Micro) -> Workload:
        """Workload of a pass without gradients."""
        blocks = self._forward(micro) + Workload(operations=_BLOCK_OPERATIONS)
        return (blocks * self.sizes.layers + self._logits(micro, backward=False)) * micro.count

    def _forward(self, micro: Micro) -> Workload:
        """Forward workload of one block, without small operations."""
        products = self._linears(micro.tokens) + self._thin(micro.tokens)
        return products + self._attention(micro) + self._between(micro.tokens) * _FORWARD_SHARE

    def _learning_blocks(self) -> int:
        """Number of blocks that a backward pass goes through."""
        method = self.method
        if isinstance(method, Freeze) and not (method.train or method.embeddings or method.tokens):
            return min(method.layers, self.sizes.layers)
        return self.sizes.layers

    def update(self) -> Workload:
        """Workload of the optimizer's update."""
        values = sum(tensor.numel for tensor in trained(self.method, self.sizes))
        return Workload(stream_bytes=_UPDATE_BYTES * values)

    def _product(self, tokens: float, inputs: float, outputs: float) -> Workload:
        moved = tokens * inputs + inputs * outputs + tokens * outputs
        return Workload(2 * tokens * inputs * outputs, BYTES[self.dtype] * moved, 1)

    def _linears(self, tokens: float) -> Workload:
        """Workload of one product with each weight of a block."""
        sizes = self.sizes
        products = ((self._product(tokens, i, o), sizes.share(name)) for name, (i, o, _) in sizes.linears.items())
        found = _sum(product * share for product, share in products)
        plain = sum(i * o * sizes.share(name) for name, (i, o, _) in sizes.linears.items())
        beside = max(sizes.layer - plain, 0) if sizes.measured is not None else 0  # experts, state spaces
        return found + self._product(tokens, sizes.hidden, beside / sizes.hidden) if beside > sizes.hidden else found

    def _thin(self, tokens: float) -> Workload:
        """Workload of one product with each adapter matrix in a block; other methods' elements count as one matrix."""
        sizes, ranks = self.sizes, {name: rank for name, rank in adapted(self.method, self.sizes).items() if rank}
        if ranks:
            shapes = [(rank, sizes.share(name), sizes.linears[name][:2]) for name, rank in ranks.items()]
            pairs = ((self._product(tokens, i, r) + self._product(tokens, r, o)) * s for r, s, (i, o) in shapes)
            return _sum(pairs)
        extra = added(self.method, sizes) / sizes.layers
        return self._product(tokens, sizes.hidden, extra / sizes.hidden) if extra > sizes.hidden else Workload()

    def _attention(self, micro: Micro) -> Workload:
        """Forward workload of causal attention: each token sees half of its row on average."""
        seen = micro.tokens * (micro.length + 1) / 2
        return Workload(attention_flops=4 * self.sizes.heads * self.sizes.head_dim * seen)

    def _between(self, tokens: float) -> Workload:
        """Bytes moved between products, both passes: norms in float32 (each about 27 elements a token),
        residuals, the rotation of queries and keys, the gate."""
        sizes, size = self.sizes, BYTES[self.dtype]
        width = sizes.heads * sizes.head_dim + 2 * sizes.kv_heads * sizes.head_dim
        return Workload(
            stream_bytes=tokens
            * (FP32 * 54 * sizes.hidden + size * (12 * sizes.hidden + 14 * sizes.intermediate + 30 * width))
        )

    def _small(self, again: float) -> Workload:
        ranks, names = adapted(self.method, self.sizes), [part.name for part in parts_of(self.method)]
        more = max((_MORE_OPERATIONS.get(name, 0) for name in names), default=0)
        adapter = more * len(ranks) if more else _ADAPTER_OPERATIONS * sum(rank > 0 for rank in ranks.values())
        slower = _CHOOSING if self.memory.checkpointing == "selective" else 1.0
        passes = self.sizes.layers + self._learning_blocks() * (2 + again)
        return Workload(operations=(_BLOCK_OPERATIONS + adapter) * passes * slower)

    def _logits(self, micro: Micro, *, backward: bool) -> Workload:
        if not micro.learned:
            return Workload()
        chunks = max(1.0, micro.learned / (self.memory.loss_chunk or micro.learned))
        product = self._product(micro.learned / chunks, self.sizes.hidden, self.sizes.vocab) * chunks
        times = 1 + backward * (1 + trains_base(self.method))
        return product * times + Workload(logits=micro.learned * self.sizes.vocab * (1 if backward else 0.5))

    def _casts(self) -> Workload:
        """Bytes of casting float32 weights to the precision of the computation, and their gradients back."""
        if not trains_base(self.method) or BYTES[self.dtype] == FP32:
            return Workload()
        return Workload(stream_bytes=2 * (FP32 + BYTES[self.dtype]) * self.sizes.total)


def _sum(parts: Iterable[Workload]) -> Workload:
    total = Workload()
    for part in parts:
        total += part
    return total
