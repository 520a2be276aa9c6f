"""Which parameters a stage trains: one closed model for each method, or a list of parts that are trained together."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from triptych.recipe.base import Closed, Positive, TagAt

Family = Literal["soft", "matrix", "bottleneck", "bias"]
"""What a method adds: tokens, keys and values before the rows; changes of linear layers; layers; biases."""

Targets = Literal["all-linear"] | tuple[str, ...]
"""Module name endings, or every linear layer except the output head."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
Rank = Annotated[int, Field(ge=1, le=512)]


class Part(Closed):
    """A method that adds parameters to a frozen base, alone or as a part of a hybrid."""

    family: ClassVar[Family]
    merges: ClassVar[bool]
    """What it trains can be added to the base's weights, so that engines that know no adapters can run it."""

    lr: Positive | None = None
    """Learning rate where it is not the stage's; it follows the same schedule."""


class Lora(Part):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    family = "matrix"
    merges = True

    name: Literal["lora"] = "lora"
    r: Rank = 16
    """Rank."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / r, or alpha / sqrt(r) with rslora."""
    dropout: Dropout = 0.0
    targets: Targets = "all-linear"
    """Module name endings, or every linear layer except the output head."""
    rslora: bool = False


class _Bottleneck(Part):
    """Two small layers with a non-linearity between them, in every block."""

    family = "bottleneck"
    merges = False
    sublayers: ClassVar[tuple[str, ...]]
    """Where they stand."""

    reduction: Positive = 16.0
    """Hidden size over the width of the bottleneck."""
    non_linearity: Literal["relu", "gelu", "silu", "tanh", "leaky_relu"] = "relu"
    scaling: Positive = 1.0
    dropout: Dropout = 0.0
    drop_layers: int = Field(0, ge=0)
    """First blocks whose adapters only training has (AdapterDrop, Rücklé et al. 2021, arXiv 2010.11918)."""

    def width(self, hidden: int) -> int:
        """Of the bottleneck."""
        return max(1, round(hidden / self.reduction))


class Houlsby(_Bottleneck):
    """After attention and after the MLP (Houlsby et al. 2019, arXiv 1902.00751)."""

    sublayers = ("self_attn", "mlp")

    name: Literal["houlsby"] = "houlsby"


class Pfeiffer(_Bottleneck):
    """After the MLP (Pfeiffer et al. 2021, arXiv 2005.00247)."""

    sublayers = ("mlp",)

    name: Literal["pfeiffer"] = "pfeiffer"


class ParallelAdapter(_Bottleneck):
    """Beside the MLP (He et al. 2022, arXiv 2110.04366)."""

    sublayers = ("mlp",)

    name: Literal["parallel_adapter"] = "parallel_adapter"
    scaling: Positive = 4.0


class BitFit(Part):
    """Biases (Ben Zaken et al. 2022, arXiv 2106.10199)."""

    family = "bias"
    merges = True

    name: Literal["bitfit"] = "bitfit"
    targets: Literal["all"] | tuple[str, ...] = "all"
    """Endings of the names of layers."""
    missing: Literal["refuse", "add"] = "refuse"
    """What happens where a target has no bias: nothing is trained, or it is given one."""


class Full(Closed):
    """Every weight of the model; nothing is added."""

    name: Literal["full"] = "full"


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
    | Annotated[Houlsby, Tag("houlsby")]
    | Annotated[Pfeiffer, Tag("pfeiffer")]
    | Annotated[ParallelAdapter, Tag("parallel_adapter")]
    | Annotated[BitFit, Tag("bitfit")]
)
_Alone = Annotated[Full, Tag("full")]
Hybrid = Annotated[
    tuple[Annotated[_Part, Discriminator(TagAt("name", default="lora"))], ...], AfterValidator(_hybrid), Tag("list")
]
Method = Annotated[_Part | _Alone | Hybrid, Discriminator(TagAt("name", default="lora", many="list"))]


def parts_of(method: Method) -> tuple[Any, ...]:
    """The methods that train together; one alone is a tuple of itself."""
    return method if isinstance(method, tuple) else (method,)


def names_of(method: Method) -> str:
    """What a method is called: `lora`, `prefix_tuning + lora`."""
    return " + ".join(_name(part) for part in parts_of(method))


def _name(part: Any) -> str:
    name: str = part.name
    return name
