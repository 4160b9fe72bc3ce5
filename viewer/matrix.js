// The heat-map. Two canvases lie over each other: `colours` holds nothing but the colours of the cells, `ink` the numbers,
// labels and outlines. A matrix that does not fit is shown as a window of it, beside a small map of the whole.

const CELL = { maxWidth: 116, maxHeight: 46, minWidth: 13, minHeight: 10, windowWidth: 58, windowHeight: 26 };
const MAP_SIZE = 190;

/** Where cells lie: the window [row, row + rows) × [col, col + cols), the size of a cell and of the labels, in CSS pixels. */
function layoutMatrix(view, place, size, measure) {
  const { rows, cols } = view.matrix;
  const longest = (labels) => labels.slice(0, 600).reduce((most, label) => Math.max(most, measure(shorten(label))), 0);
  const labelWidth = Math.min(longest(view.rowLabels) + 26, 128);
  const width = size.width - labelWidth - 2;
  const sideways = longest(view.colLabels) > width / cols - 6 && width / cols < 40;
  const labelHeight = sideways ? Math.min(longest(view.colLabels) + 10, 84) : 24;
  const height = size.height - labelHeight - 2;
  const whole = width / cols >= CELL.minWidth && height / rows >= CELL.minHeight;
  if (whole) {
    return { row: 0, col: 0, rows, cols, whole, sideways, labelWidth, labelHeight,
      cellWidth: Math.floor(Math.min(width / cols, CELL.maxWidth)), cellHeight: Math.floor(Math.min(height / rows, CELL.maxHeight)) };
  }
  const inner = width - MAP_SIZE - 20;
  const across = clamp(Math.floor(inner / CELL.windowWidth), 1, cols);
  const down = clamp(Math.floor((size.height - 26) / CELL.windowHeight), 1, rows);
  const around = (index, count, all) => clamp(index - Math.floor(count / 2), 0, all - count);
  return { row: around(place.row, down, rows), col: around(place.col, across, cols), rows: down, cols: across, whole,
    sideways: false, labelWidth, labelHeight: 24, cellWidth: Math.floor(Math.min(inner / across, CELL.maxWidth)),
    cellHeight: CELL.windowHeight };
}

function prepareCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  return pen;
}

/** The heat-map of one view. `onMove(row, col)` is called when the pointer chooses a cell. */
class MatrixPicture {
  constructor(root, onMove) {
    this.root = root;
    this.colours = root.querySelector(".colours");
    this.ink = root.querySelector(".ink");
    this.map = root.querySelector(".map");
    this.frame = root.querySelector(".frame");
    this.mapBox = root.querySelector(".map-box");
    const choose = (event) => {
      const at = this.cellUnder(event);
      if (at) onMove(...at);
    };
    this.ink.addEventListener("pointerdown", choose);
    this.ink.addEventListener("pointermove", (event) => event.buttons === 1 && choose(event));
    this.map.addEventListener("pointerdown", (event) => {
      const box = this.map.getBoundingClientRect();
      const { rows, cols } = this.view.matrix;
      onMove(clamp(Math.floor((event.clientY - box.top) / box.height * rows), 0, rows - 1),
        clamp(Math.floor((event.clientX - box.left) / box.width * cols), 0, cols - 1));
    });
  }

  cellUnder(event) {
    const box = this.ink.getBoundingClientRect();
    const { layout } = this;
    const row = Math.floor((event.clientY - box.top - layout.labelHeight) / layout.cellHeight);
    const col = Math.floor((event.clientX - box.left - layout.labelWidth) / layout.cellWidth);
    if (row < 0 || col < 0 || row >= layout.rows || col >= layout.cols) return null;
    return [layout.row + row, layout.col + col];
  }

  /** The cell's rectangle on the canvases in CSS pixels; null where it is outside the window. */
  cellBox(row, col) {
    const { layout } = this;
    const [i, j] = [row - layout.row, col - layout.col];
    if (i < 0 || j < 0 || i >= layout.rows || j >= layout.cols) return null;
    return { x: layout.labelWidth + j * layout.cellWidth, y: layout.labelHeight + i * layout.cellHeight,
      w: layout.cellWidth, h: layout.cellHeight };
  }

  draw(view, place, size, scheme) {
    const style = getComputedStyle(this.root);
    this.theme = { text: style.getPropertyValue("--ink").trim(), muted: style.getPropertyValue("--muted").trim(),
      hatch: style.getPropertyValue("--hatch").trim(), hole: style.getPropertyValue("--hole").trim(),
      panel: style.getPropertyValue("--panel").trim(), query: style.getPropertyValue("--query").trim(),
      key: style.getPropertyValue("--key").trim(), family: style.fontFamily };
    this.view = view;
    this.scale = colourScale(view, scheme);
    const pen = this.ink.getContext("2d");
    pen.font = this.font(13);
    this.layout = layoutMatrix(view, place, size, (text) => pen.measureText(text).width);
    const width = this.layout.labelWidth + this.layout.cols * this.layout.cellWidth + 2;
    const height = this.layout.labelHeight + this.layout.rows * this.layout.cellHeight + 2;
    this.drawColours(prepareCanvas(this.colours, width, height));
    this.drawInk(prepareCanvas(this.ink, width, height), place);
    this.drawMap(view);
  }

  font(size, weight = 400) { return `${weight} ${size}px ${this.theme.family}`; }

  drawColours(pen) {
    const { layout, view, scale } = this;
    for (let i = 0; i < layout.rows; i += 1) {
      for (let j = 0; j < layout.cols; j += 1) {
        const value = view.matrix.at(layout.row + i, layout.col + j);
        const box = this.cellBox(layout.row + i, layout.col + j);
        const hasColour = Number.isFinite(value) && !view.isHidden(layout.row + i, layout.col + j);
        pen.fillStyle = hasColour ? cssColour(scale.colour(value)) : this.theme.hole;
        const gap = layout.cellHeight > 18 ? 1 : 0;
        pen.fillRect(box.x, box.y, box.w - gap, box.h - gap);
        if (!hasColour) this.hatch(pen, box, gap);
      }
    }
  }

  /** What is masked or no number has no colour: stripes. */
  hatch(pen, box, gap) {
    pen.save();
    pen.beginPath();
    pen.rect(box.x, box.y, box.w - gap, box.h - gap);
    pen.clip();
    pen.strokeStyle = this.theme.hatch;
    pen.lineWidth = 1;
    pen.beginPath();
    for (let x = -box.h; x < box.w; x += 7) {
      pen.moveTo(box.x + x, box.y + box.h);
      pen.lineTo(box.x + x + box.h, box.y);
    }
    pen.stroke();
    pen.restore();
  }

  drawInk(pen, place) {
    const { layout, view } = this;
    pen.textBaseline = "middle";
    this.drawLabels(pen, place);
    const digits = layout.cellWidth >= 60 ? 4 : layout.cellWidth >= 46 ? 3 : 2;
    if (layout.cellWidth >= 38 && layout.cellHeight >= 15) {
      pen.textAlign = "center";
      for (let i = layout.row; i < layout.row + layout.rows; i += 1) {
        for (let j = layout.col; j < layout.col + layout.cols; j += 1) {
          const value = view.matrix.at(i, j);
          const box = this.cellBox(i, j);
          const hasColour = Number.isFinite(value) && !view.isHidden(i, j);
          pen.font = this.font(layout.cellHeight >= 34 ? 13.5 : 12, i === place.row && j === place.col ? 700 : 400);
          pen.fillStyle = hasColour ? inkOn(this.scale.colour(value)) : this.theme.muted;
          pen.fillText(show(value, digits), box.x + box.w / 2, box.y + box.h / 2 + 0.5, box.w - 4);
        }
      }
    }
    this.outline(pen, place);
  }

  drawLabels(pen, place) {
    const { layout, view } = this;
    const accent = { query: this.theme.query, key: this.theme.key };
    pen.textAlign = "right";
    for (let i = layout.row; i < layout.row + layout.rows; i += 1) {
      const here = i === place.row;
      const y = layout.labelHeight + (i - layout.row + 0.5) * layout.cellHeight;
      pen.font = this.font(Math.min(13, layout.cellHeight), here ? 700 : 400);
      pen.fillStyle = here ? accent[view.rowAxis] ?? this.theme.text : this.theme.muted;
      pen.fillText(`${here ? "▸ " : ""}${shorten(view.rowLabels[i])}`, layout.labelWidth - 8, y, layout.labelWidth - 8);
    }
    for (let j = layout.col; j < layout.col + layout.cols; j += 1) {
      const here = j === place.col;
      const x = layout.labelWidth + (j - layout.col + 0.5) * layout.cellWidth;
      pen.font = this.font(Math.min(13, layout.cellWidth), here ? 700 : 400);
      pen.fillStyle = here ? accent[view.colAxis] ?? this.theme.text : this.theme.muted;
      pen.save();
      pen.translate(x, layout.labelHeight - (layout.sideways ? 6 : 11));
      if (layout.sideways) pen.rotate(-Math.PI / 2);
      pen.textAlign = layout.sideways ? "left" : "center";
      pen.fillText(shorten(view.colLabels[j]), 0, 0, layout.sideways ? layout.labelHeight - 8 : layout.cellWidth - 6);
      pen.restore();
    }
  }

  /** The chosen row in the query's (or key's) colour, the chosen cell inside it, each over a pale halo. */
  outline(pen, place) {
    const { layout } = this;
    const first = this.cellBox(place.row, layout.col);
    const cell = this.cellBox(place.row, place.col);
    if (!first || !cell) return;
    const line = (box, colour, width) => {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.roundRect(box.x - 0.5, box.y - 0.5, box.w, box.h, 3);
      pen.stroke();
    };
    const row = { ...first, w: layout.cols * layout.cellWidth };
    const colour = this.view.rowAxis === "key" ? this.theme.key : this.theme.query;
    line(row, this.theme.panel, 5);
    line(row, colour, 2.5);
    line(cell, this.theme.panel, 6);
    line(cell, this.theme.text, 3);
  }

  drawMap(view) {
    const { layout, scale } = this;
    this.mapBox.hidden = layout.whole;
    if (layout.whole) return;
    const { rows, cols } = view.matrix;
    const factor = MAP_SIZE / Math.max(rows, cols);
    const [width, height] = [Math.max(8, cols * factor), Math.max(8, rows * factor)];
    this.map.style.width = `${width}px`;
    this.map.style.height = `${height}px`;
    if (this.mapped !== scale) {  // a scale belongs to one matrix in one scheme
      this.mapped = scale;
      paintCells(this.map, view, scale, parseColour(this.theme.hole));
    }
    const { style } = this.frame;
    style.left = `${layout.col / cols * width}px`;
    style.top = `${layout.row / rows * height}px`;
    style.width = `${layout.cols / cols * width}px`;
    style.height = `${layout.rows / rows * height}px`;
  }
}

/** The whole matrix, one pixel a cell. */
function paintCells(canvas, view, scale, hole) {
  const { rows, cols, data } = view.matrix;
  canvas.width = cols;
  canvas.height = rows;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(cols, rows);
  for (let i = 0; i < rows; i += 1) {
    for (let j = 0; j < cols; j += 1) {
      const value = data[i * cols + j];
      const [r, g, b] = !Number.isFinite(value) || view.isHidden(i, j) ? hole : scale.colour(value);
      const at = (i * cols + j) * 4;
      image.data[at] = r;
      image.data[at + 1] = g;
      image.data[at + 2] = b;
      image.data[at + 3] = 255;
    }
  }
  pen.putImageData(image, 0, 0);
}

/** The colour bar as a canvas, from the low end to the high end. */
function drawColourBar(canvas, scale) {
  canvas.width = 160;
  canvas.height = 1;
  const pen = canvas.getContext("2d");
  for (let x = 0; x < 160; x += 1) {
    pen.fillStyle = cssColour(scale.colour(scale.low + (scale.high - scale.low) * x / 159));
    pen.fillRect(x, 0, 1, 1);
  }
}
