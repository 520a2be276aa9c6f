"""Tensors of methods that train weights or biases of the base itself: full, partial tuning, BitFit."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from triptych.errors import UserError
from triptych.models.sizes import Sizes, Tensors
from triptych.recipe.method import BitFit, Freeze, Full

_BLOCK = re.compile(r"\.(\d+)\.")
"""The first number in a parameter's name is that of its block."""


def full(method: Full, sizes: Sizes) -> list[Tensors]:
    """Every weight of the base."""
    if sizes.measured is not None:
        return _as_they_are(sizes.measured.parameters)
    matrices = [Tensors((outputs, inputs), sizes.layers) for inputs, outputs, _ in sizes.linears.values()]
    biases = [Tensors((outputs,), sizes.layers) for _, outputs, bias in sizes.linears.values() if bias]
    norms = [Tensors((sizes.hidden,), 2 * sizes.layers + 1)]
    norms += [Tensors((sizes.head_dim,), 2 * sizes.layers)] if sizes.qk_norm else []
    tables = Tensors((sizes.vocab, sizes.hidden), 1 if sizes.tied else 2, in_block=False)
    return [*matrices, *biases, *norms, tables]


def bitfit(config: BitFit, sizes: Sizes) -> list[Tensors]:
    """The change of each bias."""
    chosen = biased_layers(config, {name: bias for name, (_, _, bias) in sizes.linears.items()})
    return [Tensors((sizes.linears[name][1],), len(sizes.blocks_with(name))) for name in chosen]


def freeze(config: Freeze, sizes: Sizes) -> list[Tensors]:
    """The weights that are trained."""
    shapes = parameter_shapes(sizes)
    tables = 1 if sizes.tied else 2
    rows = [Tensors((len(set(config.tokens)), sizes.hidden), tables, in_block=False)] if config.tokens else []
    return _as_they_are({name: shapes[name] for name in trained_parameters(config, shapes)}) + rows


def _as_they_are(shapes: Mapping[str, tuple[int, ...]]) -> list[Tensors]:
    """Parameters of the base, equal ones together."""
    found = Counter((shape, _BLOCK.search(name) is not None) for name, shape in shapes.items())
    return [Tensors(shape, count, in_block) for (shape, in_block), count in found.items()]


def biased_layers(config: BitFit, layers: Mapping[str, bool]) -> list[str]:
    """Names of the layers whose biases are trained; `layers`: name -> whether it has a bias.

    Raises:
        UserError: a target is no layer, or a layer that is to be trained has no bias.
    """
    chosen = list(layers)
    if config.targets != "all":
        chosen = [name for name in layers if any(_ends(name, target) for target in config.targets)]
        wrong = [target for target in config.targets if not any(_ends(name, target) for name in layers)]
        if wrong:
            endings = sorted({name.rpartition(".")[2] for name in layers})
            raise UserError(f"method.targets: {wrong[0]!r} is no layer of this model; allowed: {', '.join(endings)}")
    if config.missing == "add":
        return chosen
    with_bias = [name for name in chosen if layers[name]]
    if not with_bias or (config.targets != "all" and len(with_bias) < len(chosen)):
        lacking = "no layer" if config.targets == "all" else f"not each of {', '.join(config.targets)}"
        raise UserError(
            f"method.name: bitfit trains biases, and {lacking} of this model has one; allowed: method.missing: add "
            "(each such layer gets a bias that starts at zero), or method ln_tuning"
        )
    return with_bias


def trained_parameters(config: Freeze, names: Iterable[str]) -> list[str]:
    """Names of a model's parameters that are trained, of all its `names`.

    Raises:
        UserError: a pattern matches none of them, or there are fewer layers than are to be trained.
    """
    names = list(names)
    blocks = {name: int(found[1]) for name in names if (found := _BLOCK.search(name))}
    count = max(blocks.values(), default=-1) + 1
    if config.layers > count:
        raise UserError(f"method.layers: {config.layers}, and the model has {count}; allowed: 0 to {count}")
    for pattern in config.train:
        if not any(_matches(name, pattern) for name in names):
            tied = "; this model's output head shares the weights of embed_tokens" if "lm_head" in pattern else ""
            raise UserError(f"method.train: {pattern!r} matches no parameter{tied}; allowed: {_examples(names)}")
    chosen = [
        name
        for name in names
        if blocks.get(name, -1) >= count - config.layers
        or any(_matches(name, pattern) for pattern in config.train)
        or (config.embeddings and _ends(name, "embed_tokens.weight"))
    ]
    if config.tokens and any(_ends(name, "embed_tokens.weight") for name in chosen):
        raise UserError("method.tokens: method.train trains the rows of all tokens; allowed: one of the two")
    return chosen


def reached(parts: Iterable[Any], sizes: Sizes) -> int:
    """Number of blocks that a backward pass goes through: from the lowest with trained parameters to the last."""
    lowest = sizes.layers
    for part in parts:
        if isinstance(part, Freeze):
            names = trained_parameters(part, parameter_shapes(sizes))
            below = part.tokens or any(_ends(name, "embed_tokens.weight") for name in names)
            blocks = [int(found[1]) for name in names if (found := _BLOCK.search(name))]
            lowest = 0 if below else min([lowest, *blocks])
        else:
            lowest = min([lowest, *(getattr(part, "layers", None) or [0])])
    return sizes.layers - lowest


def parameter_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every parameter of a model by its name in transformers; a head that is tied is no parameter of its own."""
    if sizes.measured is not None:
        return dict(sizes.measured.parameters)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes.vocab, sizes.hidden)}
    for number in range(sizes.layers):
        block = f"model.layers.{number}"
        for name, (inputs, outputs, bias) in sizes.linears.items():
            found[f"{block}.{name}.weight"] = (outputs, inputs)
            if bias:
                found[f"{block}.{name}.bias"] = (outputs,)
        norms = {"input_layernorm": sizes.hidden, "post_attention_layernorm": sizes.hidden}
        if sizes.qk_norm:
            norms |= {"self_attn.q_norm": sizes.head_dim, "self_attn.k_norm": sizes.head_dim}
        found |= {f"{block}.{name}.weight": (size,) for name, size in norms.items()}
    found["model.norm.weight"] = (sizes.hidden,)
    if not sizes.tied:
        found["lm_head.weight"] = (sizes.vocab, sizes.hidden)
    return found


def _matches(name: str, pattern: str) -> bool:
    """True if a pattern is an ending of a parameter's or its module's name, or matches the whole name as a regex."""
    return _ends(name, pattern) or _ends(name.rpartition(".")[0], pattern) or re.fullmatch(pattern, name) is not None


def _ends(name: str, ending: str) -> bool:
    return f".{name}".endswith(f".{ending}")


def _examples(names: Sequence[str]) -> str:
    """Endings of names, each once."""
    return ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names}))
