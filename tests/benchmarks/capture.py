"""What each capture level costs: a segmented model with a collector, told all or nothing in turn.

    python -m tests.benchmarks.capture [FOLDER] [--prefill 6] [--decode 150] [--timed 20] [--turn 1] [--seed 0]

FOLDER is a checkpoint of real width (`python -m tests.benchmarks.wide FOLDER`); all experts are in memory, so that only
the observer differs. It is measured in two ways.

Timed by itself: the CPU time of all that the model's thread does for the observer, each call of it timed, as a share of
an unobserved pass. What it does to the rest of the pass, such as emptying a processor's cache, is not in it; the clock
is. A method of ours stands in the way of taking an expert's rows, which the model does anyway: what counts is how much
longer that takes than without it, each after the rows were taken already.

As a ratio: in a round every level and, twice, the unobserved model take a turn of the same tokens, in a random order: a
prefill, or one token after it; or several, where the observer's thread is to work beside the next. A ratio is of one
token in one round, to the geometric mean of the two unobserved ones. What is told is the midmean of the logarithms
(without the lowest and the highest quarter) with a 90% bootstrap interval that draws rounds; the mean of noisy ratios
would be above 1. "Unobserved again" is against the other and has nothing that could cost, so it tells what the method
makes of nothing. CPU time of the model's own thread is what
the observer takes from it; wall time also holds what it waits for; CPU time of the whole process also holds the
observer's thread, which runs beside it where a core is free.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import segmoe
from observer.collect import Collector
from observer.observation import Observation, TextRef
from segmoe import experts, passes
from segmoe.contributions import Watched
from segmoe.embedded import MODEL
from segmoe.events import CAPTURES, Phase
from segmoe.runtime import Runtime

PREFILL_TOKENS = 256
WARM_ROUNDS = 2  # the first read the experts
UNOBSERVED, AGAIN = "unobserved", "unobserved again"
LEVELS = (AGAIN, *CAPTURES)


class Spent(NamedTuple):
    """Seconds: CPU of the thread that runs the model, wall, and CPU of the process, the observer's thread with it."""

    model: float
    wall: float
    all: float


def spent(work: Callable[[], Any]) -> Spent:
    """Do the work."""
    model, wall, everything = time.thread_time(), time.perf_counter(), time.process_time()
    work()
    return Spent(time.thread_time() - model, time.perf_counter() - wall, time.process_time() - everything)


class Timer:
    """CPU seconds of the calling thread inside of what is timed, and of nothing twice.

    >>> timer = Timer()
    >>> inner = timer.timed(lambda: time.sleep(0.01))
    >>> timer.timed(lambda: (inner(), sum(range(300_000))))() and None
    >>> 0.0005 < timer.seconds < 0.5, timer.calls
    (True, 1)
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._is_inside = False

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed unless what calls it is timed already."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside:
                return call(*args, **kwargs)
            self._is_inside = True
            self.calls += 1
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - began
                self._is_inside = False

        return wrapper

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, time all that a segmented model does for whoever listens."""

        def watched(hidden: torch.Tensor, note: Any) -> torch.Tensor:
            return plainly(hidden, self.timed(note))

        def rows(hidden: Watched, index: Any) -> torch.Tensor:
            plain = hidden.plain
            plain[index]  # whoever is first has to fetch them, the model too
            began = time.thread_time()
            found: torch.Tensor = through_ours(hidden, index)
            between = time.thread_time()
            plain[index]
            self.seconds += 2 * between - began - time.thread_time()
            return found

        plainly, through_ours = self.timed(experts.watched), Watched.__getitem__
        places: tuple[tuple[Any, str], ...] = (
            (experts.Seam, "_tell"),
            (experts.Seam, "layer_done"),
            (experts, "ordinary"),
            (experts, "Added"),
            (passes, "read_predictions"),
            (Runtime, "_step_done"),
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(experts, "watched", watched))
            stack.enter_context(mock.patch.object(Watched, "__getitem__", rows))
            for place, name in places:
                stack.enter_context(mock.patch.object(place, name, self.timed(getattr(place, name))))
            dispatched = staticmethod(self.timed(Watched.__torch_function__))
            stack.enter_context(mock.patch.object(Watched, "__torch_function__", dispatched))
            yield


class Bench:
    """A model and its collector; a turn is a prefill of 256 random tokens, or tokens decoded after it."""

    def __init__(self, model: Any, collector: Collector, phase: Phase, decoded: int, rng: np.random.Generator) -> None:
        self.model, self.collector, self.phase, self.decoded, self.rng = model, collector, phase, decoded, rng
        self.past = model(input_ids=self.ids(PREFILL_TOKENS), use_cache=True).past_key_values

    def ids(self, tokens: int) -> torch.Tensor:
        """Random ids, [1, tokens]."""
        vocabulary = self.model.config.get_text_config().vocab_size
        return torch.from_numpy(self.rng.integers(1, vocabulary, (1, tokens)))

    def turn_ids(self) -> list[torch.Tensor]:
        """What the passes of a turn are given."""
        return [self.ids(1) for _ in range(self.decoded)] if self.phase == "decode" else [self.ids(PREFILL_TOKENS)]

    def turn(self, level: str, turn_ids: list[torch.Tensor]) -> list[Spent]:
        """The passes of a turn at a level; they do not wait for the observer's thread, which ends in the last one."""
        runtime, more = self.model.segmoe, {}
        if self.phase == "decode":
            if self.past.get_seq_length() > PREFILL_TOKENS:
                self.past.crop(PREFILL_TOKENS - self.past.get_seq_length())
            more = {"past_key_values": self.past}
        is_observed = level in CAPTURES
        runtime.capture = level if is_observed else "off"
        self.collector.flush()
        with contextlib.nullcontext() if is_observed else runtime.paused():
            took = [spent(lambda ids=ids: self.model(input_ids=ids, use_cache=True, **more)) for ids in turn_ids]  # type: ignore[misc]
        rest = spent(self.collector.flush)
        took[-1] = took[-1]._replace(all=took[-1].all + rest.all)
        return took

    def rounds(self, number: int) -> dict[str, np.ndarray]:
        """Level -> what its passes took, [pass, 3]; a round is a turn of each, with the same tokens."""
        times: dict[str, list[Spent]] = {name: [] for name in (UNOBSERVED, *LEVELS)}
        for one in range(number + WARM_ROUNDS):
            turn_ids = self.turn_ids()
            for name in self.rng.permutation(list(times)):
                took = self.turn(str(name), turn_ids)
                if one >= WARM_ROUNDS:
                    times[name] += took
        return {name: np.array(rows) for name, rows in times.items()}

    def timed(self, number: int) -> dict[str, np.ndarray]:
        """Level -> seconds of its passes that are the observer's, [turn]."""
        seconds = {}
        for level in LEVELS:
            own = []
            for _ in range(number):
                timer, turn_ids = Timer(), self.turn_ids()
                with timer.listening():
                    self.turn(level, turn_ids)
                own.append(timer.seconds / len(turn_ids))
            seconds[level] = np.array(own)
        return seconds


def midmean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis, which outliers do not move.

    >>> float(midmean(np.array([-9.0, 1.0, 2.0, 99.0])))
    1.5
    """
    number = values.shape[-1]
    return np.asarray(np.sort(values, axis=-1)[..., number // 4 : number - number // 4].mean(axis=-1))


def with_interval(logs: np.ndarray, passes: int, rng: np.random.Generator) -> str:
    """The midmean of logarithms of ratios in percent above 1, and its 90% bootstrap interval, which draws rounds."""
    by_round = logs.reshape(-1, passes)
    drawn = by_round[rng.integers(0, len(by_round), (2000, len(by_round)))].reshape(2000, -1)
    low, high = np.expm1(np.percentile(midmean(drawn), (5, 95)))
    return f"{np.expm1(midmean(logs)):+.2%} [{low:+.2%}, {high:+.2%}]"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=MODEL)
@click.option("--prefill", default=6, show_default=True, help="Rounds of a prefill at each level; 0 for none.")
@click.option("--decode", default=150, show_default=True, help="Rounds of decoding at each level; 0 for none.")
@click.option("--turn", default=1, show_default=True, help="Tokens that are decoded one after the other.")
@click.option("--timed", default=20, show_default=True, help="Turns that are timed call by call.")
@click.option("--seed", default=0, show_default=True, help="Of ids, order and bootstrap.")
def main(folder: Path, prefill: int, decode: int, turn: int, timed: int, seed: int) -> None:
    """Print how much more time passes take at each level than without a sink."""
    sizes = {key: part.nbytes for key, part in segmoe.load(folder).segmoe.manifest.experts.items()}
    collector = Collector(Observation(sizes, ["text"]))
    model = segmoe.load(folder, sink=collector, capture="contribution")
    collector.begin([TextRef(0, "text")], True)
    rng = np.random.default_rng(seed)
    table = Table("pass", "capture", "timed by itself", "model's thread", "wall", "with the observer's thread")
    rounds: dict[Phase, int] = {"prefill": prefill, "decode": decode}
    with torch.inference_mode():
        for phase, count in rounds.items():
            if count == 0:
                continue
            bench = Bench(model, collector, phase, turn, rng)
            times, own = bench.rounds(count), bench.timed(timed)
            base = np.sqrt(times[UNOBSERVED] * times[AGAIN])
            usual = float(np.median(base[:, 0]))
            for number, name in enumerate(LEVELS):
                against = times[UNOBSERVED] if name == AGAIN else base
                each = len(against) // count
                cells = (with_interval(logs, each, rng) for logs in np.log(times[name] / against).T)
                took = f"{phase}: {1e3 * usual:,.1f} ms" if number == 0 else ""
                alone = float(np.median(own[name]))
                table.add_row(took, name, f"{alone / usual:.2%} ({1e6 * alone:,.0f} us)", *cells)
    collector.close()
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)
    console.print(
        f"more than unobserved; midmeans of {prefill} passes of {PREFILL_TOKENS} tokens and {turn * decode} of one, "
        f"90% intervals; medians of what was timed by itself; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
