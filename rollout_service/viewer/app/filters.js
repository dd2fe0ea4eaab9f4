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

// What the selects choose by: each one's options, as values or as [value, text] pairs, and which rows pass a value.
function choicesOf(index, rows, groups) {
  const kinds = new Map([...groups].map(([name, members]) => [name, kindOfGroup(members)]));
  const distinct = (valueOf) => [...new Set(rows.map(valueOf).filter(Boolean))].sort(naturally);
  const files = index.files.length > 1 ? index.files.map((file, at) => [String(at), file.name]) : [];
  const faults = distinct((row) => row.fault).map((fault) => [fault, fault.replace("_", " ")]);
  const remarks = Object.keys(REMARKS).filter((name) => rows.some(REMARKS[name]));
  const choice = (name, label, options, passes) => ({ name, label, options, passes });
  return [
    choice("file", "File", files, (row, value) => row.file === Number(value)),
    choice("domain", "Domain", distinct((row) => row.domain), (row, value) => row.domain === value),
    choice("task", "Task", distinct((row) => row.task && taskOf(row)), (row, value) => taskOf(row) === value),
    choice("outcome", "Outcome", distinct((row) => row.outcome), (row, value) => row.outcome === value),
    choice("reward", "Reward", Object.keys(REWARDS), (row, value) => REWARDS[value](row)),
    choice("fault", "Fault", faults, (row, value) => row.fault === value),
    choice("kind", "Group has", [...new Set(kinds.values())].sort(), (row, value) => kinds.get(groupOf(row)) === value),
    choice("remark", "With", remarks, (row, value) => REMARKS[value](row)),
  ].filter(({ options }) => options.length);
}

function selectOf(id, options) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  return element(
    "select",
    { id },
    pairs.map(([value, shown]) => element("option", { value }, shown)),
  );
}

// Puts the form's elements in their places; returns those that the filters work with.
function makeControls(form, chips, choices) {
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
  const order = selectOf("order", Object.keys(ORDERS));
  const selects = choices.map(({ name, options }) => selectOf(`filter-${name}`, [[ANY, "any"], ...options]));
  const labels = [...choices.map(({ label }) => label), "Order"];
  form.append(
    element("div", { class: "search-line" }, search, searchState),
    element(
      "div",
      { class: "selects" },
      [...selects, order].map((select, at) => element("label", {}, element("span", {}, labels[at]), select)),
    ),
  );
  chips.append(groupChip, reset);
  return { search, searchState, groupChip, reset, order, selects };
}

// Builds the form. `changed` is called after each change.
export function makeFilters(form, chips, index, rows, groups, changed) {
  const choices = choicesOf(index, rows, groups);
  const { search, searchState, groupChip, reset, order, selects } = makeControls(form, chips, choices);
  const state = { text: "", group: "", found: null };

  function update() {
    reset.hidden = filters.isEmpty();
    changed();
  }

  function setText(text) {
    state.text = text;
    state.found = null;
    searchState.textContent = "";
  }

  for (const select of [...selects, order]) select.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", () => {
    setText(search.value.trim().toLowerCase());
    update();
  });
  groupChip.addEventListener("click", () => filters.setGroup(""));
  reset.addEventListener("click", () => filters.clear());

  const filters = {
    search,
    searchState,
    state,
    // The rows that pass, in the chosen order.
    passing() {
      const chosen = choices.map(({ passes }, at) => [passes, selects[at].value]).filter(([, value]) => value !== ANY);
      const passing = rows.filter(
        (row) => chosen.every(([passes, value]) => passes(row, value)) && passesSearch(row, state),
      );
      const key = ORDERS[order.value];
      return key ? passing.sort((a, b) => key(a) - key(b) || a.at - b.at) : passing;
    },
    // Shows the rows whose conversations hold the searched text.
    found(numbers) {
      state.found = numbers;
      searchState.textContent = "in conversations";
      update();
    },
    isEmpty() {
      return !state.text && !state.group && selects.every((select) => select.value === ANY);
    },
    setGroup(group) {
      state.group = group;
      groupChip.hidden = !group;
      groupChip.textContent = group ? `Only group ${group.split("\n")[1]} ✕` : "";
      update();
    },
    clear() {
      for (const select of selects) select.value = ANY;
      search.value = "";
      setText("");
      filters.setGroup("");
    },
  };
  return filters;
}

function passesSearch(row, { text, group, found }) {
  if (group && groupOf(row) !== group) return false;
  return found ? found.has(row.at) : !text || wordsOf(row).includes(text);
}

function taskOf(row) {
  return `${row.domain}/${row.task}`;
}

function wordsOf(row) {
  row.words ??= [taskOf(row), row.split, row.id, row.group, row.outcome, row.ended, row.fault ?? "", row.said]
    .join("\n")
    .toLowerCase();
  return row.words;
}

function naturally(a, b) {
  return a.localeCompare(b, "en", { numeric: true });
}
