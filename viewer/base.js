// Building nodes and printing numbers. Text enters the page through textContent and text nodes only: tokens are untrusted.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svgElement = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);
const byId = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** A number as a person reads it: four decimals, a real minus sign, infinities as signs, extremes as powers of ten. */
function show(value, digits = 4) {
  if (Number.isNaN(value)) return "nan";
  if (value === Infinity) return "∞";
  if (value === -Infinity) return "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size === 1 || (Number.isInteger(value) && size < 1e4)) return String(value).replace("-", "−");
  const extreme = size >= 1e5 || size < 0.5 * 10 ** -digits;
  return (extreme ? value.toExponential(Math.max(1, digits - 2)) : value.toFixed(size >= 1000 ? 1 : digits))
    .replaceAll("-", "−");
}

/** The same inside a sum or a product, where a negative number needs its brackets. */
const showTerm = (value, digits = 4) => (value < 0 ? `(${show(value, digits)})` : show(value, digits));

/** A vector in brackets; past `most` components only the first ones. */
function showVector(values, most = 4) {
  const shown = Array.from(values.slice(0, most), (value) => show(value));
  if (values.length > most) shown.push("…");
  return `(${shown.join(", ")})`;
}

/** The shortest decimal that reads back as the same float32, for files. */
function exactFloat32(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  for (let digits = 1; digits < 9; digits += 1) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return String(Number(text));
  }
  return String(Number(value.toPrecision(9)));
}

/** A formula as nodes: "W_q" with its q set below the line. */
function formula(text) {
  return text.split(/_(\w)/).map((part, at) => (at % 2 === 1 ? element("sub", { text: part }) : part));
}

const showShape = (shape) => `[${shape.join(", ")}]`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

/** A token that can be seen: white space and control characters by their signs, nothing at all by a word. */
function visible(token) {
  if (token === "") return "(empty)";
  const signs = token.replace(/[\u0000-\u001f]/g, (letter) => String.fromCharCode(0x2400 + letter.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u2028\u2029\ufffe\uffff]/g, "\ufffd");
  return /^\s+$/.test(signs) ? "␣".repeat(signs.length) : signs;
}

/** Inside a sentence, a token that runs right to left keeps its direction to itself. */
const isolated = (token) => (/[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufb1d-\ufefc]/.test(token) ? `\u2068${token}\u2069` : token);

/** Cuts a long token for a place that is small; the whole token stays in titles and texts. */
function shorten(token, most = 14) {
  const letters = Array.from(token);
  return letters.length <= most ? token : `${letters.slice(0, most - 1).join("")}…`;
}

function saveFile(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
