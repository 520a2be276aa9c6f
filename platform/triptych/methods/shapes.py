"""What methods that change linear layers add to a model, from its sizes alone: no torch, no peft."""

from triptych.models.sizes import Sizes, Tensors
from triptych.recipe.method import Full, Lora


def full(method: Full, sizes: Sizes) -> list[Tensors]:
    """Every weight of the base."""
    matrices = [Tensors((outputs, inputs), sizes.layers) for inputs, outputs, _ in sizes.linears.values()]
    biases = [Tensors((outputs,), sizes.layers) for _, outputs, bias in sizes.linears.values() if bias]
    norms = [Tensors((sizes.hidden,), 2 * sizes.layers + 1)]
    norms += [Tensors((sizes.head_dim,), 2 * sizes.layers)] if sizes.qk_norm else []
    tables = Tensors((sizes.vocab, sizes.hidden), 1 if sizes.tied else 2, in_block=False)
    return [*matrices, *biases, *norms, tables]


def lora(method: Lora, sizes: Sizes) -> list[Tensors]:
    """A [r, inputs] and B [outputs, r] of each target (arXiv 2106.09685)."""
    pairs = sizes.targets(method.targets).values()
    return [Tensors(shape, sizes.layers) for i, o in pairs for shape in ((method.r, i), (o, method.r))]
