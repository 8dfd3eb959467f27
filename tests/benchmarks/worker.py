"""One contender in a process of its own: opens a checkpoint in one way and runs passes of it when it is told to.

Commands are JSON objects, one a line, on standard input; so are the answers, on standard output. The commands are
those of `Contender` in contender.py. Nothing heavy is imported before `open`, so that its memory is all under the cap.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from tests.benchmarks.memory import drop_cached, resident


def open_model(path: str, *, kind: str, offload: str = "", memory: int | None = None, **settings: Any) -> Any:
    """Load by stock transformers ("stock"), with accelerate's offload to disk ("accelerate"), or by segmoe.

    Of accelerate: with `memory`, the library places what that many bytes hold; without, experts alone are on disk. Of
    segmoe: with `plain`, no weights beside the experts are packed.
    """
    if kind == "segmoe":
        import segmoe
        from segmoe.events import NullSink

        plain = mock.patch("segmoe.runtime.take_over") if settings.pop("plain", False) else contextlib.nullcontext()
        with plain:
            return segmoe.load(path, sink=NullSink(), capture="off", **settings)
    from transformers import AutoModelForCausalLM

    placed: dict[str, Any] = {}
    if kind == "accelerate":
        placed = {"device_map": _experts_on_disk(path), "offload_folder": offload}
        if memory is not None:
            placed |= {"device_map": "auto", "max_memory": {"cpu": memory}}
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True, **placed, **settings).eval()


def _experts_on_disk(path: str) -> dict[str, str]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    experts = [name for name, module in twin.named_modules() if name.endswith(".experts")]
    leaves = [name for name, module in twin.named_modules() if name and not list(module.children())]
    return dict.fromkeys(leaves, "cpu") | dict.fromkeys(experts, "disk")


class Worker:
    """The model and how to run it."""

    def open(self, path: str, **settings: Any) -> dict[str, Any]:
        """Load; answer the time it took and the memory before it, imports left out and in."""
        import accelerate  # noqa: F401
        import torch
        from transformers import Qwen3MoeForCausalLM  # noqa: F401 - what wide.py writes

        import segmoe.runtime  # noqa: F401

        self.torch = torch
        self.files = sorted(Path(path).glob("*.safetensors"))
        before = sum(resident(Path("/proc/self/status")))
        began = time.perf_counter()
        self.model = open_model(path, **settings)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "threads": torch.get_num_threads(), "before": before}

    def implement(self, name: str) -> dict[str, Any]:
        """Have a stock model compute its experts in another of the library's ways."""
        self.model.set_experts_implementation(name)
        return {}

    def run(self, passes: int, tokens: int, seed: int, cold: bool = False, guess_every: int = 1) -> dict[str, Any]:
        """So many passes of so many given random ids, with a KV cache; answer seconds and missed experts of each.

        With `cold`, the kernel forgets the checkpoint's pages before each pass, outside of the time. With `guess_every`
        above 1, segmoe guesses the next layer's experts in one of so many passes, whether or not anybody waits for
        them.
        """
        torch = self.torch
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, self.model.config.vocab_size, (passes, 1, tokens), generator=generator)
        seconds, missed, past = [], [], None
        prefetched, wasted = self._counted("prefetched", "wasted")
        always = mock.patch("segmoe.cache.WAITING_NS", 0) if guess_every > 1 else contextlib.nullcontext()
        with torch.inference_mode(), always:
            for number, one in enumerate(ids, 1):
                if guess_every > 1:
                    self.model.segmoe.cache.may_prefetch = number % guess_every == 0
                if cold:
                    drop_cached(self.files)
                (before,) = self._counted("misses")
                began = time.perf_counter()
                past = self.model(input_ids=one, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values
                seconds.append(time.perf_counter() - began)
                missed.append(self._counted("misses")[0] - before)
        after = self._counted("prefetched", "wasted")
        return {
            "seconds": seconds,
            "missed": missed,
            "prefetched": after[0] - prefetched,
            "wasted": after[1] - wasted,
        }

    def pack(self, passes: int, tokens: int) -> dict[str, Any]:
        """Run turns of passes until no expert in memory was used so often that it will be packed and is not."""
        from segmoe.packing import AFTER_USES

        slots, turn = self.model.segmoe.cache._resident, 0
        while turn * passes < AFTER_USES or any(slot.is_as_read and slot.uses >= AFTER_USES for slot in slots.values()):
            self.run(passes, tokens, seed=turn)
            turn += 1
        return {}

    def bookkeep(self, passes: int, seed: int) -> dict[str, Any]:
        """Seconds that each decode step spends in the cache and its events, and seconds of the step."""
        from segmoe.experts import Seam

        runtime, spent = self.model.segmoe, 0.0

        def timed(call: Any) -> Any:
            def wrapper(*args: Any) -> Any:
                nonlocal spent
                began = time.perf_counter()
                try:
                    return call(*args)
                finally:
                    spent += time.perf_counter() - began

            return wrapper

        parts = (
            (runtime.cache, "begin"),
            (runtime.cache, "expect"),
            (Seam, "fetch"),
            (Seam, "has_all"),
            (Seam, "is_awaited"),
            (runtime, "_end_pass"),
        )
        own, seconds = [], []
        with contextlib.ExitStack() as stack:
            for place, name in parts:
                stack.enter_context(mock.patch.object(place, name, timed(getattr(place, name))))
            for one in range(passes):
                spent = 0.0
                seconds += self.run(1, 1, seed + one)["seconds"]
                own.append(spent)
        return {"own": own, "seconds": seconds}

    def _counted(self, *names: str) -> list[int]:
        runtime = getattr(self.model, "segmoe", None)
        return [0 if runtime is None else getattr(runtime.cache.counters, name) for name in names]


def main() -> None:
    """Answer until there are no more commands."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(worker, command.pop("do"))(**command)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
