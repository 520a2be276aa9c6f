"""Base of all methods that add parameters to a frozen base."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from triptych.recipe.base import Closed, Positive

Family = Literal["soft", "matrix", "bottleneck", "bias"]
"""Kind of what a method adds: tokens, keys and values before the rows; changes of linear layers; layers; biases."""

Targets = Literal["all-linear"] | tuple[str, ...]
"""Module name endings, or every linear layer except the output head."""
Layers = tuple[Annotated[int, Field(ge=0)], ...] | None
"""Numbers of blocks; None: all."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
Rank = Annotated[int, Field(ge=1, le=512)]


class Part(Closed):
    """A method that adds parameters to a frozen base, alone or as a part of a hybrid."""

    family: ClassVar[Family]
    merges: ClassVar[bool]
    """True if it can be merged into the base's weights, so that engines that know no adapters can run it."""
    whole: ClassVar[bool] = False
    """Weights of the base itself are trained: the role has the base for itself, and comes out as a whole model."""
    reads_weights: ClassVar[bool] = False
    """It computes with the base's weights themselves, so they cannot be quantized."""
    shares: ClassVar[bool] = False
    """One tensor is trained in all blocks, so they cannot be sharded apart."""

    lr: Positive | None = None
    """Learning rate where it is not the stage's; it follows the same schedule."""
