"""What stands for the library's eager loop against that loop, bit for bit, and who is computed so."""

from collections.abc import Iterator
from functools import cache
from itertools import cycle, repeat
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from transformers.activations import ACT2FN

import segmoe
from segmoe import eager_loop
from segmoe.contributions import ordinary, watched
from segmoe.embedded import MODEL
from segmoe.events import Routed
from segmoe.modules import is_experts_module
from tests.families.sweep import build
from tests.families.test_sweep import family
from tests.tiny import RecordingSink

EXPERTS = 12
DTYPES = st.sampled_from((torch.float32, torch.bfloat16, torch.float16))
ALIKE = ("DeepseekV3", "Ernie4_5_Moe", "Jamba", "Mixtral", "Olmoe", "Qwen2Moe", "Qwen3Moe", "Qwen3Next")
ANOTHER_WAY = ("GptOss", "NemotronH")
PRODUCTS = ("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "mv", "dot")


def experts_of(name: str) -> Any:
    return next(module for module in build(family(f"{name}ForCausalLM")).modules() if is_experts_module(module))


def eager(module: Any) -> Any:
    return type(module).forward.__wrapped__


@cache
def qwen(width: int, inner: int, dtype: torch.dtype, seed: int) -> Any:
    config = transformers.Qwen3MoeConfig(hidden_size=width, moe_intermediate_size=inner, num_experts=EXPERTS)
    module = transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.data.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    return module


class Source:
    """A module's experts, of which some are there later than others: an answer is as good as any other."""

    def __init__(self, module: Any, answers: Iterator[bool]) -> None:
        self.module, self.answers = module, answers
        self.fetched: list[int] = []
        self.ahead: list[int] = []

    def fetch(self, expert: int) -> dict[str, torch.Tensor]:
        self.fetched.append(expert)
        return self.tensors(expert)

    def has_all(self) -> bool:
        assert not self.fetched
        return next(self.answers)

    def is_awaited(self, expert: int) -> bool:
        assert expert not in self.fetched
        return next(self.answers)

    def at_hand(self, expert: int) -> dict[str, torch.Tensor] | None:
        assert expert not in self.fetched + self.ahead
        if next(self.answers):
            self.ahead.append(expert)
            return self.tensors(expert)
        return None

    def tensors(self, expert: int) -> dict[str, torch.Tensor]:
        return {name: getattr(self.module, name)[expert] for name in (eager_loop.GATE_UP, eager_loop.DOWN)}


def one(module: Any, hidden: torch.Tensor, weights: torch.Tensor, picks: list[int], **more: Any) -> torch.Tensor:
    source = Source(module, more.pop("answers", repeat(False)))
    found = eager_loop.of_one_token(module, hidden, weights, picks, source, **more)
    assert source.fetched == sorted(set(picks) - {EXPERTS}), "each is asked for in its turn, computed or not"
    return found


def bits(tensor: torch.Tensor) -> list[int]:
    """As integers, so that 0 is not -0. All that is no number is alike: its bits differ within one sum of torch's."""
    tensor = torch.where(tensor.isnan(), float("nan"), tensor)
    return tensor.detach().contiguous().view(torch.int16 if tensor.itemsize == 2 else torch.int32).flatten().tolist()


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(((64, 16), (64, 64), (48, 100), (33, 7), (2048, 768))),
    dtype=DTYPES,
    weights_dtype=st.sampled_from((None, torch.float32)),
    more=st.sampled_from((0, 0, 3)),  # weights than picks
    picks=st.lists(st.integers(0, EXPERTS), min_size=1, max_size=8, unique=True),  # EXPERTS stands for none
    odd=st.sampled_from((None, 0.0, -0.0, float("inf"), float("nan"), 6e4)),
    seed=st.integers(0, 99),
    answers=st.lists(st.booleans(), min_size=1).map(cycle),
)
def test_one_token_is_the_librarys_loop_bit_for_bit(
    shape, dtype, weights_dtype, more, picks, odd, seed, answers
) -> None:
    module = qwen(*shape, dtype, seed % 2)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, shape[0], generator=generator).to(dtype)
    if odd is not None:
        hidden[:, :: 2 + seed] = odd
    weights = torch.rand(1, len(picks) + more, generator=generator).to(weights_dtype or dtype)
    with torch.inference_mode():
        wanted = eager(module)(module, hidden, torch.tensor([picks]), weights)
        found = one(module, hidden, weights, picks, answers=answers)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert bits(found) == bits(wanted)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(((64, 16), (64, 64), (48, 100), (33, 7), (2048, 768))),
    dtype=DTYPES,
    weights_dtype=st.sampled_from((None, torch.float32)),
    more=st.sampled_from((0, 0, 3)),
    picks=st.integers(1, 8).flatmap(
        lambda k: st.lists(st.lists(st.integers(0, EXPERTS), min_size=k, max_size=k), min_size=1, max_size=40)
    ),
    is_strided=st.booleans(),
    odd=st.sampled_from((None, 0.0, -0.0, float("inf"), float("nan"), 6e4)),
    seed=st.integers(0, 99),
)
def test_rows_are_the_librarys_loop_bit_for_bit(
    shape, dtype, weights_dtype, more, picks, is_strided, odd, seed
) -> None:
    module = qwen(*shape, dtype, seed % 2)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(picks)  # a row may pick an expert twice
    hidden = torch.randn(len(ids), 2 * shape[0], generator=generator).to(dtype)
    hidden = hidden[:, ::2] if is_strided else hidden[:, : shape[0]].contiguous()
    if odd is not None:
        hidden[:, :: 2 + seed] = odd
    weights = torch.rand(len(ids), ids.shape[1] + more, generator=generator).to(weights_dtype or dtype)
    source, noted = Source(module, repeat(False)), []
    watching = watched(hidden, lambda rows, outputs: noted.append((rows, outputs)))
    told: list[tuple[Any, ...]] = []
    with torch.inference_mode():
        wanted = eager(module)(module, watching, ids, weights)
        found = eager_loop.of_rows(module, hidden, ids, weights, source, lambda *one: told.append(one))
    assert found.dtype == wanted.dtype and found.stride() == wanted.stride()
    assert bits(found) == bits(ordinary(wanted))
    assert source.fetched == sorted(set(ids.flatten().tolist()) - {EXPERTS})
    assert [expert for expert, *_ in told] == source.fetched
    for (_, rows, outputs), (wanted_rows, wanted_outputs) in zip(told, noted, strict=True):
        assert rows.tolist() == wanted_rows.tolist()
        assert bits(outputs) == bits(wanted_outputs)


@pytest.mark.parametrize(("act", "inner"), [("silu", 64), ("silu", 100), ("silu", 4096), ("gelu", 64), ("relu2", 64)])
def test_experts_side_by_side_are_each_as_if_alone(act: str, inner: int) -> None:
    act_fn, generator = ACT2FN[act], torch.Generator().manual_seed(1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rows = [(4 * torch.randn(1, 2 * inner, generator=generator)).to(dtype) for _ in range(8)]
        alone = [act_fn(row.chunk(2, dim=-1)[0]) * row.chunk(2, dim=-1)[1] for row in rows]
        found = eager_loop._activated(act_fn, rows)
        assert [bits(row) for row in found] == [bits(row) for row in alone]
        assert all(row.data_ptr() % 64 == 0 for row in found), "as a product of its own lies"


def test_the_order_in_which_experts_are_added_is_seen_in_the_bits() -> None:
    module = qwen(64, 16, torch.bfloat16, 1)
    hidden, weights, picks = torch.randn(1, 64).bfloat16(), torch.rand(1, 8).bfloat16(), [5, 1, 7, 2, 9, 0, 3, 11]
    added: list[torch.Tensor] = []
    with torch.inference_mode():
        found = one(module, hidden, weights, picks, note=lambda expert, row, part: added.append(part))
        backwards = torch.zeros_like(found)
        for part in reversed(added):
            backwards += part
    assert len(added) == len(picks) and bits(backwards) != bits(found)


def test_while_one_is_read_those_behind_it_that_are_there_are_computed_and_told_in_their_turn() -> None:
    module = qwen(64, 16, torch.bfloat16, 1)
    hidden, weights, picks = torch.randn(1, 64).bfloat16(), torch.rand(1, 4).bfloat16(), [5, 1, 7, 2]
    source, in_turn, told = Source(module, iter([False, True, False, True, True, False, False, False])), [], []
    with torch.inference_mode():
        one(module, hidden, weights, picks, note=lambda *one: in_turn.append(one))
        eager_loop.of_one_token(module, hidden, weights, picks, source, lambda *one: told.append(one))
    assert source.ahead == [5], "behind 1, 2 is not there, 5 is, and then 1 is"
    assert source.fetched == [1, 2, 5, 7]
    assert [(expert, row.tolist(), bits(added)) for expert, row, added in told] == [
        (expert, [0], bits(added)) for expert, _, added in in_turn
    ]
    assert [expert for expert, *_ in told] == sorted(picks)


@pytest.mark.parametrize("name", ALIKE)
def test_families_that_have_the_very_loop_are_known(name: str) -> None:
    assert eager_loop.is_known(eager(experts_of(name)))


def test_the_very_loop_multiplies_by_linear_alone() -> None:
    module, called = qwen(64, 16, torch.bfloat16, 1), set()

    class Listening(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func)
            return func(*args, **kwargs or {})

    with torch.no_grad(), Listening():
        eager(module)(module, torch.randn(5, 64).bfloat16(), torch.arange(10).view(5, 2), torch.rand(5, 2).bfloat16())
    products = {func for func in called if func.__name__ in PRODUCTS}
    assert products == {torch.nn.functional.linear}


@pytest.mark.parametrize("name", ANOTHER_WAY)
def test_a_family_with_a_loop_of_its_own_is_not(name: str) -> None:
    assert not eager_loop.is_known(eager(experts_of(name)))


def test_what_has_no_source_is_not_known() -> None:
    namespace: dict[str, Any] = {}
    exec("def forward(self): pass", namespace)
    assert not eager_loop.is_known(namespace["forward"])


def test_one_row_of_distinct_picks_that_lies_as_a_gathered_one_is_one_token() -> None:
    hidden = torch.randn(1, 64)
    assert eager_loop.is_one_token(hidden, [3, 1], [1, 3])
    assert not eager_loop.is_one_token(hidden, [3, 3], [3]), "the loop multiplies two rows then"
    assert not eager_loop.is_one_token(torch.randn(2, 64), [3, 1, 4, 2], [1, 2, 3, 4])
    assert not eager_loop.is_one_token(torch.randn(1, 128)[:, ::2], [3, 1], [1, 3])
    assert not eager_loop.is_one_token(torch.randn(1, 66)[:, 2:], [3, 1], [1, 3])


def test_it_serves_picks_that_there_can_be_on_the_cpu() -> None:
    hidden = torch.randn(2, 64)
    assert eager_loop.serves(hidden, [0, 3, EXPERTS], EXPERTS)
    assert not eager_loop.serves(hidden, [3, EXPERTS + 1], EXPERTS)
    assert not eager_loop.serves(hidden, [-1, 3], EXPERTS)
    assert not eager_loop.serves(hidden, [], EXPERTS)
    assert not eager_loop.serves(hidden.to("meta"), [3], EXPERTS)


@pytest.mark.parametrize("name", [f"{name}ForCausalLM" for name in (*ALIKE, *ANOTHER_WAY)])
def test_it_is_computed_so_where_the_loop_is_known_and_only_there(name, tmp_path, monkeypatch) -> None:
    build(family(name)).save_pretrained(tmp_path)
    model = segmoe.load(tmp_path, experts=4)
    rows: list[int] = []

    def counted(compute: Any) -> Any:
        return lambda *args: rows.append(len(args[1])) or compute(*args)

    for way in ("of_rows", "of_one_token"):
        monkeypatch.setattr(eager_loop, way, counted(getattr(eager_loop, way)))
    with torch.inference_mode():
        past = model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
        model(input_ids=torch.tensor([[4]]), past_key_values=past)
    is_alike = name.removesuffix("ForCausalLM") in ALIKE
    layers = len(model.segmoe.manifest.modules)
    assert rows == ([3] * layers + [1] * layers) * is_alike
    parts = [part for segment in model.segmoe.manifest.experts.values() for part in segment.parameters]
    assert {part.is_linear for part in parts} == {is_alike}


@pytest.mark.parametrize("capture", ["counts", "routing", "contribution"])
def test_the_observer_is_told_the_same(capture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for is_known in (eager_loop.is_known, lambda forward: False):
        monkeypatch.setattr(eager_loop, "is_known", is_known)
        sink = RecordingSink()
        model = segmoe.load(MODEL, experts=8, sink=sink, capture=capture)
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False)
        told.append(sink.events)
    ways = [[event for event in events if isinstance(event, Routed)] for events in told]
    assert len(ways[0]) == len(ways[1]) and bool(ways[0]) == (capture != "counts")
    for mine, other in zip(*ways, strict=True):
        np.testing.assert_array_equal(mine.topk_ids, other.topk_ids)
        np.testing.assert_array_equal(mine.topk_weights, other.topk_weights)
        assert (mine.contribution is None) == (other.contribution is None) == (capture != "contribution")
        if mine.contribution is not None:
            for name in ("c_norm", "h_dot_c", "h_norm", "sum_unit_norm"):
                np.testing.assert_array_equal(getattr(mine.contribution, name), getattr(other.contribution, name))
