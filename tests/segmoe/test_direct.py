"""Experts that are read past the page cache: the same bytes and decisions, when it is due, and in how much memory."""

import errno
import os
import sys
import threading
import time
from itertools import cycle
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segmoe
from segmoe import direct, memory, packing, runtime, slots
from segmoe.cache import ExpertCache
from segmoe.direct import Direct, is_due
from segmoe.embedded import MODEL
from segmoe.errors import CheckpointError, ConfigError
from segmoe.events import ExpertKey
from segmoe.mapping import Mappings
from segmoe.memory import most_early
from segmoe.policies import make_policy
from segmoe.slots import Slots
from tests.segmoe.large import SHAPE, SIZE, moved
from tests.segmoe.test_expect import COUNT, PASSES, plain, tape

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux maps experts, or reads them past its cache")


@pytest.fixture(autouse=True)
def can_be_read(large) -> None:
    if not all(map(Direct().may_read, large.values())):
        pytest.skip("this file system cannot read past the page cache")


@pytest.fixture(autouse=True)
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads read each expert, although it is small."""
    monkeypatch.setattr(direct, "PIECE_BYTES", SIZE // 4)


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mappings, "is_cached", lambda *args: False)


@settings(max_examples=30, deadline=None)
@given(
    passes=PASSES,
    capacity=st.integers(1, COUNT),
    threads=st.integers(0, 3),
    cached=st.lists(st.booleans(), min_size=1).map(cycle),
)
def test_it_changes_no_decision_and_no_byte_whatever_is_cached(large, passes, capacity, threads, cached) -> None:
    never_packed = mock.patch.object(packing, "AFTER_USES", 99)
    with never_packed, mock.patch.object(Mappings, "is_cached", lambda *args: next(cached)):
        found, cache = tape(large, passes, capacity, Slots(threads=threads, direct=True))
    assert found == plain(passes, capacity)[0]
    cache.close()


def test_what_the_kernel_has_cached_is_not_read_again(large, tmp_path: Path) -> None:
    file = tmp_path / "some"
    first, second, *_ = moved(large, file).values()
    descriptor = os.open(file, os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    mappings = Mappings()
    if mappings.is_cached(first):
        pytest.skip("this file system is nothing but cache")
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(descriptor, SIZE, first.parameters[0].pieces[0].offset)
    os.close(descriptor)
    if not mappings.is_cached(first):
        pytest.skip("this kernel does not tell what it has cached")
    assert not mappings.is_cached(second)
    slots = Slots(direct=True)
    for segment in (first, second):
        slot = slots.start(segment)
        slots.finish(slot)
        assert slot.is_direct == (segment is second)
        assert (slot.buffer is None) == (segment is first), "what is mapped takes no memory of its own"
        assert (slot.tensors["w"] == segment.key.expert).all()
        slots.release(slot)
    assert not mappings.is_cached(second), "reading it left nothing behind"


def test_it_lies_as_in_the_file(large, uncached) -> None:
    slots = Slots(direct=True)
    for segment in large.values():
        slot = slots.start(segment)
        slots.finish(slot)
        (part,) = segment.parameters
        assert slot.tensors["w"].data_ptr() % 4096 == part.pieces[0].offset % 4096


@pytest.mark.parametrize(("at_once", "pieces"), [(None, 1), (2 * SIZE, 1), (SIZE // 2, 2), (SIZE // 4, 4)])
def test_pieces_make_the_whole(large, monkeypatch: pytest.MonkeyPatch, at_once: int | None, pieces: int) -> None:
    reader, preadv, asked = Direct(), os.preadv, []
    monkeypatch.setattr(direct, "PIECE_BYTES", at_once)
    segment = large[ExpertKey("model", 0, 5)]
    monkeypatch.setattr(os, "preadv", lambda file, into, at: asked.append((at, len(into[0]))) or preadv(file, into, at))
    assert reader.may_read(segment)
    asked.clear()
    buffer = slots.huge_pages(reader.room(segment))
    plan = reader.plan(segment, buffer, in_pieces=at_once is not None)
    for read in reversed(plan.reads):
        read.fill()
    assert len(asked) == pieces and sum(read.nbytes for read in plan.reads) >= SIZE
    assert (plan.tensors["w"] == 5).all()
    begin, end = min(asked)[0], sum(max(asked))
    assert sum(nbytes for _, nbytes in asked) == end - begin
    assert all(at % 4096 == 0 for at, _ in asked)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_that_ends_within_an_expert_fails_all_of_it(large, uncached, tmp_path: Path, threads: int) -> None:
    file = tmp_path / "short"
    segments = moved(large, file)
    *_, before, last = segments
    slots = Slots(threads=threads, direct=True)
    os.truncate(file, file.stat().st_size - SIZE // 2)
    failed, read = slots.start(segments[last]), slots.start(segments[before])
    with pytest.raises(CheckpointError, match=f"short ended {SIZE // 2:,} bytes early; was it replaced"):
        slots.finish(failed)
    slots.finish(read)
    assert (read.tensors["w"] == before.expert).all()
    slots.close()


@pytest.mark.parametrize(("threads", "early"), [(0, 0), (2, 1), (2, 4)])
def test_it_takes_the_budget_and_what_is_read_early(large, uncached, threads: int, early: int) -> None:
    slots = Slots(threads=threads, direct=True)
    cache = ExpertCache(large, make_policy("lru"), capacity_experts=3, slots=slots, early=early)
    taken = set()
    for _ in range(4):
        cache.expect(large)
        for key in large:
            assert (cache.get(key)["w"] == key.expert).all()
            taken.add(cache._ahead[key].buffer.data_ptr())
    assert len(taken) <= 3 + early
    cache.close()


def test_of_a_wrong_guess_no_further_piece_is_read(large, uncached, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, go_on, preadv, asked = *list(large)[:2], threading.Event(), os.preadv, []
    segments = {key: large[key] for key in (right, wrong)}

    def slowly(file: int, into: list, at: int) -> int:
        if asked_of(large, at) == wrong:
            asked.append(len(into[0]))
            assert go_on.wait(60)
        return preadv(file, into, at)

    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=1, slots=Slots(threads=2, direct=True), early=2)
    cache.get(right)  # which also tries whether the file can be read so
    monkeypatch.setattr(os, "preadv", slowly)
    cache.foresee([wrong])
    while len(asked) < 2:
        time.sleep(0.001)
    cache.expect([right])
    assert (cache.get(right)["w"] == right.expert).all() and not cache.counters.wasted, "nobody waits for it"
    go_on.set()
    cache.close()
    assert len(asked) == 2 and sum(asked) < SIZE
    assert cache.counters.wasted == 1 and cache.counters.bytes_read == SIZE + sum(asked)


def test_a_guess_that_is_stopped_before_its_first_piece_was_not_wasted(large, uncached) -> None:
    planning, go_on = threading.Event(), threading.Event()
    slots = Slots(threads=2, direct=True)
    jobs = slots._jobs

    def slowly(slot, *, in_pieces: bool):
        planning.set()
        assert go_on.wait(60)
        return jobs(slot, in_pieces=in_pieces)

    right, wrong = list(large)[:2]
    cache = ExpertCache(large, make_policy("lru"), capacity_experts=1, slots=slots, early=2)
    cache.get(right)
    slots._jobs = slowly
    cache.foresee([wrong])
    assert planning.wait(60)
    cache.expect([right])
    go_on.set()
    cache.close()
    assert cache.counters.wasted == 0 and cache.counters.bytes_read == SIZE


def asked_of(large, at: int) -> ExpertKey:
    """Whose pages begin nearest before an offset."""
    begins = {part.pieces[0].offset & -4096: key for key, segment in large.items() for part in segment.parameters}
    return begins[max(begin for begin in begins if begin <= at)]


def test_a_file_that_was_truncated_is_told_and_leaves_the_cache_whole(large, uncached, tmp_path: Path) -> None:
    file = tmp_path / "short"
    segments = moved(large, file)
    first, *_, last = segments
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=3, slots=Slots(threads=1, direct=True))
    assert (cache.get(first)["w"] == first.expert).all()
    os.truncate(file, file.stat().st_size - 14)
    with pytest.raises(CheckpointError, match="short ended 14 bytes early; was it replaced"):
        cache.get(last)
    cache.check_integrity()
    assert last not in cache and (cache.get(first)["w"] == first.expert).all()
    cache.close()


def test_a_disk_that_fails_is_told(large, uncached, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(direct=True)
    first = next(iter(large))
    slots._direct.may_read(large[first])

    def fail(*args) -> int:
        raise OSError(errno.EIO, "Input/output error")

    cache = ExpertCache(large, make_policy("lru"), capacity_experts=3, slots=slots)
    monkeypatch.setattr(direct.os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"cannot be read at byte 0: .*Input/output error"):
        cache.get(first)
    cache.check_integrity()


@pytest.mark.parametrize("call", ["open", "preadv"])
def test_a_file_system_that_cannot_gets_mapped(large, uncached, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    slots = Slots(direct=True)
    with monkeypatch.context() as patch:
        patch.setattr(direct.os, call, refuse)
        assert not slots._direct.may_read(next(iter(large.values())))
    slot = slots.start(next(iter(large.values())))
    slots.finish(slot)
    assert slot.mapped is not None and not slot.is_direct
    slots.release(slot)


def test_it_is_due_where_memory_holds_the_budget_and_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = segmoe.load(MODEL).segmoe.manifest
    count, size = len(manifest.experts), next(iter(manifest.experts.values())).nbytes

    def due(room: int, held: int) -> bool:
        """With room for so many bytes of experts."""
        monkeypatch.setattr(direct, "memory_bytes", lambda: direct.OTHERS_BYTES + manifest.other_bytes + room)
        return is_due(manifest, held)

    assert due(8 * size, 8 * size) and due(10 * size - 1, 8 * size)
    assert not due(8 * size - 1, 8 * size), "the budget does not fit"
    assert not due(10 * size, 8 * size), "the page cache holds a quarter more"
    assert due(count * size - 1, (count - 1) * size)
    assert not due(count * size, (count - 1) * size), "all fits"
    assert not due(count * size - 1, count * size), "all are wanted"


def test_threads_read_past_the_page_cache_where_budget_and_what_is_read_early_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = segmoe.load(MODEL).segmoe.manifest
    size = next(iter(manifest.experts.values())).nbytes
    early = most_early(8 * size, manifest.other_bytes, size)
    assert early > 1
    monkeypatch.setattr(runtime, "WORTH_A_THREAD_BYTES", size)
    held = {"asked": 8 + early, "none": 8}
    for experts, budget in ((8, None), (None, 8 * size)):
        for threads, name, wanted in ((None, "asked", direct.THREADS), (3, "asked", 3), (0, "none", 0)):
            least = direct.OTHERS_BYTES + manifest.other_bytes + held[name] * size
            for memory_bytes, is_direct in ((least, True), (least - 1, False)):
                monkeypatch.setattr(direct, "memory_bytes", lambda most=memory_bytes: most)
                slots = segmoe.load(MODEL, experts=experts, budget=budget, threads=threads).segmoe.cache._slots
                assert (slots._direct is not None) == is_direct
                assert slots.threads == (wanted if is_direct or threads is not None else 2)


def test_what_is_read_early_takes_less_than_5_per_cent_or_one_expert() -> None:
    assert most_early(0, 0, 10) == 1
    assert most_early(16 * 9, 180, 9) == 1
    assert most_early(614 * 9, 3_000, 9) == int(0.04 * (614 * 9 + 3_000) / 9)


def test_a_checkpoint_that_memory_cannot_hold_wants_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    total = segmoe.load(MODEL).segmoe.manifest.checkpoint.nbytes
    monkeypatch.setattr(runtime, "memory_bytes", lambda: total - 1)
    with pytest.raises(ConfigError, match=r"and there are .* of memory; give a budget"):
        segmoe.load(MODEL)
    assert segmoe.load(MODEL, experts=8).segmoe.cache.capacity_experts == 8


@pytest.mark.parametrize(
    ("own", "files", "caps"),
    [
        ("0::/user/one\n", {"user/memory.max": "700", "user/one/memory.max": "max"}, [700]),
        ("0::/user/one\n", {"memory.max": "900", "user/one/memory.max": "800"}, [800, 900]),
        ("4:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "600"}, [600]),
        ("4:memory:/host/id\n", {"memory/memory.limit_in_bytes": "500"}, [500]),  # a container that is its own root
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "600"}, []),
        ("", {"memory.max": "900"}, []),
    ],
)
def test_caps_are_those_of_the_groups_around_the_process(own, files, caps, tmp_path: Path, monkeypatch) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "told").write_text(own)
    monkeypatch.setattr(memory, "_TOLD", tmp_path / "told")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    assert sorted(memory._caps()) == caps
    assert memory.memory_bytes() == min([*caps, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")])


def test_tensors_of_a_direct_read_can_be_packed(large, uncached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmoe.slots.may_pack", lambda tensor: True)
    cache = ExpertCache(large, make_policy("lru"), capacity_experts=2, slots=Slots(direct=True))
    key, x = list(large)[3], torch.ones(1, SHAPE[1], dtype=torch.bfloat16)
    try:
        products = [torch.nn.functional.linear(x, cache.get(key)["w"]) for _ in range(packing.AFTER_USES + 2)]
    except (RuntimeError, AttributeError):
        pytest.skip("this build of torch has no packed weights")
    assert all(torch.equal(product, products[0]) for product in products)
    assert cache._resident[key].buffer is None
