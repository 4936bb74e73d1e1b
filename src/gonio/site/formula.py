"""LaTeX to MathML, which browsers draw without a script."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

__all__ = ["to_mathml"]

_ARROW = re.compile("<m[io]>(&#x0(?:27F9|27FA|21D2|21D4);)</m[io]>")
_DRAWN = re.compile(r"^<math .*</math>$", re.DOTALL)


def to_mathml(latex: str, *, block: bool = False) -> Markup:
    """MathML of a formula; the LaTeX text itself, escaped, where it cannot be converted.

    Args:
        latex: The formula without dollar signs.
        block: On a line of its own, with large operators.
    """
    from latex2mathml.converter import convert

    try:
        text = convert(latex, display="block" if block else "inline")
    except Exception:  # the converter raises a dozen unrelated classes on malformed input
        text = ""
    if not _DRAWN.match(text) or "\\" in text:
        return Markup('<code class="latex">{}</code>').format(latex)
    # The converter takes arrows between clauses for letters, which touch their neighbors.
    text = _ARROW.sub(r'<mo lspace="0.5em" rspace="0.5em">\1</mo>', text)
    labeled = text.replace("<math ", f'<math aria-label="{escape(latex)}" ', 1)
    return Markup(labeled)
