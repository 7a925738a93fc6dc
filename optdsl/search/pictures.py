"""Pictures for a page: plots with axes, and intervals for the rows of a table, as SVG that needs nothing else.

Colours are the page's: the classes `c0` to `c5` of series, `soft` of what is behind them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from optdsl.search.statistics import Estimate

#: Classes of colours for series.
COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")
_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 26, 12, 48


def esc(text: object) -> str:
    """Text as HTML shows it. What steers terminals or the direction of writing is shown by its code."""
    shown = "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text)
    )
    return html.escape(shown, quote=True)


class Plot:
    """Points and lines in a frame; `about` is what is read out in its place.

    `xs` and `ys` are what the axes have to span. `names` stand for the whole numbers of the x axis; with `log` the
    values of y, all above 0, are on a logarithmic axis.
    """

    def __init__(
        self,
        about: str,
        xs: Iterable[float],
        ys: Iterable[float],
        x: str,
        y: str,
        *,
        names: Sequence[str] = (),
        log: bool = False,
    ) -> None:
        self.about, self.log = about, log
        self.x0, self.x1 = (-0.5, len(names) - 0.5) if names else _span(xs)
        self.y0, self.y1 = _span(map(self._scaled, ys))
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        self.parts: list[str] = []
        for at in self._marks():
            _, b = self.at(self.x0, at)
            self.parts.append(f'<line x1="{_LEFT}" y1="{b:.1f}" x2="{right}" y2="{b:.1f}" class="grid"/>')
            self.parts.append(_text(_LEFT - 6, b + 4, f"{at:.6g}", "end"))
        across = [(float(n), name) for n, name in enumerate(names)] or [
            (at, f"{at:.6g}") for at in ticks(self.x0, self.x1, 6)
        ]
        for at, name in across:
            a, _ = self.at(at, self._back(self.y0))
            self.parts.append(
                f'<line x1="{a:.1f}" y1="{bottom}" x2="{a:.1f}" y2="{bottom + 4}" class="axis"/>'
            )
            self.parts.append(_text(a, bottom + 18, name))
        self.parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" class="axis"/>')
        self.parts.append(_text((_LEFT + right) / 2, _HEIGHT - 8, x))
        middle = (_TOP + bottom) / 2
        self.parts.append(
            f'<text x="15" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 15 {middle:.0f})">'
            f"{esc(y)}</text>"
        )

    def _scaled(self, y: float) -> float:
        return math.log10(y) if self.log else y

    def _back(self, y: float) -> float:
        return 10**y if self.log else y

    def _marks(self) -> list[float]:
        """Where the y axis has numbers; on a logarithmic one powers of 10 come first, then their double and half."""
        if not self.log:
            return ticks(self.y0, self.y1, 8)
        powers = range(math.ceil(self.y0), math.floor(self.y1) + 1)
        if len(powers) >= 3:
            return [10.0**n for n in powers][:: math.ceil(len(powers) / 6)]
        low, high = 10**self.y0, 10**self.y1
        finer = [m * 10.0**n for n in range(math.floor(self.y0), math.ceil(self.y1)) for m in (1, 2, 5)]
        finer = [at for at in finer if low <= at <= high]
        return finer if len(finer) >= 3 else ticks(low, high, 6)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies on the picture."""
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (self._scaled(y) - self.y0) / (self.y1 - self.y0)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * up

    def cloud(self, points: Iterable[tuple[float, float]]) -> None:
        """Many small points; those that fall together are drawn once."""
        places = dict.fromkeys("M{:.0f} {:.0f}h0".format(*self.at(x, y)) for x, y in points)
        self.parts.append(f'<path d="{"".join(places)}" class="cloud"/>')

    def dots(self, points: Iterable[tuple[float, float, str]], colour: str) -> None:
        """Circles, each with a text that shows under the pointer."""
        for x, y, told in points:
            a, b = self.at(x, y)
            self.parts.append(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" class="{colour}"><title>{esc(told)}</title></circle>'
            )

    def line(self, points: Iterable[tuple[float, float]], colour: str, kind: str = "line") -> None:
        """A line through points: solid, or `dashed`."""
        path = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in points)
        self.parts.append(f'<polyline points="{path}" class="{kind} {colour}"/>')

    def level(self, y: float) -> None:
        """A line across at a height, as far as it is in the frame."""
        if self.y0 <= self._scaled(y) <= self.y1:
            self.line([(self.x0, y), (self.x1, y)], "soft", "dashed")

    def svg(self) -> str:
        """The picture."""
        return _svg(_WIDTH, _HEIGHT, self.parts, self.about)


def legend(colours: Mapping[str, str]) -> str:
    """What colours mean, to stand beside pictures."""
    return " ".join(f'<span class="key {colour}">{esc(name)}</span>' for name, colour in colours.items())


def intervals(estimates: Sequence[Estimate | None]) -> tuple[str, list[str]]:
    """Log ratios with their intervals on one axis that has 0: what its ends are, and a picture of each one."""
    ends = [x for e in estimates if e is not None for x in (e.low, e.mean, e.high)]
    low, high = _span([0.0, *ends])
    width, middle = 180, 9

    def at(x: float) -> str:
        return f"{4 + (width - 8) * (x - low) / (high - low):.1f}"

    made = []
    for e in estimates:
        if e is None:
            made.append("")
            continue
        parts = [f'<line x1="{at(0)}" y1="0" x2="{at(0)}" y2="{2 * middle}" class="axis"/>']
        parts.append(
            f'<line x1="{at(e.low)}" y1="{middle}" x2="{at(e.high)}" y2="{middle}" class="line c1"/>'
        )
        parts.append(f'<circle cx="{at(e.mean)}" cy="{middle}" r="4" class="c1"/>')
        made.append(_svg(width, 2 * middle, parts, "interval"))
    return f"{100 * math.expm1(low):+.0f} % to {100 * math.expm1(high):+.0f} %", made


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at equal distances of 1, 2 or 5 times a power of 10.

    There are at most so many, and more than a third of that.
    """
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while (high - low) / step > most - 0.5:
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _span(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    low, high = min(found), max(found)
    margin = 0.05 * (high - low) or 0.05 * abs(low) or 1.0
    return low - margin, high + margin


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{esc(text)}</text>'


def _svg(width: float, height: float, parts: Iterable[str], about: str) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    inner = "\n".join(parts)
    return f'<svg {size} role="img" aria-label="{esc(about)}">\n{inner}\n</svg>'
