"""Prefix tuning and P-tuning v2: trained keys and values that stand before every row in every layer's attention.

Prefix tuning (Li & Liang 2021, arXiv 2101.00190) makes them by an encoder, P-tuning v2 (Liu et al. 2022, arXiv
2110.07602) trains them as they are; either can do the other's. The keys are those after rotation, as a cache of keys
and values holds them. They start as a real text's: random ones ruin the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PrefixTuningConfig
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from triptych.errors import UserError
from triptych.methods.base import Attachment, Export, Prefix
from triptych.methods.layers import linear
from triptych.methods.prompt import EMBEDDINGS, hold, token_ids
from triptych.models.blocks import decoder_blocks
from triptych.recipe.virtual import GatedPrefix, PrefixTuning, PTuningV2

PrefixMethod = PrefixTuning | PTuningV2 | GatedPrefix

TEXT = (
    "The following is a conversation between a person and a helpful assistant. The assistant reads what it is given "
    "with care, says what is true and to the point, and answers in plain words. It keeps to the question, to the form "
    "that was asked for, and to the facts that it knows. Where something is not clear, it says so; where there is more "
    "than one answer, it gives the best one first. "
)
"""Text whose keys and values a prefix starts as, if the recipe gives no other."""


class LayerPrefix(nn.Module):
    """The keys and values [P, K, D] of one layer, trained as they are."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = nn.Parameter(key.clone()), nn.Parameter(value.clone())

    def forward(self, given: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        return _for_rows(self.key, given, rows), _for_rows(self.value, given, rows)


class PrefixEncoder(nn.Module):
    """Two layers that make all keys and values [layers, 2, P, K, D]; `start` is added to what they give."""

    start: Tensor

    def __init__(self, start: Tensor, width: int, hidden: int, *, silent: bool) -> None:
        """`silent`: the last layer gives zero at first."""
        super().__init__()
        layers, both, tokens, heads, size = start.shape
        self.embedding = nn.Embedding(tokens, width)
        last = linear(hidden, layers * both * heads * size)
        if silent:
            nn.init.zeros_(last.weight)
        self.transform = nn.Sequential(linear(width, hidden), nn.Tanh(), last)
        self.register_buffer("start", start)

    def forward(self) -> Tensor:
        layers, both, tokens, heads, size = self.start.shape
        with torch.autocast(self.start.device.type, enabled=False):
            made = self.transform(self.embedding(torch.arange(tokens, device=self.start.device)))
            return self.start + made.view(tokens, layers, both, heads, size).permute(1, 2, 0, 3, 4)


class PrefixAttachment(Attachment):
    """A prefix whose keys and values are parameters of the blocks, or come from an encoder on the decoder."""

    def __init__(self, length: int, parts: list[LayerPrefix] | PrefixEncoder) -> None:
        self.prefix_length = length
        self._parts = parts

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by the names of their files."""
        if isinstance(self._parts, PrefixEncoder):
            return dict(self._parts.named_parameters())
        layers = enumerate(self._parts)
        return {f"layer.{number}.{name}": p for number, layer in layers for name, p in layer.named_parameters()}

    def buffers(self) -> dict[str, Tensor]:
        """Tensors of the state that are not trained."""
        return {"start": self._parts.start} if isinstance(self._parts, PrefixEncoder) else {}

    def activate(self, on: bool) -> None:
        """The prefix acts where it is called."""

    def prefix(self) -> Prefix:
        """Function that gives each layer its keys and values in this pass."""
        if isinstance(self._parts, PrefixEncoder):
            return partial(_encoded, self._parts().unbind())
        return partial(_own, self._parts)


def attach(model: PreTrainedModel, method: PrefixMethod, role: str) -> PrefixAttachment:
    """The prefix of a role, new; the model must be as it is without any method.

    Raises:
        UserError: a model whose attention cannot take one, or `init: text` and no tokenizer beside the model.
    """
    if not model._supports_attention_backend:
        raise UserError(
            f"method.name: {method.name} stands inside attention, which in a {type(model).__name__} cannot be "
            "replaced; allowed: another method, such as lora or prompt_tuning"
        )
    count = method.num_virtual_tokens
    ids = token_ids(model, method.init_text or TEXT, count) if method.init == "text" else [0] * count
    start = keys_and_values(model, ids)
    if method.prefix_projection:
        begin = start if method.init == "text" else torch.zeros_like(start)
        encoder = PrefixEncoder(
            begin, model.config.hidden_size, method.encoder_hidden_size, silent=method.init == "text"
        )
        hold(getattr(model, model.base_model_prefix), "prefix_encoders", role, encoder)
        return PrefixAttachment(count, encoder)
    if method.init == "random":
        start = torch.randn_like(start)
    parts = [LayerPrefix(*own) for own in start]
    for block, part in zip(decoder_blocks(model), parts, strict=True):
        hold(block, "prefixes", role, part)  # the unit that is sharded
    return PrefixAttachment(count, parts)


@torch.no_grad()
def keys_and_values(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Keys and values of the model's cache after these tokens: [layers, 2, P, K, D], in float32 or more.

    Raises:
        UserError: layers that have no keys and values of their own, or of different shapes.
    """
    cache = DynamicCache()
    with _plain_attention(model):
        getattr(model, model.base_model_prefix)(
            input_ids=torch.tensor([ids], device=model.device),
            position_ids=torch.arange(len(ids), device=model.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
    found: list[tuple[Any, Any]] = [
        (getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers
    ]
    shapes = {() if x is None else tuple(x.shape) for pair in found for x in pair}
    # Latent keys and values are kept with fewer heads than attention is given. Some families have no shared keys, and
    # overlook the field that counts them.
    heads = (getattr(model.config, "num_key_value_heads", None), model.config.num_attention_heads)
    alike = len(shapes) == 1 and all(shape[1:2] and shape[1] in heads for shape in shapes)
    if len(found) != model.config.num_hidden_layers or not alike:
        raise UserError(
            f"method.name: a prefix needs layers with keys and values of one shape, and those of a "
            f"{type(model).__name__} differ; allowed: another method, such as lora or prompt_tuning"
        )
    stacked = torch.stack([torch.stack([x[0].transpose(0, 1) for x in pair]) for pair in found])
    return stacked if stacked.dtype == torch.float64 else stacked.float()


def export(method: PrefixMethod, state: Mapping[str, Tensor]) -> Export:
    """The keys and values alone, which load without an encoder; and as peft's file has them."""
    folded = fold(method, state)
    layers, _, tokens, heads, size = folded.shape
    weights = {
        f"layer.{number}.{name}": tensor
        for number, pair in enumerate(folded)
        for name, tensor in zip(("key", "value"), pair, strict=True)
    }
    plain = method
    if method.prefix_projection:
        plain = method.model_copy(update={"prefix_projection": False, "init": "random", "init_text": None})
    return Export(
        plain,
        weights,
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=tokens,
            num_transformer_submodules=1,
            num_layers=layers,
            num_attention_heads=heads,
            token_dim=heads * size,
        ),
        peft={EMBEDDINGS: folded.permute(2, 0, 1, 3, 4).flatten(start_dim=1)},
    )


def fold(method: PrefixMethod, state: Mapping[str, Tensor]) -> Tensor:
    """The keys and values [layers, 2, P, K, D] that a trained state stands for."""
    if not method.prefix_projection:
        layers = range(len(state) // 2)
        return torch.stack([torch.stack([state[f"layer.{n}.{name}"] for name in ("key", "value")]) for n in layers])
    start, width = state["start"], state["embedding.weight"].shape[1]
    encoder = PrefixEncoder(start, width, method.encoder_hidden_size, silent=False).to(start)
    encoder.load_state_dict(dict(state))
    with torch.no_grad():
        folded: Tensor = encoder()
    return folded


def _own(layers: Sequence[LayerPrefix], attention: Any, given: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = layers[attention.layer_idx](given, rows)
    return found


def _encoded(encoded: Sequence[Tensor], attention: Any, given: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    key, value = encoded[attention.layer_idx]
    return _for_rows(key, given, rows), _for_rows(value, given, rows)


def _for_rows(own: Tensor, given: Tensor, rows: int) -> Tensor:
    """[P, K, D] -> [rows, K, P, D] in the precision of `given`; the rows' gradients are summed in its own."""
    return own.transpose(0, 1).expand(rows, -1, -1, -1).to(given.dtype)


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model's own attention, and no checkpointing, which would leave the cache empty."""
    before, training = model.config._attn_implementation, [m for m in model.modules() if m.training]
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for module in training:
            module.training = True
