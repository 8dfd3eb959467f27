"""Compile functions if numba is installed, and run them as they are if not: same results, a hundred times slower."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba
    from numba.extending import register_jitable

    IS_COMPILED = True
except ImportError:
    IS_COMPILED = False


def compiled(calls: Iterable[Callable[..., Any]] = ()) -> Callable[[F], F]:
    """Compile a function on its first call; `calls` are the plain functions of other modules that it needs."""

    def decorate(function: F) -> F:
        if not IS_COMPILED:
            return function
        for plain in calls:
            register_jitable(plain)
        return cast(F, numba.njit(function))

    return decorate
