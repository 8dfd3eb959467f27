"""How well the embedded model predicts text it has not seen, beside unigram and bigram on the same tokens.

    python -m segmoe.embedded.table [--train DIR] [--samples]

The n-gram models are estimated on the training text; with --train they are made anew and stored in the package as
`baseline.json`, since the training text does not ship. The bigram is interpolated with the unigram (Jelinek-Mercer,
one weight per context, chosen on the held-out text itself, which favours the bigram).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from segmoe.building import quiet_transformers
from segmoe.embedded import CORPUS, MODEL, VALIDATION
from segmoe.embedded.texts import CONTEXTS

BASELINE = Path(__file__).with_name("baseline.json")
OPENINGS = {
    "english": "She had always wanted to",
    "spanish": "Y dijo Jehová á Moisés:",
    "maths": "syl6.1 $e |- ( ph ->",
    "python": "def __init__(self,",
}


def held_out(tokenizer: Any) -> dict[str, list[list[int]]]:
    """Token ids of all held-out texts by context."""
    found: dict[str, list[list[int]]] = {context: [] for context in CONTEXTS}
    for file in (CORPUS, VALIDATION):
        for line in file.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            found[item["context"]].append(tokenizer(item["text"])["input_ids"])
    return found


def model_nll(model: Any, texts: list[list[int]], batch: int = 8) -> float:
    """Mean NLL in nats of each text's tokens but the first."""
    total, count = 0.0, 0
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        ids = torch.zeros(len(part), len(part[-1]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(part):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
        nll = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        total += float((nll * mask[:, 1:]).sum())
        count += int(mask[:, 1:].sum())
    return total / count


def unigram(stream: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Add-one estimate of each token's probability."""
    counts = np.bincount(stream, minlength=size) + 1.0
    return np.asarray(counts / counts.sum())


def baselines(stream: NDArray[np.int64], texts: list[list[int]], size: int) -> tuple[float, float]:
    """Mean NLL in nats of unigram and of the best interpolated bigram, over each text's tokens but the first."""
    probability = unigram(stream, size)
    pairs: dict[tuple[int, int], int] = defaultdict(int)
    for pair in zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True):
        pairs[pair] += 1
    firsts = np.bincount(stream[:-1], minlength=size)
    before = np.concatenate([text[:-1] for text in texts])
    after = np.concatenate([text[1:] for text in texts])
    plain = probability[after]
    seen = np.array([pairs.get((int(a), int(b)), 0) for a, b in zip(before, after, strict=True)])
    conditional = seen / np.maximum(firsts[before], 1)
    best = min(-np.log(w * conditional + (1 - w) * plain).mean() for w in np.arange(0.05, 1.0, 0.05))
    return float(-np.log(plain).mean()), float(best)


@click.command()
@click.option("--train", type=click.Path(path_type=Path, exists=True), help="What train.py wrote: redo the baselines.")
@click.option("--samples", is_flag=True, help="Let the model continue an opening of each context.")
def main(train: Path | None, samples: bool) -> None:
    """Print held-out NLL by context for unigram, bigram and the embedded model."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
    texts = held_out(tokenizer)
    if train is not None:
        with np.load(train / "tokens.npz") as streams:
            found = {c: baselines(streams[c].astype(np.int64), texts[c], len(tokenizer)) for c in CONTEXTS}
        BASELINE.write_text(
            json.dumps({c: {"unigram": u, "bigram": b} for c, (u, b) in found.items()}, indent=1) + "\n"
        )
    baseline = json.loads(BASELINE.read_text())
    table = Table("context", "tokens", "unigram", "bigram", "model", "below bigram", "perplexity")
    for context in CONTEXTS:
        nll = model_nll(model, texts[context])
        known = baseline[context]
        tokens = sum(map(len, texts[context]))
        figures = (known["unigram"], known["bigram"], nll, known["bigram"] - nll)
        table.add_row(context, f"{tokens:,}", *(f"{figure:.3f}" for figure in figures), f"{math.exp(nll):.1f}")
    Console().print(table, "held-out NLL in nats per token")
    for context, opening in OPENINGS.items() if samples else ():
        torch.manual_seed(4)
        ids = tokenizer(opening, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=60, do_sample=True, temperature=0.7, top_k=40)
        Console().print(f"\n[b]{context}[/b]", end="  ")
        Console().print(tokenizer.decode(out[0], skip_special_tokens=True), markup=False, highlight=False)


if __name__ == "__main__":
    main()
