"""A weight beside the experts multiplies as the plain parameter does, and is that parameter for all other uses."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

import segmoe
from segmoe import dense, packing
from segmoe.dense import DenseWeight, take_over
from segmoe.packing import Pace
from tests import tiny
from tests.segmoe.test_mapping import resident_bytes
from tests.segmoe.test_packing import CAN_PACK

pytestmark = pytest.mark.skipif(not CAN_PACK, reason="this build of torch has no packed weights")
SHAPE = (2048, 768)  # its sums are in the same order, packed or plain, on each processor seen so far


@pytest.fixture
def plain() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).bfloat16())


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, SHAPE[1], generator=torch.Generator().manual_seed(6)).bfloat16()


def at_once() -> Pace:
    """Packing takes no time, and so it never rests."""
    return Pace(clock=lambda: 0.0)


def taken(plain: torch.nn.Parameter, uses: int = 0) -> DenseWeight:
    """In the place of a copy of it, after so many uses."""
    weight = DenseWeight(torch.nn.Parameter(plain.detach().clone()), at_once())
    with torch.no_grad():
        for _ in range(uses):
            F.linear(inputs(1), weight, None)
    return weight


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (1, 64), (3, 1), (2, 5)])
def test_its_products_are_the_plain_ones_before_and_after_it_is_packed(plain, shape) -> None:
    weight, x = taken(plain), inputs(*shape)
    packed = []
    with torch.no_grad():
        for _ in range(packing.AFTER_USES + 2):
            assert torch.equal(F.linear(x, weight, None), F.linear(x, plain, None))
            packed.append(weight.is_packed)
    assert packed == [False] * (packing.AFTER_USES - 1) + [True] * 3


def test_no_rows_are_no_reason_to_become_plain(plain) -> None:
    for uses in (0, packing.AFTER_USES):
        weight = taken(plain, uses)
        with torch.no_grad():
            found, wanted = F.linear(inputs(2, 0), weight, None), F.linear(inputs(2, 0), plain, None)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert weight.is_packed == bool(uses)


@pytest.mark.parametrize("x", [torch.ones(2, 7).bfloat16(), torch.ones(2, SHAPE[1])], ids=["width", "dtype"])
def test_what_fails_with_the_plain_one_fails_alike(plain, x) -> None:
    weight = taken(plain, packing.AFTER_USES)
    with torch.no_grad():
        with pytest.raises(RuntimeError) as stock:
            F.linear(x, plain, None)
        with pytest.raises(RuntimeError) as ours:
            F.linear(x, weight, None)
    assert str(ours.value) == str(stock.value)


def test_it_is_a_parameter_of_the_same_kind(plain) -> None:
    weight = taken(plain, packing.AFTER_USES)
    module = torch.nn.Linear(*SHAPE[::-1], bias=False, dtype=torch.bfloat16)
    module.weight = weight
    assert dict(module.named_parameters()) == {"weight": weight} and isinstance(weight, torch.nn.Parameter)
    assert (weight.shape, weight.dtype, weight.device) == (plain.shape, plain.dtype, plain.device)
    assert (weight.numel(), weight.requires_grad, weight.dim(), len(weight)) == (plain.numel(), True, 2, SHAPE[0])
    assert weight.is_packed


OTHERWISE = {
    "state": lambda weight: weight.detach(),
    "data": lambda weight: weight.data,
    "row": lambda weight: weight[3],
    "float": lambda weight: weight.float(),
    "product": lambda weight: inputs(2) @ weight.T,
    "with bias": lambda weight: F.linear(inputs(2), weight, torch.ones(SHAPE[0]).bfloat16()),
    "by name": lambda weight: F.linear(input=inputs(2), weight=weight),
    "strided": lambda weight: F.linear(inputs(4)[::2], weight, None),
}


@pytest.mark.parametrize("uses", [0, packing.AFTER_USES], ids=["before", "packed"])
@pytest.mark.parametrize("use", OTHERWISE.values(), ids=OTHERWISE)
def test_any_other_use_is_as_of_the_plain_one_and_packs_it_no_more(plain, use, uses: int) -> None:
    weight = taken(plain, uses)
    assert weight.is_packed == bool(uses)
    with torch.no_grad():
        assert torch.equal(use(weight), use(plain))
        if (
            use not in (OTHERWISE["with bias"], OTHERWISE["strided"]) or uses
        ):  # a product that is not packed shows it to nobody
            for _ in range(packing.AFTER_USES + 1):
                F.linear(inputs(1), weight, None)
            assert not weight.is_packed


@pytest.mark.parametrize("uses", [0, packing.AFTER_USES, 2 * packing.AFTER_USES])
def test_what_is_written_to_it_is_multiplied(plain, uses: int) -> None:
    """By whoever holds what it gave out, early or late, as who merges an adapter does."""
    weight = taken(plain)
    alias = weight.data
    with torch.no_grad():
        for _ in range(uses):
            F.linear(inputs(1), weight, None)
        alias[0] += 1
        changed = plain.data.clone()
        changed[0] += 1
        assert torch.equal(F.linear(inputs(2), weight, None), F.linear(inputs(2), changed, None))
        late = taken(plain, uses)
        late.mul_(2)
        assert torch.equal(F.linear(inputs(2), late, None), F.linear(inputs(2), plain * 2, None))


def test_memory_that_is_no_files_is_left_to_whoever_still_holds_it(plain) -> None:
    """As autograd does, from a product before the weight was packed."""
    weight, x = taken(plain), inputs(2).requires_grad_()
    product = F.linear(x, weight, None)
    with torch.no_grad():
        for _ in range(packing.AFTER_USES):
            F.linear(inputs(1), weight, None)
    assert weight.is_packed
    product.float().sum().backward()
    found, x.grad = x.grad, None
    F.linear(x, plain, None).float().sum().backward()
    assert torch.equal(found, x.grad)


def test_gradients_flow_as_through_the_plain_one(plain) -> None:
    weight, x = taken(plain, packing.AFTER_USES), inputs(2).requires_grad_()
    F.linear(x, weight, None).float().sum().backward()
    found, x.grad = x.grad, None
    F.linear(x, plain, None).float().sum().backward()
    assert torch.equal(found, x.grad)


def test_autocast_is_as_with_the_plain_one(plain) -> None:
    weight = taken(plain, packing.AFTER_USES)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        product = F.linear(inputs(2), weight, None)
        assert product.dtype == torch.float16 and torch.equal(product, F.linear(inputs(2), plain, None))


def test_what_is_not_proved_stays_plain(plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "proves_equal", lambda *args: False)
    assert not taken(plain, 2 * packing.AFTER_USES).is_packed
    monkeypatch.undo()
    weight = taken(plain, packing.AFTER_USES)
    monkeypatch.setattr(packing, "proves_equal", lambda *args: False)  # as of another number of threads
    with torch.no_grad():
        assert torch.equal(F.linear(inputs(3), weight, None), F.linear(inputs(3), plain, None))
    assert not weight.is_packed


def test_only_what_is_nobody_elses_is_taken_over() -> None:
    def linear(n: int = SHAPE[0], bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Linear:
        return torch.nn.Linear(SHAPE[1], n, bias=bias, dtype=dtype)

    class Special(torch.nn.Linear):
        pass

    model = torch.nn.ModuleDict(
        {
            "fitting": linear(),
            "biased": linear(bias=True),
            "small": linear(8),
            "large": linear(dense.MAX_BYTES // (2 * SHAPE[1]) + 1),
            "precise": linear(dtype=torch.float32),
            "frozen": linear().requires_grad_(False),
            "special": Special(*SHAPE[::-1], bias=False, dtype=torch.bfloat16),
            "embedding": torch.nn.Embedding(*SHAPE, dtype=torch.bfloat16),
            "tied": linear(),
        }
    )
    model["tied"].weight = model["embedding"].weight
    take_over(model, at_once())
    assert [name for name, part in model.items() if isinstance(part.weight, DenseWeight)] == ["fitting"]


def test_a_model_packs_one_after_another_and_lets_the_plain_ones_go(tmp_path: Path, monkeypatch) -> None:
    now, pack = [0.0], packing.pack_to_stay

    def packed_in_one_second(weight: torch.Tensor) -> torch.Tensor:
        now[0] += 1.0
        return pack(weight)

    monkeypatch.setattr(packing, "serves", lambda *args: True)
    monkeypatch.setattr(packing, "may_pack", lambda weight: True)
    monkeypatch.setattr(packing, "pack_to_stay", packed_in_one_second)
    sizes = {"hidden_size": 1024, "head_dim": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    tiny.save(tiny.build("Qwen3Moe", torch.bfloat16, **sizes, moe_intermediate_size=24), tmp_path)
    stock = transformers.Qwen3MoeForCausalLM.from_pretrained(
        tmp_path, dtype="auto", experts_implementation="eager"
    ).eval()
    model = segmoe.load(tmp_path, experts=6)
    model.segmoe.pace._clock = lambda: now[0]
    ids = torch.randint(1, 97, (packing.AFTER_USES + 14, 1, 1), generator=torch.Generator().manual_seed(1))
    counts, mapped, past, wanted = [], [], None, None
    with torch.no_grad():
        for one in ids:
            stocks, ours = (
                of(input_ids=one, past_key_values=cache, use_cache=True)
                for of, cache in ((stock, wanted), (model, past))
            )
            assert torch.equal(stocks.logits, ours.logits)
            wanted, past = stocks.past_key_values, ours.past_key_values
            now[0] += packing.REST
            counts.append(sum(isinstance(weight, DenseWeight) and weight.is_packed for weight in model.parameters()))
            mapped.append(resident_bytes(tmp_path / "model.safetensors"))
    assert counts == [0] * (packing.AFTER_USES - 1) + [*range(1, 13)] + [12] * 3  # four projections of three layers
    packed = sum(weight.nbytes for weight in stock.parameters() if weight.nbytes >= dense.MIN_BYTES)
    assert mapped[packing.AFTER_USES - 2] - mapped[-1] > 0.95 * packed
    stored = stock.state_dict()
    assert all(torch.equal(found, stored[name]) for name, found in model.state_dict().items())
    model.segmoe.close()
