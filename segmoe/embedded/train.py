"""Train the embedded model: seeded, counted in steps, resumable. Which text is texts.py, the shards are export.py.

    python -m segmoe.embedded.train --out DIR [--steps 6000]

Run the same command again to go on after an interruption: DIR/state.pt holds weights, optimizer and step, and each
step draws its batch from its own seed, so an interrupted training sees the same batches as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from segmoe.embedded.texts import CONTEXTS, documents

SEED = 1909
VOCABULARY = 4096
END = "<|endoftext|>"
BATCH, LENGTH = 16, 256
PEAK_RATE, WARM_UP_STEPS, FINAL_FRACTION = 3e-3, 100, 0.05
WEIGHT_DECAY = 0.1
BALANCE_COEFFICIENT, Z_COEFFICIENT = 0.01, 1e-4


def config() -> Qwen3MoeConfig:
    """The architecture: 5 layers of 32 experts, 4 chosen, 3.7 M parameters."""
    return Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=48,
        intermediate_size=384,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.02,
    )


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training text, every context in equal measure."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END, padding_side="left"
    )


def prepare(out: Path) -> dict[str, np.ndarray]:
    """Train the tokenizer once and return the training tokens of each context, documents parted by END."""
    cached = out / "tokens.npz"
    if not cached.exists():
        texts: dict[str, list[str]] = {context: [] for context in CONTEXTS}
        for document in documents():
            if not document.held_out:
                texts[document.context].append(document.text)
        shortest = min(sum(map(len, t)) for t in texts.values())
        equal = [piece for t in texts.values() for piece in _first_characters(t, shortest)]
        tokenizer = train_tokenizer(equal)
        tokenizer.save_pretrained(out)
        streams = {}
        for context, pieces in texts.items():
            encoded = tokenizer([END + piece for piece in pieces])["input_ids"]
            streams[context] = np.concatenate([np.asarray(ids, np.uint16) for ids in encoded])
        np.savez(cached, **cast(Any, streams))
    with np.load(cached) as saved:
        return {context: saved[context] for context in CONTEXTS}


def _first_characters(texts: list[str], count: int) -> list[str]:
    taken, total = [], 0
    for text in texts:
        if total >= count:
            break
        taken.append(text)
        total += len(text)
    return taken


def batch(streams: dict[str, np.ndarray], step: int) -> torch.Tensor:
    """Token ids [BATCH, LENGTH + 1] of a step: random windows, each context in equal parts."""
    random = np.random.default_rng([SEED, step])
    rows = []
    for row in range(BATCH):
        stream = streams[CONTEXTS[row % len(CONTEXTS)]]
        start = random.integers(0, len(stream) - LENGTH - 1)
        rows.append(stream[start : start + LENGTH + 1].astype(np.int64))
    return torch.from_numpy(np.stack(rows))


class _SortedExperts(torch.autograd.Function):
    """Every pick's unweighted expert output [tokens, k, hidden]: rows sorted by expert, then products in slices.

    The backward is by hand because the library's implementations scatter their gradients on a CPU one row at a time:
    forward and backward of a step took about 0.75 s with stock eager and 0.66 s with grouped_mm on two cores; with this
    a whole step, optimizer and all, takes 0.53 s. All three give the same gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, index: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
    ) -> torch.Tensor:
        picks = index.reshape(-1)
        order = torch.argsort(picks, stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        slices = _slices(torch.bincount(picks, minlength=len(gate_up)).tolist())
        rows = tokens.index_select(0, order // index.shape[-1])
        hidden = rows.new_empty(len(rows), gate_up.shape[1])
        for expert, part in slices:
            torch.mm(rows[part], gate_up[expert].t(), out=hidden[part])
        gate, up = hidden.chunk(2, dim=-1)
        inner = F.silu(gate) * up
        output = torch.empty_like(rows)
        for expert, part in slices:
            torch.mm(inner[part], down[expert].t(), out=output[part])
        ctx.save_for_backward(rows, gate_up, down, hidden, inner, order, inverse)
        ctx.slices = slices
        return output.index_select(0, inverse).view(*index.shape, -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        rows, gate_up, down, hidden, inner, order, inverse = ctx.saved_tensors
        tokens, top_k, _ = grad.shape
        grad = grad.reshape(len(order), -1).index_select(0, order)
        grad_inner = torch.empty_like(inner)
        grad_gate_up, grad_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        for expert, part in ctx.slices:
            torch.mm(grad[part], down[expert], out=grad_inner[part])
            torch.mm(grad[part].t(), inner[part], out=grad_down[expert])
        gate, up = hidden.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        grad_hidden = torch.cat([grad_inner * up * (sigmoid + silu * (1 - sigmoid)), grad_inner * silu], dim=-1)
        grad_rows = torch.empty_like(rows)
        for expert, part in ctx.slices:
            torch.mm(grad_hidden[part], gate_up[expert], out=grad_rows[part])
            torch.mm(grad_hidden[part].t(), rows[part], out=grad_gate_up[expert])
        return grad_rows.index_select(0, inverse).view(tokens, top_k, -1).sum(1), None, grad_gate_up, grad_down


def _slices(counts: list[int]) -> list[tuple[int, slice]]:
    ends = np.cumsum(counts).tolist()
    return [(expert, slice(end - n, end)) for expert, (n, end) in enumerate(zip(counts, ends, strict=True)) if n]


def _sorted_experts(module: Any, tokens: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    apply: Any = _SortedExperts.apply
    outputs: torch.Tensor = apply(tokens, index, module.gate_up_proj, module.down_proj)
    return (outputs * weights.unsqueeze(-1)).sum(1)


def router_losses(router_logits: tuple[torch.Tensor, ...], top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over layers of the Switch balance loss (each layer on its own) and of the router z-loss."""
    balance, z = [], []
    for logits in router_logits:
        logits = logits.float()
        chosen = torch.topk(logits, top_k, dim=-1).indices
        experts = logits.shape[-1]
        load = torch.bincount(chosen.reshape(-1), minlength=experts) / chosen.numel()
        balance.append(experts * (load * torch.softmax(logits, -1).mean(0)).sum())
        z.append(torch.logsumexp(logits, -1).square().mean())
    return torch.stack(balance).mean(), torch.stack(z).mean()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to FINAL_FRACTION of the peak."""
    if step < WARM_UP_STEPS:
        return PEAK_RATE * (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return PEAK_RATE * (FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + math.cos(math.pi * progress)))


def _save(out: Path, state: dict[str, Any]) -> None:
    temporary = out / "state.tmp"
    torch.save(state, temporary)
    temporary.replace(out / "state.pt")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where state.pt and the tokenizer go.")
@click.option("--steps", default=6000, show_default=True, help="Length of the schedule, in steps of 4,096 tokens.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--save-every", default=250, show_default=True, help="Steps between checkpoints.")
def main(out: Path, steps: int, device: str, save_every: int) -> None:
    """Train the embedded model, or go on where an earlier call stopped."""
    out.mkdir(parents=True, exist_ok=True)
    streams = prepare(out)
    torch.manual_seed(SEED)
    ALL_EXPERTS_FUNCTIONS.register("sorted_for_training", _sorted_experts)
    model = Qwen3MoeForCausalLM._from_config(config(), experts_implementation="sorted_for_training").to(device)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    first = 0
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", map_location=device, weights_only=True)
        if state["steps"] != steps:
            raise click.ClickException(f"{out} holds a schedule of {state['steps']} steps, not {steps}; use that")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    began = time.monotonic()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        tokens = batch(streams, step).to(device)
        answer = model(tokens[:, :-1], output_router_logits=True, use_cache=False)
        nll = F.cross_entropy(answer.logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
        balance, z = router_losses(answer.router_logits, model.config.num_experts_per_tok)
        loss = nll + BALANCE_COEFFICIENT * balance + Z_COEFFICIENT * z
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 50 == 0 or done == steps:
            rate = (done - first) / (time.monotonic() - began)
            line = {
                "step": done,
                "nll": round(nll.item(), 4),
                "balance": round(balance.item(), 4),
                "steps_per_s": round(rate, 3),
                "eta_minutes": round((steps - done) / rate / 60, 1),
            }
            click.echo(json.dumps(line))
        if done % save_every == 0 or done == steps:
            _save(
                out,
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "steps": steps},
            )


if __name__ == "__main__":
    main()
