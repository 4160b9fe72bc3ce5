// The stages once more, in the page: from inputs and parameters to the context, with the reader's changes on the way.
// Every stored number is a float32, as in the program; sums run in double and are rounded once, so that what is left of
// a difference is the program's own rounding.

const fround = Math.fround;

/** a [n, k] times b [k, m], plus bias [m]. */
function multiply(a, b, bias = null) {
  const result = new Matrix(a.rows, b.cols);
  const sums = new Float64Array(b.cols);
  for (let i = 0; i < a.rows; i += 1) {
    sums.fill(0);
    for (let k = 0; k < a.cols; k += 1) {
      const factor = a.data[i * a.cols + k];
      const start = k * b.cols;
      for (let j = 0; j < b.cols; j += 1) sums[j] += factor * b.data[start + j];
    }
    for (let j = 0; j < b.cols; j += 1) result.data[i * b.cols + j] = bias ? sums[j] + bias[j] : sums[j];
  }
  return result;
}

/** W_query, W_key or W_value of one head as x multiplies it, [d_in, head_dim]; null where the stage has none. */
function parameter(stage, name, head) {
  const tensor = stage.tensor(name);
  if (!tensor) return null;
  if (stage.kind === "self" && stage.init === "uniform") return stage.headMatrix(name, 0);
  let stored = stage.headMatrix(name, head);  // nn.Linear keeps [d_out, d_in]
  if (stage.splitsHeads) {
    const size = stage.headDim * stored.cols;
    stored = new Matrix(stage.headDim, stored.cols, stored.data.subarray(head * size, (head + 1) * size));
  }
  return stored.transposed();
}

function parameterBias(stage, name, head) {
  const tensor = stage.tensor(`${name}.bias`);
  if (!tensor) return null;
  const width = stage.splitsHeads ? stage.headDim : tensor.shape.at(-1);
  const start = stage.splitsHeads || tensor.shape.length === 2 ? head * width : 0;
  return tensor.data.subarray(start, start + width);
}

function project(stage, role, head) {
  const from = role === "query" ? stage.inputs : stage.source;
  const weight = parameter(stage, `W_${role}`, head);
  if (weight) return multiply(from, weight, parameterBias(stage, `W_${role}`, head));
  return stage.headMatrix({ query: "queries", key: "keys", value: "values" }[role], head) ?? from;
}

/**
 * One row of scores to weights: `softmax` subtracts the row's maximum first, `naive` does not, `sum` divides by the plain
 * sum. A row in which every key is masked gets weights 0, as everywhere in qkv.
 */
function normaliseRow(scores, kind) {
  let max = -Infinity;
  for (const score of scores) if (score > max || Number.isNaN(score)) max = score;
  const empty = kind === "softmax" && max === -Infinity;
  const parts = new Float32Array(scores.length);
  let sum = 0;
  for (let j = 0; j < scores.length; j += 1) {
    if (kind === "sum") parts[j] = scores[j];
    else if (!empty) parts[j] = Math.exp(kind === "naive" ? scores[j] : fround(scores[j] - max));
    sum += parts[j];
  }
  sum = fround(sum);
  return { max, parts, sum, weights: parts.map((part) => (empty ? 0 : part / sum)) };
}

/** What the program did at this stage; the reader's changes are laid over it. */
function programOptions(stage) {
  return { normalise: stage.normalise, scale: stage.hasScale, mask: stage.hasMask, factor: 1 };
}

/** The options in force: null in `changes` means "as the program". `dropped` holds "head:query:key". */
function optionsFor(stage, changes) {
  const program = programOptions(stage);
  return {
    normalise: changes.normalise ?? program.normalise,
    scale: changes.scale ?? program.scale,
    mask: (changes.mask ?? program.mask) && canMask(stage),
    factor: changes.factor,
    dropped: changes.dropped,
  };
}

/** A mask can be shown where the program had one, and over equal sequences, where "later" means something. */
const canMask = (stage) => stage.hasMask || stage.tokens.length === stage.keyTokens.length && !stage.isCross;

function computeHead(stage, head, options) {
  const result = { queries: project(stage, "query", head), keys: project(stage, "key", head),
    values: project(stage, "value", head) };
  const { queries, keys } = result;
  const [rows, cols] = [queries.rows, keys.rows];
  const map = (from, change) => new Matrix(rows, cols, from.data.map(change));

  const products = multiply(queries, keys.transposed());
  result.products = products;
  result.scores = options.factor === 1 ? products : map(products, (score) => score * options.factor);
  result.scaled = options.scale ? map(result.scores, (score) => score * stage.scale) : result.scores;
  const mask = options.mask ? stage.mask(head) ?? causalMask(rows, cols) : null;
  result.masked = mask ? map(result.scaled, (score, at) => (mask[at] ? score : -Infinity)) : result.scaled;

  result.weights = new Matrix(rows, cols);
  for (let i = 0; i < rows; i += 1) {
    result.weights.data.set(normaliseRow(result.masked.row(i), options.normalise).weights, i * cols);
  }
  result.dropped_weights = dropWeights(stage, head, options, result.weights);
  result.context = multiply(result.dropped_weights, result.values);
  return result;
}

/** In training the survivors are multiplied by 1/(1-p); a weight dropped by hand otherwise only becomes 0. */
const keepFactor = (stage) => (stage.training && stage.dropout < 1 ? 1 / (1 - stage.dropout) : 1);

/** Whether the weight survives: the program's own draw, turned over where the reader asked for it. */
function keptWeights(stage, head, options, weights) {
  const drawn = stage.training ? stage.headMatrix("dropout_mask", head) ?? stage.headMatrix("dropped_weights", head) : null;
  const kept = drawn ? Uint8Array.from(drawn.data, (value) => (value === 0 ? 0 : 1))
    : new Uint8Array(weights.data.length).fill(1);
  for (const place of options.dropped) {
    const [h, i, j] = place.split(":").map(Number);
    if (h === head && i < weights.rows && j < weights.cols) kept[i * weights.cols + j] ^= 1;
  }
  return kept;
}

function dropWeights(stage, head, options, weights) {
  if (!stage.training && options.dropped.size === 0) return weights;
  const kept = keptWeights(stage, head, options, weights);
  const factor = keepFactor(stage);
  return new Matrix(weights.rows, weights.cols, weights.data.map((weight, at) => (kept[at] ? weight * factor : 0)));
}

/** Heads side by side, then the output projection: [queries, d_out]. */
function joinHeads(stage, contexts) {
  const width = contexts[0].cols;
  const joined = new Matrix(contexts[0].rows, width * contexts.length);
  contexts.forEach((context, head) => {
    for (let i = 0; i < context.rows; i += 1) joined.data.set(context.row(i), i * joined.cols + head * width);
  });
  const weight = stage.headMatrix("out_proj.weight", 0);
  const output = weight ? multiply(joined, weight.transposed(), stage.tensor("out_proj.bias")?.data) : null;
  return { joined, output };
}

/** Computes on demand and remembers until the stage or the options change: 512 tokens cost nothing twice. */
class Numbers {
  constructor() { this.key = ""; }
  at(stage, changes) {
    const options = optionsFor(stage, changes);
    const key = JSON.stringify([stage.id, options, [...options.dropped]]);
    if (key !== this.key) {
      this.key = key;
      this.headsDone = new Map();
      this.joinedDone = null;
    }
    const headOf = (head) => {
      if (!this.headsDone.has(head)) this.headsDone.set(head, computeHead(stage, head, options));
      return this.headsDone.get(head);
    };
    return {
      options,
      head: headOf,
      joined: () => {
        const all = () => Array.from({ length: stage.heads }, (_, head) => headOf(head).context);
        return (this.joinedDone ??= joinHeads(stage, all()));
      },
    };
  }
}

/** The largest |page - document| / max(1, |document|) for each tensor the document carries. */
function compareWithDocument(stage, numbers) {
  const differences = {};
  const compare = (name, mine, theirs) => {
    let worst = differences[name] ?? 0;
    for (let i = 0; i < theirs.length; i += 1) {
      const same = mine[i] === theirs[i] || (Number.isNaN(mine[i]) && Number.isNaN(theirs[i]));
      const difference = same ? 0 : Math.abs(mine[i] - theirs[i]) / Math.max(1, Math.abs(theirs[i]));
      worst = Math.max(worst, Number.isNaN(difference) ? Infinity : difference);
    }
    differences[name] = worst;
  };
  const perHead = ["queries", "keys", "values", "scores", "scaled", "masked", "weights", "dropped_weights"];
  for (let head = 0; head < stage.heads; head += 1) {
    const computed = numbers.head(head);
    for (const name of perHead) {
      const theirs = stage.headMatrix(name, head);
      if (theirs) compare(name, computed[name].data, theirs.data);
    }
  }
  const plain = stage.headMatrix("sum_normalised", 0);
  if (plain) {
    const { scores } = numbers.head(0);
    for (let i = 0; i < plain.rows; i += 1) {
      compare("sum_normalised", normaliseRow(scores.row(i), "sum").weights, plain.row(i));
    }
  }
  const context = stage.tensor("context");
  if (context) compare("context", numbers.joined().joined.data, context.data);
  const output = stage.tensor("output");
  if (output && numbers.joined().output) compare("output", numbers.joined().output.data, output.data);
  return differences;
}
