"""Which parameters a stage trains: one closed model for each method, or a list of parts that are trained together."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from triptych.recipe.base import Closed, Positive, TagAt
from triptych.recipe.matrix import (
    AdaLora,
    Boft,
    C3a,
    Dora,
    FourierFt,
    GatedLora,
    Hra,
    Ia3,
    LnTuning,
    Loha,
    Lokr,
    Lora,
    Miss,
    Oft,
    Pissa,
    RandLora,
    Shira,
    VbLora,
    Vera,
)
from triptych.recipe.part import Dropout, Part


class _Bottleneck(Part):
    """Two small layers with a non-linearity between them, in every block."""

    family = "bottleneck"
    merges = False
    sublayers: ClassVar[tuple[str, ...]]
    """Where they stand."""

    reduction_factor: Positive = 16.0
    """Hidden size over the width of the bottleneck."""
    non_linearity: Literal["relu", "gelu", "silu", "tanh", "leaky_relu"] = "relu"
    scaling: Positive = 1.0
    """What they add is multiplied by it."""
    dropout: Dropout = 0.0
    drop_layers: int = Field(0, ge=0)
    """First blocks whose adapters only training has (AdapterDrop, Rücklé et al. 2021, arXiv 2010.11918)."""
    robust_drop_layers: int = Field(0, ge=0)
    """Each step of training leaves out the adapters of so many first blocks, from none up to this, drawn anew: then
    as many can be left out afterwards, by `drop_layers` or by `triptych adapters export --drop-layers`."""

    def width(self, hidden: int) -> int:
        """Of the bottleneck."""
        return max(1, round(hidden / self.reduction_factor))


class Houlsby(_Bottleneck):
    """After attention and after the MLP (Houlsby et al. 2019, arXiv 1902.00751)."""

    sublayers = ("self_attn", "mlp")

    name: Literal["houlsby"] = "houlsby"


class Pfeiffer(_Bottleneck):
    """After the MLP (Pfeiffer et al. 2021, arXiv 2005.00247)."""

    sublayers = ("mlp",)

    name: Literal["pfeiffer"] = "pfeiffer"


class GatedPfeiffer(_Bottleneck):
    """After the MLP, scaled by a gate for each token (Mao et al. 2022, arXiv 2110.07577)."""

    sublayers = ("mlp",)

    name: Literal["gated_pfeiffer"] = "gated_pfeiffer"


class ParallelAdapter(_Bottleneck):
    """Beside the MLP (He et al. 2022, arXiv 2110.04366)."""

    sublayers = ("mlp",)

    name: Literal["parallel_adapter"] = "parallel_adapter"
    reduction_factor: Positive = 2.0
    scaling: Positive = 4.0


class BitFit(Part):
    """Biases (Ben Zaken et al. 2022, arXiv 2106.10199)."""

    family = "bias"
    merges = True

    name: Literal["bitfit"] = "bitfit"
    targets: Literal["all"] | tuple[str, ...] = "all"
    """Endings of the names of layers; all: every layer that has a bias."""
    missing: Literal["refuse", "add"] = "refuse"
    """What happens where a target has no bias: nothing is trained, or it (of all: every linear layer) is given one."""


class _VirtualTokens(Part):
    """What stands before every row."""

    family = "soft"
    merges = False

    num_virtual_tokens: int = Field(20, ge=1, le=1024)
    """They take so many positions of the model's context before every row."""


class PromptTuning(_VirtualTokens):
    """Trained embeddings before every row (Lester et al. 2021, arXiv 2104.08691)."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    init: Literal["random", "text", "vocabulary"] = "vocabulary"
    """The embeddings start as noise, as those of a text, or as those of tokens drawn from the vocabulary."""
    init_text: str | None = None
    """Repeated or cut to the number of virtual tokens."""

    @model_validator(mode="after")
    def _text(self) -> "PromptTuning":
        if (self.init == "text") != bool(self.init_text):
            raise ValueError("init_text: the text of init: text; allowed: both, or neither")
        return self


class PTuning(_VirtualTokens):
    """Embeddings before every row, made by a trained encoder (Liu et al. 2021, arXiv 2103.10385)."""

    name: Literal["p_tuning"] = "p_tuning"
    encoder_reparameterization_type: Literal["mlp", "lstm"] = "mlp"
    encoder_hidden_size: int | None = Field(None, ge=1, le=65536)
    """None: the model's."""
    encoder_num_layers: int = Field(2, ge=1, le=16)
    """Of the LSTM; the MLP has always the same."""
    encoder_dropout: Dropout = 0.0
    """Between the LSTM's layers."""

    @model_validator(mode="after")
    def _lstm(self) -> "PTuning":
        if self.encoder_reparameterization_type == "mlp" and (self.encoder_num_layers != 2 or self.encoder_dropout):
            raise ValueError(
                "encoder_num_layers and encoder_dropout are the LSTM's; allowed: encoder_reparameterization_type lstm, "
                "or neither of them"
            )
        return self


class _Prefix(_VirtualTokens):
    prefix_projection: bool
    """An encoder of two layers makes the keys and values; it is folded when training ends."""
    encoder_hidden_size: int = Field(512, ge=1, le=65536)
    """Of that encoder."""
    init: Literal["text", "random"] = "text"
    """The keys and values start as those of a text, or as noise, which ruins the model at first."""
    init_text: str | None = Field(None, min_length=1)
    """Repeated or cut to the number of virtual tokens; None: a neutral one."""

    @model_validator(mode="after")
    def _text(self) -> Self:
        if self.init == "random" and self.init_text:
            raise ValueError("init_text: the text of init: text, not of init: random; allowed: one of the two")
        return self


class PrefixTuning(_Prefix):
    """Trained keys and values before every row in every layer (Li & Liang 2021, arXiv 2101.00190)."""

    name: Literal["prefix_tuning"] = "prefix_tuning"
    prefix_projection: bool = True


class PTuningV2(_Prefix):
    """Trained keys and values before every row in every layer (Liu et al. 2022, arXiv 2110.07602)."""

    name: Literal["p_tuning_v2"] = "p_tuning_v2"
    prefix_projection: bool = False


class GatedPrefix(_Prefix):
    """A prefix that a gate in each layer scales for each token (Mao et al. 2022, arXiv 2110.07577)."""

    name: Literal["gated_prefix"] = "gated_prefix"
    prefix_projection: bool = True


class Full(Closed):
    """Every weight of the model; nothing is added."""

    merges: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    name: Literal["full"] = "full"


class Freeze(Closed):
    """Some of the base's own weights; the others stay as they are, and nothing is added."""

    merges: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    name: Literal["freeze"] = "freeze"
    layers: int = Field(0, ge=0)
    """So many of the last blocks are trained whole."""
    train: tuple[str, ...] = ()
    """Parameters that are trained: endings of their names, or regular expressions that match names as a whole."""
    embeddings: bool = False
    """Train the token embeddings, and with them the output head where it shares their weights."""
    tokens: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Train the embeddings of these token ids alone, and their rows of the output head."""

    @model_validator(mode="after")
    def _possible(self) -> "Freeze":
        if not (self.layers or self.train or self.embeddings or self.tokens):
            raise ValueError("trains nothing; allowed: at least one of layers, train, embeddings, tokens")
        if self.embeddings and self.tokens:
            raise ValueError("embeddings trains the rows of all tokens; allowed: one of embeddings and tokens")
        for pattern in self.train:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"train: {pattern!r} is no regular expression: {error}") from None
        return self


class _Preset(Closed):
    """A list of methods under one name, with the settings of a paper; each of its fields is a part."""

    def parts(self) -> tuple[Part, ...]:
        """The list of methods that it stands for."""
        return tuple(part for _, part in self if isinstance(part, Part))


class Mam(_Preset):
    """A mix-and-match adapter: short prefixes, and wide adapters beside the MLP (He et al. 2022, arXiv 2110.04366)."""

    name: Literal["mam"] = "mam"
    prefix: PrefixTuning = PrefixTuning(num_virtual_tokens=30)
    adapter: ParallelAdapter = ParallelAdapter()


class Unipelt(_Preset):
    """Prefixes, adapters and LoRA, each behind gates (Mao et al. 2022, arXiv 2110.07577).

    The paper's gates are means over a row, and would see later tokens; here each token has its own.
    """

    name: Literal["unipelt"] = "unipelt"
    prefix: GatedPrefix = GatedPrefix(num_virtual_tokens=10)
    adapter: GatedPfeiffer = GatedPfeiffer()
    lora: GatedLora = GatedLora(targets=("q_proj", "v_proj"))


def _hybrid(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Refuse what cannot be trained together."""
    if not parts:
        raise ValueError("an empty list; allowed: at least one method")
    for number, part in enumerate(parts):
        same = [other for other in parts[:number] if other.family == part.family]
        if same:
            one, other = _name(same[0]), _name(part)
            raise ValueError(
                f"{one} and {other} change the model in one place; allowed in a list: at most one that adds "
                "tokens or keys and values, one that changes linear layers, one that adds layers, one of biases"
            )
    return parts


# Every class of a method stands in one of these two unions, under its name.
_Part = (
    Annotated[Lora, Tag("lora")]
    | Annotated[GatedLora, Tag("gated_lora")]
    | Annotated[Dora, Tag("dora")]
    | Annotated[Pissa, Tag("pissa")]
    | Annotated[AdaLora, Tag("adalora")]
    | Annotated[Ia3, Tag("ia3")]
    | Annotated[Vera, Tag("vera")]
    | Annotated[Loha, Tag("loha")]
    | Annotated[Lokr, Tag("lokr")]
    | Annotated[Oft, Tag("oft")]
    | Annotated[Boft, Tag("boft")]
    | Annotated[Hra, Tag("hra")]
    | Annotated[Miss, Tag("miss")]
    | Annotated[FourierFt, Tag("fourierft")]
    | Annotated[RandLora, Tag("randlora")]
    | Annotated[VbLora, Tag("vblora")]
    | Annotated[Shira, Tag("shira")]
    | Annotated[C3a, Tag("c3a")]
    | Annotated[LnTuning, Tag("ln_tuning")]
    | Annotated[Houlsby, Tag("houlsby")]
    | Annotated[Pfeiffer, Tag("pfeiffer")]
    | Annotated[GatedPfeiffer, Tag("gated_pfeiffer")]
    | Annotated[ParallelAdapter, Tag("parallel_adapter")]
    | Annotated[BitFit, Tag("bitfit")]
    | Annotated[PromptTuning, Tag("prompt_tuning")]
    | Annotated[PTuning, Tag("p_tuning")]
    | Annotated[PrefixTuning, Tag("prefix_tuning")]
    | Annotated[PTuningV2, Tag("p_tuning_v2")]
    | Annotated[GatedPrefix, Tag("gated_prefix")]
)
_Alone = (
    Annotated[Full, Tag("full")]
    | Annotated[Freeze, Tag("freeze")]
    | Annotated[Mam, Tag("mam")]
    | Annotated[Unipelt, Tag("unipelt")]
)
Hybrid = Annotated[
    tuple[Annotated[_Part, Discriminator(TagAt("name", default="lora"))], ...], AfterValidator(_hybrid), Tag("list")
]
Method = Annotated[_Part | _Alone | Hybrid, Discriminator(TagAt("name", default="lora", many="list"))]


PARTS: dict[str, type[Part]] = {
    part.model_fields["name"].default: part for part in (get_args(member)[0] for member in get_args(_Part))
}
"""Every method that adds parameters to a frozen base, by name."""
PRESETS: dict[str, type[_Preset]] = {"mam": Mam, "unipelt": Unipelt}
"""Names that stand for a list of them."""
MERGING = tuple(name for name, part in PARTS.items() if part.merges)
"""Those whose parameters can be added to the base's weights."""


def parts_of(method: Method) -> tuple[Any, ...]:
    """The methods that train together; one alone is a tuple of itself."""
    if isinstance(method, _Preset):
        return method.parts()
    return method if isinstance(method, tuple) else (method,)


def trains_base(method: Method) -> bool:
    """Whether weights of the base itself are trained: the role has the base for itself."""
    return any(part.whole for part in parts_of(method))


def names_of(method: Method) -> str:
    """What a method is called: `lora`, `prefix_tuning + lora`."""
    return " + ".join(_name(part) for part in parts_of(method))


def _name(part: Any) -> str:
    name: str = part.name
    return name
