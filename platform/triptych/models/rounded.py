"""A base as its quantisation rounds it, as a plain folder: engines sample the weights that the learner uses."""

from pathlib import Path
from typing import TYPE_CHECKING

from triptych import storage
from triptych.cache import cache_dir
from triptych.errors import UserError
from triptych.models.base import fingerprint
from triptych.recipe.model import Quantization

if TYPE_CHECKING:
    from torch import Tensor


def rounded_base(folder: Path, quantization: Quantization | None) -> Path:
    """The folder of a model with the weights that `quantization` makes of it, in float32; made once on each node.

    Without quantisation it is the folder itself.

    Raises:
        UserError: the rounded weights are known on a GPU alone (nf4), or there is no space for them.
    """
    if quantization is None:
        return folder
    if quantization == "nf4":
        raise UserError(
            "model.quantization: engines sample no base rounded by nf4; allowed with engines: int8, or none"
        )
    made = cache_dir("rounded") / f"{quantization}-{fingerprint(folder)}"
    if storage.read_manifest(str(made)) is None:
        _write(made, folder, quantization)
    return made


def _write(made: Path, folder: Path, quantization: Quantization) -> None:
    import torch

    from triptych.models.full import save_model

    try:
        with storage.committed(str(made)) as staging:
            save_model(staging, folder, _weights(folder, quantization), torch.float32, {"quantization": quantization})
    except storage.AlreadyCommittedError:  # another engine of this node was faster
        return


def _weights(folder: Path, quantization: Quantization) -> "dict[str, Tensor]":
    """All weights of the folder, those that are rounded as the learner widens them."""
    import torch

    from triptych.models.base import load_causal_lm
    from triptych.models.quantize import rounded_weights
    from triptych.models.stored import as_stored
    from triptych.models.weights import read_weights

    model = load_causal_lm(folder, torch.float32, quantization=quantization)
    return read_weights(folder) | as_stored(model, rounded_weights(model), folder)
