"""A packed weight gives stock's bits or becomes the plain weight again."""

import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from segmoe import packing
from segmoe.dense import Turns, take_over
from segmoe.packing import PackedWeight, may_pack, proves_equal
from segmoe.slots import PACK_AFTER_USES, Slots
from tests.benchmarks.memory import resident
from tests.segmoe.large import SIZE, write

SHAPES = ((1536, 2048), (2048, 768), (96, 128), (128, 48), (100, 60))
CAN_PACK = proves_equal(1536, 2048, 1, torch.bfloat16, 1)
needs_packing = pytest.mark.skipif(not CAN_PACK, reason="this build of torch has no packed weights")


def never() -> None:
    raise AssertionError("the weight became plain")


@needs_packing
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_products_are_the_plain_ones_bit_for_bit(shape, dtype) -> None:
    if not may_pack(torch.zeros(1536, 2048, dtype=dtype)):
        pytest.skip(f"this processor has no packed weights in {dtype}")
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype)
    for rows in (1, 2, 3, 8, 17, 64):
        x = torch.randn(rows, shape[1], generator=generator).to(dtype)
        packed = PackedWeight(weight, lambda: None)
        assert torch.equal(F.linear(x, packed), F.linear(x, weight))
        assert torch.equal(F.linear(x, packed, bias), F.linear(x, weight, bias))


def test_where_there_are_no_kernels_modules_keep_their_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_none(*args) -> None:
        raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw")

    model = torch.nn.Sequential(torch.nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16))
    weight = model[0].weight
    packing.has_kernels.cache_clear()
    with monkeypatch.context() as without:
        without.setattr(packing, "pack", has_none)
        take_over(model, Turns())
        assert model[0].weight is weight
    packing.has_kernels.cache_clear()
    take_over(model, Turns())
    assert (model[0].weight is weight) != CAN_PACK


@needs_packing
def test_the_proof_sees_another_order_of_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "pack", lambda weight: weight.flip(1))
    monkeypatch.setattr(packing, "multiply", lambda x, packed, bias=None: F.linear(x.flip(1), packed, bias))
    proves_equal.cache_clear()
    for n, k in SHAPES:
        assert not proves_equal(n, k, 4, torch.bfloat16, 1)
    proves_equal.cache_clear()


@needs_packing
def test_what_is_not_proved_is_multiplied_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    weight, x = torch.randn(64, 64).bfloat16(), torch.randn(2, 64).bfloat16()
    packed = PackedWeight(weight, lambda: told.append(True))
    monkeypatch.setattr(packing, "proves_equal", lambda *args: False)
    assert torch.equal(F.linear(x, packed), F.linear(x, weight))
    assert told == [True]


@needs_packing
def test_any_other_use_is_as_with_the_plain_weight() -> None:
    weight, x = torch.randn(64, 32).bfloat16(), torch.randn(2, 32).bfloat16()
    uses = (
        lambda w: x @ w.T,
        lambda w: torch.matmul(x, w.t()),
        lambda w: F.linear(input=x, weight=w),
        lambda w: F.linear(x[None], w),
        lambda w: w.float().sum(),
        lambda w: torch.cat([w, w]),
    )
    for use in uses:
        told = []
        assert torch.equal(use(PackedWeight(weight, lambda told=told: told.append(True))), use(weight))
        assert told
    assert torch.equal(PackedWeight(weight, never).to_dense(), weight)


@needs_packing
def test_a_product_in_another_precision_fails_as_stock_does() -> None:
    weight = torch.randn(64, 32).bfloat16()
    x = torch.randn(2, 32)
    with pytest.raises(RuntimeError) as stock:
        F.linear(x, weight)
    with pytest.raises(RuntimeError) as ours:
        F.linear(x, PackedWeight(weight, lambda: None))
    assert str(ours.value) == str(stock.value)


@needs_packing
def test_autocast_is_as_with_the_plain_weight() -> None:
    weight, x = torch.randn(64, 32).bfloat16(), torch.randn(2, 32).bfloat16()
    with torch.autocast("cpu", torch.float16):
        product = F.linear(x, PackedWeight(weight, lambda: None))
        assert product.dtype == torch.float16
        assert torch.equal(product, F.linear(x, weight))


def test_only_large_matrices_of_half_precision_are_packed() -> None:
    assert not may_pack(torch.zeros(8, 8, dtype=torch.bfloat16))
    assert not may_pack(torch.zeros(1024, 1024))
    assert not may_pack(torch.zeros(1 << 20, dtype=torch.bfloat16))


def test_the_users_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    proves_equal.cache_clear()
    proves_equal(32, 32, 1, torch.bfloat16, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_nobody_is_packed_beside_a_read(large, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = large.values()
    slots = Slots(threads=1, mapped=False)
    slot = slots.start(first)
    slots.finish(slot)
    if not may_pack(slot.tensors["w"]):
        pytest.skip("this processor's packed products are others")
    read, gate = slots._reader.read, threading.Event()
    monkeypatch.setattr(slots._reader, "read", lambda *args: gate.wait(30) and read(*args))
    other = slots.start(second)
    for _ in range(PACK_AFTER_USES + 1):
        assert isinstance(slots.use(slot)["w"], torch.Tensor)
    gate.set()
    slots.finish(other)
    assert isinstance(slots.use(slot)["w"], PackedWeight)
    slots.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what a process holds")
def test_the_memory_of_packed_experts_that_leave_is_given_back(tmp_path: Path) -> None:
    slots = Slots(mapped=False)
    started = [slots.start(segment) for segment in write(tmp_path / "experts", 64).values()]
    torch.ones(30 << 20, dtype=torch.uint8)  # once freed, glibc takes what is smaller from its heap
    for slot in started:
        slots.finish(slot)
        for _ in range(PACK_AFTER_USES):
            tensors = slots.use(slot)
    if not isinstance(tensors["w"], PackedWeight):
        pytest.skip("this processor's packed products are others")
    del tensors
    before, _ = resident(Path("/proc/self/status"))
    for slot in started[::2]:  # each between two that stay
        slots.release(slot)
    after, _ = resident(Path("/proc/self/status"))
    assert before - after > 0.9 * 32 * SIZE
