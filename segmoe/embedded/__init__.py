"""The small trained MoE that ships with segmoe, and text that it has not seen.

`MODEL` is a Qwen3MoeForCausalLM of 5 layers x 32 experts (top-4) in the hub's layout; `CORPUS` is what jobs score,
`VALIDATION` is kept apart from it, to test what was learned on `CORPUS`. Both are JSONL (`id`, `context`, `text`).
"""

from pathlib import Path

__all__ = ["CORPUS", "MODEL", "VALIDATION"]

_HERE = Path(__file__).resolve().parent
MODEL = _HERE / "model"
CORPUS = _HERE / "corpus.jsonl"
VALIDATION = _HERE / "validation.jsonl"
