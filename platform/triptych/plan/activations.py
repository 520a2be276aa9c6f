"""A closed form of the memory that one role's forward and backward pass keep.

The bytes of a block were counted on the learner: the tensors that are alive after the forward pass.
"""

from dataclasses import dataclass

from triptych.methods.parameters.base_weights import reached
from triptych.methods.parameters.total import adapted, trained
from triptych.models.sizes import Sizes
from triptych.recipe import Memory, Method
from triptych.recipe.matrix import Dora
from triptych.recipe.method import parts_of, trains_base

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FP32 = 4

LOGIT_BYTES = {"float32": 12, "bfloat16": 14, "float16": 14}
"""Bytes an element of the logits that exist at once, as counted: three float32 tensors, and the logits themselves where
they are in half precision."""
_SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Layers of a block that read one tensor."""


@dataclass(frozen=True)
class RolePass:
    """Activation memory of one role's pass over a micro-batch."""

    sizes: Sizes
    method: Method
    dtype: str
    """Precision of the computation."""
    packing: bool
    memory: Memory
    length: int
    """Tokens of the longest row."""
    float32_base: bool = False
    """The base is held in float32, whatever is computed in: all of it trains, or the strategy wants it so."""

    @property
    def residual_bytes(self) -> int:
        """Bytes of one element of the residual stream between blocks."""
        return FP32 if self.float32_base else BYTES[self.dtype]

    def activations(self) -> int:
        """Bytes per token at the peak: tensors kept by blocks with a gradient, and the backward pass's workspace."""
        sizes, block = self.sizes, self.block()
        again = 0 if self.memory.checkpointing == "none" else block
        working = FP32 * (2 * sizes.intermediate + 2 * sizes.hidden)
        return reached(parts_of(self.method), sizes) * self.checkpoint() + again + working

    def forward(self) -> int:
        """Bytes per token at the peak of a pass without gradients: of one block, and between blocks."""
        sizes = self.sizes
        return self.block() + FP32 * (sizes.intermediate + 2 * sizes.hidden)

    def checkpoint(self) -> int:
        """Bytes per token that one block keeps until its backward pass."""
        sizes, size = self.sizes, BYTES[self.dtype]
        if self.memory.checkpointing == "none":
            return self.block()
        beginning = self.residual_bytes * sizes.hidden
        if self.memory.checkpointing == "full":
            return beginning
        attention = size * sizes.heads * sizes.head_dim + FP32 * sizes.heads
        return beginning + attention + size * sum(self._products()[::2])

    def block(self) -> int:
        """Bytes per token that autograd keeps of one block without activation checkpointing.

        Inputs of the norms (float32), and outputs before the weight where that is trained; queries, keys, values,
        output and log-sum-exp of attention (16 bits on a CPU do without these two), with a mask and keys and values for
        every head where rows are padded; gate, its activation and the up projection; the input of every trained or
        adapted layer and A's output; of a layer with DoRA, what the base and the adapter give.
        """
        sizes, size, full = self.sizes, BYTES[self.dtype], trains_base(self.method)
        normed = 2 * sizes.hidden + sizes.qk_norm * sizes.head_dim * (sizes.heads + sizes.kv_heads)
        queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        attention = 2 * queries + 2 * keys if self.packing else 4 * queries + self.length
        norms = FP32 * (normed * (2 if full else 1) + 2)
        return (
            norms + FP32 * sizes.heads + size * (attention + 3 * sizes.intermediate + self._inputs() + self._scaled())
        )

    def logits(self, learned: float) -> int:
        """Bytes at the peak of the loss over `learned` tokens: a chunk's logits and the gradients left."""
        sizes = self.sizes
        at_once = min(learned, self.memory.loss_chunk or learned)
        chunk = LOGIT_BYTES[self.dtype] * at_once * sizes.vocab
        if any(tensor.shape == (sizes.vocab, sizes.hidden) for tensor in trained(self.method, sizes)):
            # A gradient of the embeddings' size exists beside the logits, and two when they are gone.
            table = FP32 * sizes.embedding
            return int(max(chunk + table, 2 * table))
        return int(chunk + self.residual_bytes * learned * sizes.hidden)

    def _inputs(self) -> int:
        """Elements per token that the trained layers of a block read, and that their A matrices give."""
        ranks = adapted(self.method, self.sizes)
        alone = self.float32_base and self.dtype != "float32"  # each layer casts its input for itself
        reading = {name: self.sizes.share(name) * self.sizes.linears[name][0] for name in ranks}
        total = sum(rank * self.sizes.share(name) for name, rank in ranks.items())
        for group in _SHARED_INPUTS:
            widths = [reading.pop(name) for name in ranks if name.endswith(group) and name in reading]
            if group == ("o_proj",) and not self.packing:
                continue  # attention's output itself; packed rows are joined anew
            total += sum(widths) if alone else max(widths, default=0)
        return int(total + sum(reading.values()))

    def _scaled(self) -> int:
        """Elements per token that lengths multiply, by which the gradients of the lengths come."""
        doras = [part for part in parts_of(self.method) if isinstance(part, Dora)]
        names = [name for part in doras for name in adapted(part, self.sizes)]
        return int(2 * sum(self.sizes.share(name) * self.sizes.linears[name][1] for name in names))

    def _products(self) -> list[int]:
        """Width of every frozen or trained layer of a block, in order; what adapters multiply is not counted."""
        sizes = self.sizes
        return [int(outputs * sizes.share(name)) for name, (_, outputs, _) in sizes.linears.items()]
