"""Weights of a loaded model in the form that its files have: transformers renames, stacks and turns some of them."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from triptych.errors import UserError
from triptych.models.weights import weight_files


def as_stored(model: PreTrainedModel, weights: Mapping[str, Tensor], base: Path) -> dict[str, Tensor]:
    """Weights of the model by the names, and in the shapes, that the files of its folder `base` have.

    Raises:
        UserError: the files have no such tensor.
    """
    shapes, found = _shapes(base), as_saved(model, weights, base)
    for name, tensor in found.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise UserError(
                f"the files of the base have no {name} of shape {list(tensor.shape)}, which was trained: they hold its "
                "weights in a form that is not written again"
            )
    return found


def as_saved(model: PreTrainedModel, weights: Mapping[str, Tensor], base: Path) -> dict[str, Tensor]:
    """Weights of the model as its files in the folder `base` hold them; others as transformers would save them."""
    shapes = _shapes(base)
    found = {name: tensor for name, tensor in weights.items() if shapes.get(name) == tuple(tensor.shape)}
    converted = {name: tensor for name, tensor in weights.items() if name not in found}
    return found | (revert_weight_conversion(model, converted) if converted else {})


def stored_in_turn(
    model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]], base: Path
) -> Iterator[tuple[str, Tensor]]:
    """`as_stored` of weights that come one at a time; those that the files hold in another form come last.

    Raises:
        UserError: the files have no such tensor.
    """
    shapes, others = _shapes(base), {}
    for name, tensor in weights:
        if shapes.get(name) == tuple(tensor.shape):
            yield name, tensor
        else:
            others[name] = tensor
    yield from as_stored(model, others, base).items() if others else ()


def _shapes(base: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(base):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return found
