"""What a segmented model refuses, or makes harmless, because it could not be exact. Who calls it when is runtime.py.

Refused with a sentence: saving, copying, moving to another device or dtype, experts spread over processes, and a pass
that begins while another thread is in one. Harmless: torch.compile, which leaves a segmented model as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NoReturn

import torch

from segmoe.errors import Unsupported

NOT_COMPILED = "a segmented model runs uncompiled: compiled code would not be stock's bit for bit; drop fullgraph=True"


def stay_as_loaded(model: Any, experts: Iterable[Any]) -> None:
    """Refuse to save, copy, pickle, move or convert the model."""
    model.save_pretrained = _refuse_saving
    model.__reduce_ex__ = refuse_copying  # what copy.deepcopy, pickle and torch.save ask for
    for module in (model, *experts):  # parts of the model reach the experts when they are moved
        module._apply = _only_harmless(module._apply, model.dtype, model.device)


def leave_uncompiled(modules: Iterable[Any]) -> None:
    """Make torch.compile run these modules, their hooks and all they call as they are."""
    for module in modules:
        module._call_impl = uncompiled(module._call_impl)


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run as it is by compiled code that calls it."""
    disabled = torch.compiler.disable(function, reason=NOT_COMPILED)  # type: ignore[no-untyped-call]

    @wraps(function)
    def as_it_is(*args: Any, **kwargs: Any) -> Any:  # torch.compile looks behind `disabled` alone
        return disabled(*args, **kwargs)

    return as_it_is


def refuse_copying(*args: Any) -> NoReturn:
    """Stand in for __reduce_ex__."""
    raise Unsupported("a segmented model cannot be copied or pickled, its experts are in one cache; load it once more")


class OneThread:
    """At most one thread is in a pass. It is held by plain assignment, so that the one thread waits for nobody."""

    def __init__(self, experts: Iterable[Any]) -> None:
        self._experts = tuple(experts)
        self._entering = threading.Lock()  # held for the look and the assignment only, never during a pass
        self._owner: threading.Thread | None = None

    @property
    def is_mine(self) -> bool:
        """Whether the pass under way belongs to the calling thread."""
        return self._owner is threading.current_thread()

    def enter(self) -> None:
        """Take the model for a pass of this thread, which may hold it already; raise Unsupported if another does."""
        for module in self._experts:
            if module._is_expert_parallel:
                raise Unsupported("experts cannot be spread over processes, each of which sees some; load without that")
        me = threading.current_thread()
        with self._entering:
            owner = self._owner
            if owner is not None and owner is not me and owner.is_alive():
                raise Unsupported(
                    f"{owner.name} is in a pass of this model, and its experts are in one cache; let one thread at a "
                    "time call it, or load it once per thread"
                )
            self._owner = me

    def leave(self) -> None:
        """Give the model free."""
        self._owner = None


def _only_harmless(original: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    place = "the CPU" if device.type == "cpu" else str(device)

    def _apply(fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        try:
            moved = fn(torch.zeros(1, dtype=dtype, device=device))
        except Exception as error:
            raise Unsupported(f"a segmented model stays on {place} in {dtype}; this would fail: {error}") from error
        if moved.device != device or moved.dtype != dtype:
            raise Unsupported(
                f"a segmented model stays on {place} in {dtype}, as its experts are on disk; it cannot become "
                f"{moved.dtype} on {moved.device}; choose the device when you load it"
            )
        return original(fn, recurse)

    return _apply


def _refuse_saving(*args: Any, **kwargs: Any) -> NoReturn:
    raise Unsupported("a segmented model holds no experts to save; copy the checkpoint's folder instead")
