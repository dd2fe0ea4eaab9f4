// Violations that `verify` found, in the place that each of them names.
import { element } from "./dom.js";

export function violationNote(violation) {
  return element(
    "div",
    { class: "violation", role: "note", tabindex: "-1" },
    element("strong", {}, `⚠ verify, ${violation.check}`),
    ` ${violation.where}: `,
    violation.problem,
  );
}

// Those for a message, those for a turn or a segment, and the others.
export function placedViolations(talk) {
  const byMessage = new Map();
  const byTurn = new Map();
  const bySegment = new Map();
  const others = [];
  for (const violation of talk.violations) {
    const turn = talk.turns[violation.turn];
    if (violation.message !== undefined) put(byMessage, violation.message, violation);
    else if (turn) {
      put(byTurn, violation.turn, violation);
      if (turn.message_index !== null) put(byMessage, turn.message_index, violation);
      else others.push(violation);
    } else {
      if (violation.segment !== undefined) put(bySegment, violation.segment, violation);
      others.push(violation);
    }
  }
  return { byMessage, byTurn, bySegment, others };
}

function put(places, place, violation) {
  if (!places.has(place)) places.set(place, []);
  places.get(place).push(violation);
}
