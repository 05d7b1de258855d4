"""One colour per expert: its number enters; a hue and a shade leave, the same ones in the terminal and on the page.

Colours are OKLCH, in which equal steps look equal (https://www.w3.org/TR/css-color-4/#ok-lab); lightness and chroma are
those of the place that is coloured. Colours repeat, nearly, after ``HUES * len(_SHADES)`` experts.
"""

from __future__ import annotations

import math

GOLDEN_ANGLE = 137.508
"""Degrees between the hues of neighbouring experts: any few of them are far apart."""
HUES = 21
"""Experts in a row of one shade; a Fibonacci number of golden angles divides the circle almost evenly."""
_SHADES = (0, -1, 1)


def tint_of(expert: int) -> tuple[float, int]:
    """The hue in degrees, and how many steps of lightness it is from the middle one."""
    return round(expert * GOLDEN_ANGLE % 360, 1), _SHADES[expert // HUES % len(_SHADES)]


def expert_color(expert: int, strength: float = 1.0) -> str:
    """``#rrggbb`` that can be read on black and on white; less ``strength`` is darker."""
    hue, shade = tint_of(expert)
    return _srgb((0.68 + 0.11 * shade) * (0.6 + 0.4 * strength), 0.15, math.radians(hue))


def _srgb(lightness: float, chroma: float, hue: float) -> str:
    """The nearest ``#rrggbb`` of an OKLCH colour, each channel on its own."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _encode(min(max(part, 0.0), 1.0))):02x}" for part in linear)


def _encode(linear: float) -> float:
    """The transfer function of sRGB."""
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
