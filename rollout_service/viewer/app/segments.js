// A segment's arrays, given back from how the page holds them.

// `spans`: runs of tokens that are alike in mask and in the turn that they belong to.
export function segmentOf(packed, head, turns) {
  const ids = head.slice(0, packed.shared).concat(packed.ids);
  const mask = spread(packed.mask);
  const versions = spread(packed.versions);
  const has = spread(packed.logprobAt);
  let next = 0;
  const logprobs = has.map((is) => (is ? packed.logprobs[next++] : 0));
  return {
    ids,
    mask,
    versions,
    logprobs,
    prompt: packed.prompt,
    spans: spansOf(ids.length, mask, turns, packed.prompt),
  };
}

function spread(runs) {
  const values = [];
  for (let at = 0; at < runs.length; at += 2) {
    for (let count = 0; count < runs[at + 1]; count += 1) values.push(runs[at]);
  }
  return values;
}

function spansOf(length, mask, turns, prompt) {
  const cuts = new Set([0, length, prompt]);
  for (const turn of turns) cuts.add(turn.start).add(turn.end);
  for (let at = 1; at < length; at += 1) if (mask[at] !== mask[at - 1]) cuts.add(at);
  const places = [...cuts].filter((at) => at >= 0 && at <= length).sort((a, b) => a - b);
  const spans = [];
  for (let number = 0; number + 1 < places.length; number += 1) {
    const [start, end] = [places[number], places[number + 1]];
    if (end > start)
      spans.push({
        start,
        end,
        mask: mask[start],
        isPrompt: end <= prompt,
        turn: turns.find((turn) => turn.start === start) ?? null,
      });
  }
  return spans;
}

// With how many tokens two segments begin alike.
export function commonLength(a, b) {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n += 1;
  return n;
}
