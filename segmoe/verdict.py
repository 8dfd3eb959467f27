"""What a comparison with stock found, for people and for machines. Comparing is parity.py and layerwise.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


def same_bits(wanted: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same bytes: zero and minus zero differ, equal NaNs do not."""
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    return torch.equal(wanted.contiguous().view(torch.uint8), found.contiguous().view(torch.uint8))


class Check(NamedTuple):
    """One comparison."""

    what: str
    equal: bool
    detail: str

    def __str__(self) -> str:
        return f"{'equal  ' if self.equal else 'DIFFERS'}  {self.what}: {self.detail}"


class StockDefault(NamedTuple):
    """How far stock is from itself: its default experts implementation against its eager one. No part of a verdict."""

    implementation: str
    logit_difference: float | None  # the largest, in the padded batch
    tokens_differ: bool | None  # in greedy generation
    failure: str | None = None  # why it could not run

    def __str__(self) -> str:
        if self.failure is not None:
            return f"stock's own default ({self.implementation}) does not run this model here: {self.failure}"
        tokens = "differ" if self.tokens_differ else "are the same"
        return (
            f"stock's own default ({self.implementation}) is up to {self.logit_difference:.3g} from stock eager in a "
            f"logit, and its greedy tokens {tokens}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The comparisons and what they were made on."""

    checkpoint_digest: str
    output_digest: str  # sha256 over the reference's logits
    checks: tuple[Check, ...]
    stock_default: StockDefault | None = None  # None where the class has no other implementation

    @property
    def equal(self) -> bool:
        """Whether all comparisons found no differing bit."""
        return all(check.equal for check in self.checks)

    @property
    def lines(self) -> list[str]:
        """A line for each comparison, then the verdict."""
        rows = [str(check) for check in self.checks]
        if self.stock_default is not None:
            rows.append(f"note     {self.stock_default}")
        verdict = "equal to stock transformers (eager experts), bit for bit" if self.equal else "NOT the stock model"
        ids = f"checkpoint {self.checkpoint_digest[:12]}, outputs {self.output_digest[:12]}"
        return [*rows, f"{verdict} ({ids})"]

    def as_dict(self) -> dict[str, Any]:
        """The verdict for machines."""
        return {
            "equal": self.equal,
            "reference": "stock transformers, eager experts",
            "checkpoint_digest": self.checkpoint_digest,
            "output_digest": self.output_digest,
            "checks": [check._asdict() for check in self.checks],
            "stock_default": None if self.stock_default is None else self.stock_default._asdict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersVerdict:
    """A comparison for each layer, and how many experts were found equal in all of them."""

    checkpoint_digest: str
    checks: tuple[Check, ...]
    experts_equal: int
    experts: int

    @property
    def equal(self) -> bool:
        """Whether no comparison found a differing bit."""
        return all(check.equal for check in self.checks)

    @property
    def lines(self) -> list[str]:
        """A line for each layer, then the verdict."""
        verdict = "equal to stock transformers (eager experts), bit for bit" if self.equal else "NOT the stock experts"
        return [
            *(str(check) for check in self.checks),
            f"{self.experts_equal:,} of {self.experts:,} experts in {len(self.checks):,} layers certified by bytes and "
            f"outputs: {verdict} (checkpoint {self.checkpoint_digest[:12]})",
        ]

    def as_dict(self) -> dict[str, Any]:
        """The verdict for machines."""
        return {
            "equal": self.equal,
            "reference": "stock transformers, eager experts, layer by layer",
            "checkpoint_digest": self.checkpoint_digest,
            "experts": self.experts,
            "experts_equal": self.experts_equal,
            "layers": len(self.checks),
            "checks": [check._asdict() for check in self.checks],
        }
