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


def compiled(calls: Iterable[Callable[..., Any]] = (), *, allocates: bool = False) -> Callable[[F], F]:
    """Compile a function on its first call; `calls` are the plain functions of other modules that it needs.

    One that allocates nothing is compiled without counting references, which doubles the speed of a replay: its state
    is a tuple of twelve arrays, and each call would count all of them up and down.
    """

    def decorate(function: F) -> F:
        if not IS_COMPILED:
            return function
        for plain in calls:
            register_jitable(_nrt=allocates)(plain)
        return cast(F, numba.njit(function, _nrt=allocates))

    return decorate
