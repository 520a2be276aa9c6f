"""Sizes of any causal model, from the model itself on torch's meta device: no weights, and no list of families."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from triptych.errors import UserError
from triptych.models.blocks import expert_weights
from triptych.models.linears import linear_modules
from triptych.models.sizes import Measured, Sizes, longest_context, special_float

_IN_BLOCK = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
"""Fields of configs that say how many experts a token goes through."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Fields of configs that say how many experts there are."""
_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")

Site = tuple[int, int, bool]
"""Inputs and outputs of a linear layer, and whether it has a bias."""


def sizes_on_meta(config: Mapping[str, Any], name: str) -> Sizes:
    """The sizes of the model that a config.json describes; `name` is how errors call it.

    Raises:
        UserError: transformers builds no causal model from it, or one that has no decoder where others have theirs.
    """
    return _sizes(json.dumps(config, sort_keys=True), name)


@cache
def _sizes(text: str, name: str) -> Sizes:
    model = model_on_meta(json.loads(text, object_hook=special_float), name)
    if not hasattr(model, model.base_model_prefix):
        raise UserError(
            f"model.base: {name}: a {type(model).__name__} has no decoder called {model.base_model_prefix}, through "
            "which models are trained; allowed: another family, see `triptych models`"
        )
    config: Any = model.config.get_text_config()
    linears, blocks = _linears(model)
    table, heads = model.get_input_embeddings().weight, _most(config, "num_attention_heads")
    hidden = _most(config, "hidden_size") or table.shape[1]
    parameters = {path: tuple(parameter.shape) for path, parameter in model.named_parameters()}
    head = model.get_output_embeddings()
    prefix = model.base_model_prefix
    experts = {f"{prefix}.{path}": sides for path, sides in expert_weights(model.base_model).items()}
    return Sizes(
        vocab=table.shape[0],
        hidden=hidden,
        layers=_most(config, "num_hidden_layers") or 1,
        heads=heads,
        kv_heads=_most(config, "num_key_value_heads") or heads,
        head_dim=_most(config, "head_dim") or hidden // max(heads, 1),
        intermediate=_width(config) or 4 * hidden,
        tied=head is None or head.weight is table,
        max_length=longest_context(config.to_dict()),
        linears=linears,
        qk_norm=any(re.search(r"\.[qk]_\w*norm\.weight$", path) for path in parameters),
        measured=Measured(parameters, blocks, experts, _routed(config), _active(config, parameters)),
    )


def model_on_meta(config: Mapping[str, Any], name: str) -> Any:
    """The causal model that a config.json describes, without weights; `name` is how errors call it.

    Raises:
        UserError: transformers builds no causal model from it.
    """
    settings = dict(config)
    kind = settings.pop("model_type", None)
    try:
        built = AutoConfig.for_model(kind, **settings)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(built)
    except Exception as error:  # noqa: BLE001 - the code of a family may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"model.base: {name}: transformers builds no causal model of type {kind!r} from its config.json "
            f"({type(error).__name__}: {reason[:200]}); allowed: a decoder that AutoModelForCausalLM knows"
        ) from None


def _linears(model: Any) -> tuple[dict[str, Site], dict[str, tuple[int, ...]]]:
    """Linear layers of the decoder by their name in a block, and the blocks that have each; -1: outside of blocks.

    A name that has other shapes in some blocks stands once for each shape: `2.mlp.up_proj` is the second.
    """
    found: dict[str, Site] = {}
    blocks: dict[str, list[int]] = defaultdict(list)
    for path, module in linear_modules(model.base_model, model.base_model_prefix):
        if module is model.get_output_embeddings():
            continue
        place = _IN_BLOCK.match(path.removeprefix(f"{model.base_model_prefix}."))
        name, number = (place[3], int(place[2])) if place else (path, -1)
        weight: Any = module.weight
        rows, columns = weight.shape
        site = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
        known = _known(found, name, (*site, module.bias is not None))
        blocks[known].append(number)
    return found, {name: tuple(numbers) for name, numbers in blocks.items()}


def _known(found: dict[str, Site], name: str, site: Site) -> str:
    """The name under which a layer of this shape stands, entered where it is the first."""
    number, key = 1, name
    while found.setdefault(key, site) != site:
        number += 1
        key = f"{number}.{name}"
    return key


def _active(config: Any, parameters: Mapping[str, tuple[int, ...]]) -> int:
    """Elements of all blocks that a token is multiplied with: of the experts, those that it goes through."""
    experts, total = _first(config, _EXPERTS), 0.0
    for path, shape in parameters.items():
        if not _IN_BLOCK.match(path):
            continue
        numel = torch.Size(shape).numel()
        routed = experts > 0 and len(shape) > 1 and shape[0] == experts and ".experts" in path
        total += numel * _routed(config) if routed else numel
    return int(total)


def _routed(config: Any) -> float:
    """Share of the experts that a token goes through."""
    experts, chosen = _first(config, _EXPERTS), _first(config, _ACTIVE)
    return min(chosen or experts, experts) / experts if experts else 1.0


def _width(config: Any) -> int:
    """Width of a token's feed-forward layer: of the dense one, or of its experts together."""
    routed = _most(config, "moe_intermediate_size") * max(_first(config, _ACTIVE), 1)
    return max(_first(config, _WIDTHS), routed)


def _first(config: Any, fields: tuple[str, ...]) -> int:
    return next((value for field in fields if (value := _most(config, field))), 0)


def _most(config: Any, field: str) -> int:
    """A field of a config, the largest where each block has its own; 0 where there is none."""
    try:
        value = getattr(config, field, None)
    except RuntimeError:  # blocks differ, and transformers will not choose for us
        value = [getattr(config.per_layer_config[block], field, None) for block in range(config.num_hidden_layers)]
    if isinstance(value, list | tuple):
        value = max((entry for entry in value if isinstance(entry, int)), default=0)
    return value if isinstance(value, int) else 0
