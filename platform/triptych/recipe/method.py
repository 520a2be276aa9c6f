"""Which parameters a stage trains."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from triptych.recipe.base import Closed, Positive, TagAt


class Lora(Closed):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    name: Literal["lora"] = "lora"
    r: int = Field(16, ge=1, le=512)
    """Rank."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / r, or alpha / sqrt(r) with rslora."""
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module name endings, or every linear layer except the output head."""
    rslora: bool = False


class Full(Closed):
    """Every weight of the model; nothing is added."""

    name: Literal["full"]


Method = Annotated[
    Annotated[Lora, Tag("lora")] | Annotated[Full, Tag("full")], Discriminator(TagAt("name", default="lora"))
]
