// Two maps that people with any kind of colour vision can read: viridis for what is never negative (weights), blue to
// orange around zero for what is signed. Both as short tables, straight lines between them.

const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151",
  "#bddf26", "#fde725"].map(parseColour);
const DIVERGING = {
  light: ["#0b4a8f", "#3d85c6", "#a3c9ea", "#f7f6f3", "#f9c893", "#e08427", "#8f4300"].map(parseColour),
  dark: ["#8cc4ff", "#3f7fc4", "#2b4a70", "#242a35", "#6b4a26", "#c47a2c", "#ffb866"].map(parseColour),
};

function parseColour(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function interpolate(table, position) {
  const at = clamp(position, 0, 1) * (table.length - 1);
  const low = Math.min(Math.floor(at), table.length - 2);
  return table[low].map((part, channel) => Math.round(part + (table[low + 1][channel] - part) * (at - low)));
}

const CLIP = { cells: 1024, share: 0.995 };
const scales = new WeakMap();

/** Where the map of a large matrix of weights ends: a few rows with one weight near 1 must not darken all others. */
function weightsTop(matrix, high) {
  if (matrix.data.length <= CLIP.cells) return high;
  const positive = matrix.data.filter((value) => value > 0).sort();
  return positive.length > 0 ? positive[Math.floor((positive.length - 1) * CLIP.share)] : high;
}

/**
 * What colours a view: its range, the map, and [r, g, b] of a finite value. `clipped` says that larger values share the
 * last colour. `scheme` is "light" or "dark".
 */
function colourScale(view, scheme) {
  const known = scales.get(view.matrix);
  if (known?.scheme === scheme && known.isWeights === view.isWeights) return known.scale;
  const scale = newScale(view, scheme);
  scales.set(view.matrix, { scheme, isWeights: view.isWeights, scale });
  return scale;
}

function newScale(view, scheme) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of view.matrix.data) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) [low, high] = [0, 0];
  if (view.isWeights && low >= 0) {
    const top = weightsTop(view.matrix, high > 0 ? high : 1);
    return { low: 0, high: top, clipped: top < high, colour: (value) => interpolate(VIRIDIS, value / top) };
  }
  const size = Math.max(Math.abs(low), Math.abs(high)) || 1;
  return { low: -size, high: size, clipped: false, colour: (value) => interpolate(DIVERGING[scheme], (value / size + 1) / 2) };
}

/** Black or white, whichever reads better on the colour (relative luminance of WCAG). */
function inkOn([r, g, b]) {
  const linear = (part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) > 0.19 ? "#10131a" : "#ffffff";
}

const cssColour = (parts) => `rgb(${parts.join(",")})`;
