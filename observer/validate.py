"""Does trust predict? Rank correlation of what a run recorded with what removing each expert costs on other text.

Ablation: an expert's routing weight is set to zero, without re-routing, and the difference in next-token NLL is taken
on texts that the run has not scored. This runs the stock model; nothing of segmoe or of the observer is in its way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata
from sqlalchemy import Engine
from transformers import AutoModelForCausalLM, AutoTokenizer

from observer.corpus import Text
from observer.db.session import reading
from observer.errors import ObserverError
from observer.observation import ALL
from segmoe.building import quiet_transformers
from segmoe.events import ExpertKey

Array = NDArray[np.float64]

STATISTICS = {
    "trust": "trust",
    "convergence": "convergence",
    "impact per token (I)": "impact_mean",
    "REAP": "reap",
    "EAN": "ean",
    "mean routing weight": "weight_mean",
    "activation frequency": "load",
}
"""Name shown, and the column of v_expert_trust."""


class Ablation(NamedTuple):
    """What removing each expert costs on each text."""

    keys: list[ExpertKey]
    contexts: list[str]  # of each text
    cost: Array  # [experts, texts] sum over the text's tokens of NLL without the expert minus NLL with it, nats
    predicted: Array  # [texts] predicted tokens


class Correlation(NamedTuple):
    """Spearman's rho of a statistic with the cost of removal, and its bootstrap interval."""

    value: float
    low: float  # 5th percentile
    high: float  # 95th percentile


def ablate(
    checkpoint: Path,
    texts: Sequence[Text],
    *,
    max_tokens: int = 256,
    batch: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ablation:
    """Remove each expert in turn from the stock model, in fp32; tell `progress` after each of them."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, experts_implementation="eager"
        ).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    banks = [
        (path.split(".")[0], int(path.split("layers.")[1].split(".")[0]), module)
        for path, module in model.named_modules()
        if hasattr(module, "_is_expert_parallel")
    ]
    ids = [tokenizer(text.text)["input_ids"][:max_tokens] for text in texts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    batches = [_pad(ids, order[start : start + batch]) for start in range(0, len(order), batch)]
    intact = _nll(model, batches, len(ids))
    keys, costs = [], []
    total = sum(module.num_experts for _, _, module in banks)
    for component, layer, module in banks:
        for expert in range(module.num_experts):
            handle = module.register_forward_pre_hook(_without(expert))
            costs.append(_nll(model, batches, len(ids)) - intact)
            handle.remove()
            keys.append(ExpertKey(component, layer, expert))
            progress(len(keys), total)
    predicted = np.array([max(len(text) - 1, 0) for text in ids], np.float64)
    return Ablation(keys, [text.context for text in texts], np.stack(costs), predicted)


def _without(expert: int) -> Callable[..., Any]:
    def hook(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, ids, weights = arguments
        return hidden, ids, weights.masked_fill(ids == expert, 0.0)

    return hook


class _Batch(NamedTuple):
    texts: list[int]
    ids: torch.Tensor
    mask: torch.Tensor


def _pad(ids: list[list[int]], chosen: list[int]) -> _Batch:
    longest = max(len(ids[index]) for index in chosen)
    padded = torch.zeros(len(chosen), longest, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, index in enumerate(chosen):
        padded[row, : len(ids[index])] = torch.tensor(ids[index])
        mask[row, : len(ids[index])] = 1
    return _Batch(chosen, padded, mask)


def _nll(model: Any, batches: list[_Batch], texts: int) -> Array:
    """Sum of next-token NLL of each text."""
    found = np.zeros(texts)
    for batch in batches:
        with torch.inference_mode():
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
        found[batch.texts] = (nll * batch.mask[:, 1:]).sum(1).double().numpy()
    return found


def read_statistics(engine: Engine, run: str, keys: list[ExpertKey]) -> dict[str, dict[str, Array]]:
    """What the run recorded: context -> statistic -> [experts] in the order of `keys`."""
    columns = ", ".join(STATISTICS.values())
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            f"SELECT context, component, layer, expert, {columns} FROM v_expert_trust "
            "WHERE run_id = (SELECT run_id FROM v_run WHERE name = ?)",
            (run,),
        ).fetchall()
    by_context: dict[str, dict[ExpertKey, tuple[float, ...]]] = {}
    for context, component, layer, expert, *values in rows:
        by_context.setdefault(context, {})[ExpertKey(component, layer, expert)] = tuple(values)
    if not rows or set(by_context[ALL]) != set(keys):
        raise ObserverError(f"run {run!r} holds other experts than the model; validate it with the model it observed")
    return {
        context: dict(zip(STATISTICS, np.array([values[key] for key in keys]).T, strict=True))
        for context, values in by_context.items()
    }


def correlate(
    ablation: Ablation, statistics: dict[str, dict[str, Array]], *, samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Correlation]]:
    """Statistic -> scope -> rho; scopes are `global`, `within layer` (mean over layers) and `per context` (mean).

    The bootstrap draws experts (within their layer) and texts (within their context) anew in each sample: an interval
    speaks of other experts and other texts of the same kind.
    """
    random = np.random.default_rng(seed)
    layers = np.array([f"{key.component}/{key.layer}" for key in ablation.keys])
    by_layer = [np.flatnonzero(layers == layer) for layer in dict.fromkeys(layers)]
    labels = np.array(ablation.contexts)
    known = [context for context in dict.fromkeys(ablation.contexts) if context in statistics]
    by_context = [np.flatnonzero(labels == context) for context in known]

    def all_rhos(layers: list[NDArray[np.intp]], texts: list[NDArray[np.intp]]) -> Array:
        """[statistic, scope]"""
        experts = np.concatenate(layers)
        cost = [ablation.cost[:, part].sum(1) / ablation.predicted[part].sum() for part in texts]
        whole = np.concatenate(texts)
        overall = ablation.cost[:, whole].sum(1) / ablation.predicted[whole].sum()
        return np.array(
            [
                [
                    spearman(statistics[ALL][name][experts], overall[experts]),
                    np.mean([spearman(statistics[ALL][name][part], overall[part]) for part in layers]),
                    np.mean(
                        [
                            spearman(statistics[context][name][experts], costs[experts])
                            for context, costs in zip(known, cost, strict=True)
                        ]
                    ),
                ]
                for name in STATISTICS
            ]
        )

    value = all_rhos(by_layer, by_context)
    drawn = np.stack(
        [
            all_rhos(
                [random.choice(part, len(part)) for part in by_layer],
                [random.choice(part, len(part)) for part in by_context],
            )
            for _ in range(samples)
        ]
    )
    low, high = np.percentile(drawn, (5, 95), axis=0)
    scopes = ("global", "within layer", "per context")
    return {
        name: {
            scope: Correlation(float(value[i, j]), float(low[i, j]), float(high[i, j]))
            for j, scope in enumerate(scopes)
        }
        for i, name in enumerate(STATISTICS)
    }


def print_correlations(found: dict[str, dict[str, Correlation]], ablation: Ablation, run: str) -> None:
    """Print a line for each statistic, the one that foretells best first."""
    scopes = list(next(iter(found.values())))
    table = Table("Spearman with the cost of removal", *scopes)
    for name, by_scope in sorted(found.items(), key=lambda item: -item[1][scopes[-1]].value):
        table.add_row(name, *(f"{rho.value:.3f}  [{rho.low:.3f}, {rho.high:.3f}]" for rho in by_scope.values()))
    console = Console()
    console.width = max(console.width, 100)
    console.print(table, highlight=False, markup=False)
    console.print(
        f"Run {run}: {len(ablation.keys):,} experts, each removed on {len(ablation.contexts):,} texts "
        f"({int(ablation.predicted.sum()):,} predicted tokens) that the run has not scored; 90% bootstrap intervals",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def spearman(x: Array, y: Array) -> float:
    """Rank correlation; ties take their mean rank.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    ranks_x, ranks_y = rankdata(x), rankdata(y)
    if np.ptp(ranks_x) == 0 or np.ptp(ranks_y) == 0:
        return 0.0
    return round(float(np.corrcoef(ranks_x, ranks_y)[0, 1]), 12)
