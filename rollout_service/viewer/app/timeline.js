// The timeline: what each turn waited for. Parts differ in pattern and place, and every number is written beside. The
// seconds of the rows add up to those of the whole episode.
import { element, seconds, table } from "./dom.js";

const PARTS = ["queue", "policy", "user", "environment", "evaluation"];

export function drawTimeline(talk) {
  const { turns, rest } = talk.times;
  const rows = [];
  rows.push({ name: "Before start", parts: { queue: rest.queue } });
  for (const [at, turn] of turns.entries()) rows.push({ name: `Turn ${at + 1}`, parts: turn });
  const other = { policy: rest.policy, user: rest.user, environment: rest.environment };
  if (Object.values(other).some((value) => value > 0.0005)) rows.push({ name: "In no turn", parts: other });
  rows.push({ name: "Evaluation", parts: { evaluation: rest.evaluation } });
  const longest = Math.max(...rows.map((row) => sum(Object.values(row.parts))), 1e-9);
  const isPlaced = turns.every((turn) => turn.user !== null && turn.environment !== null);
  const isQueueKnown = turns.every((turn) => turn.queue !== null);
  const total = PARTS.map((part) => [part, sum(rows.map((row) => row.parts[part]))]);
  return element(
    "div",
    { class: "timeline" },
    element("h3", {}, "The whole episode"),
    bar(Object.fromEntries(total), sum(total.map(([, value]) => value)), "whole"),
    element(
      "p",
      { class: "legend" },
      total.map(([part, value]) => [
        element("span", { class: `swatch ${part}`, "aria-hidden": "true" }),
        `${part} ${seconds(value)} `,
      ]),
    ),
    element("h3", {}, "By turn"),
    rows.map((row) =>
      element(
        "div",
        { class: "time-row" },
        element("span", { class: "time-name" }, row.name),
        bar(row.parts, longest),
        element("span", { class: "time-sum" }, seconds(sum(Object.values(row.parts)))),
      ),
    ),
    element(
      "p",
      { class: "aside" },
      "“Before start” is the time from the request to the episode's start. A turn's policy seconds are recorded, and ",
      "how long it waited before it was sampled: at its replica, which may be paused or full, and in the engine's ",
      "queue. Its user and environment seconds are the differences between the messages' timestamps. “In no turn” is ",
      "the rest of what is recorded: building the environment, tokenization, waiting inside the service.",
      isQueueKnown ? "" : " Where a turn's queue is not known, it is part of its policy seconds.",
      isPlaced ? "" : " Here the timestamps do not fit what is recorded, so those parts are not placed in turns.",
    ),
    table(
      ["", ...PARTS],
      rows.map((row) => [row.name, ...PARTS.map((part) => (part in row.parts ? seconds(row.parts[part]) : ""))]),
      "facts numbers",
    ),
  );
}

function sum(values) {
  return values.reduce((total, value) => total + (value ?? 0), 0);
}

function bar(parts, whole, className = "") {
  const made = element("div", { class: `bar ${className}` });
  for (const part of PARTS) {
    const share = whole > 0 ? (parts[part] ?? 0) / whole : 0;
    if (share <= 0) continue;
    const piece = element("span", { class: `piece ${part}`, title: `${part} ${seconds(parts[part])}` });
    if (share > 0.14) piece.append(element("span", { class: "piece-name" }, part));
    piece.style.width = `${share * 100}%`;
    made.append(piece);
  }
  return made;
}
