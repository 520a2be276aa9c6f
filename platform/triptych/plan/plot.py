"""A stage's settings as a picture: speed over memory, a line for each checkpointing and chunk, the cap across."""

import html
from collections.abc import Sequence

from triptych.plan.choose import Option
from triptych.plan.machines import GIB

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 820, 460, 70, 40, 250, 50
_COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_TICKS = 5


def draw(options: Sequence[Option], title: str) -> str:
    """An SVG image. Points are micro-batches, hollow where they do not fit; the dashed line is the memory there is."""
    room = options[0].room / GIB
    across = max(1.05 * room, *(option.peak.expected / GIB for option in options))
    up = 1.1 * max(option.tokens_per_second for option in options)

    def x(gib: float) -> float:
        return _LEFT + gib / across * (_WIDTH - _LEFT - _RIGHT)

    def y(speed: float) -> float:
        return _HEIGHT - _BOTTOM - speed / up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 22, title, size=15), *_axes(across, up)]
    parts.append(f'<path d="M{x(room):.1f} {_TOP} V{y(0):.1f}" stroke="#555" stroke-dasharray="5 4"/>')
    for number, (name, line) in enumerate(_lines(options).items()):
        color = _COLORS[number % len(_COLORS)]
        points = [(x(o.peak.expected / GIB), y(o.tokens_per_second)) for o in line]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        for (px, py), option in zip(points, line, strict=True):
            fill = color if option.fits else "#fff"
            tip = html.escape(f"{option.settings}: {option.peak.expected / GIB:.2f} GiB")
            circle = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{fill}" stroke="{color}">'
            parts.append(f"{circle}<title>{tip}</title></circle>")
        parts.append(_text(_WIDTH - _RIGHT + 16, _TOP + 18 * number, name, color=color))
    frame = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
    body = "\n".join(parts)
    return f'<svg {frame}>\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'


def _axes(across: float, up: float) -> list[str]:
    parts = []
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        px = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        py = _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)
        parts.append(_text(px, _HEIGHT - _BOTTOM + 18, f"{share * across:.1f}", anchor="middle"))
        parts.append(_text(_LEFT - 8, py + 4, f"{share * up:,.0f}", anchor="end"))
        parts.append(f'<line x1="{_LEFT}" y1="{py:.1f}" x2="{_WIDTH - _RIGHT}" y2="{py:.1f}" stroke="#e5e5e5"/>')
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, "peak memory, GiB", anchor="middle"))
    parts.append(_text(_LEFT, _TOP - 4, "tokens/s"))
    return parts


def _lines(options: Sequence[Option]) -> dict[str, list[Option]]:
    """Options that differ only in their micro-batch, smallest first, by the name of their line."""
    found: dict[str, list[Option]] = {}
    for option in sorted(options, key=lambda option: option.settings.micro_tokens):
        chunk = "all logits" if option.settings.loss_chunk is None else f"chunk {option.settings.loss_chunk}"
        name = f"{option.settings.checkpointing}, {chunk}, {option.settings.strategy}"
        found.setdefault(name, []).append(option)
    return found


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", color: str = "#222") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}"'
    return f"<text {place}>{html.escape(text)}</text>"
