"""What cannot be exact is refused with a sentence, and what is not refused is exact. See also test_runtime.py."""

import copy
import io
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import segmoe
from segmoe import Unsupported
from segmoe.events import StepDone
from tests.tiny import RecordingSink

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the compiler's own

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def model(qwen3: Path) -> Any:
    return segmoe.load(qwen3, experts=4)


@pytest.fixture
def stock(qwen3: Path) -> Any:
    found = transformers.AutoModelForCausalLM.from_pretrained(qwen3, experts_implementation="eager")
    return found.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def answer(model: Any, **options: Any) -> Any:
    return model.generate(
        input_ids=IDS,
        max_new_tokens=8,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_every_kv_cache_is_exact(cache: str, model: Any, stock: Any) -> None:
    wanted, found = answer(stock, cache_implementation=cache), answer(model, cache_implementation=cache)
    assert torch.equal(wanted.sequences, found.sequences)
    assert torch.equal(torch.stack(wanted.logits), torch.stack(found.logits))


def test_a_static_cache_that_asks_to_be_compiled_is_exact_all_the_same(model: Any, stock: Any) -> None:
    """Stock compiles itself here; the reference is stock without that."""
    wanted = answer(stock, cache_implementation="static")
    compiled = transformers.CompileConfig()
    compiled._compile_all_devices = True
    found = answer(model, cache_implementation="static", compile_config=compiled)
    assert torch.equal(torch.stack(wanted.logits), torch.stack(found.logits))


@pytest.mark.parametrize("part", ["model", "decoder", "method", "function"])
def test_compiling_leaves_the_model_exact(part: str, model: Any, stock: Any) -> None:
    """The default backend changes bits where it compiles anything."""
    wanted = logits(stock)
    torch._dynamo.reset()
    if part == "model":
        found = logits(torch.compile(model))
    elif part == "method":
        model.compile()
        found = logits(model)
    elif part == "decoder":
        model.model = torch.compile(model.model)
        found = logits(model)
    else:
        found = torch.compile(lambda: logits(model))()
    assert torch.equal(wanted, found)


def test_compiling_in_one_graph_fails_instead_of_giving_other_bits(model: Any) -> None:
    torch._dynamo.reset()
    for compiled in (torch.compile(model, fullgraph=True), torch.compile(lambda ids: model(ids), fullgraph=True)):
        with pytest.raises(RuntimeError, match="a segmented model runs uncompiled"), torch.no_grad():
            compiled(IDS)


def test_layers_that_are_compiled_one_by_one_still_reach_their_experts(model: Any) -> None:
    wanted = logits(model)
    torch._dynamo.reset()
    for layer in model.model.layers:
        layer.mlp.compile(backend="eager")
    assert torch.equal(wanted, logits(model))
    model.segmoe.cache.check_integrity()


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.to(torch.float64),
        lambda model: model.to("meta"),
        lambda model: model.to("cuda:7"),
        lambda model: model.model.half(),
        lambda model: model.model.layers[1].mlp.to(torch.float16),
    ],
    ids=["half", "bfloat16", "float64", "meta", "cuda", "decoder", "one mlp"],
)
def test_another_device_or_dtype_is_refused(move: Any, model: Any) -> None:
    with pytest.raises(Unsupported, match=r"stays on the CPU in torch\.float32"):
        move(model)


def test_a_refused_move_changes_nothing_and_an_empty_one_is_no_move(model: Any, stock: Any) -> None:
    with pytest.raises(Unsupported):
        model.half()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.to("cpu").float().to(torch.float32)
    assert torch.equal(logits(stock), logits(model))


def test_copies_and_pickles_are_refused(model: Any) -> None:
    for use in (copy.deepcopy, pickle.dumps, lambda found: torch.save(found, io.BytesIO())):
        with pytest.raises(Unsupported, match="cannot be copied"):
            use(model)
    with pytest.raises(Unsupported, match="cannot be copied"):
        copy.deepcopy(model.model.layers[0].mlp.experts)


def test_experts_spread_over_processes_are_refused(model: Any) -> None:
    model.model.layers[2].mlp.experts._is_expert_parallel = True
    with pytest.raises(Unsupported, match="spread over processes"):
        logits(model)


class Waiting:
    """Stops the pass of one thread at its first event until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def emit(self, event: Any, /) -> None:
        """Wait."""
        self.reached.set()
        self.go_on.wait(600)


def test_a_second_thread_is_refused_and_the_first_is_not_disturbed(qwen3: Path, stock: Any) -> None:
    sink = Waiting()
    model = segmoe.load(qwen3, experts=4, sink=sink)
    found: list[torch.Tensor] = []
    first = threading.Thread(target=lambda: found.append(logits(model)), name="the first thread", daemon=True)
    first.start()
    assert sink.reached.wait(600)
    with pytest.raises(Unsupported, match="the first thread is in a pass of this model"):
        logits(model)
    sink.go_on.set()
    first.join()
    assert torch.equal(found[0], logits(stock))
    assert torch.equal(logits(model), logits(stock)), "free again"
    model.segmoe.cache.check_integrity()


def test_threads_that_generate_at_once_are_exact_or_refused(model: Any, stock: Any) -> None:
    wanted = answer(stock)
    outcomes: list[Any] = []

    def work() -> None:
        try:
            outcomes.append(answer(model))
        except Unsupported as refusal:
            outcomes.append(refusal)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [outcome for outcome in outcomes if not isinstance(outcome, Unsupported)]
    assert len(outcomes) == 4
    assert all(torch.equal(torch.stack(one.logits), torch.stack(wanted.logits)) for one in done)
    assert torch.equal(torch.stack(answer(model).logits), torch.stack(wanted.logits)), "free again"
    model.segmoe.cache.check_integrity()


def test_a_thread_that_died_in_a_pass_does_not_hold_the_model(model: Any, stock: Any) -> None:
    """SystemExit and KeyboardInterrupt pass by torch's hooks."""

    def die() -> None:
        model.segmoe.cache.get = lambda key: sys.exit()
        with pytest.raises(SystemExit):
            logits(model)

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()
    del model.segmoe.cache.get
    assert torch.equal(logits(model), logits(stock))


def test_a_pass_after_ctrl_c_is_counted_as_a_pass(qwen3: Path) -> None:
    sink = RecordingSink()
    model = segmoe.load(qwen3, experts=4, sink=sink)
    get = model.segmoe.cache.get

    def interrupt(key: Any) -> Any:
        model.segmoe.cache.get = get
        raise KeyboardInterrupt

    model.segmoe.cache.get = interrupt
    with pytest.raises(KeyboardInterrupt):
        logits(model)
    logits(model)
    logits(model)
    assert [step.tokens for step in sink.of(StepDone)] == [6, 6]
    assert [step.step for step in sink.of(StepDone)] == [1, 2]


def test_training_mode_without_gradients_is_exact(model: Any, stock: Any) -> None:
    assert torch.equal(logits(model.train()), logits(stock.train()))
