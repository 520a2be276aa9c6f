"""Methods that change linear layers. Names and defaults are peft's, those of LoRA apart."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from triptych.recipe.base import Count, Fraction, Positive
from triptych.recipe.part import Dropout, Layers, Part, Rank, Targets

Init = Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva"]


class _Matrix(Part):
    family = "matrix"
    merges = True

    targets: Targets = "all-linear"
    """Module name endings, or every linear layer except the output head."""


class _InBlocks(_Matrix):
    layers: Layers = None
    """Numbers of the blocks whose layers are changed; None: all."""


class _LowRank(_InBlocks):
    r: Rank = 16
    """Rank."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / r, or alpha / sqrt(r) with rslora."""
    dropout: Dropout = 0.0
    """Probability with which an element of A's input is dropped in training."""
    rslora: bool = False
    """Kalajdzievski 2023, arXiv 2312.03732."""
    rank_pattern: dict[str, Rank] = {}
    """Other ranks of the layers whose names end so; the first that fits counts."""
    alpha_pattern: dict[str, Positive] = {}
    """Other alphas of the layers whose names end so."""


class Lora(_LowRank):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    name: Literal["lora"] = "lora"
    init: Init = "default"
    """Start of A and B: default (A random, B zero), gaussian, orthogonal, from the base's weights: pissa, olora; or
    from what the layers read in the first batches: eva (Paischer et al. 2024, arXiv 2410.07170)."""
    freeze_a: bool = False
    """Only B is trained (LoRA-FA, Zhang et al. 2023, arXiv 2308.03303)."""
    experts: bool = True
    """Among all-linear are the experts of a mixture, which take no dropout; false: they stay as they are."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        ranks = [self.r, *self.rank_pattern.values()]
        if self.init == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError("an odd rank with init orthogonal; allowed: even ranks")
        if self.init in ("pissa", "olora") and max(ranks) > 256:
            raise ValueError(
                f"rank {max(ranks)} with init {self.init}, which comes out with twice the rank; allowed: up to 256"
            )
        if self.init in ("pissa", "olora") and self.freeze_a:
            raise ValueError(f"freeze_a with init {self.init}; allowed: init default, gaussian or orthogonal")
        return self


class GatedLora(_InBlocks):
    """LoRA that a gate in each layer scales for each token (Mao et al. 2022, arXiv 2110.07577)."""

    merges = False

    name: Literal["gated_lora"] = "gated_lora"
    r: Rank = 8
    """Rank."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / r."""
    dropout: Dropout = 0.0
    """Probability with which an element of A's input is dropped in training."""


class Dora(_LowRank):
    """LoRA of the directions of a weight's columns, and their lengths beside (Liu et al. 2024, arXiv 2402.09353)."""

    reads_weights = True

    name: Literal["dora"] = "dora"


class Pissa(_LowRank):
    """LoRA that starts as a weight's largest singular values (Meng et al. 2024, arXiv 2404.02948)."""

    name: Literal["pissa"] = "pissa"
    r: Annotated[int, Field(ge=1, le=256)] = 16
    """Rank; the adapter comes out with twice as much."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=256)]] = {}
    """Other ranks of the layers whose names end so; the first that fits counts."""
    niter: Count | None = None
    """Iterations of a randomised decomposition, which is faster; None: an exact one."""


class AdaLora(_InBlocks):
    """LoRA as B diag(E) A whose ranks follow from a budget (Zhang et al. 2023, arXiv 2303.10512)."""

    name: Literal["adalora"] = "adalora"
    target_r: Rank = 8
    """Mean rank at the end; the best step of early stopping is cut to it, wherever the budget stood."""
    init_r: Rank = 12
    """Rank of every layer at the start."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / init_r."""
    dropout: Dropout = 0.0
    """Probability with which an element of A's input is dropped in training."""
    tinit: Fraction = 0.1
    """Share of all steps before the budget falls."""
    tfinal: Fraction = 0.3
    """Share of all steps, the last, with the final budget."""
    delta_t: Count = 1
    """Steps between two allocations of the budget."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Smoothing of sensitivities."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Smoothing of their uncertainty."""
    orth_reg_weight: float = Field(0.5, ge=0)
    """Weight of the penalty that keeps the rows of A and the columns of B orthogonal."""

    @model_validator(mode="after")
    def _budget_falls(self) -> Self:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r {self.target_r} is more than init_r {self.init_r}; allowed: at most as much")
        if self.tinit + self.tfinal >= 1:
            raise ValueError(f"tinit {self.tinit:g} and tfinal {self.tfinal:g}; allowed: together less than 1")
        return self


class Ia3(_Matrix):
    """Factors of keys, values and the MLP's inner states (Liu et al. 2022, arXiv 2205.05638)."""

    name: Literal["ia3"] = "ia3"
    targets: Targets = ("k_proj", "v_proj", "down_proj")
    """Layers whose outputs are scaled, or whose inputs are, where `feedforward` names them too."""
    feedforward: tuple[str, ...] = ("down_proj",)
    """Those of the targets whose inputs are scaled; the outputs of the others are."""


class Vera(_InBlocks):
    """Two vectors between random matrices that all layers share (Kopiczko et al. 2024, arXiv 2310.11454)."""

    name: Literal["vera"] = "vera"
    r: Annotated[int, Field(ge=1, le=8192)] = 256
    """Rank of the two random matrices, which all layers share."""
    dropout: Dropout = 0.0
    """Probability with which an element of the input is dropped in training."""
    d_initial: Positive = 0.1
    """First value of the vector that scales the inner dimension."""
    projection_prng_key: int = Field(0, ge=0)
    """Seed of the random matrices."""


class Loha(_InBlocks):
    """Hadamard product of two low-rank products (Hyeon-Woo et al. 2022, arXiv 2108.06098)."""

    name: Literal["loha"] = "loha"
    r: Rank = 8
    """Rank of each of the two factors."""
    alpha: Positive = 8.0
    """Scaling: alpha / r."""


class Lokr(_InBlocks):
    """Kronecker product with a low-rank factor (Yeh et al. 2024, arXiv 2309.14859)."""

    name: Literal["lokr"] = "lokr"
    r: Rank = 8
    """Rank of the second factor, where it is split."""
    alpha: Positive = 8.0
    """Scaling: alpha / r."""
    decompose_both: bool = False
    """Split the first factor into two matrices of rank r too."""
    decompose_factor: Annotated[int, Field(ge=-1)] = -1
    """Size of the first factor; -1: the divisor closest to the square root."""


class Oft(_InBlocks):
    """Orthogonal rotations of a layer's input, in blocks (Qiu et al. 2023, arXiv 2306.07280)."""

    name: Literal["oft"] = "oft"
    oft_block_size: Count = 32
    """Must divide the layer's inputs."""


class Boft(_InBlocks):
    """Orthogonal rotations of weights, in butterfly factors (Liu et al. 2024, arXiv 2311.06243)."""

    reads_weights = True

    name: Literal["boft"] = "boft"
    boft_block_size: Count = 4
    """Must divide the layer's inputs."""


class Hra(_InBlocks):
    """A chain of Householder reflections of weights (Yuan et al. 2024, arXiv 2405.17484)."""

    reads_weights = True

    name: Literal["hra"] = "hra"
    r: Annotated[int, Field(ge=2, le=512, multiple_of=2)] = 8
    """Reflections; an even number starts as the identity."""


class Miss(_InBlocks):
    """One small matrix, repeated over the layer's inputs (Kang & Yin 2024, arXiv 2409.15371)."""

    name: Literal["miss"] = "miss"
    r: Rank = 64
    """Rank: rows of the trained matrix."""
    dropout: Dropout = 0.0
    """Probability with which an element of the input is dropped in training."""


class FourierFt(_InBlocks):
    """Some coefficients of a change's Fourier transform (Gao et al. 2024, arXiv 2405.03003)."""

    name: Literal["fourierft"] = "fourierft"
    n_frequency: Count = 1000
    """Fourier coefficients that are trained in each layer."""
    scaling: Positive = 150.0
    """Factor of the transformed coefficients."""
    random_loc_seed: int = Field(777, ge=0)
    """Seed of which coefficients are trained."""


class RandLora(_InBlocks):
    """A full-rank change of scaled random bases that all layers share (Albert et al. 2025, arXiv 2502.00987)."""

    name: Literal["randlora"] = "randlora"
    r: Rank = 32
    """Rank of each random basis."""
    alpha: Positive = 640.0
    """Scaling: alpha / r."""
    dropout: Dropout = 0.0
    """Probability with which an element of the input is dropped in training."""
    projection_prng_key: int = Field(0, ge=0)
    """Seed of the random bases."""


class VbLora(_InBlocks):
    """LoRA whose parts are mixed from one bank of vectors (Li et al. 2024, arXiv 2405.15179)."""

    shares = True

    name: Literal["vblora"] = "vblora"
    r: Rank = 4
    """Rank of A and B."""
    num_vectors: Count = 256
    """Vectors in the bank that all layers share."""
    vector_length: Count = 256
    """Must divide the inputs and outputs of each layer."""
    topk: Count = 2
    """Vectors of the bank that one sub-vector is mixed from."""
    dropout: Dropout = 0.0
    """Probability with which an element of A's input is dropped in training."""


class Shira(_Matrix):
    """Some entries of each weight (Bhardwaj et al. 2024, arXiv 2406.13175)."""

    reads_weights = True

    name: Literal["shira"] = "shira"
    r: Rank = 32
    """Rank of the LoRA that has as many entries as are trained."""
    random_seed: int = Field(0, ge=0)
    """Seed of which entries are trained."""


class C3a(_InBlocks):
    """Circular convolutions in blocks (Chen et al. 2024, arXiv 2407.19342)."""

    name: Literal["c3a"] = "c3a"
    block_size: Count = 64
    """Must divide the inputs and outputs of each layer."""


class LnTuning(Part):
    """The weights of norms (Zhao et al. 2024, arXiv 2312.11420)."""

    family = "matrix"
    merges = True

    name: Literal["ln_tuning"] = "ln_tuning"
    targets: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm", "norm")
    """Endings of the names of norms."""
