"""Methods, which say what parameters a stage trains: one model for each, or a list of parts trained together."""

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from triptych.recipe.base import Closed, TagAt
from triptych.recipe.bottleneck import GatedPfeiffer, Houlsby, ParallelAdapter, Pfeiffer
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
from triptych.recipe.part import Part
from triptych.recipe.virtual import GatedPrefix, PrefixTuning, PromptTuning, PTuning, PTuningV2


class BitFit(Part):
    """Biases (Ben Zaken et al. 2022, arXiv 2106.10199)."""

    family = "bias"
    merges = True

    name: Literal["bitfit"] = "bitfit"
    targets: Literal["all"] | tuple[str, ...] = "all"
    """Endings of the names of layers; all: every layer that has a bias."""
    missing: Literal["refuse", "add"] = "refuse"
    """Targets without a bias: refuse the recipe, or add one to them (with `all`: to every linear layer)."""


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
    """Number of last blocks that are trained whole."""
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

    paper: ClassVar[str]

    def parts(self) -> tuple[Part, ...]:
        """The list of methods that it stands for."""
        return tuple(part for _, part in self if isinstance(part, Part))


class Mam(_Preset):
    """A mix-and-match adapter: short prefixes, and wide adapters beside the MLP (He et al. 2022, arXiv 2110.04366)."""

    paper = "He et al. 2022, arXiv 2110.04366"

    name: Literal["mam"] = "mam"
    prefix: PrefixTuning = PrefixTuning(num_virtual_tokens=30)
    """Keys and values before every row."""
    adapter: ParallelAdapter = ParallelAdapter()
    """Layers beside the MLPs."""


class Unipelt(_Preset):
    """Prefixes, adapters and LoRA, each behind gates (Mao et al. 2022, arXiv 2110.07577).

    The paper's gates are means over a row, and would see later tokens; here each token has its own.
    """

    paper = "Mao et al. 2022, arXiv 2110.07577"

    name: Literal["unipelt"] = "unipelt"
    prefix: GatedPrefix = GatedPrefix(num_virtual_tokens=10)
    """Keys and values before every row, behind a gate."""
    adapter: GatedPfeiffer = GatedPfeiffer()
    """Layers after the MLPs, behind a gate."""
    lora: GatedLora = GatedLora(targets=("q_proj", "v_proj"))
    """Low-rank changes of queries and values, behind a gate."""


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
    """True if weights of the base itself are trained: the role has the base for itself."""
    return any(part.whole for part in parts_of(method))


def names_of(method: Method) -> str:
    """Name of a method in messages: `lora`, `prefix_tuning + lora`."""
    return " + ".join(_name(part) for part in parts_of(method))


def _name(part: Any) -> str:
    name: str = part.name
    return name
