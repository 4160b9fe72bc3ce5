// The document the page carries (viewer/schema.md), read with care: a file may have been edited, a tensor may be absent.

const NON_FINITE = { inf: Infinity, "-inf": -Infinity, nan: NaN };

/** A row-major matrix of float32. `data` may be a view into a larger array. */
class Matrix {
  constructor(rows, cols, data = new Float32Array(rows * cols)) {
    this.rows = rows;
    this.cols = cols;
    this.data = data;
  }
  at(row, col) { return this.data[row * this.cols + col]; }
  row(row) { return this.data.subarray(row * this.cols, (row + 1) * this.cols); }
  transposed() {
    const result = new Matrix(this.cols, this.rows);
    for (let i = 0; i < this.rows; i += 1) {
      for (let j = 0; j < this.cols; j += 1) result.data[j * this.rows + i] = this.data[i * this.cols + j];
    }
    return result;
  }
}

function readTensor(name, tensor) {
  const shape = tensor.shape;
  if (!Array.isArray(shape) || !Array.isArray(tensor.data)) throw new Error(`tensor ${name} has no shape or no data`);
  const count = shape.reduce((product, size) => product * size, 1);
  if (count !== tensor.data.length) {
    throw new Error(`tensor ${name}: shape ${showShape(shape)} needs ${count} values, there are ${tensor.data.length}`);
  }
  const data = new Float32Array(count);
  for (let i = 0; i < count; i += 1) {
    const value = tensor.data[i];
    data[i] = typeof value === "number" ? value : value in NON_FINITE ? NON_FINITE[value] : NaN;
  }
  return { shape, data };
}

/** One stage: its settings, and its tensors as they are asked for. */
class Stage {
  constructor(raw, documentTokens, id) {
    this.id = id;
    this.kind = String(raw.stage);
    this.title = raw.title ? String(raw.title) : "";
    this.init = raw.init ?? null;
    this.seed = raw.seed ?? null;
    this.dropout = raw.dropout ?? 0;
    this.training = raw.training === true;
    this.normalise = ["sum", "naive"].includes(raw.normalise) ? raw.normalise : "softmax";
    this.tokens = (raw.tokens ?? documentTokens).map((token) => visible(String(token)));
    this.isCross = this.kind === "cross";
    this.keyTokens = this.isCross && raw.source_tokens ? raw.source_tokens.map((token) => visible(String(token))) : this.tokens;
    this.rawTensors = raw.tensors ?? {};
    this.tensors = new Map();
    const inputs = this.tensor("inputs");
    if (!inputs) throw new Error(`stage ${this.kind} has no tensor "inputs"`);
    this.inputs = new Matrix(inputs.shape[0], inputs.shape[1], inputs.data);
    const source = this.tensor("source");
    this.source = source ? new Matrix(source.shape[0], source.shape[1], source.data) : this.inputs;
    this.heads = this.kind === "simple" ? 1 : Math.max(1, raw.heads ?? 1);
    this.head = clamp(raw.head ?? 0, 0, this.heads - 1);
    this.dIn = this.inputs.cols;
    this.dOut = raw.d_out ?? this.tensor("context")?.shape.at(-1) ?? this.dIn;
    this.headDim = raw.head_dim ?? (this.splitsHeads ? this.dOut / this.heads : this.dOut);
    this.scale = raw.scale ?? 1 / Math.sqrt(this.headDim);
    this.hasScale = this.kind !== "simple" && raw.scale !== null;
    if (this.inputs.rows !== this.tokens.length || this.source.rows !== this.keyTokens.length) {
      throw new Error(`stage ${this.kind}: ${this.inputs.rows} and ${this.source.rows} vectors for ` +
        `${this.tokens.length} and ${this.keyTokens.length} tokens`);
    }
    const names = { self: this.init ? `self · ${this.init === "uniform" ? "rand" : this.init}` : "self",
      wrapper: "wrapper", "multi-head": "multi-head" };
    this.layer = raw.layer ?? 0;
    this.weightsFile = String(raw.weights_file ?? "");
    this.remarks = (raw.remarks ?? []).map(String);
    this.label = raw.layer ? `layer ${raw.layer}` : names[this.kind] ?? this.kind;
  }

  /** One projection split into heads, as opposed to a wrapper of whole modules. */
  get splitsHeads() { return this.kind === "multi-head" || this.kind === "cross"; }
  get isCausal() { return ["causal", "wrapper", "multi-head"].includes(this.kind); }

  /** The tensor of that name, or null. PyTorch's parameter names with ".weight" are understood too. */
  tensor(name) {
    if (!this.tensors.has(name)) {
      const raw = this.rawTensors[name] ?? this.rawTensors[`${name}.weight`];
      this.tensors.set(name, raw ? readTensor(name, raw) : null);
    }
    return this.tensors.get(name);
  }

  /** The head's own matrix of a tensor that is [rows, cols] or [heads, rows, cols]. */
  headMatrix(name, head) {
    const tensor = this.tensor(name);
    if (!tensor) return null;
    const [rows, cols] = tensor.shape.slice(-2);
    const start = tensor.shape.length === 3 ? head * rows * cols : 0;
    return new Matrix(rows, cols, tensor.data.subarray(start, start + rows * cols));
  }

  get hasMask() { return this.isCausal || (this.rawTensors.masked ?? null) !== null; }

  /** 1 where the query may attend; null where nothing is masked. */
  mask(head) {
    const masked = this.headMatrix("masked", head);
    if (masked) return Uint8Array.from(masked.data, (value) => (value === -Infinity ? 0 : 1));
    return this.isCausal ? causalMask(this.tokens.length, this.keyTokens.length) : null;
  }
}

function causalMask(queries, keys) {
  const mask = new Uint8Array(queries * keys);
  for (let i = 0; i < queries; i += 1) mask.fill(1, i * keys, i * keys + Math.min(i + 1, keys));
  return mask;
}

/** Parses the embedded text. Throws an Error whose message says what is wrong with it. */
function readDocument(text) {
  const raw = JSON.parse(text);
  if (raw.version !== 1) throw new Error(`document version ${raw.version}; this page reads version 1`);
  if (!Array.isArray(raw.tokens) || !Array.isArray(raw.stages) || raw.stages.length === 0) {
    throw new Error("the document has no tokens or no stages");
  }
  const used = new Map();
  const stages = raw.stages.map((stage) => {
    const name = stage.stage === "self" && stage.init ? `self-${stage.init}` : String(stage.stage);
    used.set(name, (used.get(name) ?? 0) + 1);
    return new Stage(stage, raw.tokens, used.get(name) === 1 ? name : `${name}-${used.get(name)}`);
  });
  const { index = 0, token } = raw.query ?? {};
  return { query: clamp(index, 0, stages[0].tokens.length - 1), queryToken: token === undefined ? null : visible(String(token)), elided: raw.elided ?? null, stages };
}
