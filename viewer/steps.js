// The steps of a stage, where each stands in the flow, and the matrix it shows.

/** Column and row of a step in the flow picture; rows are query, key, value from the top, fractions lie between. */
const PLACES = {
  x: [0, 1], source: [0, 1.5], wq: [1, 0], wk: [1, 1], wv: [1, 2], queries: [2, 0], keys: [2, 1], values: [2, 2],
  scores: [3, 0.5], scaled: [4, 0.5], masked: [5, 0.5], weights: [6, 0.5], dropped: [7, 0.5],
  context: [8, 1.25], heads: [9, 1.25], output: [10, 1.25],
};

/** What a step computes, as a formula. */
const FORMULAS = {
  x: "x", source: "source", wq: "W_q", wk: "W_k", wv: "W_v", queries: "Q = x · W_q", keys: "K = x · W_k",
  values: "V = x · W_v", scores: "scores = Q · Kᵀ", scaled: "scaled = scores ÷ √d", masked: "masked = scaled, or −∞",
  weights: "weights = softmax of each row", dropped: "dropout(weights)", context: "context = weights · V",
  heads: "context of all heads, side by side", output: "output = context · W_o + b",
};

const LABELS = {
  x: "x", source: "source", wq: "W_q", wk: "W_k", wv: "W_v", queries: "Q", keys: "K", values: "V", scores: "QKᵀ",
  scaled: "÷ √d", masked: "mask", weights: "softmax", dropped: "dropout", context: "· V", heads: "heads", output: "output",
};

const WEIGHT_FORMULAS = { softmax: FORMULAS.weights, naive: "weights = exp ÷ row’s sum of exp", sum: "weights = scores ÷ row’s sum" };
const PARAMETER_OF = { wq: "W_query", wk: "W_key", wv: "W_value" };
const PAIRWISE = ["scores", "scaled", "masked", "weights", "dropped"];

/** The steps of this stage under these options, in order. `off` marks a step that the reader took out. */
function stepsOf(stage, options) {
  const program = programOptions(stage);
  const steps = [];
  const add = (id, shape, extra = {}) => {
    const label = extra.label ?? LABELS[id];
    steps.push({ id, label, shape, column: PLACES[id][0], row: PLACES[id][1], off: false, ...extra, label });
  };
  const [queries, keys, headDim] = [stage.tokens.length, stage.keyTokens.length, stage.headDim];
  const hasWeights = stage.tensor("W_query") !== null;
  const simple = stage.kind === "simple";

  add("x", [queries, stage.dIn], stage.isCross ? { row: 0 } : {});
  if (stage.isCross) add("source", [keys, stage.source.cols]);
  if (hasWeights) {
    for (const [id, name] of Object.entries(PARAMETER_OF)) add(id, [parameter(stage, name, 0).rows, headDim]);
  }
  if (!simple) {
    add("queries", [queries, headDim]);
    add("keys", [keys, headDim]);
    add("values", [keys, headDim]);
  }
  add("scores", [queries, keys], simple ? { label: "x · xᵀ" } : {});
  if (program.scale || options.scale) {
    add("scaled", [queries, keys], { label: `÷ √${stage.headDim}`, off: !options.scale });
  }
  if (program.mask || options.mask) add("masked", [queries, keys], { off: !options.mask });
  const normaliser = { sum: "÷ sum", naive: "naive", softmax: "softmax" }[options.normalise];
  add("weights", [queries, keys], { label: normaliser });
  if (stage.dropout > 0 || stage.training || options.dropped.size > 0) {
    add("dropped", [queries, keys], { idle: !stage.training && options.dropped.size === 0 });
  }
  add("context", [queries, headDim], simple ? { label: "· x" } : {});
  if (stage.heads > 1) add("heads", [queries, headDim * stage.heads]);
  if (stage.tensor("out_proj.weight")) add("output", [queries, stage.tensor("out_proj.weight").shape[0]]);
  return steps;
}

/** What the arrows connect: pairs of step ids, over steps that this stage lacks. */
function arrowsOf(steps) {
  const has = (id) => steps.some((step) => step.id === id);
  const arrows = [];
  const source = has("source") ? "source" : "x";
  const lines = { queries: ["x", "wq"], keys: [source, "wk"], values: [source, "wv"] };
  for (const [id, [from, weight]] of Object.entries(lines)) {
    const end = has(id) ? id : id === "values" ? "context" : "scores";
    if (has(weight)) arrows.push([from, weight, id], [weight, end, id]);
    else arrows.push([from, end, id]);
    if (has(id)) arrows.push([id, id === "values" ? "context" : "scores", id]);
  }
  const chain = ["scores", "scaled", "masked", "weights", "dropped", "context", "heads", "output"].filter(has);
  for (let i = 1; i < chain.length; i += 1) arrows.push([chain[i - 1], chain[i], "chain"]);
  return arrows;
}

const featureNames = (count, prefix) => Array.from({ length: count }, (_, i) => `${prefix}${i + 1}`);

/**
 * The matrix of a step with what is needed to show it: labels and, for each axis, which part of the state it moves
 * ("query", "key", "feature", "inner").
 */
function viewOf(stage, stepId, head, numbers) {
  const never = () => false;
  const axes = (rowAxis, colAxis, rowLabels, colLabels, words) => ({ rowAxis, colAxis, rowLabels, colLabels, words });
  const byQuery = (cols, words) => axes("query", "feature", stage.tokens, featureNames(cols, ""), words);
  const byKey = (cols, words) => axes("key", "feature", stage.keyTokens, featureNames(cols, ""), words);
  const make = (matrix, labels) => ({ stepId, matrix, isWeights: false, isHidden: never, ofHead: true, formula: FORMULAS[stepId], ...labels });
  const computed = () => numbers.head(head);

  if (PAIRWISE.includes(stepId)) {
    const matrix = { dropped: computed().dropped_weights }[stepId] ?? computed()[stepId];
    const isWeights = stepId === "weights" || stepId === "dropped";
    const { normalise } = numbers.options;
    const sums = stepId === "weights" && normalise === "softmax" ? " Each row sums to 1." : "";
    const labels = axes("query", "key", stage.tokens, stage.keyTokens, `Row = query, column = key.${sums}`);
    const { masked } = computed();
    // A masked key's weight is no small weight: it is shown as hidden.
    const isHidden = isWeights ? (row, col) => masked.at(row, col) === -Infinity && matrix.at(row, col) === 0 : never;
    const name = stepId === "weights" ? WEIGHT_FORMULAS[normalise] : FORMULAS[stepId];
    return { ...make(matrix, labels), isWeights, isHidden, formula: name };
  }
  if (stepId in PARAMETER_OF) {
    const matrix = parameter(stage, PARAMETER_OF[stepId], head);
    const stored = stage.kind === "self" && stage.init === "uniform" ? "" : " nn.Linear stores it transposed.";
    return make(matrix, axes("inner", "feature", featureNames(matrix.rows, "in "), featureNames(matrix.cols, "out "),
      `Row = component of the input, column = component made of it.${stored}`));
  }
  const whole = (labels) => ({ ...labels, ofHead: false });
  const components = "column = component.";
  switch (stepId) {
    case "x": return make(stage.inputs, whole(byQuery(stage.dIn, `Row = token, ${components}`)));
    case "source": return make(stage.source, whole(byKey(stage.source.cols, `Row = token of the source, ${components}`)));
    case "queries": return make(computed().queries, byQuery(computed().queries.cols, `Row = query, ${components}`));
    case "keys": return make(computed().keys, byKey(computed().keys.cols, `Row = key, ${components}`));
    case "values": return make(computed().values, byKey(computed().values.cols, `Row = the key’s value, ${components}`));
    case "context": return make(computed().context, byQuery(computed().context.cols, `Row = query, ${components}`));
    case "heads": {
      const { joined } = numbers.joined();
      const names = featureNames(joined.cols, "").map((name, col) => `${name} · h${Math.floor(col / stage.headDim) + 1}`);
      return make(joined, whole(axes("query", "feature", stage.tokens, names, "Row = query, column = component and its head.")));
    }
    default: {
      const { output } = numbers.joined();
      return make(output, whole(byQuery(output.cols, `Row = query, ${components}`)));
    }
  }
}
