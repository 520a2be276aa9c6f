"""Memory of one training worker: the base, and each role on it, as a strategy spreads them.

First order: the tensors that there must be, float32 where something trains. Intervals cover what the recipe does not
say: how full micro-batches are, how long answers are, what an allocator keeps.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from triptych.methods.parameters.matrix import reached_experts
from triptych.methods.parameters.total import adapted, added, trained
from triptych.models.sizes import Sizes, Tensors
from triptych.plan.activations import BYTES, FP32, RolePass
from triptych.plan.amounts import ON_CPU, ZERO, Bytes, Parts, total
from triptych.plan.machines import GIB
from triptych.plan.sharding import Sharding
from triptych.recipe import Memory, Method, Model, Optimizer
from triptych.recipe.method import Freeze, Full, parts_of, trains_base
from triptych.recipe.work_shape import MicroBatch

QUANTIZED = {"int8": (1.0, 1.0, 1.05), "nf4": (0.52, 0.54, 0.57)}
"""Low, expected and high bytes per weight of a quantized base, scales included."""
ZERO_BUCKET = 500_000_000 * FP32
"""Bytes of DeepSpeed's communication bucket at its default size."""
ZERO3_LIVE = 1_000_000_000
"""Weights that DeepSpeed keeps gathered where they are soon used again: its default."""
RUNTIME = (int(0.57 * GIB), int(0.625 * GIB), int(0.7 * GIB))
"""Interpreter, libraries and Ray, as a worker of Ray Train has them; 0.44 GiB without Ray."""
GPU_RUNTIME = (int(0.5 * GIB), int(0.9 * GIB), int(1.5 * GIB))
"""The CUDA context and libraries, in a GPU's memory."""
MEANWHILE = (0.9, 0.6, 0.3)
"""Low, expected and high: how much of a step's work is over, or not there yet, while a checkpoint is written."""
KERNELS = {2: (0.04, 0.065, 0.09), 4: (0.025, 0.037, 0.06)}
"""GB that a first step adds on a CPU, by bytes of a number: what torch loads then, and what it compiles for 16 bits."""
GPU_KERNELS = (0.01, 0.07, 0.1)
"""GB that a first step adds on a GPU: the workspaces of cuBLAS, most on Hopper."""
_CODE_BLOCK, _SMALL = 64, 4096
"""8-bit AdamW: values that share a scale, and elements from which on a parameter's state is in 8 bits."""


@dataclass(frozen=True)
class Worker:
    """One worker: the base, batch and sharding that all of its roles share."""

    model: Model
    memory: Memory
    batch: MicroBatch
    sizes: Sizes
    spread: Sharding
    on_cpu: bool

    def base(self, method: Method) -> Parts:
        """Memory of the base on one worker: weights, masters, DeepSpeed's bucket, kernels and runtime."""
        bucket = {"bucket": Bytes.exactly(ZERO_BUCKET)} if self.spread.bucket else {}
        kernels = Bytes.scaled(1e9, KERNELS[BYTES[self.model.dtype]] if self.on_cpu else GPU_KERNELS)
        runtime = Bytes(*(RUNTIME if self.on_cpu else GPU_RUNTIME))
        return self.weights(method) | self._placed(bucket) | {"kernels": kernels, "runtime": runtime}

    def weights(self, method: Method | None) -> Parts:
        """Weights of a model of the base's shape and their masters; `method` trains on it, None: nothing does."""
        loaded, share = self._loaded(), 1 / self.spread.weights
        parts = {"weights": Bytes.scaled(share, (loaded.low, loaded.expected, loaded.high))}
        if masters := 0 if method is None else self._masters(method):
            parts["masters"] = Bytes.exactly(int(share * masters))
        return self._placed(parts)

    def trained(self, method: Method, head: Sequence[Tensors], optimizer: Optimizer, *, logits: bool) -> Parts:
        """Memory of a role that is updated."""
        tensors, spread = [*trained(method, self.sizes), *head], self.spread
        values = FP32 * sum(tensor.numel for tensor in tensors)
        state = optimizer_bytes(optimizer, tensors) + (values if spread.master_copy else 0)
        parts = {
            "adapter": Bytes.exactly(values // spread.weights),
            "gradients": Bytes.exactly(values // spread.gradients),
            "optimizer": Bytes.exactly(state // spread.optimizer),
        }
        if trains_base(method):
            del parts["adapter"]  # it is the base
        work = self._transient(method, values, logits=logits)
        return self._placed(parts) | work | self._snapshot((values + state) // spread.workers, total(work.values()))

    def frozen(self, method: Method, head: Sequence[Tensors], members: int = 1) -> Parts:
        """Memory of a frozen role, in `members` copies, beside the model that it stands on, or that it is itself."""
        own = [] if trains_base(method) else trained(method, self.sizes)
        values = FP32 * sum(tensor.numel for tensor in [*own, *head])
        return self._placed({"adapter": Bytes.exactly(members * values // self.spread.weights)})

    def _transient(self, method: Method, values: int, *, logits: bool) -> Parts:
        sizes, batch, spread = self.sizes, self.batch, self.spread
        float32 = isinstance(method, Full) or spread.float32_base
        work = RolePass(sizes, method, self.model.dtype, self.model.packing, self.memory, batch.length, float32)
        parts = {"activations": Bytes.scaled(work.activations() * batch.tokens, batch.fill)}
        parts["casts"] = self._casts(method, float32_base=float32) + self._folded(method)
        if spread.whole_model:
            parts["gathered"] = self._gathered(method, values)
        if spread.message:
            parts["message"] = Bytes.exactly(values)
        if logits:
            low, expected, high = (work.logits(share * batch.tokens) for share in batch.learned)
            parts["logits"] = Bytes(low, expected, high)
        return parts

    def _snapshot(self, copied: int, work: Bytes) -> Parts:
        """The copy of a checkpoint, which is written while the next step begins; on a CPU, beyond that step's work."""
        if not self.on_cpu:
            return {f"{ON_CPU}snapshot": Bytes.exactly(copied)}
        low, expected, high = (max(0, int(copied - share * work.expected)) for share in MEANWHILE)
        return {"snapshot": Bytes(low, expected, high)} if high else {}

    def _casts(self, method: Method, *, float32_base: bool) -> Bytes:
        """Copies of weights in the precision of the computation, made by a pass and kept for its backward pass."""
        sizes, size = self.sizes, BYTES[self.model.dtype]
        if isinstance(method, Freeze) and not self.spread.float32_base:
            return Bytes.exactly(size * sum(t.numel for t in trained(method, sizes)) if size < FP32 else 0)
        if float32_base and size < FP32:
            tables = (1 if sizes.tied else 2) * sizes.embedding
            gathered_so = self.spread.whole_model and not self.spread.float32_base  # fsdp: blocks need no copy
            return Bytes.exactly(size * (tables if gathered_so else sizes.total))
        if trains_base(method):
            return ZERO
        copied = added(method, sizes) if size < FP32 else self._scaled(method)
        # Checkpointing has one block's at a time.
        parts = Bytes(size * copied // sizes.layers, size * copied, size * copied)
        if self.model.quantization is None:
            return parts
        largest = max(inputs * outputs for inputs, outputs, _ in sizes.linears.values())
        return parts + Bytes.exactly(2 * size * largest)  # as it is widened

    def _folded(self, method: Method) -> Bytes:
        """Experts' weights with their LoRA in them, those of one block where it is computed again, and a gradient."""
        reached = [reached_experts(part, self.sizes.experts) for part in parts_of(method)]
        size = BYTES[self.model.dtype] * sum(math.prod(sides) for part in reached for sides in part.values())
        block = size // self.sizes.layers
        return Bytes.exactly(block + (size if self.memory.checkpointing == "none" else block))

    def _scaled(self, method: Method) -> int:
        """Elements of all B matrices, which are scaled anew for each pass."""
        ranks = adapted(method, self.sizes)
        sizes = self.sizes
        return sum(len(sizes.blocks_with(name)) * rank * sizes.linears[name][1] for name, rank in ranks.items())

    def _gathered(self, method: Method, values: int) -> Bytes:
        """Weights of the units at work: the tables, and one, two or three blocks; with gradients where they train."""
        base = self._loaded().expected + self._masters(method)
        tables = (1 if self.sizes.tied else 2) * self.sizes.embedding * base // self.sizes.total
        block = (base - tables + 2 * values) // self.sizes.layers
        if trains_base(method):
            tables, block = 2 * tables, 2 * (base - tables) // self.sizes.layers
        if self.spread.float32_base:  # zero3
            live = FP32 * min(self.sizes.total, ZERO3_LIVE)
            return Bytes(min(tables + block, live), live, live)
        return Bytes(tables + block, tables + 2 * block, tables + 3 * block)

    def _masters(self, method: Method) -> int:
        """Bytes that float32 masters add to the loaded weights: to those that train, or to all of them."""
        if isinstance(method, Full) or self.spread.float32_base:
            return FP32 * self.sizes.total - self._loaded().expected
        if isinstance(method, Freeze):
            return (FP32 - BYTES[self.model.dtype]) * sum(tensor.numel for tensor in trained(method, self.sizes))
        return 0

    def _loaded(self) -> Bytes:
        """Bytes of the whole base as it is loaded."""
        sizes, model = self.sizes, self.model
        if model.quantization is None:
            return Bytes.exactly(BYTES[model.dtype] * sizes.total)
        linear = sum(len(sizes.blocks_with(name)) * i * o for name, (i, o, _) in sizes.linears.items())
        rest = Bytes.exactly(BYTES[model.dtype] * (sizes.total - linear))
        return rest + Bytes.scaled(linear, QUANTIZED[model.quantization])

    def _placed(self, parts: Parts) -> Parts:
        """The parts, those that are offloaded renamed with the prefix `cpu_`."""
        return {f"{ON_CPU}{part}" if part in self.spread.offloaded else part: size for part, size in parts.items()}


def optimizer_bytes(optimizer: Optimizer, tensors: Iterable[Tensors]) -> int:
    """Bytes of an optimizer's state for these tensors."""
    return sum(_state_bytes(optimizer, tensor) for tensor in tensors)


def _state_bytes(optimizer: Optimizer, tensor: Tensors) -> int:
    size, shape = tensor.numel, tensor.shape
    if optimizer.name == "sgd":
        return FP32 * size if optimizer.momentum else 0
    if optimizer.name == "lion" or (optimizer.name == "muon" and tensor.in_block and len(shape) > 1):
        return FP32 * size
    row = math.prod(shape[1:])
    if optimizer.name == "adamw_8bit" and len(shape) > 1 and math.prod(shape) >= _SMALL and row % _CODE_BLOCK == 0:
        return 2 * size + 2 * FP32 * size // _CODE_BLOCK
    return 2 * FP32 * size
