"""What a process holds, what the kernel keeps of its files, and a hard cap on both. Who is measured is residency.py."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from segmoe.memory import huge_pages

GROUPS = Path("/sys/fs/cgroup")
BLOCK_BYTES = 8 << 20
TURNS = 4  # of each way of reading
CACHED_BYTES = 300 << 20  # what the caches of a large processor hold


class Peak:
    """The largest memory of a process while the context lasts: its own, and of the files that it maps.

    What it reads counts as neither.
    """

    def __init__(self, pid: int, every_s: float = 0.005) -> None:
        self.nbytes = 0  # anonymous
        self.mapped_bytes = 0
        self.both_bytes = 0  # of one moment
        self._status = Path(f"/proc/{pid}/status")
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            with contextlib.suppress(OSError):  # the process may be gone
                anonymous, mapped = resident(self._status)
                self.nbytes = max(self.nbytes, anonymous)
                self.mapped_bytes = max(self.mapped_bytes, mapped)
                self.both_bytes = max(self.both_bytes, anonymous + mapped)


def resident(status: Path) -> tuple[int, int]:
    """RssAnon and RssFile in bytes; 0 of a process that has ended."""
    found = {"RssAnon": 0, "RssFile": 0}
    for line in status.read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found["RssAnon"], found["RssFile"]


def drop_cached(files: Sequence[Path]) -> None:
    """Make the kernel forget the files' pages, so that the next read is one of the disk. Needs no rights."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_rate(
    files: Sequence[Path], block_bytes: int = BLOCK_BYTES, limit_bytes: int = 1 << 29, *, kept: int = 1
) -> float:
    """Bytes a second of positional reads past the page cache, or of dropped files: the fastest of 1, 2 and 4 threads.

    They take turns, since disks are now faster, now slower: when each read its bytes at one go, the luckiest of them
    was 2 to 4% ahead of what any reached on average. The last `kept` blocks stay in memory: what nobody keeps is read
    into the processor's caches, faster than memory is.
    """
    ways = (1, 2, 4)
    places = _places(files, block_bytes)[: max(1, limit_bytes // block_bytes)]
    buffers = _buffers(max(4, kept), block_bytes)
    size = -(-len(places) // TURNS)
    seconds = dict.fromkeys(ways, 0.0)
    for start in range(0, len(places), size):
        for threads in ways:
            began = time.perf_counter()
            _read_all(places[start : start + size], buffers[: max(threads, kept)], threads)
            seconds[threads] += time.perf_counter() - began
    return len(places) * block_bytes / min(seconds.values())


@contextlib.contextmanager
def reading(files: Sequence[Path], block_bytes: int, blocks: int, *, kept: int) -> Iterator[Callable[[], float]]:
    """Two threads of this process read so many blocks meanwhile; the function waits and tells the seconds it took."""
    found = _places(files, block_bytes)
    places = [found[index % len(found)] for index in range(blocks)]
    buffers = _buffers(max(2, kept), block_bytes)
    ended: list[float] = []
    began = time.perf_counter()

    def read() -> None:
        _read_all(places, buffers, 2)
        ended.append(time.perf_counter())

    thread = threading.Thread(target=read)
    thread.start()

    def seconds() -> float:
        thread.join()
        return ended[0] - began

    yield seconds
    thread.join()


def _places(files: Sequence[Path], block_bytes: int) -> list[tuple[Path, int]]:
    """Blocks of the files, at pages, in a random order that is always the same."""
    step = -(-block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    places = [(file, at) for file in files for at in range(0, max(1, file.stat().st_size - block_bytes), step)]
    return random.Random(0).sample(places, len(places))


def _buffers(count: int, block_bytes: int) -> list[Any]:
    """Memory for so many blocks, or for more than caches hold; touched, so that none of it is new to the machine."""
    sizes = [-(-block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE] * min(count, 2 * CACHED_BYTES // block_bytes + 1)
    found = [huge_pages(size) for size in sizes]
    return [buffer.fill_(0).numpy() for buffer in found]


def _read_all(places: Sequence[tuple[Path, int]], buffers: Sequence[Any], threads: int) -> None:
    """Read past the page cache, where the file system can, into one buffer after the other."""
    descriptors: dict[Path, int] = {}
    for file in {file for file, _ in places}:
        try:
            descriptors[file] = os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        except OSError:
            descriptors[file] = os.open(file, os.O_RDONLY)
    drop_cached(list(descriptors))
    free: SimpleQueue[Any] = SimpleQueue()
    for buffer in buffers:
        free.put(buffer)

    def read(place: tuple[Path, int]) -> None:
        buffer = free.get()
        os.preadv(descriptors[place[0]], [buffer], place[1])
        free.put(buffer)

    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, places))
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


class NoCapError(Exception):
    """This machine lets us cap nothing."""


class Cap(NamedTuple):
    """A hard cap on all memory of a process and its page cache: how to start it, and where to put its id."""

    prefix: tuple[str, ...] = ()
    procs: Path | None = None

    def put(self, pid: int) -> None:
        """Move a process under the cap; what it holds already does not count."""
        if self.procs is not None:
            self.procs.write_text(str(pid))


@contextlib.contextmanager
def hard_cap(nbytes: int | None) -> Iterator[Cap]:
    """A memory cgroup (version 2 or 1) or a systemd scope, nothing for None; raise NoCapError where none can be had."""
    if nbytes is None:
        yield Cap()
        return
    nbytes = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE  # the kernel would round down
    for hierarchy, settings in (
        (GROUPS, {"memory.max": nbytes, "memory.swap.max": 0}),
        (GROUPS / "memory", {"memory.limit_in_bytes": nbytes, "memory.memsw.limit_in_bytes": nbytes}),
    ):
        group = hierarchy / f"segmoe-benchmark-{os.getpid()}"
        first, second = settings
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / first).exists():
                continue
            (group / first).write_text(str(nbytes))
            with contextlib.suppress(OSError):  # a kernel without swap accounting has no such file
                (group / second).write_text(str(settings[second]))
            yield Cap(procs=group / "cgroup.procs")
            return
        finally:
            _remove(group)
    if not _has_systemd():
        raise NoCapError("no memory cap is possible here: it takes root and a memory cgroup, or systemd")
    scope = "--user" if os.getuid() else "--system"
    yield Cap(prefix=("systemd-run", scope, "--scope", "--quiet", f"-pMemoryMax={nbytes}", "-pMemorySwapMax=0"))


def _remove(group: Path) -> None:
    for _ in range(50):  # the kernel takes a moment to see that its processes have ended
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


def _has_systemd() -> bool:
    if shutil.which("systemd-run") is None:
        return False
    probe = ["systemd-run", "--user" if os.getuid() else "--system", "--scope", "--quiet", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0
