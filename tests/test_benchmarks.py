"""The benchmarks run, and what they measure with is right. Their figures are those of `make bench`."""

import itertools
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

import segmoe
from segmoe.embedded import MODEL
from segmoe.events import Routed
from segmoe.survey import survey
from tests.benchmarks import hub, mapping, memory, prefetch, residency, wide
from tests.benchmarks.contender import Contender, DiedError
from tests.benchmarks.interventions import interventions
from tests.benchmarks.memory import NoCapError, Peak, hard_cap, read_rate, resident
from tests.tiny import RecordingSink


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    wide.write(folder, wide.small())
    return folder


def test_the_wide_checkpoint_is_complete_and_always_the_same(small: Path, tmp_path: Path) -> None:
    assert survey(small).is_complete
    wide.write(tmp_path, wide.small())
    (shard,) = (file.name for file in small.glob("*.safetensors"))
    assert (small / shard).read_bytes() == (tmp_path / shard).read_bytes()
    with safe_open(small / shard, "pt") as tensors:
        names = list(tensors.keys())
        gate = tensors.get_tensor("model.layers.1.mlp.gate.weight")
    assert len(names) == len(set(names)) and torch.equal(
        gate, wide.weights("model.layers.1.mlp.gate.weight", gate.shape)
    )


def test_the_real_shape_is_that_of_qwen3_30b() -> None:
    from transformers import Qwen3MoeForCausalLM

    tensors = hub.hub_tensors(Qwen3MoeForCausalLM, wide.config(1))
    expert = [tensor for name, tensor in tensors.items() if ".experts.77." in name]
    assert [tuple(tensor.shape) for tensor in expert] == [(2048, 768), (768, 2048), (768, 2048)]
    assert sum(2 * tensor.numel() for tensor in expert) == 9_437_184
    assert sum(".down_proj." in name for name in tensors) == 128


def test_a_shard_is_as_full_as_it_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SHARD_BYTES", 100)
    tensors = {name: torch.empty(size, dtype=torch.bfloat16) for name, size in (("a", 30), ("b", 20), ("c", 1))}
    packed = list(hub.shards(tensors, tmp_path))
    assert [list(shard.tensors) for shard in packed] == [["a", "b"], ["c"]]


def test_each_part_prints_its_table(small: Path) -> None:
    options = [str(small), "--smoke", "--threads", "1", "--part", "cold"]
    outcome = CliRunner().invoke(residency.main, options, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "segmoe, 16 experts" in outcome.output and "of the bound" in outcome.output


def test_guesses_are_compared_with_none(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    outcome = CliRunner().invoke(prefetch.main, [str(small), "--smoke", "--threads", "1"])
    if "no memory cap is possible" in outcome.output:
        pytest.skip(outcome.output)
    assert outcome.exit_code == 0, outcome.output
    assert "6 of 64" in outcome.output and "guess 4" in outcome.output


def test_what_a_guess_gains_is_told_apart_from_what_turns_and_missed_experts_take() -> None:
    rng = np.random.default_rng(1)
    turns, passes = 12, 24
    is_with = np.arange(passes) % 2 == 1
    missed = rng.integers(0, 40, (turns, passes)) + 9 * is_with  # with it, more happened to be missed
    slower = rng.normal(scale=0.2, size=(turns, 1))  # now and then, by more than is to be seen
    seconds = 1.0 + slower + 0.01 * missed - 0.1 * is_with
    found = prefetch.compare(seconds, missed, is_with, samples=50)
    assert found.with_s - found.without_s == pytest.approx(-0.1)
    assert found.without_s == pytest.approx(1.0 + slower.mean() + 0.01 * missed.mean())
    noise = rng.normal(scale=0.02, size=seconds.shape)
    noisy = prefetch.compare(seconds + noise, missed, is_with)
    assert noisy.low < found.ratio < noisy.high and noisy.high - noisy.low < 0.02
    gainless = prefetch.compare(seconds + 0.1 * is_with + noise, missed, is_with)
    assert gainless.low < 1 < gainless.high


def test_memory_that_a_process_held_for_a_moment_is_seen_and_what_it_mapped_apart(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(80 << 20))
    code = (
        "import mmap; f = open(%r, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096]);"
        "b = bytearray(b'x') * (50 << 20); print('held', flush=True); input();"
        "del b; print('gone', flush=True); input()"
    )
    command = [sys.executable, "-c", code % str(file)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process,
        Peak(process.pid) as peak,
    ):
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "held\n"
        given_up = time.monotonic() + 60
        while peak.nbytes < 50 << 20 and time.monotonic() < given_up:  # it takes one look
            time.sleep(0.001)
        process.stdin.write("\n")
        assert process.stdout.readline() == "gone\n"
        now, _ = resident(Path(f"/proc/{process.pid}/status"))
        process.stdin.write("\n")
    assert now < 50 << 20 < peak.nbytes < 75 << 20
    assert 80 << 20 < peak.mapped_bytes < 105 << 20


def test_a_contender_that_outgrows_its_cap_is_killed_and_a_broken_one_tells_why(small: Path, tmp_path: Path) -> None:
    with Contender(1) as contender, pytest.raises(DiedError, match="no_such_way"):
        contender.open(small, kind="stock", experts_implementation="no_such_way")
    try:
        with hard_cap(100 << 20) as cap, Contender(1, cap) as contender, pytest.raises(DiedError, match="for memory"):
            contender.open(small, kind="stock")
    except NoCapError as reason:
        pytest.skip(str(reason))


def test_a_read_rate_is_that_of_all_the_bytes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of which 2 s go by between two looks: each way takes 2 s a turn."""
    seconds = itertools.count(step=2)
    monkeypatch.setattr(memory, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    file = next(small.glob("*.safetensors"))
    block = 1 << 12
    blocks = file.stat().st_size // block
    assert blocks > 100
    assert read_rate([file], block_bytes=block) == blocks * block / (2 * memory.TURNS)


def test_a_read_rate_is_that_of_the_way_that_is_fastest_on_average(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, taken = [0.0], {1: [1, 9, 1, 9], 2: [4, 4, 4, 4], 4: [8, 8, 8, 8]}  # one thread is the luckiest, not the best
    monkeypatch.setattr(memory, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def read(places: object, buffers: object, threads: int) -> None:
        now[0] += taken[threads].pop(0)

    monkeypatch.setattr(memory, "_read_all", read)
    file = next(small.glob("*.safetensors"))
    assert read_rate([file], block_bytes=1 << 12) == file.stat().st_size // (1 << 12) * (1 << 12) / 16
    assert not any(taken.values())


def test_the_ways_of_bringing_an_expert_are_told_apart(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmoe.mapping.MIN_BYTES", 1)
    outcome = CliRunner().invoke(mapping.main, [str(small), "--experts", "5"], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "5 experts" in outcome.output
    assert all(way in outcome.output for way in ("buffered", "copied", "mapped"))


def test_an_intervention_changes_what_is_heard_and_nothing_that_is_computed() -> None:
    sink = RecordingSink()
    model = segmoe.load(MODEL, sink=sink, capture="contribution")
    ids = torch.randint(5, 4000, (1, 64), generator=torch.Generator().manual_seed(1))

    def heard() -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
        sink.events.clear()
        with torch.inference_mode():
            logits = model(input_ids=ids).logits
        picks, weights = ([getattr(one, name) for one in sink.of(Routed)] for name in ("topk_ids", "topk_weights"))
        units = [one.contribution.sum_unit_norm for one in sink.of(Routed)]
        return logits, np.stack(picks, 1), np.stack(weights, 1), np.stack(units, 1)

    logits, *before = heard()
    other = before[0][::-1].copy()
    for name, intervention in interventions(model, ids[0].tolist(), other, 32, np.random.default_rng(0)).items():
        with intervention():
            now, *after = heard()
        assert torch.equal(now, logits) != name.startswith("next token"), name
        wanted = {"picks": "0", "partners": "0", "weights": "1", "outputs": "2", "first": "2"}.get(name.split()[0], "")
        changed = {str(n) for n, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a, b)}
        assert changed - {"2"} == set(wanted) - {"2"}, name
        if "in name" in name or wanted == "2":
            assert ("2" in changed) == (wanted == "2"), name
        assert all(np.array_equal(a[:32], b[:32]) for a, b in zip(before, after, strict=True)), name
    again, *after = heard()
    assert torch.equal(again, logits) and all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
