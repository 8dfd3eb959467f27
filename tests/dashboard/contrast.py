"""Contrast of two colours as WCAG 2 defines it: 1 is none, 4.5 is what text needs."""

import re


def rgb(colour: str) -> tuple[int, int, int]:
    """Read #rrggbb or rgb(r, g, b)."""
    if colour.startswith("#"):
        digits = [colour[place : place + 2] for place in (1, 3, 5)]
        return tuple(int(two, 16) for two in digits)  # type: ignore[return-value]
    return tuple(int(float(part)) for part in re.findall(r"[\d.]+", colour)[:3])  # type: ignore[return-value]


def luminance(colour: str) -> float:
    """Relative luminance, 0 to 1."""
    shares = [part / 255 for part in rgb(colour)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours.

    >>> round(contrast("#000000", "rgb(255, 255, 255)"), 1)
    21.0
    """
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
