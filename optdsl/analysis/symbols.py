"""How names and strings of a spec are spelled as mathematics: `beta1` is β₁, `m_hat` is m̂, `lr` is η.

A spec may come from a stranger, so nothing of it reaches the output unless it is known to be harmless there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from optdsl.core.record import record

#: Greek letters by the names that a spec may give them: as a character, and as a LaTeX command. Those that are
#: no letters of their own in LaTeX are left out, and Sigma, which would be read as a sum.
GREEK: dict[str, tuple[str, str]] = {
    name: (letter, f"\\{name}")
    for name, letter in {
        **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η"},
        **{"theta": "θ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ"},
        **{"rho": "ρ", "sigma": "σ", "tau": "τ", "upsilon": "υ", "phi": "φ", "chi": "χ", "psi": "ψ"},
        **{
            "omega": "ω",
            "Gamma": "Γ",
            "Delta": "Δ",
            "Theta": "Θ",
            "Lambda": "Λ",
            "Xi": "Ξ",
        },
        **{"Phi": "Φ", "Psi": "Ψ", "Omega": "Ω"},
    }.items()
} | {"eps": ("ε", "\\epsilon")}
#: What papers call these.
ALIASES = {"lr": "eta", "weight_decay": "lambda", "lambd": "lambda", "lam": "lambda"}
_ACCENTS = {"hat": ("\u0302", "\\hat"), "bar": ("\u0304", "\\bar"), "tilde": ("\u0303", "\\tilde")}
_SIGNS = {"plus": ("₊", "+"), "minus": ("₋", "-"), "inf": ("_∞", "\\infty")}
_LOW = str.maketrans("0123456789aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")
_HIGH = str.maketrans("0123456789+−abcdefghijklmnoprstuvwxyz", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ")
#: Characters that LaTeX takes for something else, as it writes them in mathematics. `<` in braces is no HTML
#: tag for a Markdown renderer that knows no mathematics.
_SPECIAL = {
    **{ch: f"\\{ch}" for ch in "_#$%&{}"},
    **{"<": "{<}", ">": "{>}", "|": "\\vert ", "\\": "\\backslash ", "^": "{\\wedge}", "~": "{\\sim}"},
    **{"[": "\\lbrack ", "]": "\\rbrack ", "*": "{\\ast}"},
}


@record
class Symbol:
    """A name as it is written; a `word` needs something between itself and its neighbours in a product."""

    text: str
    word: bool


def printable(text: str) -> str:
    """`text` without line ends and characters that would direct a terminal."""
    return "".join(ch if ch.isprintable() else "�" for ch in text)


def subscript(digits: str) -> str:
    """A number as a subscript."""
    return digits.translate(_LOW)


def superscript(text: str) -> str | None:
    """An exponent in raised characters, where it is as small as `2`, `−1`, `t` or `t + 1`."""
    text = text.replace(" + ", "+").replace(" − ", "−")
    return (
        text.translate(_HIGH) if re.fullmatch("−?([a-pr-z]|[0-9]+)([+−]([a-pr-z]|[0-9]+))?", text) else None
    )


def latex_text(text: str) -> str:
    """Any string as a piece of LaTeX mathematics that stands for itself."""
    runs = re.findall(r"[A-Za-z0-9 .,:;+()/=?!@\"'-]+|.", printable(text))
    return "".join(
        f"\\text{{{run}}}" if len(run) > 1 or _is_safe(run) else _SPECIAL.get(run, "\\text{?}")
        for run in runs
    )


def _is_safe(ch: str) -> bool:
    return ch.isalnum() or ch in " .,:;+()/=?!@\"'-"


def latex_word(name: str) -> str:
    """A name in upright letters."""
    parts = (ch if ch.isascii() and ch.isalnum() else _SPECIAL.get(ch, "?") for ch in printable(name))
    return f"\\mathrm{{{''.join(parts)}}}"


def unicode_symbols(names: Iterable[str]) -> dict[str, Symbol]:
    """A symbol for each of the names, no two of them alike."""
    return _distinct(names, _unicode, lambda name: Symbol(printable(name), len(name) > 1))


def latex_symbols(names: Iterable[str]) -> dict[str, Symbol]:
    """A symbol for each of the names, no two of them alike."""
    return _distinct(names, _latex, lambda name: Symbol(latex_word(name), True))


def _distinct(
    names: Iterable[str], spell: Callable[[str], Symbol | None], plain: Callable[[str], Symbol]
) -> dict[str, Symbol]:
    names = list(dict.fromkeys(names))
    # a name that is a letter has that letter before one which papers call so
    wishes = [(name, name) for name in names if name not in ALIASES]
    wishes += [(name, ALIASES[name]) for name in names if name in ALIASES]
    found: dict[str, Symbol] = {}
    taken: set[str] = set()
    for name, wish in wishes:
        symbol = spell(wish)
        if symbol is None or symbol.text in taken:
            symbol = plain(name)
        while symbol.text in taken:
            symbol = Symbol(symbol.text + "'", True)
        found[name] = symbol
        taken.add(symbol.text)
    return found


@record
class _Parts:
    """`beta1_hat`: base `beta`, accent `hat`, subscript `1`."""

    base: str
    accent: str
    below: tuple[str, ...]

    @property
    def is_letter(self) -> bool:
        return len(self.base) == 1 or self.base in GREEK


def _parts(name: str) -> _Parts | None:
    match = re.fullmatch("([A-Za-z]+)([0-9]*)((?:_[A-Za-z0-9]+)*)", name)
    if match is None:
        return None
    base, digits, rest = match.groups()
    below = rest.split("_")[1:]
    accent = below.pop(0) if below and below[0] in _ACCENTS else ""
    return _Parts(base, accent, (digits, *below) if digits else tuple(below))


def _unicode(name: str) -> Symbol | None:
    parts = _parts(name)
    if parts is None or len(parts.below) > 1 or not (parts.is_letter or all(map(str.isdigit, parts.below))):
        return None
    if parts.accent and not parts.is_letter:
        return None
    text = GREEK.get(parts.base, (parts.base,))[0]
    if parts.accent:
        text += _ACCENTS[parts.accent][0]
    word = not parts.is_letter
    for below in parts.below:
        low = _SIGNS[below][0] if below in _SIGNS else below.translate(_LOW)
        # of a word in subscripts only a few letters exist, and little can be read
        if low == below or (len(below) > 1 and not below.isdigit() and below not in _SIGNS):
            low = f"_{below}"
        text += low
        word = word or low.startswith("_")
    return Symbol(text, word)


def _latex(name: str) -> Symbol | None:
    parts = _parts(name)
    if parts is None or not (parts.is_letter or all(map(str.isdigit, parts.below))):
        return None
    if parts.accent and not parts.is_letter:
        return None
    if parts.base in GREEK:
        text = GREEK[parts.base][1]
    else:
        text = parts.base if parts.is_letter else latex_word(parts.base)
    if parts.accent:
        text = f"{_ACCENTS[parts.accent][1]}{{{text}}}"
    below = [_SIGNS[b][1] if b in _SIGNS else b if _is_short(b) else latex_word(b) for b in parts.below]
    return Symbol(text + (f"_{{{','.join(below)}}}" if below else ""), not parts.is_letter)


def _is_short(below: str) -> bool:
    return len(below) == 1 or below.isdigit()
