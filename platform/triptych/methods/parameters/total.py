"""All parameters that a method, or all parts of a hybrid, trains of a model or adds to it."""

from typing import Any

from triptych.methods.table import METHODS
from triptych.models.sizes import Sizes, Tensors
from triptych.recipe.matrix import AdaLora, Dora, GatedLora, LnTuning, Lora, Pissa, Vera
from triptych.recipe.method import Method, parts_of, trains_base

_WITH_RANK = Lora | GatedLora | Dora | Pissa | Vera


def trained(method: Method, sizes: Sizes) -> list[Tensors]:
    """Tensors that a method, or each part of a hybrid, trains, in the model or added to it; without heads of roles."""
    return [tensors for part in parts_of(method) for tensors in METHODS[part.name].tensors(part, sizes)]


def added(method: Method, sizes: Sizes) -> int:
    """Elements of the blocks that a method adds to a model; none where it trains the base itself."""
    return 0 if trains_base(method) else sum(t.numel for t in trained(method, sizes) if t.in_block)


def multiplied(method: Method, sizes: Sizes) -> float:
    """Elements that a method adds to the blocks and that a token is multiplied with: of experts, those it goes to."""
    idle = 1 - (1.0 if sizes.measured is None else sizes.measured.routed)
    return added(method, sizes) - idle * sum(t.numel for t in trained(method, sizes) if t.of_experts)


def adapted(method: Method, sizes: Sizes) -> dict[str, int]:
    """Linear layers of one block whose inputs a backward pass needs, and the width of what a method makes of each."""
    if trains_base(method):
        return dict.fromkeys(sizes.linears, 0)
    # The targets of LN tuning are norms.
    parts = [part for part in parts_of(method) if part.family == "matrix" and not isinstance(part, LnTuning)]
    return {name: _width(part) for part in parts for name in sizes.targets(part.targets)}


def _width(part: Any) -> int:
    """Rank of the activation `A x` that autograd keeps; 0 for methods without one."""
    return part.init_r if isinstance(part, AdaLora) else part.r if isinstance(part, _WITH_RANK) else 0
