"""The wrapper's arithmetic against one token at a time in double precision."""

import pytest
import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping

from triptych.vllm_plugin.cpu_lora import GroupedLoRAWrapper

SLOTS, RANK, WIDTH = 4, 8, 24
OUTS = (16, 8, 8)  # like q, k, v: one wide, two narrow
IDS: list[int | None] = [11, 22, 33, 44]  # adapter ids by slot: every slot is taken
MIXES = {
    "base": [0] * 9,
    "one": [33] * 9,
    "one and base": [0, 22, 22, 0, 22],
    "last slot and base": [44, 0, 0, 44, 0],
    "all and base": [0, 44, 11, 22, 33, 0, 11, 11, 44],
    "a long one beside three short": [11] * 400 + [22, 0, 33, 44],
}
Stacked = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def make_wrapper(adapters: list[int], prefill: bool = False) -> GroupedLoRAWrapper:
    wrapper = GroupedLoRAWrapper(1024, max_batches=1024, device="cpu")
    select(wrapper, adapters, prefill)
    return wrapper


def select(wrapper: GroupedLoRAWrapper, adapters: list[int], prefill: bool = False) -> None:
    wrapper.update_metadata(LoRAMapping(tuple(adapters), tuple(adapters), prefill), IDS, SLOTS + 1, 100)


def make_stacked(dtype: torch.dtype, outs: tuple[int, ...] = OUTS) -> Stacked:
    """vLLM's layout, filled as vLLM does; the adapter in slot 1 has half the rank, slot 2 has no first projection."""
    a = tuple(torch.zeros(SLOTS, 1, RANK, WIDTH, dtype=dtype) for _ in outs)
    b = tuple(torch.zeros(SLOTS, 1, out, RANK, dtype=dtype) for out in outs)
    for slot in range(SLOTS):
        for i in range(len(outs)):
            if not (slot == 2 and i == 0 and len(outs) > 1):
                write(a[i], b[i], slot, RANK // 2 if slot == 1 else RANK)
    return a, b


def write(a: Tensor, b: Tensor, slot: int, rank: int = RANK) -> None:
    a[slot], b[slot] = 0, 0
    a[slot, 0, :rank].copy_(torch.randn(rank, a.shape[3]))
    b[slot, 0, :, :rank].copy_(torch.randn(b.shape[2], rank) * 0.3)


def one_by_one(y: Tensor, x: Tensor, stacked: Stacked, adapters: list[int]) -> Tensor:
    expected = y.double().clone()
    for row, adapter in enumerate(adapters):
        if adapter == 0:
            continue
        slot, offset = IDS.index(adapter), 0
        for a, b in zip(*stacked, strict=True):
            delta = b[slot, 0].double() @ (a[slot, 0].double() @ x[row].double())
            expected[row, offset : offset + len(delta)] += delta
            offset += len(delta)
    return expected


def check(actual: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if actual.dtype == torch.float32 else 3e-2
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * 10)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("prefill", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapters", MIXES.values(), ids=MIXES)
def test_linear(adapters: list[int], dtype: torch.dtype, prefill: bool) -> None:
    wrapper, stacked = make_wrapper(adapters, prefill), make_stacked(dtype)
    x, y = torch.randn(len(adapters), WIDTH, dtype=dtype), torch.randn(len(adapters), sum(OUTS), dtype=dtype)
    before, expected = y.clone(), one_by_one(y, x, stacked, adapters)
    with torch.inference_mode():
        wrapper.add_lora_linear(y, x, *stacked, 1.0, OUTS)
    check(y, expected)
    base = [row for row, adapter in enumerate(adapters) if adapter == 0]
    assert torch.equal(y[base], before[base])


def test_vllm_writes_adapters_after_the_first_use() -> None:
    adapters = [11, 0, 22, 44]
    wrapper, stacked = make_wrapper(adapters), make_stacked(torch.float32)
    x = torch.randn(len(adapters), WIDTH)
    for slot in (0, 3):
        y = torch.randn(len(adapters), sum(OUTS))
        expected = one_by_one(y, x, stacked, adapters)
        with torch.inference_mode():
            wrapper.add_lora_linear(y, x, *stacked, 1.0, OUTS)
        check(y, expected)
        for a, b in zip(*stacked, strict=True):
            write(a, b, slot)


def test_an_adapter_that_leaves_the_layer_out_changes_nothing_until_it_does() -> None:
    wrapper, (a, b) = make_wrapper([22, 22]), make_stacked(torch.float32)
    x, y = torch.randn(2, WIDTH), torch.randn(2, sum(OUTS))
    for matrix in (*a, *b):
        matrix[1] = 0
    before = y.clone()
    wrapper.add_lora_linear(y, x, a, b, 1.0, OUTS)
    assert torch.equal(y, before)
    write(a[1], b[1], slot=1)
    wrapper.add_lora_linear(y, x, a, b, 1.0, OUTS)
    check(y, one_by_one(before, x, (a, b), [22, 22]))


def test_a_broken_adapter_spoils_its_own_rows_only() -> None:
    adapters = [0, 11, 22, 0, 33, 44]
    wrapper, stacked = make_wrapper(adapters), make_stacked(torch.float32)
    x, y = torch.randn(len(adapters), WIDTH), torch.randn(len(adapters), sum(OUTS))
    expected = one_by_one(y, x, stacked, adapters)
    stacked[0][0][1] = float("nan")
    wrapper.add_lora_linear(y, x, *stacked, 1.0, OUTS)
    rest = [row for row, adapter in enumerate(adapters) if adapter != 22]
    check(y[rest], expected[rest])
    assert y[2].isnan().any()


@pytest.mark.parametrize("adapters", MIXES.values(), ids=MIXES)
def test_logits_of_a_padded_head_in_another_dtype(adapters: list[int]) -> None:
    (a,), (b,) = stacked = make_stacked(torch.bfloat16, outs=(40,))
    wrapper = make_wrapper(adapters)
    x, y = torch.randn(len(adapters), WIDTH, dtype=torch.bfloat16), torch.randn(len(adapters), 48)
    before, expected = y.clone(), one_by_one(y, x, stacked, adapters)
    wrapper.add_lora_logits(y, x, a, b, 1.0)
    torch.testing.assert_close(y.double(), expected, rtol=3e-2, atol=0.3)
    assert torch.equal(y[:, 40:], before[:, 40:])


@pytest.mark.parametrize("rows", [3, 5])
def test_logits_of_one_prompt_have_its_own_adapter(rows: int) -> None:
    """As many rows as are sampled, or more: each request's own in turn, and afterwards those of the samples again."""
    adapters = [44, 0, 22, 0, 44]
    (a,), (b,) = stacked = make_stacked(torch.float32, outs=(40,))
    wrapper = make_wrapper(adapters)
    x, y = torch.randn(rows, WIDTH), torch.randn(rows, 40)
    for token, adapter in enumerate(adapters):
        logits = y.clone()
        with wrapper.logits_of_prompt(token):
            wrapper.add_lora_logits(logits, x, a, b, 1.0)
        check(logits, one_by_one(y, x, stacked, [adapter] * rows))
    x, y = torch.randn(5, WIDTH), torch.randn(5, 40)
    expected = one_by_one(y, x, stacked, adapters)
    wrapper.add_lora_logits(y, x, a, b, 1.0)
    check(y, expected)


@pytest.mark.parametrize("adapters", MIXES.values(), ids=MIXES)
def test_embedding_takes_rows_of_a_that_are_looked_up_already(adapters: list[int]) -> None:
    _, (b,) = make_stacked(torch.float32, outs=(32,))
    wrapper = make_wrapper(adapters)
    looked_up, y = torch.randn(len(adapters), RANK), torch.randn(len(adapters), 32)
    expected = y.double().clone()
    for row, adapter in enumerate(adapters):
        if adapter:
            expected[row] += b[IDS.index(adapter), 0].double() @ looked_up[row].double()
    wrapper.add_lora_embedding(y, looked_up, b, add_input=True)
    check(y, expected)


def test_shrink_and_expand_apart_as_sharded_layers_call_them() -> None:
    adapters = MIXES["all and base"]
    wrapper, (a, b) = make_wrapper(adapters), make_stacked(torch.bfloat16)
    x, y = torch.randn(len(adapters), WIDTH, dtype=torch.bfloat16), torch.randn(len(adapters), sum(OUTS)).bfloat16()
    expected = one_by_one(y, x, (a, b), adapters)
    buffers = torch.zeros(len(OUTS), len(adapters), RANK)
    wrapper.add_shrink(buffers, x, a, 1.0)
    wrapper.add_expand(y, buffers, b, OUTS, offset_start=0)
    check(y, expected)


def test_the_routing_follows_the_batch() -> None:
    wrapper, stacked = make_wrapper([11, 22]), make_stacked(torch.float32)
    for adapters in ([0, 33, 44], [44], [0, 0, 0, 0]):
        select(wrapper, adapters)
        x, y = torch.randn(len(adapters), WIDTH), torch.randn(len(adapters), sum(OUTS))
        expected = one_by_one(y, x, stacked, adapters)
        wrapper.add_lora_linear(y, x, *stacked, 1.0, OUTS)
        check(y, expected)
