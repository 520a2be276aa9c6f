"""Tensors of bottleneck adapters."""

from triptych.errors import UserError
from triptych.models.sizes import Sizes, Tensors
from triptych.recipe.bottleneck import GatedPfeiffer, Houlsby, ParallelAdapter, Pfeiffer


def adapters(config: Houlsby | Pfeiffer | GatedPfeiffer | ParallelAdapter, sizes: Sizes) -> list[Tensors]:
    """The tensors of all adapters, and of their gates."""
    check_drops(config, sizes.layers)
    width, sites = config.width(sizes.hidden), sizes.layers * len(config.sublayers)
    shapes: list[tuple[int, ...]] = [(width, sizes.hidden), (width,), (sizes.hidden, width), (sizes.hidden,)]
    shapes += [(1, sizes.hidden), (1,)] if isinstance(config, GatedPfeiffer) else []
    return [Tensors(shape, sites) for shape in shapes]


def check_drops(config: Houlsby | Pfeiffer | GatedPfeiffer | ParallelAdapter, layers: int) -> None:
    """UserError where adapters would be left out of every block, or of more."""
    for field in ("drop_layers", "robust_drop_layers"):
        if (dropped := getattr(config, field)) >= layers:
            raise UserError(f"method.{field}: {dropped} of {layers} layers; allowed: 0 to {layers - 1}")
