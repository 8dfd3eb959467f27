"""Copies of experts to a device through pinned memory, on a stream of their own, so that they overlap computing.

Written against torch's device-agnostic modules: on `torch.cpu` streams and events do nothing and the copies are plain,
so the same lines run where no accelerator is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


class Staging:
    """Pinned memory, one buffer for each thread that loads, and the stream that copies from it."""

    def __init__(self, device: torch.device) -> None:
        self._api: Any = torch.get_device_module(device)
        self._device = device
        self._stream = self._api.Stream(device)
        self._mine = threading.local()

    def mark(self) -> Any:
        """An event behind all work that the calling thread gave to the device so far."""
        event = self._api.Event()
        event.record(self._api.current_stream(self._device))
        return event

    def wait_for(self, event: Any) -> None:
        """Let the device, not the calling thread, wait for an event before it goes on with the thread's work."""
        self._api.current_stream(self._device).wait_event(event)

    def copy(self, fill: Callable[[torch.Tensor], None], to: torch.Tensor, behind: Any) -> Any:
        """Fill pinned memory, copy it to the buffer once `behind` has happened; return an event behind the copy."""
        staged = self._buffer(len(to))
        fill(staged)
        done = self._api.Event()
        with torch.inference_mode(False), torch.no_grad(), self._api.stream(self._stream):
            self._stream.wait_event(behind)
            to.copy_(staged, non_blocking=True)
            done.record(self._stream)
        self._mine.copied = done
        return done

    def _buffer(self, nbytes: int) -> torch.Tensor:
        """The calling thread's pinned memory, free to be written."""
        mine = self._mine
        if hasattr(mine, "copied"):
            mine.copied.synchronize()
        if not hasattr(mine, "buffer") or len(mine.buffer) < nbytes:
            mine.buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._device.type != "cpu")
        buffer: torch.Tensor = mine.buffer[:nbytes]
        return buffer
