// What the reader chose, kept in the URL's hash so that a link shows the same. Positions count from 1 there, as in the program.

/** A fresh state for a document: its own query, the weights of the first stage, nothing changed. */
function initialState(doc) {
  const first = doc.stages[0];
  const query = queryIndex(doc, first);
  return {
    stage: 0, head: first.head, step: "weights", query, key: 0, feature: 0, inner: 0, table: false, theme: "auto", shortcuts: true,
    changes: { normalise: null, scale: null, mask: null, factor: 1, dropped: new Set() },
  };
}

/** The document's query in a stage whose tokens may be others: by name, else by position. */
function queryIndex(doc, stage) {
  if (doc.queryToken !== null && stage.tokens[doc.query] !== doc.queryToken) {
    const named = stage.tokens.indexOf(doc.queryToken);
    if (named >= 0) return named;
  }
  return clamp(doc.query, 0, stage.tokens.length - 1);
}

const isChanged = ({ changes }) =>
  changes.normalise !== null || changes.scale !== null || changes.mask !== null || changes.factor !== 1 || changes.dropped.size > 0;

const SWITCH = { on: true, off: false };

function stateToHash(state, doc) {
  const { changes } = state;
  const parts = new URLSearchParams();
  parts.set("stage", doc.stages[state.stage].id);
  if (state.head !== doc.stages[0].head) parts.set("head", state.head + 1);
  parts.set("step", state.step);
  parts.set("query", state.query + 1);
  parts.set("key", state.key + 1);
  if (state.feature > 0) parts.set("feature", state.feature + 1);
  if (state.inner > 0) parts.set("inner", state.inner + 1);
  if (changes.normalise) parts.set("normalise", changes.normalise);
  for (const name of ["scale", "mask"]) if (changes[name] !== null) parts.set(name, changes[name] ? "on" : "off");
  if (changes.factor !== 1) parts.set("factor", changes.factor);
  if (changes.dropped.size > 0) {
    parts.set("dropped", [...changes.dropped].map((place) => place.split(":").map((at) => Number(at) + 1).join(".")).join("_"));
  }
  if (state.table) parts.set("view", "table");
  if (state.theme !== "auto") parts.set("theme", state.theme);
  if (!state.shortcuts) parts.set("shortcuts", "off");
  return `#${parts}`;
}

/** Reads a hash over a fresh state; what it does not understand it leaves alone. */
function stateFromHash(hash, doc) {
  const state = initialState(doc);
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const position = (name, fallback) => {
    const value = Number(parts.get(name));
    return Number.isInteger(value) && value >= 1 ? value - 1 : fallback;
  };
  const stage = doc.stages.findIndex(({ id }) => id === parts.get("stage"));
  if (stage >= 0) state.stage = stage;
  state.head = position("head", state.head);
  if (parts.get("step") in PLACES) state.step = parts.get("step");
  state.query = position("query", queryIndex(doc, doc.stages[state.stage]));
  for (const name of ["key", "feature", "inner"]) state[name] = position(name, 0);
  const { changes } = state;
  if (["sum", "naive", "softmax"].includes(parts.get("normalise"))) changes.normalise = parts.get("normalise");
  for (const name of ["scale", "mask"]) changes[name] = SWITCH[parts.get(name)] ?? null;
  const factor = Number(parts.get("factor") ?? 1);
  if (Number.isFinite(factor)) changes.factor = factor;
  for (const place of (parts.get("dropped") ?? "").split("_")) {
    if (/^\d{1,6}(\.\d{1,6}){2}$/.test(place)) changes.dropped.add(place.split(".").map((at) => Number(at) - 1).join(":"));
  }
  state.table = parts.get("view") === "table";
  if (["light", "dark"].includes(parts.get("theme"))) state.theme = parts.get("theme");
  state.shortcuts = parts.get("shortcuts") !== "off";
  return state;
}
