"""Draw docs/architecture.svg, the rooms of the engine and their imports, from the code as it is."""

import ast
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
ENGINE = DOCS.parent / "scripts/forebear"
FIGURE = DOCS / "architecture.svg"

# Where a room stands: column and row. Rows follow the imports, which all run upward.
PLACES = {
    "errors": (1, 0),
    "runtime": (1, 1),
    "artifacts": (1, 2),
    "data": (1, 3),
    "models": (1, 4),
    "gradients": (1, 5),
    "factors": (1, 6),
    "queries": (1, 7),
    "scores": (1, 8),
    "evaluation": (1, 9),
    "ground_truth": (0, 5),
    "figures": (2, 2),
    "report": (2, 4),
    "planning": (2, 6),
    "estimators": (3, 0),
    "config": (3, 2),
    "workflow": (3, 7),
}
FOR_RULES = ("estimators", "config", "workflow")
THE_WAY = ("data", "models", "gradients", "factors", "queries", "scores", "evaluation")
COLOURS = {"the way": "#dbe9f6", "for rules": "#fbeccb", "other": "#f2f2f2"}
WIDTH, HEIGHT, COLUMN, ROW, MARGIN = 240, 80, 296, 112, 16

Point = tuple[float, float]


def modules() -> list[Path]:
    """All of the engine, without its own docstring."""
    return [path for path in sorted(ENGINE.rglob("*.py")) if path != ENGINE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(ENGINE).with_suffix("").parts[0]


def imported(source: str) -> Iterator[str]:
    """Dotted names of modules that a file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imports() -> dict[str, set[str]]:
    """Room → the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in modules():
        names = [name.split(".") for name in imported(path.read_text(encoding="utf-8"))]
        used = {name[1] for name in names if name[0] == "forebear" and len(name) > 1}
        found.setdefault(room_of(path), set()).update(used - {room_of(path)})
    return found


def purposes() -> dict[str, str]:
    """Room → the first line of its docstring."""
    files = {room: ENGINE / room / "__init__.py" for room in imports()}
    files = {room: path if path.is_file() else ENGINE / f"{room}.py" for room, path in files.items()}
    docstrings = {room: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for room, path in files.items()}
    return {room: docstring.splitlines()[0] for room, docstring in docstrings.items()}


def without_shortcuts(found: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: (room, what it imports)."""

    def behind(room: str) -> set[str]:
        return found[room].union(*map(behind, found[room]))

    return [
        (room, other)
        for room, used in found.items()
        for other in sorted(used)
        if not any(other in behind(between) for between in used)
    ]


@dataclass(frozen=True)
class Route:
    """How an arrow leaves a room and enters another: by which sides, and along which lane between columns."""

    room: str
    other: str
    leaves: str  # top, left or right
    enters: str  # bottom, left or right
    lane: float | None = None  # x of a vertical part between columns


def centre(room: str) -> Point:
    column, row = PLACES[room]
    return MARGIN + column * COLUMN + WIDTH / 2, MARGIN + row * ROW + HEIGHT / 2


def route(room: str, other: str) -> Route:
    """Straight up, up and aside, aside and up, or along a lane beside the other's column, whichever is free first."""
    (column, row), (to, above) = PLACES[room], PLACES[other]
    taken = set(PLACES.values())
    aside, back = ("right", "left") if to > column else ("left", "right")
    between = range(min(column, to) + 1, max(column, to))
    up = all((column, k) not in taken for k in range(above + 1, row))
    if column == to and up:
        return Route(room, other, "top", "bottom")
    if column != to and up and all((k, above) not in taken for k in [column, *between]):
        return Route(room, other, "top", back)
    flat = all((k, row) not in taken for k in [*between, to])
    if column != to and flat and all((to, k) not in taken for k in range(above + 1, row)):
        return Route(room, other, aside, "bottom")
    gap = (COLUMN - WIDTH) * (0.3 + 0.4 * row / max(k for _, k in PLACES.values()))  # lanes of several lie apart
    lane = centre(other)[0] + (WIDTH / 2 + gap) * (-1 if back == "left" else 1)
    return Route(room, other, aside if column != to else back, back, lane)


def ports(routes: list[Route]) -> dict[tuple[Route, str], Point]:
    """Where each arrow begins and ends, spread over the side of its room."""
    sides: dict[tuple[str, str], list[tuple[Route, str]]] = {}
    for way in routes:
        sides.setdefault((way.room, way.leaves), []).append((way, "begin"))
        sides.setdefault((way.other, way.enters), []).append((way, "end"))
    found = {}
    for (room, side), users in sides.items():
        x, y = centre(room)
        axis = 0 if side in ("top", "bottom") else 1
        users.sort(key=lambda user: centre(user[0].other if user[1] == "begin" else user[0].room)[axis])
        for k, user in enumerate(users, 1):
            share = k / (len(users) + 1) - 0.5
            if axis == 0:
                found[user] = x + share * WIDTH * 0.8, y + (HEIGHT / 2 if side == "bottom" else -HEIGHT / 2)
            else:
                found[user] = x + (WIDTH / 2 if side == "right" else -WIDTH / 2), y + share * HEIGHT * 0.9
    return found


def arrow(way: Route, places: Mapping[tuple[Route, str], Point]) -> str:
    (x, y), (to_x, to_y) = places[way, "begin"], places[way, "end"]
    if way.lane is not None:
        bends = [(way.lane, y), (way.lane, to_y)]
    elif way.leaves == "top" and way.enters == "bottom":
        alone = sum(end == "begin" and other.room == way.room and other.leaves == "top" for other, end in places) == 1
        x = to_x = to_x if alone else x
        bends = []
    elif way.leaves == "top":
        bends = [(x, to_y)]
    else:
        bends = [(to_x, y)]
    path = " L".join(f"{a:.0f} {b:.0f}" for a, b in [(x, y), *bends, (to_x, to_y)])
    return f'<path d="M{path}"><title>{way.room} imports {way.other}</title></path>'


def box(room: str, purpose: str) -> str:
    x, y = centre(room)
    kind = "the way" if room in THE_WAY else "for rules" if room in FOR_RULES else "other"
    lines = textwrap.wrap(purpose, 40, max_lines=4, placeholder=" …")
    name = room if (ENGINE / room).is_dir() else f"{room}.py"
    texts = [f'<text class="name" x="{x:.0f}" y="{y - HEIGHT / 2 + 17:.0f}">{name}</text>']
    texts += [
        f'<text x="{x:.0f}" y="{y - HEIGHT / 2 + 31 + 13 * k:.0f}">{escape(line)}</text>'
        for k, line in enumerate(lines)
    ]
    corner = f'x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}"'
    return f'<rect {corner} width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{COLOURS[kind]}"/>' + "".join(texts)


def figure() -> str:
    """The rooms as SVG; arrows are imports that do not follow from others.

    Raises:
        SystemExit: a room has no place in the figure.
    """
    found, described = imports(), purposes()
    if nowhere := found.keys() - PLACES.keys():
        raise SystemExit(
            f"{__file__}: PLACES has no place for {', '.join(sorted(nowhere))}; give it a column and a row."
        )
    routes = [route(*edge) for edge in without_shortcuts(found)]
    places = ports(routes)
    width = 2 * MARGIN + 3 * COLUMN + WIDTH
    height = 2 * MARGIN + 9 * ROW + HEIGHT
    key = [("the way", "the way of the data, downward"), ("for rules", "what rules import"), ("other", "the others")]
    legend = "".join(
        f'<rect x="{MARGIN + 2 * COLUMN + 40}" y="{height - 74 + 24 * k}" width="20" height="14" rx="3" '
        f'fill="{COLOURS[kind]}"/><text class="key" x="{MARGIN + 2 * COLUMN + 70}" y="{height - 62 + 24 * k}">{words}</text>'
        for k, (kind, words) in enumerate(key)
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
            "<!-- Drawn by docs/draw_architecture.py. -->",
            "<style>text{font:11px sans-serif;text-anchor:middle;fill:#333}.name{font:bold 14px sans-serif;fill:#000}"
            ".key{font-size:13px;text-anchor:start}rect{stroke:#888}path{fill:none;stroke:#555;marker-end:url(#head)}"
            "</style>",
            '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
            '<polygon points="0 0, 9 4, 0 8" fill="#555"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#fff" style="stroke:none"/>',
            *(arrow(way, places) for way in routes),
            *(box(room, described[room]) for room in PLACES if room in found),
            legend,
            f'<text class="key" x="{MARGIN + 2 * COLUMN + 40}" y="{height - 106}">An arrow leads to what a room imports; what</text>',
            f'<text class="key" x="{MARGIN + 2 * COLUMN + 40}" y="{height - 90}">lies behind that is imported too, or may be.</text>',
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    FIGURE.write_text(figure(), encoding="utf-8")
