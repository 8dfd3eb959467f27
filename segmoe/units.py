"""Byte sizes as people write them. No other units."""

from __future__ import annotations

import re

from segmoe.errors import ConfigError

_FACTORS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(size: str | int) -> int:
    """Read a size such as `4GiB`, `512 MB` or a plain number of bytes.

    >>> parse_bytes("4GiB"), parse_bytes("1.5 kB"), parse_bytes(512)
    (4294967296, 1500, 512)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].upper() not in _FACTORS:
        raise ConfigError(f"{size!r} is no size; write bytes as 4GiB, 512MB or a plain number")
    return int(float(match[1]) * _FACTORS[match[2].upper()])


def format_bytes(count: int) -> str:
    """Write a size in the largest binary unit that keeps it above one.

    >>> format_bytes(9437184), format_bytes(36864), format_bytes(12)
    ('9.0 MiB', '36.0 KiB', '12 B')
    """
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
