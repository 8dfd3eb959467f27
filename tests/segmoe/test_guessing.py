"""What the next layer will ask for: against the stock model's own routers, and with probabilities known beforehand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import segmoe
from segmoe.embedded import CORPUS, MODEL
from segmoe.guessing import LATELY, NEAR_LAYERS, ROWS, Router, find_routers
from segmoe.modules import experts_modules
from tests import tiny
from tests.families.configs import Family
from tests.families.sweep import build
from tests.segmoe.test_matrix import TEXT


def router(right: list[float]) -> Router:
    """Its experts are the axes of the state: a token guesses those that it has most of."""
    found = Router(torch.eye(6), len(right))
    found.right = np.array(right)
    return found


ONE = torch.tensor([[0.0, 5.0, 0.0, 4.0, 3.0, 0.0]])  # guesses 1, 3, 4


def test_a_single_token_has_guessed_as_far_as_its_ranks_are_right() -> None:
    assert router([0.9, 0.7, 0.6]).guess(ONE) == [1, 3]
    assert router([0.7, 0.9, 0.8]).guess(ONE) == [3, 4, 1], "the most probable first"
    assert router([0.4, 0.4, 0.4]).guess(ONE) == []
    assert router([0.0, 0.0, 0.0]).guess(ONE) == []


def test_many_tokens_make_sure_what_one_does_not() -> None:
    other = torch.tensor([[4.0, 0.0, 0.0, 0.0, 3.0, 5.0]])  # guesses 5, 0, 4
    both = torch.cat([ONE, other])
    assert router([0.45] * 3).guess(both) == [4], "1 - 0.55 x 0.55 = 0.70"
    assert router([0.45] * 3).guess(both.repeat(2, 1)) == [4, 0, 1, 3, 5]
    assert router([0.45] * 3).guess(both.repeat(20, 1)) == [0, 1, 3, 4, 5], "as the layer will ask"


def test_it_learns_how_often_each_rank_was_right() -> None:
    found = router([0.0, 0.0, 0.0])
    found.guess(ONE)
    found.learn(torch.tensor([[4, 1, 0]]))  # 3 was wrong
    assert found.right.tolist() == pytest.approx([LATELY, 0, LATELY])
    found.learn(torch.tensor([[2, 2, 2]]))
    assert found.right.tolist() == pytest.approx([LATELY, 0, LATELY]), "nothing had been guessed"
    for _ in range(300):
        found.guess(ONE)
        found.learn(torch.tensor([[4, 1, 0]]))
    assert found.right.tolist() == pytest.approx([1, 0, 1], abs=1e-6)
    assert found.guess(ONE) == [1, 4], "as the layer will ask"


def test_many_rows_are_as_much_evidence_as_single_ones_and_a_part_of_them_is_asked() -> None:
    found = router([0.0, 0.0, 0.0])
    rows = ONE.repeat(3 * ROWS, 1)
    found.guess(rows)
    found.learn(torch.tensor([[1, 3, 2]]).repeat(3 * ROWS, 1))
    assert found.right.tolist() == pytest.approx([1, 1, 0], abs=1e-6)


@pytest.mark.parametrize("name", TEXT)
def test_the_router_of_every_layer_is_found(name: str) -> None:
    cls = getattr(transformers, name)
    model = build(Family(cls.config_class.model_type, cls))
    places = experts_modules(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for place, found in zip(places, find_routers(model, places), strict=True):
        assert re.fullmatch(rf"{re.escape(place.block)}\.mlp\.(gate|router)\.weight", names[id(found)])


def test_where_two_matrices_could_be_the_router_there_is_none() -> None:
    model = tiny.build("Qwen3Moe")
    places = experts_modules(model)
    model.model.layers[1].mlp.other = torch.nn.Linear(5, places[1].num_experts)
    first, second, third = find_routers(model, places)
    assert first is not None and second is None and third is not None


def test_states_of_another_width_or_dtype_are_no_trouble() -> None:
    found = router([0.9, 0.9, 0.9])
    assert found.guess(ONE[:, :5]) == []
    assert found.guess(ONE.bfloat16()) == [1, 3, 4]


def test_on_a_trained_model_guesses_are_right_more_often_than_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token's picks come from the stock model, which knows of no guess."""
    monkeypatch.setattr("segmoe.cache.WAITING_NS", 0)
    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()[::60]]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    stock = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    model = segmoe.load(MODEL, experts=40, threads=1)
    places = model.segmoe.manifest.modules
    far: dict[int, list[list[int]]] = {place.layer: [] for place in places}  # said at the experts of the layer before
    near: dict[int, list[list[int]]] = {place.layer: [] for place in places}  # and before attention
    for place in places:
        seam = model.get_submodule(place.path)._segmoe
        noted(seam.far, far[place.layer])
        if place.layer < NEAR_LAYERS:
            noted(seam.near, near[place.layer])
        else:
            assert seam.near is None
    picked: dict[int, list[list[int]]] = {place.layer: [] for place in places}
    for text in texts:
        ids, past = tokenizer(text, return_tensors="pt").input_ids[:, :64], None
        with torch.inference_mode():
            for layer, logits in enumerate(stock(input_ids=ids, output_router_logits=True).router_logits):
                picked[layer] += logits.topk(places[layer].top_k).indices.tolist()
            for token in ids[0]:
                past = model(input_ids=token.view(1, 1), past_key_values=past, use_cache=True).past_key_values
    assert not far[0] and near[0] and near[1] and not near[2], "no experts come before the first layer"
    for layer, picks in picked.items():
        for said in filter(None, (far[layer], near[layer])):
            pairs = list(zip(said, picks, strict=True))[64:]
            guesses = sum(len(guess) for guess, _ in pairs)
            right = sum(len(set(guess) & set(pick)) for guess, pick in pairs)
            if layer == 1 and said is far[layer]:
                assert guesses < len(pairs) / 10, "its router is wrong about embeddings, and that is found out"
            else:
                assert right >= 0.6 * guesses and guesses > 1.5 * len(pairs), "of four that a token picks"
    spent = model.segmoe.cache.counters
    assert spent.prefetched > spent.wasted > 0
    model.segmoe.close()


def noted(router: Router, said: list[list[int]]) -> None:
    """Have the router write down what it says."""
    guess = router.guess

    def told(hidden: torch.Tensor) -> list[int]:
        said.append(guess(hidden))
        return said[-1]

    router.guess = told  # type: ignore[method-assign]
