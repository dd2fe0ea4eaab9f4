// The rows of the list, made of the index's columns.
import { counted } from "./dom.js";

// One object per episode, in the order of the files. `at` is its number.
export function rowsOf(columns) {
  const names = Object.keys(columns);
  const count = names.length ? valuesOf(columns[names[0]]).length : 0;
  const rows = Array.from({ length: count }, (_, at) => ({ at }));
  for (const name of names) {
    const column = columns[name];
    const isText = !Array.isArray(column);
    const values = valuesOf(column);
    for (let at = 0; at < count; at += 1) rows[at][name] = isText ? column.values[values[at]] : values[at];
  }
  return rows;
}

function valuesOf(column) {
  return Array.isArray(column) ? column : column.at;
}

// A group's identity: its file counts too, since two files may hold collections of the same name.
export function groupOf(row) {
  return row.group ? `${row.file}\n${row.group}` : "";
}

export function groupsOf(rows) {
  const groups = new Map();
  for (const row of rows) {
    const name = groupOf(row);
    if (!name) continue;
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(row);
  }
  return groups;
}

// Some of the group's trajectories have no reward.
export const NO_REWARD = "without reward";

// What the rewards of a group are: "all 1", "mixed" and so on.
export function kindOfGroup(members) {
  const rewards = members.map((row) => row.reward);
  if (rewards.some((reward) => typeof reward !== "number")) return NO_REWARD;
  if (rewards.every((reward) => reward === rewards[0]))
    return rewards[0] === 0 ? "all 0" : rewards[0] === 1 ? "all 1" : "equal";
  return "mixed";
}

export function rewardMark(reward) {
  if (typeof reward !== "number") return ["–", "no reward", "none"];
  const shown = String(Number(reward.toPrecision(6)));
  if (reward >= 1) return ["●", shown, "good"];
  return reward <= 0 ? ["○", shown, "bad"] : ["◐", shown, "part"];
}

export const OUTCOME_MARKS = {
  completed: "✓",
  truncated: "✂",
  agent_error: "✗",
  aborted: "⊘",
  unreadable: "?",
};

// What makes a row worth a look, as [mark, text] pairs.
export function remarksOf(row) {
  const remarks = [];
  if (row.violations) remarks.push(["⚠", counted(row.violations, "violation"), "bad"]);
  if (row.fault) remarks.push(["⊘", row.fault.replace("_", " "), "bad"]);
  if (row.malformed) remarks.push(["✗", `${row.malformed} malformed`, "warn"]);
  if (row.refused) remarks.push(["⊝", `${row.refused} refused`, "warn"]);
  if (row.cut) remarks.push(["✂", `${counted(row.cut, "turn")} cut`, "warn"]);
  if (row.segments > 1) remarks.push(["⋔", `${row.segments} segments`, "plain"]);
  if (row.flaws) remarks.push(["☹", counted(row.flaws, "user flaw"), "warn"]);
  return remarks;
}

// The weight versions that sampled a turn, as v3 or v3 to v4; empty: the record has none.
export function weightsOf({ versions }) {
  if (!versions) return "";
  const [oldest, newest] = versions;
  return oldest === newest ? `v${oldest}` : `v${oldest} to v${newest}`;
}
