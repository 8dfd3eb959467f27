"""A packed weight gives stock's bits or becomes the plain weight again."""

import re
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from segmoe import kernel, packing, slots
from segmoe.dense import take_over
from segmoe.events import ExpertKey
from segmoe.manifest import ExpertParameter, Piece, Segment
from segmoe.packing import Pace, PackedWeight, may_pack, proves_equal
from segmoe.slots import Slots
from tests.benchmarks.memory import resident
from tests.segmoe.large import SHAPE, SIZE, write

SHAPES = ((1536, 2048), (2048, 768), (96, 128), (128, 48), (100, 60))
CAN_PACK = proves_equal(1536, 2048, 1, torch.bfloat16, 1)
needs_packing = pytest.mark.skipif(not CAN_PACK, reason="this build of torch has no packed weights")


def never() -> None:
    raise AssertionError("the weight became plain")


@needs_packing
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_products_are_the_plain_ones_bit_for_bit(shape, dtype) -> None:
    if not packing.has_kernels(dtype):
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
        take_over(model, Pace())
        assert model[0].weight is weight
    packing.has_kernels.cache_clear()
    take_over(model, Pace())
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
def test_what_sums_in_another_order_for_some_rows_is_not_packed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(1536, 2048, dtype=torch.bfloat16)
    for differing in packing.PROVED_ROWS:
        monkeypatch.setattr(packing, "proves_equal", lambda n, k, rows, *args, other=differing: rows != other)
        assert not may_pack(weight)
    monkeypatch.setattr(packing, "proves_equal", lambda *args: True)
    assert may_pack(weight)


def test_behind_packing_is_a_rest_that_its_time_decides() -> None:
    now = [10.0]
    pace = Pace(clock=lambda: now[0])
    assert not pace.is_resting
    with pace.work():
        now[0] += 0.5
    found = []
    for _ in range(12):
        found.append(pace.is_resting)
        now[0] += packing.REST / 16
    assert found == [True] * 8 + [False] * 4
    with pace.work():
        now[0] += 2.0
    assert pace.is_resting
    now[0] += 1.99 * packing.REST
    assert pace.is_resting
    now[0] += 0.02 * packing.REST
    assert not pace.is_resting


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
    pool = Slots(threads=1, mapped=False)
    slot = pool.start(first)
    pool.finish(slot)
    if not may_pack(slot.tensors["w"]):
        pytest.skip("this processor's packed products are others")
    read, gate = pool._reader.read, threading.Event()
    monkeypatch.setattr(pool._reader, "read", lambda *args: gate.wait(30) and read(*args))
    other = pool.start(second)
    for _ in range(packing.AFTER_USES + 1):
        assert isinstance(pool.use(slot)["w"], torch.Tensor)
    gate.set()
    pool.finish(other)
    assert isinstance(pool.use(slot)["w"], PackedWeight)
    pool.close()


def huge_bytes() -> int:
    """Of this process's own memory, what lies in huge pages."""
    told = re.search(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return 0 if told is None else int(told[1]) * 1024


def collapses() -> bool:
    """Whether this system moves memory into huge pages when it is asked to."""
    if not Path("/proc/self/smaps_rollup").exists():
        return False
    pages = torch.ones(4 * kernel.HUGE, dtype=torch.uint8)
    before = huge_bytes()
    kernel.collapse(pages.data_ptr() + kernel.HUGE, 2 * kernel.HUGE)
    assert bool((pages == 1).all())
    return huge_bytes() > before


@needs_packing
@pytest.mark.skipif(not collapses(), reason="this system does not move memory into huge pages")
def test_what_is_packed_to_stay_lies_in_huge_pages() -> None:
    weight = torch.randn(2048, 2048).bfloat16()
    before = huge_bytes()
    packed = [packing.pack_to_stay(weight) for _ in range(8)]
    assert huge_bytes() - before > 0.7 * 8 * weight.nbytes
    assert all(torch.equal(one.to_dense(), weight) for one in packed)


@needs_packing
@pytest.mark.parametrize("mapped", [True, False])
def test_what_else_an_expert_has_is_moved_beside_what_is_packed(mapped, tmp_path: Path, monkeypatch) -> None:
    """Of the same bits at the same addresses modulo 64, so that its products are the same."""
    shapes = {"kept": (2048, 768), "packed": SHAPE, "bias": (40,)}  # one of more than a huge page, one of few bytes
    tensors = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        for name, shape in shapes.items()
    }
    file, offset, parts = tmp_path / "expert", 8, []
    with file.open("wb") as out:
        out.write(bytes(offset))
        for name, tensor in tensors.items():
            pieces = (Piece(file, offset, tensor.nbytes),)
            parts.append(
                ExpertParameter(
                    name=name,
                    dtype=tensor.dtype,
                    shape=tuple(tensor.shape),
                    nbytes=tensor.nbytes,
                    address=8,
                    pieces=pieces,
                )
            )
            offset += out.write(tensor.view(torch.int16).numpy().tobytes())
    segment = Segment(key=ExpertKey("model", 0, 0), parameters=tuple(parts), nbytes=offset - 8)
    monkeypatch.setattr(slots, "may_pack", lambda tensor: tuple(tensor.shape) == SHAPE)
    pool = Slots(mapped=mapped, pace=Pace(clock=lambda: 0.0))
    slot = pool.start(segment)
    pool.finish(slot)
    assert (slot.mapped is not None) == (mapped and kernel.can_map())
    for uses in range(1, packing.AFTER_USES + 2):
        found = pool.use(slot)
        assert isinstance(found["packed"], PackedWeight) == (uses >= packing.AFTER_USES)
        for name in ("kept", "bias"):
            assert torch.equal(found[name], tensors[name]) and found[name].data_ptr() % 64 == 8
    assert torch.equal(found["packed"].to_dense(), tensors["packed"])
    assert slot.mapped is None and slot.buffer is None
    pool.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what a process holds")
def test_the_memory_of_packed_experts_that_leave_is_given_back(tmp_path: Path) -> None:
    pool = Slots(mapped=False, pace=Pace(clock=lambda: 0.0))
    started = [pool.start(segment) for segment in write(tmp_path / "experts", 64).values()]
    torch.ones(30 << 20, dtype=torch.uint8)  # once freed, glibc takes what is smaller from its heap
    for slot in started:
        pool.finish(slot)
        for _ in range(packing.AFTER_USES):
            tensors = pool.use(slot)
    if not isinstance(tensors["w"], PackedWeight):
        pytest.skip("this processor's packed products are others")
    del tensors
    before, _ = resident(Path("/proc/self/status"))
    for slot in started[::2]:  # each between two that stay
        pool.release(slot)
    after, _ = resident(Path("/proc/self/status"))
    assert before - after > 0.9 * 32 * SIZE
