"""The model and the texts that ship with the package are what the README says of them."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import segmoe
from segmoe.checkpoint import open_checkpoint
from segmoe.embedded import CORPUS, MODEL, VALIDATION
from segmoe.embedded.table import BASELINE, baselines, held_out, model_nll
from segmoe.embedded.texts import CONTEXTS


def texts(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_it_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 10_000_000
    assert CORPUS.stat().st_size + VALIDATION.stat().st_size < 1_000_000


def test_one_border_cuts_a_layer_and_one_a_single_expert() -> None:
    checkpoint = open_checkpoint(MODEL)
    assert len({location.file for location in checkpoint.tensors.values()}) == 3
    files: dict[tuple[str, ...], set[str]] = {}
    for name, location in checkpoint.tensors.items():
        if ".experts." in name:
            _, _, layer, _, _, expert, *_ = name.split(".")
            files.setdefault((layer, expert), set()).add(location.file.name)
            files.setdefault((layer,), set()).add(location.file.name)
    assert [key for key, names in files.items() if len(key) == 2 and len(names) > 1]
    assert [key for key, names in files.items() if len(key) == 1 and len(names) > 1]
    assert len([key for key in files if len(key) == 2]) == 5 * 32


@pytest.mark.parametrize("file", [CORPUS, VALIDATION])
def test_the_corpora_have_four_contexts_in_like_measure(file: Path) -> None:
    found = texts(file)
    assert len({text["id"] for text in found}) == len(found)
    sizes: Counter[str] = Counter()
    for text in found:
        sizes[text["context"]] += len(text["text"])
    assert set(sizes) == set(CONTEXTS)
    assert min(sizes.values()) > 0.8 * max(sizes.values())


def test_no_document_is_in_both_corpora() -> None:
    documents = [{text["id"].split("#")[0] for text in texts(file)} for file in (CORPUS, VALIDATION)]
    assert not documents[0] & documents[1]


def test_held_out_nll_is_at_least_half_a_nat_below_bigram_in_every_context() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
    bigram = {context: figures["bigram"] for context, figures in json.loads(BASELINE.read_text()).items()}
    for context, ids in held_out(tokenizer).items():
        assert model_nll(model, ids[::4]) < bigram[context] - 0.5, context


def test_a_bigram_is_what_counting_by_hand_gives() -> None:
    """Stream 0 1 0 1 0 2: after 0 comes 1 in two of three; the unigram is add-one smoothed."""
    import numpy as np

    plain, best = baselines(np.array([0, 1, 0, 1, 0, 2]), [[0, 1]], 3)
    assert plain == pytest.approx(-np.log(3 / 9))
    assert best == pytest.approx(-np.log(0.95 * 2 / 3 + 0.05 * 3 / 9))


def test_the_segmented_embedded_model_is_the_stock_one() -> None:
    verdict = segmoe.verify(MODEL, experts=7, new_tokens=4)
    assert verdict.equal, "\n".join(verdict.lines)


def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 steps at once and 2 + 2 steps end at the same weights, and the loss has moved."""
    import numpy as np
    from click.testing import CliRunner

    from segmoe.embedded import train

    random = np.random.default_rng(0)
    streams = {context: random.integers(1, 4096, 2000).astype(np.uint16) for context in CONTEXTS}
    monkeypatch.setattr(train, "prepare", lambda out: streams)
    monkeypatch.setattr(train, "BATCH", 4)
    monkeypatch.setattr(train, "LENGTH", 16)

    def states(*calls: tuple[str, ...]) -> dict[str, torch.Tensor]:
        out = tmp_path / str(len(calls))
        for call in calls:
            result = CliRunner().invoke(train.main, ["--out", str(out), "--steps", "4", "--device", "cpu", *call])
            assert result.exit_code in (0, 3), result.output
        state = torch.load(out / "state.pt", weights_only=True)
        assert state["step"] == 4
        return state["model"]

    whole = states(("--save-every", "4"))
    save = train._save

    def save_and_die(out: Path, state: dict) -> None:
        save(out, state)
        if state["step"] == 2:
            raise SystemExit(3)

    monkeypatch.setattr(train, "_save", save_and_die)
    parts = states(("--save-every", "2"), ("--save-every", "2"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
