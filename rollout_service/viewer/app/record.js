// All other fields of the record, as they are.
import { element, number, table } from "./dom.js";

const SHOWN_ELSEWHERE = new Set([
  "messages",
  "turns",
  "times",
  "violations",
  "facts",
  "reward_info",
  "user_flaws",
  "user_review",
]);

export function drawRecord(talk, row, index) {
  const file = index.files[row.file];
  const versions =
    row.oldest === null
      ? "nothing was sampled"
      : row.oldest === row.newest
        ? `${row.oldest}`
        : `${row.oldest} to ${row.newest}`;
  const rows = [
    ["file", file.name],
    ["trajectory_id", row.id],
    ["group_id", row.group],
    ["weight versions that sampled", versions],
    ["tokens", `${number(row.tokens)}, of which the policy sampled ${number(row.policyTokens)}`],
  ];
  flatten("", talk, rows);
  if (talk.user_flaws === null) rows.push(["user_flaws", "nobody looked"]);
  else flatten("user_flaws", talk.user_flaws, rows);
  return element(
    "div",
    { class: "record" },
    table(
      ["field", "value"],
      rows.map(([name, value]) => [element("code", {}, name), element("span", { dir: "auto" }, value)]),
    ),
  );
}

function flatten(prefix, value, rows) {
  const entries = Object.entries(value);
  if (!entries.length) rows.push([prefix, "{}"]);
  for (const [key, item] of entries) {
    if (!prefix && SHOWN_ELSEWHERE.has(key)) continue;
    const name = prefix ? `${prefix}.${key}` : key;
    if (item !== null && typeof item === "object" && !Array.isArray(item)) flatten(name, item, rows);
    else
      rows.push([
        name,
        item === null ? "null" : typeof item === "string" ? (item === "" ? "(empty)" : item) : JSON.stringify(item),
      ]);
  }
}
