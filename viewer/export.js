// The current matrix for elsewhere: a table in the page, CSV, and SVG.

const TABLE_MOST = { rows: 64, cols: 32 };
const SVG_CELLS_MOST = 4096;

/** A real table in place of the picture. A large matrix shows the part around the chosen cell and says so. */
function buildTable(view, place) {
  const { rows, cols } = view.matrix;
  const part = (index, most, all) => {
    const count = Math.min(most, all);
    const start = clamp(index - Math.floor(count / 2), 0, all - count);
    return Array.from({ length: count }, (_, i) => start + i);
  };
  const shownRows = part(place.row, TABLE_MOST.rows, rows);
  const shownCols = part(place.col, TABLE_MOST.cols, cols);
  const cut = shownRows.length < rows || shownCols.length < cols
    ? ` Rows ${shownRows[0] + 1}–${shownRows.at(-1) + 1} of ${rows}, columns ${shownCols[0] + 1}–${shownCols.at(-1) + 1} of ${cols}.` : "";
  const head = element("tr", {}, element("td"),
    ...shownCols.map((col) => element("th", { scope: "col", dir: "auto", class: col === place.col ? "here" : null, text: view.colLabels[col] })));
  const body = shownRows.map((row) => element("tr", { class: row === place.row ? "here" : null },
    element("th", { scope: "row", dir: "auto", text: view.rowLabels[row] }),
    ...shownCols.map((col) => element("td", { class: row === place.row && col === place.col ? "cell" : null, text: show(view.matrix.at(row, col)) }))));
  return element("table", {}, element("caption", { class: cut ? null : "visually-hidden", text: `${view.formula}. ${view.words}${cut}` }),
    element("thead", {}, head), element("tbody", {}, ...body));
}

/** RFC 4180. A label that a spreadsheet would take for a formula gets an apostrophe in front. */
function csvField(text) {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function matrixCsv(view) {
  const lines = [["", ...view.colLabels].map(csvField).join(",")];
  for (let i = 0; i < view.matrix.rows; i += 1) {
    lines.push([csvField(view.rowLabels[i]), ...Array.from(view.matrix.row(i), exactFloat32)].join(","));
  }
  return `${lines.join("\r\n")}\r\n`;
}

/** XML has no place for most control characters. */
const xmlText = (text) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd").toWellFormed();

/** The whole matrix as SVG text: cells and numbers, or one picture where there are too many cells. */
function matrixSvg(view, place, scheme, title) {
  const { rows, cols } = view.matrix;
  const small = rows * cols <= SVG_CELLS_MOST;
  const cell = small ? { w: cols > 24 ? 20 : 64, h: rows > 24 ? 20 : 36 } : { w: 1, h: 1 };
  const [left, top] = [small ? 120 : 16, small ? (cell.w < 60 ? 110 : 64) : 40];
  const scale = colourScale(view, scheme);
  const [width, height] = [left + cols * cell.w + 16, top + rows * cell.h + 40];
  const paper = scheme === "dark" ? { back: "#161b24", ink: "#e8ebf2", hole: "#2b313d" } : { back: "#ffffff", ink: "#1b2027", hole: "#e6e4de" };
  const text = (x, y, content, extra = {}) => svgElement("text", { x, y, fill: paper.ink, ...extra, text: xmlText(content) });
  const svg = svgElement("svg", { xmlns: SVG_NAMESPACE, viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "font-family": "sans-serif", "font-size": 12 },
  svgElement("title", { text: xmlText(title) }), svgElement("rect", { width, height, fill: paper.back }),
  text(16, 24, title, { "font-size": 14, "font-weight": 600 }), text(16, height - 14, view.words));
  if (small) svg.append(...svgCells(view, place, scale, cell, left, top, paper, text));
  else svg.append(svgImage(view, scale, left, top, paper));
  return new XMLSerializer().serializeToString(svg);
}

function svgCells(view, place, scale, cell, left, top, paper, text) {
  const { rows, cols } = view.matrix;
  const parts = [];
  for (let i = 0; i < rows; i += 1) {
    parts.push(text(left - 8, top + (i + 0.5) * cell.h + 4, shorten(view.rowLabels[i]), { "text-anchor": "end" }));
    for (let j = 0; j < cols; j += 1) {
      const value = view.matrix.at(i, j);
      const hasColour = Number.isFinite(value) && !view.isHidden(i, j);
      const colour = hasColour ? scale.colour(value) : parseColour(paper.hole);
      const [x, y] = [left + j * cell.w, top + i * cell.h];
      parts.push(svgElement("rect", { x, y, width: cell.w - 1, height: cell.h - 1, fill: cssColour(colour) }));
      if (cell.w >= 60) parts.push(text(x + cell.w / 2, y + cell.h / 2 + 4, show(value), { fill: hasColour ? inkOn(colour) : paper.ink, "text-anchor": "middle" }));
    }
  }
  for (let j = 0; j < cols; j += 1) {
    const [x, y] = [left + (j + 0.5) * cell.w, top - 8];
    const turned = cell.w < 60 ? { transform: `rotate(-90 ${x} ${y})`, "text-anchor": "start" } : { "text-anchor": "middle" };
    parts.push(text(x, y, shorten(view.colLabels[j], cell.w < 60 ? 14 : 9), turned));
  }
  parts.push(svgElement("rect", { x: left - 1, y: top + place.row * cell.h - 1, width: cols * cell.w + 1, height: cell.h + 1,
    fill: "none", stroke: paper.ink, "stroke-width": 2 }));
  return parts;
}

function svgImage(view, scale, x, y, paper) {
  const canvas = element("canvas");
  paintCells(canvas, view, scale, parseColour(paper.hole));
  return svgElement("image", { x, y, width: canvas.width, height: canvas.height, href: canvas.toDataURL() });
}
