"""Sizes of a model from its config.json alone: no weights.

A closed form, without torch, covers the Llama family: token embeddings, pre-norm blocks of (grouped-query) attention
and a gated MLP, a final norm, and an output head that may share the embeddings' weights. The sizes of any other family
are those of the model that transformers builds on the meta device.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.recipe.model import Model
from triptych.recipe.part import Targets

BUILT_IN = ("smollm2-135m-instruct",)
"""Models whose configuration comes with the package, in `<name>.json`."""


@dataclass(frozen=True)
class _Family:
    """Differences in the weights of members of the Llama family."""

    qkv_bias: bool = False
    """Biases on the query, key and value projections, whatever `attention_bias` says."""
    qk_norm: bool = False
    """A norm over each head's queries and keys."""


FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm=True),
    "smollm3": _Family(),
}
"""`model_type` of config.json -> its differences."""

_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Fields of config.json that limit a model's context; vLLM takes the least of them."""


Experts = tuple[int, int, int]
"""Number of experts that a weight has a matrix for, and the inputs and outputs of each."""


@dataclass(frozen=True)
class Tensors:
    """Equal parameters, all of which are trained."""

    shape: tuple[int, ...]
    count: int = 1
    in_block: bool = True
    """True for parameters of the decoder's blocks; false for embeddings and heads."""
    of_experts: bool = False
    """A token is multiplied with the parts of those experts alone that it goes through."""

    @property
    def numel(self) -> int:
        """Elements of all of them."""
        return self.count * math.prod(self.shape)


@dataclass(frozen=True)
class Measured:
    """What a model consists of that is no member of the Llama family: its blocks may differ."""

    parameters: Mapping[str, tuple[int, ...]]
    """Every parameter's shape by its name in transformers; tied ones once."""
    blocks: Mapping[str, tuple[int, ...]]
    """Numbers of the blocks that have each of `Sizes.linears`; -1: outside of blocks."""
    experts: Mapping[str, Experts]
    """Weights that hold a matrix for each expert of a mixture, by their names in transformers."""
    routed: float
    """Share of a mixture's experts that a token goes through."""
    active: int
    """Parameters of all blocks that a token is multiplied with: of many experts, those that it goes through."""


@dataclass(frozen=True)
class Sizes:
    """The shapes of a model. Sizes are numbers of elements."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    tied: bool
    max_length: int | None
    """Positions that the model was made for, where its config says."""
    linears: Mapping[str, tuple[int, int, bool]]
    """Linear layers of one block: `self_attn.q_proj` and so on -> (inputs, outputs, whether it has a bias)."""
    qk_norm: bool
    measured: Measured | None = None
    """Parts of a model that the closed form does not cover."""

    @property
    def embedding(self) -> int:
        """Parameters of the token embeddings; of the output head too, where it is not tied."""
        return self.vocab * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one block that a token is multiplied with."""
        if self.measured is not None:
            return self.measured.active // self.layers
        linear = sum(inputs * outputs + outputs * bias for inputs, outputs, bias in self.linears.values())
        return linear + 2 * self.hidden + 2 * self.head_dim * self.qk_norm

    @property
    def total(self) -> int:
        """All parameters, tied weights counted once."""
        if self.measured is not None:
            return sum(math.prod(shape) for shape in self.measured.parameters.values())
        return self.embedding * (1 if self.tied else 2) + self.layers * self.layer + self.hidden

    @property
    def kv_per_token(self) -> int:
        """Elements of keys and values that a token leaves in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def experts(self) -> Mapping[str, Experts]:
        """Weights that hold a matrix for each expert of a mixture, by their names in transformers."""
        return {} if self.measured is None else self.measured.experts

    def blocks_with(self, name: str) -> Sequence[int]:
        """Numbers of the blocks that have one of `linears`; -1: it stands outside of them."""
        return range(self.layers) if self.measured is None else self.measured.blocks[name]

    def share(self, name: str) -> float:
        """Share of the blocks that have one of `linears`."""
        return len(self.blocks_with(name)) / self.layers

    def targets(self, targets: Targets = "all-linear") -> dict[str, tuple[int, int]]:
        """Linear layers of one block that a method names: name -> (inputs, outputs).

        Raises:
            UserError: a target is no linear layer of a block.
        """
        shapes = {name: (inputs, outputs) for name, (inputs, outputs, _) in self.linears.items()}
        if targets == "all-linear":
            return shapes
        found = {target: [name for name in shapes if f".{name}".endswith(f".{target}")] for target in targets}
        wrong = [target for target, names in found.items() if not names]
        if wrong:
            endings = list(dict.fromkeys(name.rpartition(".")[2] for name in shapes))
            near = difflib.get_close_matches(wrong[0], endings, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise UserError(
                f"method.targets: `{wrong[0]}` is no linear layer of this model{hint}; "
                f"allowed: all-linear, or a list of {', '.join(endings)}"
            )
        return {name: shapes[name] for names in found.values() for name in names}


def model_sizes(model: Model) -> Sizes:
    """The sizes of a recipe's base. Looks at config.json only; downloads no more than that.

    Raises:
        UserError: no such model, no config.json, or one of which transformers builds no causal model.
    """
    return sizes_of(read_config(model), model.base)


def read_config(model: Model) -> dict[str, Any]:
    """The config.json of a built-in model, a folder or a Hugging Face id."""
    if model.base in BUILT_IN:
        text = (resources.files("triptych.models") / f"{model.base}.json").read_text(encoding="utf-8")
    else:
        text = _config_file(model).read_text(encoding="utf-8")
    try:
        config = json.loads(text, object_hook=special_float)
    except ValueError as error:
        raise UserError(f"model.base: {model.base}: config.json is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"model.base: {model.base}: config.json holds no mapping")
    return config


def special_float(value: dict[str, Any]) -> Any:
    """The number that transformers writes into config.json as `{"__float__": "Infinity"}`; other mappings as they are.

    For `object_hook` of json.loads.
    """
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _config_file(model: Model) -> Path:
    allowed = f"allowed: a built-in name ({', '.join(BUILT_IN)}), a local folder, a Hugging Face id (owner/name)"
    folder = Path(model.base).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model.base: no config.json in {folder}; {allowed}")
        return folder / "config.json"
    if model.base.startswith(("/", ".", "~")) or model.base.count("/") != 1:
        near = difflib.get_close_matches(model.base.lower(), BUILT_IN, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise UserError(f"model.base: no folder and no built-in model is called `{model.base}`{hint}; {allowed}")

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model.base, "config.json", revision=model.revision))
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.base: no config.json of `{model.base}` to be had: {reason}; {allowed}") from None


def has_known_sizes(model: Model) -> bool:
    """True if transformers builds the base by itself: one that brings its own code has no sizes before it is loaded."""
    try:
        model_sizes(model)
    except UserError:
        return False
    return True


def longest_context(config: Mapping[str, Any]) -> int | None:
    """Positions at which a model computes one function, where its config says how many it was made for.

    Beyond those of its first training, longrope (Ding et al. 2024, arXiv 2402.13753) takes other factors: transformers
    takes them for a whole batch as soon as one row is longer, and vLLM for all rows if any may be.
    """
    limits = [value for field in _LENGTHS if isinstance(value := config.get(field), int)]
    switch = longrope_switch(config)
    return min(limits if switch is None else [*limits, switch], default=None)


def longrope_switch(config: Mapping[str, Any]) -> int | None:
    """Positions beyond which a model takes longrope's other factors; None: its factors are always the same."""
    ropes = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [ropes, *(value for value in ropes.values() if isinstance(value, Mapping))]
    found = [
        rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        for rope in kinds
        if rope.get("rope_type", rope.get("type")) in ("longrope", "su")
    ]
    return min((limit for limit in found if isinstance(limit, int)), default=None)


def sizes_of(config: Mapping[str, Any], name: str) -> Sizes:
    """The sizes that a config.json describes; `name` is how errors call the model. Imports torch for a family whose
    closed form is not known.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        from triptych.models.meta_sizes import sizes_on_meta

        return sizes_on_meta(config, name)
    try:
        return _sizes(config, family)
    except KeyError as error:
        raise UserError(f"model.base: {name}: config.json has no {error.args[0]}") from None


def _sizes(config: Mapping[str, Any], family: _Family) -> Sizes:
    hidden, heads, intermediate = (
        int(config[key]) for key in ("hidden_size", "num_attention_heads", "intermediate_size")
    )
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    queries, keys = heads * head_dim, kv_heads * head_dim
    bias, mlp_bias = bool(config.get("attention_bias", False)), bool(config.get("mlp_bias", False))
    qkv_bias = bias or family.qkv_bias
    return Sizes(
        vocab=int(config["vocab_size"]),
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        tied=bool(config.get("tie_word_embeddings", False)),
        max_length=longest_context(config),
        linears={
            "self_attn.q_proj": (hidden, queries, qkv_bias),
            "self_attn.k_proj": (hidden, keys, qkv_bias),
            "self_attn.v_proj": (hidden, keys, qkv_bias),
            "self_attn.o_proj": (queries, hidden, bias),
            "mlp.gate_proj": (hidden, intermediate, mlp_bias),
            "mlp.up_proj": (hidden, intermediate, mlp_bias),
            "mlp.down_proj": (intermediate, hidden, mlp_bias),
        },
        qk_norm=family.qk_norm,
    )
