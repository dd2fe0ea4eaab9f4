// The filters above the list.
import { element } from "./dom.js";
import { groupOf, kindOfGroup } from "./episodes.js";

const ANY = "";

const REWARDS = {
  1: (row) => row.reward === 1,
  "between 0 and 1": (row) => row.reward > 0 && row.reward < 1,
  0: (row) => row.reward === 0,
  none: (row) => typeof row.reward !== "number",
};

const REMARKS = {
  violations: (row) => row.violations > 0,
  "malformed calls": (row) => row.malformed > 0,
  "refused calls": (row) => row.refused > 0,
  "turns cut by length": (row) => row.cut > 0,
  "several segments": (row) => row.segments > 1,
  "user flaws": (row) => row.flaws > 0,
};

const ORDERS = {
  "by file": null,
  "lowest reward": (row) => row.reward ?? 2,
  "most turns": (row) => -(row.turns ?? -1),
  "most policy tokens": (row) => -(row.policyTokens ?? -1),
  "longest time": (row) => -(row.seconds ?? -1),
};

// Builds the form. `changed` is called after each change with nothing.
export function makeFilters(form, chips, index, rows, groups, changed) {
  const kinds = new Map([...groups].map(([name, members]) => [name, kindOfGroup(members)]));
  const state = { text: "", group: "", found: null };
  const selects = {};

  const search = element("input", {
    type: "search",
    id: "search",
    placeholder: "Search; Enter: in conversations too",
    "aria-label": "Search",
    "aria-describedby": "search-state",
    spellcheck: "false",
  });
  const searchState = element("span", { id: "search-state", class: "search-state", role: "status" });
  const groupChip = element("button", { type: "button", id: "group-chip", class: "chip", hidden: true });
  const reset = element("button", { type: "button", id: "reset", class: "quiet", hidden: true }, "Clear filters");

  function select(name, label, options) {
    if (!options.length) return null;
    const made = element("select", { name, id: `filter-${name}` });
    made.append(element("option", { value: ANY }, "any"));
    for (const option of options) {
      const [value, shown] = Array.isArray(option) ? option : [option, option];
      const item = element("option", {}, shown === "" ? "(empty)" : shown);
      item.value = value;
      made.append(item);
    }
    made.addEventListener("change", changed);
    selects[name] = made;
    return element("label", {}, element("span", {}, label), made);
  }

  const distinct = (name) => [...new Set(rows.map((row) => row[name]).filter((value) => value))].sort(naturally);
  const tasks = [...new Map(rows.filter((row) => row.task).map((row) => [taskOf(row), 1])).keys()].sort(naturally);
  const order = element(
    "select",
    { name: "order", id: "order" },
    Object.keys(ORDERS).map((name) => element("option", {}, name)),
  );
  order.addEventListener("change", changed);
  form.append(
    element("div", { class: "search-line" }, search, searchState),
    element(
      "div",
      { class: "selects" },
      index.files.length > 1
        ? select(
            "file",
            "File",
            index.files.map((file, at) => [String(at), file.name]),
          )
        : null,
      select("domain", "Domain", distinct("domain")),
      select("task", "Task", tasks),
      select("outcome", "Outcome", distinct("outcome")),
      select("reward", "Reward", Object.keys(REWARDS)),
      select(
        "fault",
        "Fault",
        distinct("fault").map((fault) => [fault, fault.replace("_", " ")]),
      ),
      select("kind", "Group has", [...new Set(kinds.values())].sort()),
      select(
        "remark",
        "With",
        Object.keys(REMARKS).filter((name) => rows.some(REMARKS[name])),
      ),
      element("label", {}, element("span", {}, "Order"), order),
    ),
  );
  chips.append(groupChip, reset);
  form.addEventListener("submit", (event) => event.preventDefault());

  search.addEventListener("input", () => {
    state.text = search.value.trim().toLowerCase();
    state.found = null;
    searchState.textContent = "";
    changed();
  });
  groupChip.addEventListener("click", () => filters.setGroup(""));
  reset.addEventListener("click", () => filters.clear());

  const passesText = (row) =>
    state.found ? state.found.has(row.at) : !state.text || wordsOf(row).includes(state.text);

  const filters = {
    search,
    searchState,
    state,
    // The rows that pass, in the chosen order.
    passing() {
      const key = ORDERS[order.value];
      const tests = [];
      const value = (name) => selects[name]?.value ?? ANY;
      for (const name of ["domain", "outcome", "fault"]) {
        if (value(name) !== ANY) tests.push((row) => row[name] === value(name));
      }
      if (value("file") !== ANY) tests.push((row) => row.file === Number(value("file")));
      if (value("task") !== ANY) tests.push((row) => taskOf(row) === value("task"));
      if (value("reward") !== ANY) tests.push(REWARDS[value("reward")]);
      if (value("remark") !== ANY) tests.push(REMARKS[value("remark")]);
      if (value("kind") !== ANY) tests.push((row) => kinds.get(groupOf(row)) === value("kind"));
      if (state.group) tests.push((row) => groupOf(row) === state.group);
      tests.push(passesText);
      const passing = rows.filter((row) => tests.every((test) => test(row)));
      return key ? passing.sort((a, b) => key(a) - key(b) || a.at - b.at) : passing;
    },
    // Shows the rows whose conversations hold the searched text.
    found(numbers) {
      state.found = numbers;
      searchState.textContent = "in conversations";
      changed();
    },
    isEmpty() {
      const isEmpty = !state.text && !state.group && Object.values(selects).every((made) => made.value === ANY);
      reset.hidden = isEmpty;
      return isEmpty;
    },
    setGroup(group) {
      state.group = group;
      groupChip.hidden = !group;
      groupChip.textContent = group ? `Only group ${group.split("\n")[1]} ✕` : "";
      changed();
    },
    clear() {
      for (const made of Object.values(selects)) made.value = ANY;
      search.value = state.text = "";
      state.found = null;
      searchState.textContent = "";
      filters.setGroup("");
    },
  };
  return filters;
}

export function taskOf(row) {
  return `${row.domain}/${row.task}`;
}

function wordsOf(row) {
  row.words ??= [taskOf(row), row.split, row.id, row.group, row.outcome, row.ended, row.fault ?? "", row.said]
    .join("\n")
    .toLowerCase();
  return row.words;
}

function naturally(a, b) {
  return String(a).localeCompare(String(b), "en", { numeric: true });
}
