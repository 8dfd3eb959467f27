"""What a checkpoint holds and what it would take to run it, without running it. Finding the bytes is locating.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segmoe.building import read_config
from segmoe.checkpoint import open_checkpoint
from segmoe.locating import build_manifest
from segmoe.manifest import Manifest
from segmoe.units import format_bytes, parse_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """The experts of one component."""

    name: str
    layers: int  # with experts
    experts_found: int
    experts_expected: int
    expert_bytes: int  # of the largest
    token_cycle: int  # experts that one token touches


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What `segmoe inspect` tells."""

    path: str
    digest: str
    family: str
    components: tuple[Component, ...]
    non_expert_bytes: int  # always in memory
    missing_shards: tuple[str, ...]
    missing_experts: tuple[str, ...]
    missing_others: tuple[str, ...]  # weights of no expert
    budget_bytes: int | None

    @property
    def is_complete(self) -> bool:
        """Whether it would run."""
        return not (self.missing_shards or self.missing_experts or self.missing_others)

    @property
    def lines(self) -> list[str]:
        """The survey for people."""
        found = sum(component.experts_found for component in self.components)
        expected = sum(component.experts_expected for component in self.components)
        rows = [f"{self.path} ({self.family}, digest {self.digest[:12]})"]
        for one in self.components:
            rows.append(
                f"{one.name}: {one.layers} layers, {one.experts_found:,} of {one.experts_expected:,} experts, "
                f"{one.expert_bytes:,} bytes each ({format_bytes(one.expert_bytes * one.experts_expected)}), "
                f"one token touches {one.token_cycle:,} ({format_bytes(one.token_cycle * one.expert_bytes)})"
            )
        rows.append(f"other weights, always in memory: {format_bytes(self.non_expert_bytes)}")
        if self.budget_bytes is not None:
            rows.append(f"with a budget of {format_bytes(self.budget_bytes)}: {self._fit(self.budget_bytes)}")
        if self.is_complete:
            return [*rows, f"complete: {found:,} of {expected:,}"]
        rows += [f"missing shard: {shard}" for shard in self.missing_shards]
        rows += [f"missing expert: {expert}" for expert in self.missing_experts]
        rows += [f"missing weight: {name}" for name in self.missing_others]
        return [*rows, f"INCOMPLETE: {found:,} of {expected:,} experts; it does not run until all files are there"]

    def _fit(self, budget: int) -> str:
        largest = max(component.expert_bytes for component in self.components)
        cycle = sum(component.token_cycle * component.expert_bytes for component in self.components)
        whole = sum(component.experts_expected * component.expert_bytes for component in self.components)
        if budget >= whole:
            return f"all experts fit, {format_bytes(self.non_expert_bytes + whole)} in all"
        total = f"{format_bytes(self.non_expert_bytes + budget)} in all, at least {budget // largest:,} experts"
        slow = " (less than one token touches: exact, but every token reads from disk)" if budget < cycle else ""
        return total + slow

    def as_dict(self) -> dict[str, Any]:
        """The survey for machines."""
        return asdict(self) | {"complete": self.is_complete}


def survey(path: str | Path, budget: str | int | None = None) -> Survey:
    """Look at a checkpoint's headers; raise CheckpointError for what is truncated or inconsistent."""
    checkpoint = open_checkpoint(path)
    manifest = build_manifest(checkpoint, read_config(checkpoint.folder))
    return Survey(
        path=str(checkpoint.folder),
        digest=checkpoint.digest,
        family=manifest.family,
        components=tuple(_component(manifest, name) for name in manifest.token_cycle),
        non_expert_bytes=sum(at.nbytes for name, at in checkpoint.tensors.items() if ".experts." not in name),
        missing_shards=tuple(sorted(set(checkpoint.lost.values()))),
        missing_experts=tuple(str(expert) for expert in manifest.missing),
        missing_others=manifest.missing_others,
        budget_bytes=None if budget is None else parse_bytes(budget),
    )


def _component(manifest: Manifest, name: str) -> Component:
    modules = [module for module in manifest.modules if module.component == name]
    found = [segment.nbytes for key, segment in manifest.experts.items() if key.component == name]
    return Component(
        name=name,
        layers=len(modules),
        experts_found=len(found),
        experts_expected=sum(module.num_experts for module in modules),
        expert_bytes=max(found, default=0),
        token_cycle=manifest.token_cycle[name],
    )
