"""Methods that put two small layers with a non-linearity between them into every block."""

from typing import ClassVar, Literal

from pydantic import Field

from triptych.recipe.base import Positive
from triptych.recipe.part import Dropout, Part


class _Bottleneck(Part):
    """Two small layers with a non-linearity between them, in every block."""

    family = "bottleneck"
    merges = False
    sublayers: ClassVar[tuple[str, ...]]
    """Sublayers of a block that get an adapter."""

    reduction_factor: Positive = 16.0
    """Hidden size over the width of the bottleneck."""
    non_linearity: Literal["relu", "gelu", "silu", "tanh", "leaky_relu"] = "relu"
    """Activation between the two projections."""
    scaling: Positive = 1.0
    """Factor of the adapters' output."""
    dropout: Dropout = 0.0
    """Probability with which an element of the layer's input is dropped in training."""
    drop_layers: int = Field(0, ge=0)
    """First blocks whose adapters only training has (AdapterDrop, Rücklé et al. 2021, arXiv 2010.11918)."""
    robust_drop_layers: int = Field(0, ge=0)
    """Each step of training leaves out the adapters of so many first blocks, from none up to this, drawn anew: then
    as many can be left out afterwards, by `drop_layers` or by `triptych adapters export --drop-layers`."""

    def width(self, hidden: int) -> int:
        """Width of the bottleneck for a hidden size, at least 1."""
        return max(1, round(hidden / self.reduction_factor))


class Houlsby(_Bottleneck):
    """Adapters after attention and after the MLP (Houlsby et al. 2019, arXiv 1902.00751)."""

    sublayers = ("self_attn", "mlp")

    name: Literal["houlsby"] = "houlsby"


class Pfeiffer(_Bottleneck):
    """Adapters after the MLP (Pfeiffer et al. 2021, arXiv 2005.00247)."""

    sublayers = ("mlp",)

    name: Literal["pfeiffer"] = "pfeiffer"


class GatedPfeiffer(_Bottleneck):
    """Adapters after the MLP, scaled by a gate for each token (Mao et al. 2022, arXiv 2110.07577)."""

    sublayers = ("mlp",)

    name: Literal["gated_pfeiffer"] = "gated_pfeiffer"


class ParallelAdapter(_Bottleneck):
    """Adapters parallel to the MLP (He et al. 2022, arXiv 2110.04366)."""

    sublayers = ("mlp",)

    name: Literal["parallel_adapter"] = "parallel_adapter"
    reduction_factor: Positive = 2.0
    """Hidden size of the model over that of the layer."""
    scaling: Positive = 4.0
    """Factor of the layer's output."""
