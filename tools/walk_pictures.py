#!/usr/bin/env python3
"""Draws the pictures of docs/walk from what `qkv explain --json` prints: python3 tools/walk_pictures.py"""

import argparse
import json
import pathlib
import subprocess
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Five stops of matplotlib's viridis (van der Walt & Smith 2015, CC0): readable without colour vision and in grey.
VIRIDIS = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
INK, FAINT, PAPER, EDGE, HIDDEN = "#1a1a1a", "#5a5a5a", "#ffffff", "#c8c8c8", "#ececec"
CELL_HEIGHT, CELL_WIDTH, LETTER, MARGIN, GAP = 24, 56, 7.3, 20, 34


def viridis(share):
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    below = min(int(place), len(VIRIDIS) - 2)
    return tuple(round(a + (place - below) * (b - a)) for a, b in zip(VIRIDIS[below], VIRIDIS[below + 1]))


def hex_colour(rgb):
    return "#%02x%02x%02x" % rgb


def ink_on(rgb):
    """Black or white, whichever contrasts more (WCAG 2 relative luminance)."""
    channels = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), channels))
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def text(x, y, words, anchor="start", fill=INK, size=12, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}"'
            f' font-weight="{weight}">{escape(words)}</text>')


def number(value, digits=4):
    return f"{value:.{digits}f}".replace("-", "−")


class Panel:
    """One matrix as a heat-map: a number in every cell, labels, the followed row outlined, a colour bar.

    Cells that are "-inf" in `masked` are grey: the mask hid them, so that they were never in play.
    """

    def __init__(self, title, rows, columns, matrix, followed=None, from_zero=False, masked=None, digits=4):
        self.masked, self.digits = masked or matrix, digits
        self.title, self.rows, self.columns, self.matrix, self.followed = title, rows, columns, matrix, followed
        finite = [value for row in matrix for value in row if value != "-inf"]
        self.low, self.high = (0.0 if from_zero else min(finite)), max(finite)
        self.cell = max([CELL_WIDTH - (4 - digits) * LETTER] + [len(column) * LETTER + 8 for column in columns])
        self.left = max((len(row) for row in rows), default=0) * LETTER + (8 if rows else 0)
        self.width = max(self.left + self.cell * len(matrix[0]), len(title) * LETTER)
        self.height = 44 + CELL_HEIGHT * len(matrix) + 40

    def draw_cell(self, x, y, value, hidden):
        if hidden:
            fill, ink, shown = HIDDEN, FAINT, "−∞" if value == "-inf" else "0"
        else:
            rgb = viridis((value - self.low) / (self.high - self.low) if self.high > self.low else 0.5)
            fill, ink, shown = hex_colour(rgb), ink_on(rgb), number(value, self.digits)
        return [f'<rect x="{x:.1f}" y="{y:.1f}" width="{self.cell - 1:.1f}" height="{CELL_HEIGHT - 1}" fill="{fill}"/>',
                text(x + self.cell / 2, y + 16, shown, "middle", ink, 11)]

    def draw_bar(self, x, y):
        width = min(self.cell * len(self.matrix[0]), 160)
        return [f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="8" fill="url(#viridis)"/>',
                text(x, y + 21, number(self.low, self.digits), fill=FAINT, size=10),
                text(x + width, y + 21, number(self.high, self.digits), "end", FAINT, 10)]

    def draw(self, x, y):
        parts = [text(x, y + 12, self.title, weight="bold")]
        grid_x, grid_y = x + self.left, y + 44
        for j, column in enumerate(self.columns):
            parts.append(text(grid_x + (j + 0.5) * self.cell, grid_y - 7, column, "middle", FAINT, 11))
        for i, row in enumerate(self.matrix):
            row_y = grid_y + i * CELL_HEIGHT
            if self.rows:
                bold = "bold" if i == self.followed else "normal"
                parts.append(text(grid_x - 8, row_y + 16, self.rows[i], "end", weight=bold))
            for j, value in enumerate(row):
                parts += self.draw_cell(grid_x + j * self.cell, row_y, value, self.masked[i][j] == "-inf")
        if self.followed is not None:
            parts.append(f'<rect x="{grid_x - 1.5:.1f}" y="{grid_y + self.followed * CELL_HEIGHT - 1.5:.1f}"'
                         f' width="{self.cell * len(self.matrix[0]) + 2:.1f}" height="{CELL_HEIGHT + 2}" fill="none"'
                         f' stroke="#d1495b" stroke-width="2.5"/>')
        return parts + self.draw_bar(grid_x, grid_y + CELL_HEIGHT * len(self.matrix) + 10)


def page(description, width, height, parts):
    stops = "".join(f'<stop offset="{i / 4}" stop-color="{hex_colour(rgb)}"/>' for i, rgb in enumerate(VIRIDIS))
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
            f' viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace"'
            f' font-size="12">')
    # The paper is part of the picture, so it reads the same on a dark page.
    return "\n".join([head, f"<title>{escape(description)}</title>",
                      f'<defs><linearGradient id="viridis">{stops}</linearGradient></defs>',
                      f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" fill="{PAPER}"'
                      f' stroke="{EDGE}"/>', *parts, "</svg>", ""])


def heat_maps(description, lines, caption):
    """Lines of panels, each line from left to right."""
    parts, y, width = [], MARGIN, len(caption) * LETTER
    for line in lines:
        x = MARGIN
        for panel in line:
            parts += panel.draw(x, y)
            x += panel.width + GAP
        width = max(width, x - GAP - MARGIN)
        y += max(panel.height for panel in line) + 10
    parts.append(text(MARGIN, y + 10, caption, fill=FAINT))
    return page(description, width + 2 * MARGIN, y + 10 + MARGIN, parts)


def matrix(stage, name, head=None):
    """A tensor of the document as rows; of one head where it has several."""
    shape, data = stage["tensors"][name]["shape"], stage["tensors"][name]["data"]
    if len(shape) == 3:
        size = shape[1] * shape[2]
        data = data[head * size:(head + 1) * size]
    return [data[i:i + shape[-1]] for i in range(0, len(data), shape[-1])]


def fan(x, tokens, weights, top, below):
    """Tokens at the bottom, a vector at the top, and between them lines as thick as the weights."""
    step, bottom, height = 76, 210, 66
    middle = x + step * len(tokens) / 2
    parts = []
    for i, (token, weight) in enumerate(zip(tokens, weights)):
        token_x = x + (i + 0.5) * step
        parts.append(f'<line x1="{token_x:.1f}" y1="{bottom - 16}" x2="{middle:.1f}" y2="{height}" stroke="#31688e"'
                     f' stroke-width="{weight * 50:.2f}" stroke-opacity="0.8"/>')
        parts.append(text(token_x, bottom, token, "middle"))
        parts.append(text(token_x, bottom + 18, number(weight), "middle", FAINT, 11))
    parts.append(f'<rect x="{middle - 130:.1f}" y="{height - 24}" width="260" height="28" rx="4" fill="{PAPER}"'
                 f' stroke="{INK}"/>')
    parts.append(text(middle, height - 5, top, "middle"))
    parts.append(text(middle, bottom + 42, below, "middle", weight="bold"))
    return parts


def why_attention(explain):
    stage = explain("--stage", "simple")
    tokens, x = stage["tokens"], matrix(stage, "inputs")
    mean = [sum(column) / len(x) for column in zip(*x)]
    vector = lambda values: " ".join(number(value) for value in values)
    followed = stage["query"]["index"]
    parts = fan(MARGIN, tokens, [1 / len(x)] * len(x), vector(mean), "one fixed vector for everybody")
    parts += fan(MARGIN + 500, tokens, matrix(stage, "weights")[followed], vector(matrix(stage, "context")[followed]),
                 "attention: a vector for the query journey")
    return page("Left: six tokens mixed evenly into one vector. Right: mixed by the weights of the query journey.",
                1000, 280, parts)


def simple(explain):
    stage = explain("--stage", "simple")
    tokens, followed = stage["tokens"], stage["query"]["index"]
    dims = ["1", "2", "3"]
    return heat_maps("Inputs, scores, weights and context of simple self-attention.", [
        [Panel("inputs X [6,3]", tokens, dims, matrix(stage, "inputs"), followed),
         Panel("scores = X Xᵀ [6,6]", tokens, tokens, matrix(stage, "scores"), followed)],
        [Panel("context = weights X [6,3]", tokens, dims, matrix(stage, "context"), followed),
         Panel("weights = softmax(scores) [6,6]", tokens, tokens, matrix(stage, "weights"), followed, True)],
    ], "row = query, column = key; outlined: the query journey")


def trainable(explain):
    stage = explain("--stage", "self", "--init", "uniform")
    tokens, followed = stage["tokens"], stage["query"]["index"]
    dims = ["1", "2"]
    return heat_maps("Queries, keys, values, scaled scores, weights and context of self-attention.", [
        [Panel("queries [6,2]", tokens, dims, matrix(stage, "queries"), followed),
         Panel("keys [6,2]", tokens, dims, matrix(stage, "keys")),
         Panel("values [6,2]", tokens, dims, matrix(stage, "values")),
         Panel("context [6,2]", tokens, dims, matrix(stage, "context"), followed)],
        [Panel("scaled = QKᵀ/√2 [6,6]", tokens, tokens, matrix(stage, "scaled"), followed),
         Panel("weights [6,6]", tokens, tokens, matrix(stage, "weights"), followed, True)],
    ], "raw matrices, seed 123; row = query, column = key; outlined: the query journey")


def causal(explain):
    stage = explain("--stage", "causal", "--train", "--dropout", "0.5")
    tokens, followed = stage["tokens"], stage["query"]["index"]
    masked = matrix(stage, "masked")
    square = lambda title, name, from_zero: Panel(title, tokens, tokens, matrix(stage, name), followed, from_zero,
                                                  masked if from_zero else None)
    return heat_maps("Scaled scores, the same masked, weights, and weights after dropout.", [
        [square("scaled = QKᵀ/√2", "scaled", False), square("masked: −∞ above the diagonal", "masked", False)],
        [square("weights = softmax(masked)", "weights", True),
         square("dropped weights, p = 0.5", "dropped_weights", True)],
    ], "seed 123; row = query, column = key; outlined: the query journey")


def heads(explain):
    stage = explain("--stage", "multi-head")
    tokens, followed = stage["tokens"], stage["query"]["index"]
    return heat_maps("Weights of two heads, their joined context, and the output.", [
        [Panel(f"weights of head {head + 1}", tokens, tokens, matrix(stage, "weights", head), followed, True,
               matrix(stage, "masked", head)) for head in range(2)],
        [Panel("context: heads joined", tokens, ["head 1", "head 2"], matrix(stage, "context"), followed),
         Panel("output = context out_projᵀ + bias", tokens, ["1", "2"], matrix(stage, "output"), followed)],
    ], "seed 123, d_out 2, 2 heads of width 1; row = query, column = key; outlined: the query journey")


def cross(explain):
    stage = explain("--stage", "cross")
    tokens, source, followed = stage["tokens"], stage["source_tokens"], stage["query"]["index"]
    return heat_maps("Weights of two heads of cross-attention: English queries, German keys.", [
        [Panel(f"weights of head {head + 1} [7,8]", tokens, source, matrix(stage, "weights", head), followed, True)]
        for head in range(2)
    ], "seed 123, nothing trained; row = English query, column = German key")


def gpt(explain):
    stage = explain("--model", str(ROOT / "docs/walk/reverse.safetensors"), "badcab>bacda")
    tokens = [label.split("#")[0] for label in stage["tokens"]]
    # Two digits: what they show does not depend on how a machine rounds.
    weights = [[[round(value, 2) for value in row] for row in matrix(stage, "weights", head)] for head in range(2)]
    return heat_maps("Weights of both heads of a model that learned to read backwards.", [
        [Panel(f"weights of head {head + 1}", tokens, tokens, weights[head], tokens.index(">"), True,
               matrix(stage, "masked", head), digits=2) for head in range(2)],
    ], "row = query, column = key; outlined: the query >, which has to say the last letter of the question")


PICTURES = {"00-why-attention.svg": why_attention, "01-simple.svg": simple, "02-trainable.svg": trainable,
            "03-causal-and-dropout.svg": causal, "04-many-heads.svg": heads, "05-cross-attention.svg": cross,
            "06-a-small-gpt.svg": gpt}


def draw_all(program_dir, folder):
    def explain(*options):
        done = subprocess.run([program_dir / "qkv", "explain", *options, "--json"], capture_output=True, check=True)
        return json.loads(done.stdout)["stages"][0]

    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (folder / name).write_text(draw(explain), encoding="utf-8")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--program-dir", type=pathlib.Path, default=ROOT / "build/release/bin")
    arguments.add_argument("--output", type=pathlib.Path, default=ROOT / "docs/walk/images")
    chosen = arguments.parse_args()
    draw_all(chosen.program_dir.resolve(), chosen.output)
