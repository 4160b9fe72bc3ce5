// One sentence of why for each step: what learners ask there, answered where they stand.

const d = (stage) => stage.headDim;

const WHY = {
  x: () => "Each token enters as a vector of numbers, its embedding; everything that follows is made of these.",
  source: () => "The source is another sequence: it may have another length and width, and it provides keys and values only.",
  wq: () => "W_q is trained. It turns a token into what it looks for; W_k and W_v are trained beside it, each for its own role.",
  wk: () => "W_k is trained. It turns a token into what it can be found by, so that a query may match something unlike itself.",
  wv: () => "W_v is trained. What is found (the key) and what is passed on (the value) need not be the same thing.",
  queries: () => "A query says what this token is looking for. It is compared with every key.",
  keys: () => "A key says what this token contains. Every query is compared with it.",
  values: () => "A value is what this token provides once it is attended to. Values are mixed, never compared.",
  scores: (stage) => stage.kind === "simple"
    ? "A dot product is large where two vectors point the same way, so it measures how alike two tokens are."
    : "The dot product of query and key is large where they point the same way: this token is what was looked for.",
  scaled: (stage) => `A dot product of ${plural(d(stage), "term")} spreads like √${d(stage)}: dividing by it keeps softmax ` +
    `from picking one key and starving the others of gradient. The d is that of one head.`,
  masked: () => "−∞ goes in before the softmax, so the rest of the row still sums to 1. It is put in place, not multiplied: 0 · ∞ is nan.",
  weights: () => "Softmax makes every weight positive and each row sum to 1, whatever the sign and size of the scores.",
  dropped: () => "Dropout zeroes weights at random in training and multiplies the survivors by 1/(1−p): the row sums to 1 on average only.",
  context: () => "The context is a mix of the values, each in proportion to its weight: the token, enriched by what it attends to.",
  heads: (stage) => stage.splitsHeads
    ? "The heads share d_out between them, yet each reads all of d_in. Side by side they are as wide as one big head."
    : "Every head is a whole module of its own; side by side their contexts are wider by the number of heads.",
  output: () => "The output projection mixes the heads, which until here knew nothing of each other.",
};

/** The sentence for the step, unless what the reader changed, or the chosen cell, has more to say. */
function whySentence({ stage, options, step, query, key, row, masked }) {
  const changed = {
    sum: "A plain sum breaks once scores are negative: weights come out negative, or huge where the sum is near 0. And −∞ ÷ −∞ is nan.",
    naive: "exp of anything past 88 overflows a float32 to ∞, and ∞ ÷ ∞ is nan. Subtracting the row’s maximum first changes nothing else.",
  };
  if (step === "weights" || step === "dropped") {
    const wild = row.weights.some((weight) => !Number.isFinite(weight) || weight < 0);
    if (wild && changed[options.normalise]) return changed[options.normalise];
  }
  if (step === "dropped" && options.dropped.size > 0) {
    return "A dropped weight is 0 and the row is not normalised again: it no longer sums to 1. " +
      (stage.training ? "The survivors carry the factor 1/(1−p)." : "In training the survivors would be multiplied by 1/(1−p).");
  }
  if (masked && PAIRWISE.slice(2).includes(step)) {
    return stage.isCross ? "This key is padding: −∞ before the softmax makes its weight exactly 0 and leaves the row’s sum at 1."
      : "This key lies in the query’s future: −∞ before the softmax makes its weight exactly 0 and leaves the row’s sum at 1.";
  }
  if (step === "masked" && !masked && query === key && options.mask) {
    return "A token may attend to itself: the diagonal stays, only what comes later is hidden.";
  }
  if (step === "weights" && !options.scale && options.factor === 1 && stage.kind !== "simple") {
    return "Without ÷ √d the scores spread further, and softmax moves towards its largest entry alone.";
  }
  if (step === "weights" && Math.abs(options.factor) > 1) {
    return "Large scores make softmax a winner-takes-all: nearly all the weight on one key, and next to no gradient for the rest.";
  }
  if (step === "weights" && options.normalise === "sum") {
    return "A plain sum makes rows of 1 while all scores are positive, but leaves the weights close together. Try a negative factor.";
  }
  if (step === "scores" && stage.isCross) {
    return "In cross-attention the queries come from one sequence, keys and values from the source: [queries × source].";
  }
  return WHY[step](stage);
}
