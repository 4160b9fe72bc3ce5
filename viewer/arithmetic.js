// The arithmetic of the chosen cell, line by line, in the order in which it happens.

const TERMS_INLINE = 3;
const LINES_MOST = 8;

const line = (step, what, how, value, extra = {}) => ({ step, what, how, value, ...extra });

/** a·b spelled out: the first terms, and how many more there are. */
function productTerms(left, right) {
  const shown = Math.min(left.length, TERMS_INLINE);
  const terms = Array.from({ length: shown }, (_, i) => `${showTerm(left[i])} × ${showTerm(right[i])}`);
  if (left.length > shown) terms.push(`… ${left.length - shown} more`);
  return terms.join(" + ");
}

/** Everything about one cell of the pairwise matrices; the numbers behind its lines. */
function pairNumbers(stage, numbers, head, query, key) {
  const computed = numbers.head(head);
  const row = normaliseRow(computed.masked.row(query), numbers.options.normalise);
  return {
    q: computed.queries.row(query), k: computed.keys.row(key), v: computed.values.row(key), row,
    product: computed.products.at(query, key), score: computed.scores.at(query, key),
    scaled: computed.scaled.at(query, key), masked: computed.masked.at(query, key),
    weight: computed.weights.at(query, key), dropped: computed.dropped_weights.at(query, key),
    droppedRow: computed.dropped_weights.row(query), context: computed.context.row(query),
  };
}

function pairLines(stage, numbers, steps, stepId, query, key, pair) {
  const { options } = numbers;
  const has = (id) => steps.some((step) => step.id === id && !step.off);
  const lines = [line("scores", stage.kind === "simple" ? "x · x" : "q · k", productTerms(pair.q, pair.k), show(pair.product),
    { terms: [pair.q, pair.k] })];
  if (options.factor !== 1) lines.push(line("scores", "× factor", `${show(pair.product)} × ${show(options.factor)}`, show(pair.score)));
  if (has("scaled")) lines.push(line("scaled", `÷ √${stage.headDim}`, `${show(pair.score)} ÷ ${show(1 / stage.scale)}`, show(pair.scaled)));
  if (has("masked")) {
    const hidden = pair.masked === -Infinity;
    const reason = stage.isCross ? (hidden ? "padding: hidden" : "a real token: stays")
      : hidden ? `key ${key + 1} comes after query ${query + 1}: hidden` : `key ${key + 1} is not after query ${query + 1}: stays`;
    lines.push(line("masked", "mask", reason, show(pair.masked)));
  }
  lines.push(...normaliseLines(options.normalise, pair, key));
  if (has("dropped") && (stage.training || options.dropped.size > 0)) {
    const factor = keepFactor(stage);
    const kept = factor === 1 ? "kept" : `kept: ${show(pair.weight)} × 1/(1 − ${stage.dropout})`;
    lines.push(line("dropped", "dropout", pair.dropped === 0 && pair.weight !== 0 ? "dropped" : kept, show(pair.dropped)));
    if (stepId === "dropped") lines.push(line("dropped", "row now sums to", "nothing is normalised again", show(pair.droppedRow.reduce((a, b) => a + b, 0))));
  }
  const share = pair.v.map((value) => value * pair.dropped);
  lines.push(line("context", `weight × ${stage.kind === "simple" ? "x" : "value"}`,
    `${show(pair.dropped)} × ${showVector(pair.v, 3)}`, showVector(share, 3), { wide: true }));
  lines.push(line("context", "context", `the sum over ${plural(pair.row.parts.length, "key")}`, showVector(pair.context, 3), { wide: true }));
  return lines;
}

function normaliseLines(kind, pair, key) {
  const { parts, sum, max } = pair.row;
  const listed = Array.from(parts.slice(0, 6), (part) => showTerm(part, 3));
  if (parts.length > 6) listed.push(`… ${parts.length - 6} more`);
  const lines = [];
  if (kind === "naive") lines.push(line("weights", "exp", `exp(${show(pair.masked)})`, show(parts[key])));
  if (kind === "softmax") lines.push(line("weights", "exp(s − max)", `exp(${show(pair.masked)} − ${showTerm(max)})`, show(parts[key])));
  lines.push(line("weights", "row’s sum", listed.join(" + "), show(sum)));
  lines.push(line("weights", "weight", `${show(parts[key])} ÷ ${showTerm(sum)}`, show(pair.weight)));
  return lines;
}

/** A sum of products spelled out line by line: the largest terms, the rest added up. */
function sumLines(step, names, left, right, bias, total, words) {
  const order = Array.from(left, (_, i) => i);
  const products = order.map((i) => left[i] * right[i]);
  const most = bias === null ? LINES_MOST : LINES_MOST - 1;
  let chosen = order;
  if (order.length > most) {
    chosen = [...order].sort((a, b) => Math.abs(products[b]) - Math.abs(products[a])).slice(0, most - 1).sort((a, b) => a - b);
  }
  const lines = chosen.map((i) => line(step, names(i), `${show(left[i])} × ${showTerm(right[i])}`, show(products[i])));
  if (chosen.length < order.length) {
    const rest = order.filter((i) => !chosen.includes(i)).reduce((sum, i) => sum + products[i], 0);
    lines.push(line(step, `${order.length - chosen.length} more`, "the smaller terms together", show(rest)));
  }
  if (bias !== null) lines.push(line(step, "bias", "added once", show(bias)));
  lines.push(line(step, "sum", words, show(total), { total: true }));
  return lines;
}

const column = (matrix, col) => Float32Array.from({ length: matrix.rows }, (_, i) => matrix.at(i, col));

/** The lines for a cell of any step's matrix. */
function arithmeticLines(place) {
  const { stage, numbers, steps, stepId, head, row, col, query, key, view } = place;
  if (PAIRWISE.includes(stepId)) return pairLines(stage, numbers, steps, stepId, query, key, place.pair);
  const value = view.matrix.at(row, col);
  const component = (i) => `component ${i + 1}`;
  const roles = { queries: "query", keys: "key", values: "value" };
  if (stepId in roles) {
    const weight = parameter(stage, `W_${roles[stepId]}`, head);
    const from = stepId === "queries" ? stage.inputs : stage.source;
    if (!weight) return [line(stepId, "given", "carried by the document", show(value), { total: true })];
    const bias = parameterBias(stage, `W_${roles[stepId]}`, head);
    return sumLines(stepId, component, from.row(row), column(weight, col), bias ? bias[col] : null, value,
      `${stepId !== "queries" && stage.isCross ? "source" : "x"} · column ${col + 1} of W_${roles[stepId][0]}`);
  }
  if (stepId === "context") {
    const computed = numbers.head(head);
    return sumLines(stepId, (i) => stage.keyTokens[i], computed.dropped_weights.row(row), column(computed.values, col), null,
      value, `weight × component ${col + 1} of each value`);
  }
  if (stepId === "output") {
    const weight = stage.headMatrix("out_proj.weight", 0);
    const bias = stage.tensor("out_proj.bias");
    return sumLines(stepId, component, numbers.joined().joined.row(row), weight.row(col), bias ? bias.data[col] : null, value,
      `the joined context · row ${col + 1} of W_o`);
  }
  if (stepId === "heads") {
    const from = Math.floor(col / stage.headDim);
    return [line(stepId, `head ${from + 1}`, `component ${col % stage.headDim + 1} of its context`, show(value), { total: true })];
  }
  const origin = { x: "the token’s embedding", source: "the source token’s embedding" }[stepId] ??
    `a trained parameter: how much input ${row + 1} gives to component ${col + 1}`;
  return [line(stepId, "given", origin, show(value), { total: true })];
}

/** Shows the lines; `openTerms` says whether every term of the dot product is listed, `onTerms` is told when that changes. */
function showArithmetic(container, lines, stepId, openTerms, onTerms) {
  const rows = lines.map((entry) => element("div", {
    class: `sum-line${entry.step === stepId && PAIRWISE.includes(stepId) ? " now" : ""}${entry.total ? " total" : ""}`,
  }, element("dt", { text: entry.what }),
  element("dd", { class: "how", title: entry.how }, ...(entry.total ? formula(entry.how) : [entry.how])),
  element("dd", { class: `value${entry.wide ? " wide" : ""}`, text: entry.value })));
  container.replaceChildren(element("dl", {}, ...rows));
  const terms = lines.find((entry) => entry.terms)?.terms;
  if (terms && terms[0].length > TERMS_INLINE) container.append(allTerms(terms, openTerms, onTerms));
}

function allTerms([q, k], open, onTerms) {
  const body = element("tbody");
  const details = element("details", { open, ontoggle: () => { onTerms(details.open); fillTerms(); } },
    element("summary", { text: `All ${q.length} terms of q · k` }),
    element("table", { class: "terms" },
      element("thead", {}, element("tr", {}, ...["component", "q", "k", "q × k"].map((name) => element("th", { scope: "col", text: name })))),
      body));
  function fillTerms() {
    if (!details.open || body.childElementCount > 0) return;
    q.forEach((value, i) => body.append(element("tr", {}, element("th", { scope: "row", text: i + 1 }),
      ...[value, k[i], value * k[i]].map((number) => element("td", { text: show(number) })))));
  }
  fillTerms();
  return details;
}
