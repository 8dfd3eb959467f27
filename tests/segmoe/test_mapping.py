"""Experts that are used where they lie: the same bytes, the same decisions, and no more of the file than the budget."""

import mmap
import os
from concurrent.futures import Future
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import segmoe
from segmoe import dense, kernel, mapping, packing, slots
from segmoe.cache import ExpertCache
from segmoe.conversion import Recipe
from segmoe.errors import CheckpointError
from segmoe.events import ExpertKey
from segmoe.manifest import Piece, Segment
from segmoe.mapping import may_map, proves_equal
from segmoe.policies import make_policy
from segmoe.slots import Slots
from tests import tiny
from tests.segmoe.large import SHAPE, SIZE, moved
from tests.segmoe.test_expect import COUNT, PASSES, plain, tape

pytestmark = pytest.mark.skipif(not kernel.can_map(), reason="no experts are mapped by this kernel")


@pytest.fixture(scope="module")
def segments(large: dict[ExpertKey, Segment]) -> dict[ExpertKey, Segment]:
    return large


def resident_bytes(file: Path, kind: str = "Rss") -> int:
    """What the kernel counts as this process's of a file; all, or what is mapped in huge pages."""
    total, is_in = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            is_in = line.endswith(str(file))
        elif first == f"{kind}:" and is_in:
            total += int(line.split()[1]) * 1024
    return total


def file_of(segments) -> Path:
    return next(iter(segments.values())).parameters[0].pieces[0].file


@settings(max_examples=30, deadline=None)
@given(
    passes=PASSES,
    capacity=st.integers(1, COUNT),
    threads=st.integers(0, 3),
    is_cached=st.lists(st.booleans(), min_size=1).map(cycle),
)
def test_it_changes_no_decision_and_no_byte(segments, passes, capacity, threads, is_cached) -> None:
    never_packed = mock.patch.object(packing, "AFTER_USES", 99)
    with never_packed, mock.patch.object(mapping.Mappings, "is_cached", lambda *args: next(is_cached)):
        found, cache = tape(segments, passes, capacity, Slots(threads=threads))
    assert found == plain(passes, capacity)[0]
    assert (resident_bytes(file_of(segments)) > 0) == any(passes)
    cache.close()
    assert resident_bytes(file_of(segments)) == 0


def test_what_was_evicted_is_no_longer_in_the_process(segments) -> None:
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, slots=Slots())
    for _ in range(3):
        for key in segments:
            assert (cache.get(key)["w"] == key.expert).all()
    huge = 2 << 20  # of the pages at both ends of an expert
    assert 2 * SIZE <= resident_bytes(file_of(segments)) <= 2 * (SIZE + 2 * huge) < COUNT * SIZE
    cache.close()


@pytest.mark.parametrize("answer", [None, -1, SIZE])
def test_several_are_dropped_in_one_call_or_where_that_fails_or_stops_one_by_one(segments, monkeypatch, answer) -> None:
    if answer is not None:
        monkeypatch.setattr(kernel, "_process_madvise", lambda: lambda *args: answer)
    slots = Slots()
    held = [slots.start(segment) for segment in segments.values()]
    for slot in held:
        slots.finish(slot)
    assert resident_bytes(file_of(segments)) >= COUNT * SIZE
    slots.release(*held)
    assert resident_bytes(file_of(segments)) == 0
    slots.close()


@given(st.data())
def test_huge_pages_are_given_back_whole_and_nothing_beside_the_mapping(data) -> None:
    begin = data.draw(st.integers(1, 99)) * kernel.HUGE
    file = SimpleNamespace(data_ptr=lambda: begin, nbytes=data.draw(st.integers(1, 9 * kernel.HUGE)))
    first = data.draw(st.integers(0, (file.nbytes - 1) // mmap.PAGESIZE)) * mmap.PAGESIZE
    nbytes = data.draw(st.integers(1, file.nbytes - first))
    address, length = mapping._huge_pages_around(file, begin + first, nbytes)
    assert begin <= address <= begin + first and begin + first + nbytes <= address + length <= begin + file.nbytes
    assert address % kernel.HUGE == 0 and begin + first - address < kernel.HUGE
    is_last = address + length == begin + file.nbytes
    assert is_last or (
        (address + length) % kernel.HUGE == 0 and address + length - kernel.HUGE < begin + first + nbytes
    )
    small = SimpleNamespace(data_ptr=lambda: begin + mmap.PAGESIZE, nbytes=file.nbytes)
    assert mapping._huge_pages_around(small, begin + mmap.PAGESIZE + first, nbytes) == (
        begin + mmap.PAGESIZE + first,
        nbytes,
    )


def cached(file: Path, *, page_by_page: bool) -> None:
    """Have the kernel cache a file anew, by single pages or as experts are brought."""
    with file.open("rb", buffering=0) as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if page_by_page:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in range(0, file.stat().st_size, mmap.PAGESIZE):
                os.pread(opened.fileno(), 1, offset)


def brought(slots: Slots, segments) -> int:
    """Bring all experts in once and give them back; how many bytes of their file were in huge pages."""
    held = [slots.start(segment) for segment in segments.values()]
    for key, slot in zip(segments, held, strict=True):
        slots.finish(slot)
        assert (slot.tensors["w"] == key.expert).all()
    in_huge_pages = resident_bytes(file_of(segments), "FilePmdMapped")
    for slot in held:
        slots.release(slot)
    return in_huge_pages


@pytest.fixture
def small(segments, tmp_path: Path) -> dict[ExpertKey, Segment]:
    """Experts in a file of their own that the kernel has cached in small pages, and would read in huge ones."""
    found = moved(segments, tmp_path / "small")
    cached(file_of(found), page_by_page=False)
    if not brought(Slots(), found):
        pytest.skip("this file system is not cached in huge pages")
    cached(file_of(found), page_by_page=True)
    return found


@pytest.mark.parametrize("threads", [0, 2])
def test_what_was_cached_in_small_pages_is_read_again_in_huge_ones(small, threads: int) -> None:
    slots = Slots(threads=threads)
    in_huge_pages = [brought(slots, small) for _ in range(4 * mapping.RENEW_AFTER)]
    assert not any(in_huge_pages[: mapping.RENEW_AFTER - 1])
    assert in_huge_pages[-1] > 0.6 * COUNT * SIZE  # of twelve MiB five times two are huge pages
    slots.close()


def test_what_somebody_else_has_mapped_in_small_pages_stays(small) -> None:
    with file_of(small).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as other:
        other.madvise(kernel.POPULATE_READ)
        slots = Slots()
        assert not any(brought(slots, small) for _ in range(mapping.RENEW_AFTER + 1))
    assert any(brought(slots, small) for _ in range(mapping.RENEW_AFTER))
    slots.close()


def test_where_the_kernel_has_no_huge_pages_few_are_read_again_and_none_twice(small, monkeypatch) -> None:
    renewed = []
    renew = mapping.Mappings._renew

    def never_huge(address: int, nbytes: int) -> list[int]:
        return list(range(address, address + nbytes // kernel.HUGE * kernel.HUGE, kernel.HUGE))

    monkeypatch.setattr(kernel, "in_small_pages", never_huge)
    monkeypatch.setattr(mapping.Mappings, "_renew", lambda *which: (renewed.append(which[1]), renew(*which)))
    slots = Slots()
    for _ in range(3 * mapping.RENEW_AFTER):
        brought(slots, small)
    assert len(renewed) == len(set(map(id, renewed))) == mapping.GIVE_UP_AFTER
    slots.close()


def test_what_is_cached_is_brought_by_who_asks_and_only_the_rest_by_a_thread(segments, tmp_path: Path) -> None:
    found = moved(segments, tmp_path / "some")
    cached(file_of(found), page_by_page=False)
    slots = Slots(threads=1)
    first, *others = found.values()
    assert slots._mappings is not None
    if slots._mappings.is_cached(first):
        pytest.skip("this file system is nothing but cache")
    unread = slots.start(first)
    assert isinstance(unread.loading, Future)
    slots.finish(unread)
    if not slots._mappings.is_cached(first):
        pytest.skip("this kernel does not tell what it has cached")
    with mock.patch.object(slots, "_executor", SimpleNamespace()):  # of whom nothing can be asked
        asked = slots.start(first)
    assert not isinstance(asked.loading, Future) and (asked.tensors["w"] == first.key.expert).all()
    read_ns, waited_ns = slots.finish(asked)
    assert read_ns == waited_ns > 0
    last = slots.start(others[-1])
    assert isinstance(last.loading, Future), "what is cached is asked for each"
    slots.finish(last)
    slots.close()


def test_once_enough_were_cached_no_more_is_asked_until_one_comes_from_the_disk(segments, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(mapping.Mappings, "is_cached", lambda *args: asked.append(True) or True)
    pool = Slots(threads=1)

    def bring(times: int) -> int:
        asked.clear()
        for _ in range(times):
            slot = pool.start(next(iter(segments.values())))
            pool.finish(slot)
            pool.release(slot)
        return len(asked)

    monkeypatch.setattr(slots, "FROM_DISK_NS_PER_BYTE", 1 << 60)
    assert bring(slots.SURE_AFTER + 5) == slots.SURE_AFTER
    monkeypatch.setattr(slots, "FROM_DISK_NS_PER_BYTE", 0)
    assert bring(1) == 0
    monkeypatch.setattr(slots, "FROM_DISK_NS_PER_BYTE", 1 << 60)
    assert bring(3) == 3
    pool.close()


def test_who_may_not_know_what_is_cached_is_not_told_that_all_is(segments, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    file = file_of(moved(segments, tmp_path / "of_root"))
    cached(file, page_by_page=False)
    opened = os.open(file, os.O_RDONLY)
    reads, writes = os.pipe()
    if not (child := os.fork()):
        try:
            os.setuid(65534)
            os.write(writes, repr(kernel.cached_pages(opened, 0, COUNT * SIZE)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writes)
    assert os.read(reads, 99) in (b"None", b"0")
    assert kernel.cached_pages(opened, 0, COUNT * SIZE) in (None, 0)
    os.pread(opened, SIZE, 0)
    told = kernel.cached_pages(opened, 0, COUNT * SIZE)
    assert told is None or told >= SIZE // mmap.PAGESIZE
    for descriptor in (opened, reads):
        os.close(descriptor)


def test_an_expert_that_is_packed_is_no_longer_mapped(segments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmoe.slots.may_pack", lambda tensor: True)
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, slots=Slots())
    key, x = list(segments)[3], torch.ones(1, SHAPE[1], dtype=torch.bfloat16)
    try:
        products = [F.linear(x, cache.get(key)["w"]) for _ in range(packing.AFTER_USES + 2)]
    except (RuntimeError, AttributeError):
        pytest.skip("this build of torch has no packed weights")
    assert all(torch.equal(product, products[0]) for product in products)
    assert resident_bytes(file_of(segments)) == 0


def test_a_file_that_was_truncated_is_told_and_leaves_the_cache_whole(segments, tmp_path: Path) -> None:
    file = tmp_path / "short"
    segments = moved(segments, file)
    first, *_, last = segments
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=3, slots=Slots(threads=1))
    assert (cache.get(first)["w"] == first.expert).all()
    os.truncate(file, file.stat().st_size - 14)
    with pytest.raises(CheckpointError, match="short ended 14 bytes early; was it replaced"):
        cache.get(last)
    cache.check_integrity()
    assert last not in cache and (cache.get(first)["w"] == first.expert).all()
    cache.close()


def test_only_what_has_stocks_bits_and_is_worth_it_is_mapped(segments, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = segments[ExpertKey("model", 0, 1)]
    (part,) = segment.parameters
    (file, offset, nbytes), _ = part.pieces

    def may(**changes) -> bool:
        return may_map(replace(segment, parameters=(replace(part, **changes),)))

    assert may()
    here = offset % 64
    assert not may(dtype=torch.float32, shape=(512, 512)), "fp32 at another address than stock's has other bits"
    assert may(dtype=torch.float32, shape=(512, 512), address=here)
    assert not may(shape=(SIZE // 2,)), "nothing is proved of a vector"
    assert may(shape=(SIZE // 2,), address=here)
    assert not may(pieces=part.pieces[::-1]), "its halves lie the other way round"
    assert not may(pieces=(part.pieces[0], Piece(file, offset + 2 * nbytes, nbytes))), "its halves lie apart"
    assert not may(pieces=(Piece(file, offset + 1, 2 * nbytes),), address=here + 1), "torch wants whole elements"
    assert not may(recipe=Recipe.__new__(Recipe)), "the library computes it"
    monkeypatch.setattr(mapping, "MIN_BYTES", SIZE + 1)
    assert not may()


@pytest.mark.parametrize(
    ("release", "can"), [("6.18.44", True), ("5.18-rc3", True), ("5.15.0-1-tegra", False), ("4.19", False)]
)
def test_kernels_that_would_read_page_by_page_get_copies(release: str, can: bool, monkeypatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", release, "", "x86_64")))
    assert kernel.can_map.__wrapped__() is can


def test_a_kernel_that_does_not_know_the_call_gets_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "POPULATE_READ", 9999)
    assert kernel.can_map.__wrapped__() is False


def test_a_file_that_cannot_be_mapped_says_what_to_do(segments, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **settings):
        raise OSError(19, "No such device")

    assert all(map(may_map, segments.values()))
    monkeypatch.setattr(mapping.mmap, "mmap", refuse)
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, slots=Slots())
    with pytest.raises(CheckpointError, match=r"cannot be mapped: .*No such device; load it with mapped=False"):
        cache.get(next(iter(segments)))
    cache.check_integrity()


@pytest.mark.parametrize("shape", [(96, 128), (128, 48), (1536, 2048)])
def test_the_proof_sees_another_order_of_the_same_sums(shape, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_linear = F.linear

    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if weight.data_ptr() % 64:
            order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))  # backwards may be the same
            return plain_linear(x[:, order], weight[:, order])
        return plain_linear(x, weight)

    arguments = (shape, torch.bfloat16, 8, 0, torch.get_num_threads())
    assert proves_equal.__wrapped__(*arguments)
    monkeypatch.setattr(F, "linear", linear)
    assert not proves_equal.__wrapped__(*arguments)


def test_what_is_never_multiplied_in_another_way_is_not_proved_for_it(segments, monkeypatch) -> None:
    segment = segments[ExpertKey("model", 0, 1)]
    (part,) = segment.parameters
    ways = []
    monkeypatch.setattr(mapping, "proves_equal", lambda *arguments: ways.append(arguments[-1]) or True)
    for is_linear in (False, True):
        assert may_map(replace(segment, parameters=(replace(part, is_linear=is_linear),)))
    assert ways == [(False, True), (False,)]


def test_where_an_operand_lies_is_where_it_was_wanted() -> None:
    weight = torch.randn(6, 10).bfloat16()
    for address in range(0, 64, 2):
        placed = mapping._at(weight, address)
        assert placed.data_ptr() % 64 == address and torch.equal(placed, weight)


def present_pages(weight: torch.Tensor) -> int:
    """How many of the pages that a tensor lies in are in this process's page table."""
    first, last = (weight.data_ptr() + at >> 12 for at in (0, weight.nbytes - 1))
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        pages.seek(8 * first)
        entries = np.frombuffer(pages.read(8 * (last - first + 1)), np.uint64)
    return int((entries >> np.uint64(63)).sum())


@pytest.mark.parametrize("is_tied", [False, True])
def test_of_large_embeddings_only_the_rows_that_are_looked_up_are_read(tmp_path: Path, monkeypatch, is_tied) -> None:
    """Unless they are the head as well, of which every token needs all rows."""
    rows = 40_000
    monkeypatch.setattr(dense, "LARGE_BYTES", 1 << 20)
    changes = {"vocab_size": rows, "tie_word_embeddings": is_tied}
    tiny.save(tiny.build("Qwen3Moe", **changes), tmp_path)
    cached(tmp_path / "model.safetensors", page_by_page=False)
    model = segmoe.load(tmp_path)
    weight = model.model.embed_tokens.weight
    ids = torch.tensor([[7, rows // 2, rows - 3]])
    with torch.no_grad():
        model(ids)
    around = 16  # pages that the kernel maps beside one that it has cached
    present, pages = present_pages(weight), weight.nbytes // mmap.PAGESIZE
    assert present >= pages if is_tied else 0 < present <= around * ids.numel() < pages / 9


def test_a_file_cannot_be_written_through_its_mapping(segments, tmp_path: Path) -> None:
    """The type does not say that it is read-only, the kernel does."""
    slots = Slots()
    slot = slots.start(next(iter(segments.values())))
    slots.finish(slot)
    flags = [
        line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if str(file_of(segments)) in line
    ]
    assert flags and not any("w" in flag for flag in flags)
    np.testing.assert_array_equal(slot.tensors["w"].float(), 0)
    slots.release(slot)
