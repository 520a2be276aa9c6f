"""Tensors and positions of prompts and prefixes."""

from triptych.models.sizes import Sizes, Tensors
from triptych.recipe.method import Method, parts_of
from triptych.recipe.virtual import GatedPrefix, PrefixTuning, PromptTuning, PTuning, PTuningV2


def prompt(method: PromptTuning | PTuning, sizes: Sizes) -> list[Tensors]:
    """The embeddings of the virtual tokens, and the encoder that makes them."""
    hidden = sizes.hidden
    shapes: list[tuple[int, ...]] = [(method.num_virtual_tokens, hidden)]
    if isinstance(method, PTuning):
        width = method.encoder_hidden_size or hidden
        if method.encoder_reparameterization_type == "lstm":
            for number in range(method.encoder_num_layers):
                inputs = hidden if number == 0 else 2 * width
                shapes += 2 * [(4 * width, inputs), (4 * width, width), (4 * width,), (4 * width,)]
            layers = [(2 * width, 2 * width), (2 * width, hidden)]
        else:
            layers = [(hidden, width), (width, width), (width, hidden)]
        shapes += _linear(*layers)
    return [Tensors(shape, in_block=False) for shape in shapes]


def prefix(method: PrefixTuning | PTuningV2 | GatedPrefix, sizes: Sizes) -> list[Tensors]:
    """Keys and values of every layer, or the encoder that makes them."""
    tokens = method.num_virtual_tokens
    if not method.prefix_projection:
        return [Tensors((tokens, sizes.kv_heads, sizes.head_dim), 2 * sizes.layers)]
    width = method.encoder_hidden_size
    shapes = [(tokens, sizes.hidden), *_linear((sizes.hidden, width), (width, sizes.kv_per_token))]
    return [Tensors(shape, in_block=False) for shape in shapes]


def gated_prefix(method: GatedPrefix, sizes: Sizes) -> list[Tensors]:
    """A prefix, and a gate that reads the hidden states of each layer."""
    gate: list[tuple[int, ...]] = [(1, sizes.hidden), (1,)]
    return prefix(method, sizes) + [Tensors(shape, sizes.layers) for shape in gate]


def positions(method: Method) -> int:
    """Positions of the model's context that a method takes before every row."""
    return sum(getattr(part, "num_virtual_tokens", 0) for part in parts_of(method))


def _linear(*layers: tuple[int, int]) -> list[tuple[int, ...]]:
    """Weight and bias of layers (inputs, outputs)."""
    return [shape for inputs, outputs in layers for shape in ((outputs, inputs), (outputs,))]
