// Tabs, things to try, and the keyboard.

const NORMALISERS = [["sum", "sum"], ["naive", "naive"], ["softmax", "stable"]];

const KEYS = [
  ["Tab", "to the next control; each step of the flow is one"],
  ["← ↑ → ↓", "in the matrix: move the cell; in a row of tokens, heads or stages: choose"],
  ["Home End", "first and last column; with Ctrl the corners"],
  ["PgUp PgDn", "ten rows up and down"],
  ["Enter, Space", "in the matrix: drop this weight, or take it back"],
  ["[ ]", "previous and next head"], ["{ }", "previous and next stage"],
  ["d", "drop this weight"], ["t", "table or picture"], ["r", "reset what was changed"], ["?", "this help"],
];

function buildTabs(page) {
  const tabs = page.doc.stages.map((stage, index) => element("button", {
    type: "button", role: "tab", id: `tab-${index}`, "aria-controls": "panel", text: stage.label, onclick: () => page.set({ stage: index }),
  }));
  const list = byId("stages");
  list.replaceChildren(...tabs);
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(document.activeElement);
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 };
    if (at < 0 || !(event.key in moves)) return;
    event.preventDefault();
    const next = (moves[event.key] + tabs.length) % tabs.length;
    page.set({ stage: next });
    tabs[next].focus();
  });
}

function markTabs(page) {
  Array.from(byId("stages").children).forEach((tab, index) => {
    const chosen = index === page.state.stage;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  });
  byId("panel").setAttribute("aria-labelledby", `tab-${page.state.stage}`);
}

function buildControls(page) {
  for (const [value, label] of NORMALISERS) {
    byId("normalise").append(element("label", { class: "choice" },
      element("input", { type: "radio", name: "normalise", value, onchange: () => chooseNormaliser(page, value) }), element("span", { text: label })));
  }
  byId("scale").addEventListener("change", (event) => page.change({ scale: event.target.checked }));
  byId("mask").addEventListener("change", (event) => page.change({ mask: event.target.checked }));
  for (const id of ["factor", "factor-number"]) {
    byId(id).addEventListener("input", (event) => {
      const factor = Number(event.target.value);
      if (event.target.value !== "" && Number.isFinite(factor)) page.change({ factor });
    });
  }
  byId("drop").addEventListener("click", () => page.toggleDrop());
  byId("reset").addEventListener("click", () => page.set({ changes: initialState(page.doc).changes }));
  byId("as-table").addEventListener("click", () => page.set({ table: !page.state.table }));
  byId("save-svg").addEventListener("click", () => page.save("svg"));
  byId("save-csv").addEventListener("click", () => page.save("csv"));
  byId("theme").addEventListener("click", () => {
    const next = { auto: "light", light: "dark", dark: "auto" };
    page.set({ theme: next[page.state.theme] });
  });
  byId("shortcuts").addEventListener("change", (event) => page.set({ shortcuts: event.target.checked }));
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("help-keys").append(...KEYS.flatMap(([keys, words]) =>
    [element("dt", {}, element("kbd", { text: keys })), element("dd", { text: words })]));
}

/** Choosing what the program used is no change. */
function chooseNormaliser(page, value) {
  page.change({ normalise: value === page.stage.normalise ? null : value });
}

function showControls(page) {
  const { state, stage, computed } = page;
  const { options } = computed;
  for (const input of byId("normalise").querySelectorAll("input")) input.checked = input.value === options.normalise;
  byId("scale").checked = options.scale;
  byId("scale-name").textContent = `÷ √${stage.headDim}`;
  byId("mask").checked = options.mask;
  byId("mask").disabled = !canMask(stage);
  byId("factor").value = options.factor;
  if (document.activeElement !== byId("factor-number")) byId("factor-number").value = options.factor;
  const dropped = options.dropped.has(`${state.head}:${state.query}:${state.key}`);
  byId("drop").setAttribute("aria-pressed", String(dropped));
  byId("reset").disabled = !isChanged(state);
  byId("shortcuts").checked = state.shortcuts;
  byId("theme").textContent = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[state.theme];
  showAgreement(page);
}

const COMPARED_MOST = 3e5;
const ROUNDING = 1e-5;  // what float32 leaves of sums over hundreds of components

/** With nothing changed: how far the page's numbers are from the program's. */
function showAgreement(page) {
  const { stage, state, computed } = page;
  const note = byId("agreement");
  if (isChanged(state)) {
    note.textContent = "Changed: not the program’s numbers";
    note.className = "changed";
    return;
  }
  note.className = "";
  note.textContent = "";
  setTimeout(() => {
    if (page.computed !== computed || isChanged(page.state)) return;
    if (stage.tokens.length * stage.keyTokens.length * stage.heads > COMPARED_MOST) {
      note.textContent = "Computed here";
      return;
    }
    stage.largestDifference ??= Math.max(0, ...Object.values(compareWithDocument(stage, computed)));
    const verdict = stage.largestDifference <= ROUNDING ? "equal to the program" : "not what the program says";
    note.textContent = `Computed here, ${verdict} (± ${show(stage.largestDifference)})`;
  }, 0);
}

function buildKeys(page) {
  byId("matrix").addEventListener("keydown", (event) => moveByKey(page, event));
  byId("table").addEventListener("keydown", (event) => moveByKey(page, event));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input[type=number]") || byId("help").open;
    if (typing || !page.state.shortcuts || event.ctrlKey || event.metaKey) return;
    const { state, doc } = page;
    const turn = (value, count) => (value + count) % count;
    const actions = {
      "[": () => page.set({ head: turn(state.head - 1, page.stage.heads) }),
      "]": () => page.set({ head: turn(state.head + 1, page.stage.heads) }),
      "{": () => page.set({ stage: turn(state.stage - 1, doc.stages.length) }),
      "}": () => page.set({ stage: turn(state.stage + 1, doc.stages.length) }),
      d: () => page.toggleDrop(),
      t: () => page.set({ table: !state.table }),
      r: () => page.set({ changes: initialState(doc).changes }),
      "?": () => byId("help").showModal(),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    const inside = byId("matrix").contains(document.activeElement) || byId("table").contains(document.activeElement);
    actions[event.key]();
    if (event.key === "t" && inside) byId(page.state.table ? "table" : "matrix").focus();
  });
}

function moveByKey(page, event) {
  const { row, col } = page.place;
  const { rows, cols } = page.view.matrix;
  const far = event.ctrlKey || event.metaKey;
  const targets = {
    ArrowUp: [row - 1, col], ArrowDown: [row + 1, col], ArrowLeft: [row, col - 1], ArrowRight: [row, col + 1],
    Home: [far ? 0 : row, 0], End: [far ? rows - 1 : row, cols - 1], PageUp: [row - 10, col], PageDown: [row + 10, col],
  };
  if (event.altKey) return;
  if (event.key === "Enter" || event.key === " ") page.toggleDrop();
  else if (Object.hasOwn(targets, event.key)) {
    const [nextRow, nextCol] = targets[event.key];
    page.moveTo(clamp(nextRow, 0, rows - 1), clamp(nextCol, 0, cols - 1));
  } else return;
  event.preventDefault();
}
