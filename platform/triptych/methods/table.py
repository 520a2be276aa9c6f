"""The table of methods: the module, trained tensors, requirements, serving and paper of each.

Light to import: no torch and no peft before something is attached or exported.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from triptych.methods.parameters import base_weights, bottleneck, matrix, virtual
from triptych.models.sizes import Sizes, Tensors
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
from triptych.recipe.method import BitFit, Freeze, Full
from triptych.recipe.virtual import GatedPrefix, PrefixTuning, PromptTuning, PTuning, PTuningV2

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from triptych.methods.base import Attachment, Export


_PAPER = re.compile(r"\(([^()]+, arXiv [0-9.]+)\)")


@dataclass(frozen=True)
class Entry:
    """One parameter-efficient method."""

    config: type[Any]
    """Its model in the recipe."""
    module: str
    """Module with `attach(model, method, role)` and `export(method, state)`; loaded when they are called."""
    tensors: Callable[[Any, Sizes], list[Tensors]]
    """Function that gives the tensors that it trains, from the sizes of a model alone."""
    trains: str
    served: str
    learning_rates: tuple[float, float]
    needs: str = ""
    """Requirements on the model or the run."""

    @property
    def paper(self) -> str:
        """Citation in the docstring of `config`, such as "Hu et al. 2021, arXiv 2106.09685"; empty without one."""
        found = _PAPER.search(" ".join((self.config.__doc__ or "").split()))
        return found[1] if found else ""

    @property
    def merges(self) -> bool:
        """True if the trained change can be merged into the base's weights."""
        return bool(self.config.merges)

    def attach(self, model: "PreTrainedModel", method: Any, role: str) -> "Attachment":
        """Add what the method trains to a model, for one role; UserError where the model has no place for it."""
        found: Attachment = import_module(self.module).attach(model, method, role)
        return found

    def export(self, method: Any, state: "Mapping[str, Tensor]") -> "Export":
        """Contents of its files, from the final `parameters` and `buffers` of its attachment."""
        found: Export = import_module(self.module).export(method, state)
        return found


NATIVE = "natively by vLLM, many adapters in one batch"
NATIVE_TWICE = "natively by vLLM, as a LoRA of twice the rank"
MERGED = "merged, as the base of an endpoint of its own"
NOT_BEFORE_ROWS = "not by vLLM, whose prompt embeddings a request would have to bring; plain peft runs it"
NOT_INSIDE = "not by vLLM, which has no prefixes of keys and values; plain peft runs it"

NOT_BETWEEN = (
    "not by vLLM, which has no layers to add, and they cannot be merged; transformers runs it, through Triptych"
)

NOT_GATED = "not by vLLM, which has no gates, nor has peft; transformers runs it, through Triptych"

METHODS: dict[str, Entry] = {
    "lora": Entry(
        config=Lora,
        module="triptych.methods.lora",
        tensors=matrix.low_rank,
        trains="two low-rank matrices beside each linear layer",
        served=NATIVE,
        learning_rates=(5e-5, 1e-3),
    ),
    "gated_lora": Entry(
        config=GatedLora,
        module="triptych.methods.gated_lora",
        tensors=matrix.gated_lora,
        trains="two low-rank matrices beside each linear layer, and a gate that scales them for each token",
        served=NOT_GATED,
        learning_rates=(5e-5, 1e-3),
    ),
    "dora": Entry(
        config=Dora,
        module="triptych.methods.lora",
        tensors=matrix.low_rank,
        trains="two low-rank matrices beside each linear layer, and the lengths of its weight's rows",
        served=MERGED,
        learning_rates=(5e-5, 1e-3),
        needs="a base that is not quantized",
    ),
    "pissa": Entry(
        config=Pissa,
        module="triptych.methods.lora",
        tensors=matrix.low_rank,
        trains="two low-rank matrices that start as a part of each weight",
        served=NATIVE_TWICE,
        learning_rates=(2e-5, 5e-4),
    ),
    "adalora": Entry(
        config=AdaLora,
        module="triptych.methods.adalora",
        tensors=matrix.adalora,
        trains="three factors beside each linear layer, whose ranks follow from a budget",
        served=NATIVE,
        learning_rates=(2e-4, 5e-3),
        needs="the number of steps",
    ),
    "ia3": Entry(
        config=Ia3,
        module="triptych.methods.peft_family",
        tensors=matrix.ia3,
        trains="factors of keys, values and the MLP's inner states",
        served=MERGED,
        learning_rates=(1e-3, 1e-2),
    ),
    "vera": Entry(
        config=Vera,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="two vectors for each linear layer, between random matrices that all share",
        served=MERGED,
        learning_rates=(1e-3, 2e-2),
    ),
    "loha": Entry(
        config=Loha,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="two low-rank products for each linear layer, multiplied entry by entry",
        served=MERGED,
        learning_rates=(1e-4, 5e-3),
    ),
    "lokr": Entry(
        config=Lokr,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="two factors of a Kronecker product for each linear layer",
        served=MERGED,
        learning_rates=(1e-4, 5e-3),
    ),
    "oft": Entry(
        config=Oft,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="rotations of each linear layer's input, in blocks",
        served=MERGED,
        learning_rates=(1e-4, 4e-3),
        needs="layers whose inputs the block size divides",
    ),
    "boft": Entry(
        config=Boft,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="rotations of each weight in butterfly factors, and a scale of each output",
        served=MERGED,
        learning_rates=(1e-4, 2e-3),
        needs="layers whose inputs the block size divides; a base that is not quantized",
    ),
    "hra": Entry(
        config=Hra,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="reflections of each weight",
        served=MERGED,
        learning_rates=(1e-4, 5e-3),
        needs="a base that is not quantized",
    ),
    "miss": Entry(
        config=Miss,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="one small matrix for each linear layer, repeated over its inputs",
        served=MERGED,
        learning_rates=(2e-5, 1e-3),
    ),
    "fourierft": Entry(
        config=FourierFt,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="some coefficients of each change's Fourier transform",
        served=MERGED,
        learning_rates=(1e-3, 5e-2),
    ),
    "randlora": Entry(
        config=RandLora,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="scales of random bases that all layers share",
        served=MERGED,
        learning_rates=(1e-4, 5e-3),
    ),
    "vblora": Entry(
        config=VbLora,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="a bank of vectors, and what each layer mixes of it",
        served=MERGED,
        learning_rates=(1e-3, 1e-2),
        needs="layers whose inputs and outputs the vector length divides; whole layers on each worker",
    ),
    "shira": Entry(
        config=Shira,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="some entries of each weight",
        served=MERGED,
        learning_rates=(1e-4, 5e-3),
        needs="a base that is not quantized",
    ),
    "c3a": Entry(
        config=C3a,
        module="triptych.methods.peft_family",
        tensors=matrix.peft,
        trains="kernels of circular convolutions for each linear layer",
        served=MERGED,
        learning_rates=(1e-2, 3e-1),
        needs="layers whose inputs and outputs the block size divides",
    ),
    "ln_tuning": Entry(
        config=LnTuning,
        module="triptych.methods.peft_family",
        tensors=matrix.ln_tuning,
        trains="the weights of norms",
        served=MERGED,
        learning_rates=(1e-4, 1e-2),
    ),
    "prompt_tuning": Entry(
        config=PromptTuning,
        module="triptych.methods.prompt",
        tensors=virtual.prompt,
        trains="the embeddings of virtual tokens before every row",
        served=NOT_BEFORE_ROWS,
        learning_rates=(1e-3, 3e-1),
        needs="room for the virtual tokens in the model's context",
    ),
    "p_tuning": Entry(
        config=PTuning,
        module="triptych.methods.prompt",
        tensors=virtual.prompt,
        trains="an MLP or LSTM that makes the embeddings of virtual tokens before every row",
        served=NOT_BEFORE_ROWS,
        learning_rates=(1e-4, 1e-2),
        needs="room for the virtual tokens in the model's context",
    ),
    "prefix_tuning": Entry(
        config=PrefixTuning,
        module="triptych.methods.prefix",
        tensors=virtual.prefix,
        trains="an MLP that makes keys and values before every row in every layer",
        served=NOT_INSIDE,
        learning_rates=(3e-5, 5e-4),
        needs="attention that can be replaced, room for the virtual tokens in the model's context",
    ),
    "p_tuning_v2": Entry(
        config=PTuningV2,
        module="triptych.methods.prefix",
        tensors=virtual.prefix,
        trains="keys and values before every row in every layer",
        served=NOT_INSIDE,
        learning_rates=(1e-3, 1e-2),
        needs="attention that can be replaced, room for the virtual tokens in the model's context",
    ),
    "gated_prefix": Entry(
        config=GatedPrefix,
        module="triptych.methods.gated_prefix",
        tensors=virtual.gated_prefix,
        trains="an MLP that makes keys and values before every row in every layer, and gates that scale them for each "
        "token",
        served=NOT_GATED,
        learning_rates=(3e-5, 5e-4),
        needs="attention that can be replaced, room for the virtual tokens in the model's context",
    ),
    "houlsby": Entry(
        config=Houlsby,
        module="triptych.methods.bottleneck",
        tensors=bottleneck.adapters,
        trains="two small layers with a non-linearity between them after attention and after the MLP",
        served=NOT_BETWEEN,
        learning_rates=(3e-5, 3e-3),
    ),
    "pfeiffer": Entry(
        config=Pfeiffer,
        module="triptych.methods.bottleneck",
        tensors=bottleneck.adapters,
        trains="two small layers with a non-linearity between them after the MLP",
        served=NOT_BETWEEN,
        learning_rates=(1e-4, 1e-3),
    ),
    "gated_pfeiffer": Entry(
        config=GatedPfeiffer,
        module="triptych.methods.bottleneck",
        tensors=bottleneck.adapters,
        trains="two small layers with a non-linearity between them after the MLP, and a gate that scales them for each "
        "token",
        served=NOT_GATED,
        learning_rates=(1e-4, 1e-3),
    ),
    "parallel_adapter": Entry(
        config=ParallelAdapter,
        module="triptych.methods.bottleneck",
        tensors=bottleneck.adapters,
        trains="two small layers with a non-linearity between them beside the MLP",
        served=NOT_BETWEEN,
        learning_rates=(5e-5, 1e-3),
    ),
    "bitfit": Entry(
        config=BitFit,
        module="triptych.methods.bitfit",
        tensors=base_weights.bitfit,
        trains="biases, or biases that it adds",
        served="merged, as the base of an endpoint of its own, where the architecture has such biases",
        learning_rates=(1e-4, 1e-2),
        needs="layers with biases, or `missing: add`",
    ),
    "freeze": Entry(
        config=Freeze,
        module="triptych.methods.freeze",
        tensors=base_weights.freeze,
        trains="some of the base's own weights: its last layers, parameters by name, rows of its embeddings",
        served="as the base of an endpoint of its own",
        learning_rates=(1e-6, 1e-3),
        needs="a base that is not quantized",
    ),
    "full": Entry(
        config=Full,
        module="triptych.methods.full",
        tensors=base_weights.full,
        trains="every weight",
        served="as the base of an endpoint of its own",
        learning_rates=(1e-6, 1e-4),
    ),
}
