// The page itself: one state, one function that shows it, and the ways to change it.

const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
const printing = window.matchMedia("print");

class Page {
  constructor(doc) {
    this.doc = doc;
    this.numbers = new Numbers();
    this.openTerms = false;
    this.builtStage = null;
    this.builtFlow = "";
    this.state = stateFromHash(location.hash, doc);
    this.picture = new MatrixPicture(byId("matrix"), (row, col) => this.moveTo(row, col));
    buildTabs(this);
    buildControls(this);
    buildKeys(this);
    const redraw = () => this.show();
    systemDark.addEventListener("change", redraw);
    printing.addEventListener("change", redraw);
    window.addEventListener("hashchange", () => {
      if (location.hash === stateToHash(this.state, doc)) return;
      this.state = stateFromHash(location.hash, doc);
      this.show();
    });
    new ResizeObserver(() => this.drawSized()).observe(byId("flow"));
    new ResizeObserver(() => this.drawSized()).observe(byId("matrix"));
    this.show();
  }

  get stage() { return this.doc.stages[this.state.stage]; }
  get scheme() {
    if (printing.matches) return "light";
    return this.state.theme === "auto" ? (systemDark.matches ? "dark" : "light") : this.state.theme;
  }

  /** Changes the state and shows it. */
  set(changes) {
    Object.assign(this.state, changes);
    this.show();
  }

  change(changes) {
    Object.assign(this.state.changes, changes);
    this.show();
  }

  /** Brings every position back into the range of the stage at hand. */
  settle() {
    const { state, stage } = this;
    state.head = clamp(state.head, 0, stage.heads - 1);
    state.query = clamp(state.query, 0, stage.tokens.length - 1);
    state.key = clamp(state.key, 0, stage.keyTokens.length - 1);
    this.computed = this.numbers.at(stage, state.changes);
    this.steps = stepsOf(stage, this.computed.options);
    if (!this.steps.some(({ id }) => id === state.step)) state.step = "weights";
    this.view = viewOf(stage, state.step, state.head, this.computed);
    const { matrix, rowAxis, colAxis } = this.view;
    state[rowAxis] = clamp(state[rowAxis], 0, matrix.rows - 1);
    state[colAxis] = clamp(state[colAxis], 0, matrix.cols - 1);
    this.place = { row: state[rowAxis], col: state[colAxis] };
  }

  moveTo(row, col) {
    const { rowAxis, colAxis } = this.view;
    this.set({ [rowAxis]: row, [colAxis]: col });
  }

  show() {
    document.documentElement.dataset.theme = this.scheme;
    this.settle();
    this.showStage();
    this.showFlow();
    this.showHeads();
    showControls(this);
    this.showMatrix();
    this.showCell();
    this.drawPicture();  // last: everything around it takes its room first
    this.remember();
  }

  showStage() {
    const { state, stage } = this;
    markTabs(this);
    if (this.builtStage !== stage) {
      this.builtStage = stage;
      buildChoices(byId("queries"), stage.tokens, (index) => this.set({ query: index }), (index) => `token ${index + 1}`);
      buildChoices(byId("sources"), stage.isCross ? stage.keyTokens : [], (index) => this.set({ key: index }), (index) => `source token ${index + 1}`);
      byId("source-line").hidden = !stage.isCross;
      byId("stage-title").textContent = stage.title || stage.label;
      byId("stage-facts").textContent = this.facts();
      document.title = `${stage.label} · qkv explain`;
      const heads = Array.from({ length: stage.heads }, (_, head) => String(head + 1));
      byId("head-line").hidden = stage.heads === 1;
      buildChoices(byId("heads"), stage.heads > 1 ? heads : [], (head) => this.set({ head }), (head) => `head ${head + 1}`);
    }
    markChoice(byId("queries"), state.query);
    markChoice(byId("sources"), stage.isCross ? state.key : -1);
    const weights = this.computed.head(state.head).dropped_weights.row(state.query);
    showShares(byId(stage.isCross ? "sources" : "queries"), weights);
    reveal(byId("queries"), state.query);
    reveal(byId("sources"), state.key);
  }

  facts() {
    const { stage, doc } = this;
    const facts = [];
    if (doc.elided) facts.push(`${doc.elided.shown} of ${doc.elided.tokens} tokens shown`);
    if (stage.seed !== null && stage.kind !== "simple") facts.push(`seed ${stage.seed}`);
    facts.push(stage.kind === "simple" ? `d ${stage.dIn}` : `d_in ${stage.dIn} → d_out ${stage.dOut}`);
    if (stage.heads > 1) facts.push(`${stage.heads} heads of ${stage.headDim}`);
    if (stage.dropout > 0) facts.push(`dropout ${stage.dropout}${stage.training ? ", training" : ", idle: not training"}`);
    // Of a stage of a trained model, where it comes from and what the model goes on with.
    if (stage.layer) facts.push(stage.weightsFile, ...stage.remarks.slice(-1));
    return facts.join(" · ");
  }

  showFlow() {
    const built = JSON.stringify([this.stage.id, this.steps]);
    if (built !== this.builtFlow) {
      this.builtFlow = built;
      buildFlow(byId("flow"), this.steps, (step) => this.set({ step }));
      layoutFlow(byId("flow"), this.steps);
    }
    markFlow(byId("flow"), this.state.step);
  }

  showHeads() {
    markChoice(byId("heads"), this.state.head);
    reveal(byId("heads"), this.state.head);
  }

  showMatrix() {
    const { view, state } = this;
    byId("matrix-title").replaceChildren(element("span", {}, ...formula(view.formula)),
      element("span", { class: "shape", text: ` ${showShape([view.matrix.rows, view.matrix.cols])}` }));
    byId("matrix-words").textContent = view.words;
    byId("as-table").setAttribute("aria-pressed", String(state.table));
    byId("matrix").hidden = state.table;
    byId("table").hidden = !state.table;
    byId("matrix").setAttribute("aria-label",
      `${view.formula}, ${view.matrix.rows} by ${view.matrix.cols}. ${view.words} The arrow keys move the cell.`);
    if (state.table) byId("table").replaceChildren(buildTable(view, this.place));
    else byId("table").replaceChildren();
  }

  drawPicture() {
    // The legend first: where it takes two lines, the picture has less room.
    const scale = colourScale(this.view, this.scheme);
    drawColourBar(byId("bar"), scale);
    byId("bar-low").textContent = show(scale.low, 3);
    byId("bar-high").textContent = `${scale.clipped ? "≥ " : ""}${show(scale.high, 3)}`;
    if (this.holesOf !== scale) {
      this.holesOf = scale;
      byId("bar-hole").hidden = !this.hasHidden();
    }
    const area = byId("matrix");
    if (!this.state.table) {
      const box = area.getBoundingClientRect();
      const narrow = window.innerWidth < 1000 || printing.matches;
      const height = narrow ? 360 : Math.max(220, box.height);
      this.picture.draw(this.view, this.place, { width: area.clientWidth - 8, height: height - 8 }, this.scheme);
    }
  }

  hasHidden() {
    const { matrix, isHidden } = this.view;
    return matrix.data.some((value, at) => !Number.isFinite(value) || isHidden(Math.floor(at / matrix.cols), at % matrix.cols));
  }

  /** Draws again only when there is another size to draw for. */
  drawSized() {
    const size = [byId("flow").clientWidth, byId("matrix").clientWidth, byId("matrix").clientHeight, window.devicePixelRatio].join();
    if (size === this.drawnSize) return;
    this.drawnSize = size;
    layoutFlow(byId("flow"), this.steps);
    this.drawPicture();
  }

  showCell() {
    const { stage, state, computed, steps, view, place } = this;
    const pair = pairNumbers(stage, computed, state.head, state.query, state.key);
    byId("live").textContent = this.cellText(pair);
    const lines = arithmeticLines({ stage, numbers: computed, steps, stepId: state.step, head: state.head, ...place, query: state.query,
      key: state.key, view, pair });
    showArithmetic(byId("arithmetic"), lines, state.step, this.openTerms, (open) => { this.openTerms = open; });
    byId("why").textContent = whySentence({ stage, options: computed.options, step: state.step, query: state.query, key: state.key,
      row: pair.row, masked: pair.masked === -Infinity });
  }

  /** The one live text: where the cell is, in words, and what it holds. */
  cellText(pair) {
    const { stage, state, view, place } = this;
    const value = view.matrix.at(place.row, place.col);
    const query = `Query ${isolated(shorten(stage.tokens[state.query], 24))}`;
    const key = `key ${isolated(shorten(stage.keyTokens[state.key], 24))}`;
    const head = stage.heads > 1 && view.ofHead ? `, head ${state.head + 1}` : "";
    const name = { scores: "score", scaled: "scaled score", masked: "masked score", weights: "weight", dropped: "weight after dropout" }[state.step];
    if (name) {
      const weight = view.isWeights ? "" : `, weight ${show(pair.weight)}`;
      return `${query} → ${key}${head}: ${name} ${show(value)}${weight}`;
    }
    if (view.rowAxis === "inner") return `Input ${place.row + 1} → component ${place.col + 1}${head}: ${show(value)}`;
    return `${view.rowAxis === "query" ? query : key}, component ${place.col + 1}${head}: ${show(value)}`.replace(/^k/, "K");
  }

  remember() {
    const hash = stateToHash(this.state, this.doc);
    if (location.hash !== hash) history.replaceState(null, "", hash);
  }

  toggleDrop() {
    const { state } = this;
    const place = `${state.head}:${state.query}:${state.key}`;
    const dropped = new Set(state.changes.dropped);
    if (!dropped.delete(place)) dropped.add(place);
    if (!PAIRWISE.includes(state.step)) state.step = "weights";
    this.change({ dropped });
  }

  save(kind) {
    const { stage, state, view, place } = this;
    const name = `qkv-${stage.id}-${state.step}${stage.heads > 1 ? `-head${state.head + 1}` : ""}`;
    if (kind === "csv") saveFile(`${name}.csv`, "text/csv;charset=utf-8", matrixCsv(view));
    else saveFile(`${name}.svg`, "image/svg+xml", matrixSvg(view, place, this.scheme, `${stage.label}: ${view.formula}`));
  }
}

function openPage() {
  try {
    const doc = readDocument(byId("qkv-data").textContent);
    byId("page").hidden = false;
    window.qkv = new Page(doc);  // for the curious, in the browser's console
  } catch (error) {
    byId("page").hidden = true;
    byId("broken").hidden = false;
    byId("broken").textContent = `This page cannot show its document: ${error.message}`;
    throw error;
  }
}

openPage();
