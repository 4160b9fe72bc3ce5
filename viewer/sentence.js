// The tokens as a row of buttons of which one is chosen: the query, and in cross-attention the key of the source.

/** Builds a group of radios with one tab stop; the arrows move inside it. `choose(index)` is called with the new one. */
function buildChoices(container, labels, choose, describe = () => null) {
  const buttons = labels.map((label, index) => element("button", {
    type: "button", role: "radio", class: "choice", dir: "auto", text: label, title: describe(index), onclick: () => choose(index),
  }));
  container.replaceChildren(...buttons);
  container.onkeydown = (event) => {
    const at = buttons.indexOf(document.activeElement);
    const moves = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 };
    if (at < 0 || !(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const next = (moves[event.key] + buttons.length) % buttons.length;
    choose(next);
    buttons[next].focus();
  };
}

function markChoice(container, chosen) {
  Array.from(container.children).forEach((button, index) => {
    button.setAttribute("aria-checked", String(index === chosen));
    button.tabIndex = index === chosen ? 0 : -1;
  });
}

/** A bar under each token: its weight in the chosen row, against the row's largest. */
function showShares(container, weights) {
  const most = weights.reduce((max, weight) => (Number.isFinite(weight) ? Math.max(max, weight) : max), 0);
  Array.from(container.children).forEach((button, index) => {
    const share = most > 0 && weights[index] > 0 ? weights[index] / most : 0;
    button.style.setProperty("--share", String(share));
  });
}

/** Brings a chosen token into sight, one line below the top of its own scrolling box, without moving the page. */
function reveal(container, index) {
  const button = container.children[index];
  if (!button) return;
  container.scrollTop = button.offsetTop - container.children[0].offsetTop - button.offsetHeight - 4;
  container.scrollLeft = button.offsetLeft - container.offsetLeft - container.clientWidth / 2;
}
