"""Tensors of methods that change linear layers and norms."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from triptych.errors import UserError
from triptych.methods.parameters.base_weights import parameter_shapes
from triptych.models.peft_files import of_module
from triptych.models.sizes import Experts, Sizes, Tensors
from triptych.recipe.matrix import AdaLora, Dora, GatedLora, Ia3, LnTuning, Lokr, Lora, Pissa

Shape = tuple[int, ...]


def low_rank(method: Lora | Dora | Pissa, sizes: Sizes) -> list[Tensors]:
    """A [r, inputs] and B [outputs, r] of each target (arXiv 2106.09685); DoRA's lengths [outputs].

    Those of experts have the rows and columns of each expert after one another.
    """

    def shapes(name: str, inputs: int, outputs: int, experts: int = 1) -> list[Shape]:
        rank = experts * of_module(method.rank_pattern, name, method.r)
        found: list[Shape] = [(outputs, rank)]
        if not (isinstance(method, Lora) and method.freeze_a):
            found.append((rank, inputs))
        return [*found, (outputs,)] if isinstance(method, Dora) else found

    reached = reached_experts(method, sizes.experts)
    of_experts = _counted(shape for name, (n, i, o) in reached.items() for shape in shapes(name, i, o, n))
    plain = _counted(shape for site in _sites(method, sizes) for shape in shapes(*site))
    return plain + [replace(tensors, of_experts=True) for tensors in of_experts]


def reached_experts(method: Any, experts: Mapping[str, Experts]) -> dict[str, Experts]:
    """Weights of a mixture's experts that a method trains low-rank matrices for: of all blocks or of its `layers`.

    Raises:
        UserError: peft adds none to experts as the method says.
    """
    if not (isinstance(method, Lora) and method.experts and method.targets == "all-linear"):
        return {}
    found = {name: e for name, e in experts.items() if method.layers is None or block_of(name) in method.layers}
    if found and method.dropout:
        _refuse_on_experts("dropout", method.dropout, "0", found)
    if found and method.init not in ("default", "gaussian"):
        _refuse_on_experts("init", method.init, "default or gaussian", found)
    return found


def _refuse_on_experts(field: str, value: Any, allowed: str, experts: Mapping[str, Experts]) -> NoReturn:
    raise UserError(
        f"method.{field}: {value}, which LoRA on experts has no place for, and all-linear reaches those of this "
        f"mixture ({next(iter(experts))} and {len(experts) - 1} more); allowed: {allowed}, or `experts: false`, which "
        "leaves them as they are"
    )


def block_of(name: str) -> int:
    """Number of the block that a layer is in; -1 outside."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def gated_lora(method: GatedLora, sizes: Sizes) -> list[Tensors]:
    """A [r, inputs], B [outputs, r] and a gate that reads the inputs, of each target."""
    r = method.r
    return _counted(shape for _, i, o in _sites(method, sizes) for shape in ((r, i), (o, r), (1, i), (1,)))


def adalora(method: AdaLora, sizes: Sizes) -> list[Tensors]:
    """A [r, inputs], E [r, 1] and B [outputs, r] of each target, with the rank of the start."""
    r = method.init_r
    return _counted(shape for _, i, o in _sites(method, sizes) for shape in ((r, i), (r, 1), (o, r)))


def ia3(method: Ia3, sizes: Sizes) -> list[Tensors]:
    """A factor of each input of a feed-forward target, or of each output of another."""
    inner = tuple(f".{ending}" for ending in method.feedforward)
    return _counted((1, i) if f".{name}".endswith(inner) else (o, 1) for name, i, o in _sites(method, sizes))


def ln_tuning(method: LnTuning, sizes: Sizes) -> list[Tensors]:
    """The weights of the norms."""
    endings = tuple(f".{target}.weight" for target in method.targets)
    return _counted(shape for name, shape in parameter_shapes(sizes).items() if name.endswith(endings))


def peft(method: Any, sizes: Sizes) -> list[Tensors]:
    """Tensors of one of peft's further families on each target; a bank of vectors that all share counts once."""
    for field in ("oft_block_size", "boft_block_size", "block_size", "vector_length"):
        _check_divides(method, field, sizes)
    made = _counted(shape for _, i, o in _sites(method, sizes) for shape in _SHAPES[method.name](method, i, o))
    bank = [Tensors((method.num_vectors, method.vector_length), in_block=False)] if method.name == "vblora" else []
    return made + bank


def _check_divides(method: Any, field: str, sizes: Sizes) -> None:
    """UserError where a block size of the method does not divide a target."""
    block = getattr(method, field, None)
    if block is None:
        return
    outputs_too = field in ("block_size", "vector_length")
    for name, (inputs, outputs) in sizes.targets(method.targets).items():
        if inputs % block or (outputs_too and outputs % block):
            lengths = [n for i, o in sizes.targets(method.targets).values() for n in ((i, o) if outputs_too else (i,))]
            raise UserError(
                f"method.{field}: {block} does not divide {name}, {inputs} x {outputs}; "
                f"allowed: divisors of {math.gcd(*lengths)}, or other method.targets"
            )


def _lokr(method: Lokr, i: int, o: int) -> list[Shape]:
    (out_1, out_2), (in_1, in_2) = (factors(size, method.decompose_factor) for size in (o, i))
    r = method.r
    whole_1 = not (method.decompose_both and r < max(out_1, in_1) / 2)
    whole_2 = r >= max(out_2, in_2) / 2
    found: list[Shape] = [
        *([(out_1, in_1)] if whole_1 else [(out_1, r), (r, in_1)]),
        *([(out_2, in_2)] if whole_2 else [(out_2, r), (r, in_2)]),
    ]
    return found


def factors(size: int, wanted: int) -> tuple[int, int]:
    """Two factors of a size, the smaller first: `wanted` if it divides the size, else as equal as up to it possible."""
    if wanted > 0 and size % wanted == 0:
        return wanted, size // wanted
    most = size if wanted == -1 else wanted
    low, high = 1, size
    while low < high:
        following = next(n for n in range(low + 1, size + 1) if size % n == 0)
        if following + size // following > low + high or following > most:
            break
        low, high = following, size // following
    return min(low, high), max(low, high)


_SHAPES: dict[str, Callable[[Any, int, int], Sequence[Shape]]] = {
    "vera": lambda m, i, o: [(o,), (m.r,)],
    "loha": lambda m, i, o: 2 * [(o, m.r), (m.r, i)],
    "lokr": _lokr,
    "oft": lambda m, i, o: [(i // m.oft_block_size, m.oft_block_size * (m.oft_block_size - 1) // 2)],
    "boft": lambda m, i, o: [(1, i // m.boft_block_size, m.boft_block_size, m.boft_block_size), (o, 1)],
    "hra": lambda m, i, o: [(i, m.r)],
    "miss": lambda m, i, o: [(m.r, o)],
    "fourierft": lambda m, i, o: [(m.n_frequency,)],
    "randlora": lambda m, i, o: [(m.r, -(-min(i, o) // m.r)), (-(-min(i, o) // m.r), min(i, o))],
    "vblora": lambda m, i, o: [(m.r, i // m.vector_length, m.num_vectors), (o // m.vector_length, m.r, m.num_vectors)],
    "shira": lambda m, i, o: [(m.r * (i + o),)],
    "c3a": lambda m, i, o: [(o // m.block_size, i // m.block_size, m.block_size)],
}
"""Shapes that peft makes for a layer with i inputs and o outputs, by method."""


def _sites(method: Any, sizes: Sizes) -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of every targeted layer of the model."""
    chosen = sizes.targets(method.targets)
    layers = getattr(method, "layers", None)
    wrong = [number for number in layers or () if number >= sizes.layers]
    if wrong:
        raise UserError(f"method.layers: {wrong[0]}; allowed: 0 to {sizes.layers - 1}")
    for name, (inputs, outputs) in chosen.items():
        for number in sizes.blocks_with(name):
            if layers is None or number in layers:
                yield f"model.layers.{number}.{name}", inputs, outputs


def _counted(shapes: Iterator[Shape]) -> list[Tensors]:
    return [Tensors(shape, count) for shape, count in Counter(shapes).items()]
