// The picture of the flow: a button for each step, arrows drawn behind them.

const FLOW_COLUMNS = 11;
const FLOW_ROWS = 3;

/** Builds the buttons; `choose(id)` is called with the step that was clicked. */
function buildFlow(container, steps, choose) {
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.step : null;
  const buttons = steps.map((step) => {
    const state = step.off ? ", taken out" : step.idle ? ", idle outside training" : "";
    return element("button", {
      type: "button", class: `step role-${step.id}${step.off ? " off" : ""}${step.idle ? " idle" : ""}`, "data-step": step.id,
      "aria-label": `${step.label}, ${FORMULAS[step.id]}, shape ${step.shape.join(" by ")}${state}`,
      title: FORMULAS[step.id], onclick: () => choose(step.id),
    }, element("span", { class: "name" }, ...formula(step.label)), element("span", { class: "shape", text: showShape(step.shape) }));
  });
  const picture = svgElement("svg", { "aria-hidden": "true", class: "arrows" });
  container.replaceChildren(picture, ...buttons);
  if (focused) container.querySelector(`[data-step="${focused}"]`)?.focus();
}

/** Puts the buttons in their places and draws the arrows between them, for the width there is. */
function layoutFlow(container, steps) {
  const width = container.clientWidth;
  const height = container.clientHeight;
  const buttonWidth = clamp(width / FLOW_COLUMNS - 22, 52, 92);
  const buttonHeight = 38;
  const stepX = (width - buttonWidth) / (FLOW_COLUMNS - 1);
  const stepY = (height - buttonHeight) / (FLOW_ROWS - 1);
  const boxes = new Map();
  for (const step of steps) {
    const box = { x: step.column * stepX, y: step.row * stepY, w: buttonWidth, h: buttonHeight };
    boxes.set(step.id, box);
    const { style } = container.querySelector(`[data-step="${step.id}"]`);
    style.left = `${box.x}px`;
    style.top = `${box.y}px`;
    style.width = `${box.w}px`;
    style.height = `${box.h}px`;
  }
  const picture = container.querySelector("svg");
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.replaceChildren(...arrowsOf(steps).flatMap(([from, to, role]) =>
    arrow(boxes.get(from), boxes.get(to), role, stepX, PLACES_OF_ROLE[role] * stepY)));
}

const PLACES_OF_ROLE = { queries: 0, keys: 1, values: 2, chain: 0 };

/** A curve from the right edge of one box to the left edge of the other; values run along the bottom before they rise. */
function arrow(from, to, role, stepX, lane) {
  const x1 = from.x + from.w;
  const x2 = to.x;
  const y1 = from.y + from.h / 2;
  const y2 = to.y + to.h / 2;
  const far = x2 - x1 > 1.5 * stepX && role !== "chain";
  let path;
  if (far) {
    const laneY = lane + from.h / 2;
    const bend = Math.min(stepX * 0.55, 60);
    path = `M${x1} ${y1} C${x1 + bend / 2} ${y1} ${x1 + bend / 2} ${laneY} ${x1 + bend} ${laneY} ` +
      `H${x2 - bend} C${x2 - bend / 2} ${laneY} ${x2 - bend / 2} ${y2} ${x2 - 1} ${y2}`;
  } else {
    const middle = (x1 + x2) / 2;
    path = `M${x1} ${y1} C${middle} ${y1} ${middle} ${y2} ${x2 - 1} ${y2}`;
  }
  return [svgElement("path", { d: path, class: `line ${role}` }),
    svgElement("path", { d: `M${x2 - 6} ${y2 - 4} L${x2} ${y2} L${x2 - 6} ${y2 + 4} Z`, class: `head ${role}` })];
}

/** Marks the chosen step. */
function markFlow(container, stepId) {
  for (const button of container.querySelectorAll("button")) {
    if (button.dataset.step === stepId) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
  }
}
