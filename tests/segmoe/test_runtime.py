from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import segmoe
from segmoe import packing, passes
from segmoe.errors import ConfigError, Unsupported
from segmoe.events import ExpertEvicted, ExpertLoaded, Routed, StepDone
from tests import tiny
from tests.tiny import RecordingSink

IDS = torch.tensor([[0, 0, 0, 5, 6, 7], [9, 8, 7, 6, 5, 4]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.fixture
def observed(qwen3: Path):
    sink = RecordingSink()
    model = segmoe.load(qwen3, experts=4, sink=sink, capture="contribution")
    return model, sink


def test_it_is_the_stock_class_with_its_experts_on_disk(qwen3: Path) -> None:
    model = segmoe.load(qwen3, experts=4)
    assert type(model) is transformers.Qwen3MoeForCausalLM
    assert not any(".experts." in name for name, _ in model.named_parameters())
    assert len(model.segmoe.cache) == 0, "nothing is read before it is needed"
    assert transformers.AutoModelForCausalLM.from_pretrained(qwen3).model.layers[0].mlp.experts.gate_up_proj.is_cpu


def test_never_more_experts_than_the_budget_are_in_memory(observed) -> None:
    model, sink = observed
    resident: set = set()
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    for event in sink.events:
        if isinstance(event, ExpertLoaded):
            resident.add(event.key)
        elif isinstance(event, ExpertEvicted):
            resident.remove(event.key)
        assert len(resident) <= 4
    assert len(resident) == 4 == len(model.segmoe.cache)


def test_routed_tells_what_the_stock_router_chose(observed, qwen3: Path) -> None:
    model, sink = observed
    stock = transformers.AutoModelForCausalLM.from_pretrained(qwen3, experts_implementation="eager")
    chosen = []
    for layer in stock.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, args, out: chosen.append((out[2], out[1])))
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
        stock(input_ids=IDS, attention_mask=MASK)
    routed = sink.of(Routed)
    assert [event.layer for event in routed] == [0, 1, 2]
    for event, (ids, weights) in zip(routed, chosen, strict=True):
        assert np.array_equal(event.topk_ids, ids.numpy())
        assert np.array_equal(event.topk_weights, weights.numpy())
        assert event.position.tolist() == [-1, -1, -1, 0, 1, 2, 0, 1, 2, 3, 4, 5]
        assert event.sequence.tolist() == [0] * 6 + [1] * 6


def test_contributions_equal_what_is_computed_from_the_stock_model(observed, qwen3: Path) -> None:
    """Recomputed from the stock weights: c from the expert's own matrices, h from the decoder layer's output."""
    model, sink = observed
    stock = transformers.AutoModelForCausalLM.from_pretrained(qwen3, experts_implementation="eager")
    inputs, outputs = [], []
    for layer in stock.model.layers:
        layer.mlp.experts.register_forward_hook(lambda module, args, out: inputs.append(args))
        layer.register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
        stock(input_ids=IDS, attention_mask=MASK)
        for event, layer, (x, ids, weights), h in zip(
            sink.of(Routed), stock.model.layers, inputs, outputs, strict=True
        ):
            h = h.reshape(len(x), -1)
            bank = layer.mlp.experts
            for row in range(len(x)):
                total = torch.zeros_like(x[row])
                for place in range(ids.shape[1]):
                    expert = ids[row, place]
                    gate, up = (bank.gate_up_proj[expert] @ x[row]).chunk(2)
                    c = weights[row, place] * (bank.down_proj[expert] @ (torch.nn.functional.silu(gate) * up))
                    total += c / c.norm()
                    one = event.contribution
                    assert one.c_norm[row, place] == pytest.approx(c.norm().item(), rel=1e-4)
                    assert one.h_dot_c[row, place] == pytest.approx((h[row] @ c).item(), rel=1e-3, abs=1e-3)
                    impact = 1 - torch.nn.functional.cosine_similarity(h[row], h[row] - c, dim=0).item()
                    assert one.impact()[row, place] == pytest.approx(impact, rel=1e-3, abs=1e-5)
                assert event.contribution.sum_unit_norm[row] == pytest.approx(total.norm().item(), rel=1e-4)
                assert event.contribution.h_norm[row] == pytest.approx(h[row].norm().item(), rel=1e-4)


def test_nll_is_that_of_the_stock_loss_and_padding_has_none(observed, qwen3: Path) -> None:
    model, sink = observed
    stock = transformers.AutoModelForCausalLM.from_pretrained(qwen3, experts_implementation="eager")
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
        logits = stock(input_ids=IDS, attention_mask=MASK).logits
    (step,) = sink.of(StepDone)
    nll = step.nll.reshape(IDS.shape)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), IDS[:, 1:], reduction="none")
    known = (MASK[:, :-1] & MASK[:, 1:]).bool().numpy()
    assert np.allclose(nll[:, :-1][known], expected.numpy()[known], atol=1e-5)
    assert np.isnan(nll[:, :-1][~known]).all() and np.isnan(nll[:, -1]).all()
    assert np.isnan(step.entropy.reshape(IDS.shape)[:, -1]).all()
    assert (step.tokens, step.sequences, step.phase) == (9, 2, "prefill")


def test_the_step_counters_add_up_to_the_events(observed) -> None:
    model, sink = observed
    with torch.no_grad():
        model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=5, do_sample=False)
    steps = sink.of(StepDone)
    assert [step.step for step in steps] == list(range(5))
    assert [step.phase for step in steps] == ["prefill"] + ["decode"] * 4
    assert [step.position.tolist() for step in steps[1:]] == [[3, 6], [4, 7], [5, 8], [6, 9]]
    assert sum(step.loads for step in steps) == len(sink.of(ExpertLoaded)) == model.segmoe.cache.counters.loads
    assert sum(step.evictions for step in steps) == len(sink.of(ExpertEvicted))
    assert sum(step.bytes_read for step in steps) == sum(event.bytes for event in sink.of(ExpertLoaded))
    for step in steps:
        picked = {
            (event.layer, expert)
            for event in sink.of(Routed)
            if event.step == step.step
            for expert in event.topk_ids.reshape(-1).tolist()
        }
        assert step.hits + step.misses == len(picked), "a pass touches an expert once, however many tokens pick it"


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("mask", [None, [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0], [1]])
def test_one_token_is_told_alone_as_it_is_beside_another(past: int, mask: list[int] | None) -> None:
    """Alone it is told in a shorter way; the first of two texts goes the longer one."""
    told = []
    for texts in (1, 2):
        call = {"input_ids": torch.ones(texts, 1, dtype=torch.long), "past_key_values": transformers.DynamicCache()}
        if past:
            call["past_key_values"].update(*torch.zeros(2, texts, 1, past, 8), layer_idx=0)
        if mask is not None:
            call["attention_mask"] = torch.tensor([mask] * texts)
        told.append(passes.read_tokens(call))
    alone, beside = told
    assert alone.phase == beside.phase == ("decode" if past else "prefill")
    assert alone.sequence.tolist() == beside.sequence[:1].tolist()
    assert alone.position.tolist() == beside.position[:1].tolist()
    assert (alone.sequence.dtype, alone.position.dtype) == (np.int32, np.int32)


def test_a_step_that_raises_does_not_confuse_the_next(observed) -> None:
    model, sink = observed
    with torch.no_grad():
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[5000]]))
        model(input_ids=IDS, attention_mask=MASK)
    (step,) = sink.of(StepDone)
    assert (step.tokens, len(sink.of(Routed))) == (9, 3)


def test_capture_off_tells_residency_and_steps_only(qwen3: Path) -> None:
    sink = RecordingSink()
    model = segmoe.load(qwen3, experts=4, sink=sink, capture="off")
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    assert not sink.of(Routed) and sink.of(ExpertLoaded)
    assert np.isnan(sink.of(StepDone)[0].nll).all()


def test_a_budget_in_bytes_is_kept(qwen3: Path) -> None:
    size = (2 * 21 * 33 + 33 * 21) * 4
    model = segmoe.load(qwen3, budget=5 * size + 17)
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    model.segmoe.cache.check_integrity()
    assert len(model.segmoe.cache) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 0}, "holds no expert"),
        ({"experts": -3}, "holds no expert"),
        ({"budget": "1kB"}, "holds no expert"),
        ({"budget": "lots"}, "is no size"),
        ({"experts": 1, "budget": "1GiB"}, "not both"),
        ({"policy": "psychic"}, "choose one of"),
        ({"capture": "everything"}, "choose one of"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(qwen3: Path, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        segmoe.load(qwen3, **settings)


def test_training_is_refused(qwen3: Path) -> None:
    with pytest.raises(Unsupported, match="no_grad"):
        segmoe.load(qwen3)(input_ids=IDS)


def test_saving_is_refused(qwen3: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="holds no experts to save"):
        segmoe.load(qwen3).save_pretrained(tmp_path)


def test_a_model_that_segmoe_did_not_load_is_told_where_to_go(qwen3: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(qwen3, experts_implementation="segmented")
    with pytest.raises(Unsupported, match=r"segmoe\.load"), torch.no_grad():
        model(input_ids=IDS)


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**tiny.COMMON)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match="has no experts"):
        segmoe.load(tmp_path)


def test_a_checkpoint_whose_other_weights_are_missing_does_not_run(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("Qwen3Moe"), tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(segmoe.CheckpointError, match=r"layers\.1\.self_attn\.q_proj"):
        segmoe.load(folder)


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
def test_slots_have_the_stock_tensors_addresses_modulo_a_cache_line(layout: str, tmp_path: Path) -> None:
    """MKL's fp32 kernels may give other bits for an operand at another address modulo 64."""
    folder = tiny.save(tiny.build("Qwen3Moe"), tmp_path, layout, shards=3)
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    model = segmoe.load(folder, experts=2)
    seen = set()
    for key in model.segmoe.manifest.experts:
        tensors = model.segmoe.cache.get(key)
        bank = stock.model.layers[key.layer].mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            wanted = getattr(bank, name)[key.expert]
            assert torch.equal(tensors[name], wanted)
            assert tensors[name].data_ptr() % 64 == wanted.data_ptr() % 64
            seen.add(wanted.data_ptr() % 64)
    assert len(seen) > 4, "all addresses are alike, so this test would prove nothing"


@pytest.mark.parametrize("experts", [2, 5, None])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_loader_threads_change_no_bit_and_no_load(qwen3: Path, experts: int | None, threads: int) -> None:
    def run(threads: int) -> tuple[torch.Tensor, list, list]:
        sink = RecordingSink()
        model = segmoe.load(qwen3, experts=experts, threads=threads, sink=sink, capture="off")
        with torch.no_grad():
            tokens = model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=6, do_sample=False)
            logits = model(input_ids=tokens).logits
        model.segmoe.close()
        return logits, [event.key for event in sink.of(ExpertLoaded)], [event.key for event in sink.of(ExpertEvicted)]

    logits, loads, evictions = run(threads)
    expected = run(0)
    assert torch.equal(logits, expected[0])
    assert (loads, evictions) == expected[1:]
    stock = transformers.AutoModelForCausalLM.from_pretrained(qwen3, experts_implementation="eager")
    with torch.no_grad():
        tokens = stock.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=6, do_sample=False)
        assert torch.equal(logits, stock(input_ids=tokens).logits)


def test_experts_that_stay_are_packed_and_no_bit_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MIN_BYTES", 0)
    monkeypatch.setattr(packing, "AFTER_USES", 2)
    sizes = {"hidden_size": 128, "moe_intermediate_size": 96, "head_dim": 32}
    folder = tiny.save(tiny.build("Qwen3Moe", torch.bfloat16, **sizes), tmp_path)
    model = segmoe.load(folder, experts=20)
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    with torch.no_grad():
        for _ in range(3):
            tokens = model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=8, do_sample=False)
            expected = stock.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=8, do_sample=False)
            assert torch.equal(tokens, expected)
            assert torch.equal(model(input_ids=tokens).logits, stock(input_ids=tokens).logits)
    kinds = {type(slot.tensors["down_proj"]) for slot in model.segmoe.cache._resident.values()}
    if packing.proves_equal(128, 96, 1, torch.bfloat16, torch.get_num_threads()):
        assert packing.PackedWeight in kinds
    model.segmoe.close()


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:9", "sees 0 CUDA devices"), ("mps", "cannot be kept on mps"), ("gpu", "there is no device 'gpu'")],
)
def test_a_device_that_cannot_hold_experts_is_refused(qwen3: Path, device: str, message: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        message = "was asked for"
    with pytest.raises(ConfigError, match=message):
        segmoe.load(qwen3, device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("threads", [0, 2])
def test_on_a_cuda_device_it_is_the_stock_model_there(qwen3: Path, threads: int) -> None:
    stock = transformers.AutoModelForCausalLM.from_pretrained(qwen3, experts_implementation="eager").to("cuda")
    model = segmoe.load(qwen3, experts=4, device="cuda", threads=threads)
    inputs = {"input_ids": IDS.cuda(), "attention_mask": MASK.cuda()}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, stock(**inputs).logits)
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert torch.equal(tokens, stock.generate(**inputs, max_new_tokens=8, do_sample=False))
