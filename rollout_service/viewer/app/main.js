// Starts the page: unpacks the index, then connects filters, list, detail and keys.
import { failure, record } from "./blocks.js";
import { makeDetail, TABS } from "./detail.js";
import { counted, element, number } from "./dom.js";
import { groupOf, groupsOf, rowsOf } from "./episodes.js";
import { makeFilters } from "./filters.js";
import { listenToKeys, makeHelp } from "./keys.js";
import { makeList } from "./list.js";
import { searchConversations } from "./search.js";
import { makeTheme } from "./theme.js";

const byId = (name) => document.getElementById(name);

async function start() {
  const theme = makeTheme(byId("theme"));
  const index = await record("index", 0);
  const rows = rowsOf(index.columns);
  const groups = groupsOf(rows);
  const [listHolder, detailHolder, help] = [byId("list"), byId("detail"), byId("help")];
  makeHelp(help);
  byId("help-button").addEventListener("click", () => help.showModal());
  summarize(index, rows);

  let waiting = 0;
  const openSoon = (row) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => detail.open(row), 60);
  };
  const list = makeList(listHolder, openSoon, () => detailHolder.focus());
  const choose = (row) => {
    if (!list.chooseRow(row)) {
      filters.clear();
      list.chooseRow(row);
    }
  };
  const onlyGroup = (row) => filters.setGroup(filters.state.group ? "" : groupOf(row));
  const searched = () => filters.state.text;
  const detail = makeDetail(detailHolder, index, groups, { choose, onlyGroup, searched, remember });
  const showPassing = () => {
    const passing = filters.passing();
    tellCount(passing, rows, filters);
    list.show(passing);
  };
  const filters = makeFilters(byId("filters"), byId("chips"), index, rows, groups, showPassing);

  let search = 0;
  // Looks through all episodes, since the other filters may change while the result stands.
  const searchAll = async () => {
    const text = filters.state.text;
    const mine = (search += 1);
    if (!text) return;
    filters.state.found = null;
    const isWanted = () => mine === search && filters.state.text === text;
    const tell = (share, found) => {
      filters.searchState.textContent =
        share < 1 ? `${Math.round(share * 100)} % searched, ${number(found.size)} found` : "";
    };
    const found = await searchConversations(rows, text, isWanted, tell);
    if (!found || !isWanted()) return;
    filters.found(found);
    listHolder.focus();
  };

  listenToKeys({ list, listHolder, detail, detailHolder, filters, help, theme, onlyGroup, searchAll });
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (TABS.includes(wanted.get("tab"))) detail.show(wanted.get("tab"));
  showPassing();
  const first = rows[Number(wanted.get("episode") ?? 0)];
  if (first) list.chooseRow(first);
  listHolder.focus();
  document.documentElement.dataset.ready = "list";
}

// The page's address names the open episode and its tab, so that a reload shows them again.
function remember(row, tab) {
  history.replaceState(null, "", `#episode=${row.at}&tab=${tab}`);
}

function summarize(index, rows) {
  const { mean, scored } = meanReward(rows);
  const names = index.files.map((file) => file.name).join(", ");
  const unreadable = rows.filter((row) => row.outcome === "unreadable").length;
  document.title = `${names} – trajectories`;
  byId("summary").append(
    element("bdi", {}, names),
    ` · ${counted(rows.length - unreadable, "episode")}`,
    scored ? `, mean reward ${mean} of ${number(scored)} scored` : ", none scored",
  );
  const notices = byId("notices");
  const notice = (...parts) => notices.append(element("p", {}, element("strong", {}, "⚠ "), ...parts));
  for (const file of index.files) {
    const lost = file.unreadable
      ? ` ${counted(file.unreadable, "record")} cannot be read: “unreadable” in the list.`
      : "";
    if (file.note || lost) notice(element("bdi", {}, file.name), `: ${file.note}${lost}`);
  }
  if (index.tokenizers.length > 1)
    notice(
      `The trajectories were made with ${index.tokenizers.length} different tokenizers. `,
      "Their token counts are not comparable.",
    );
  for (const { problem } of index.tokenizers) if (problem) notice(problem);
}

function tellCount(passing, rows, filters) {
  byId("count").textContent = filters.isEmpty()
    ? `${number(rows.length)} in the list`
    : `${number(passing.length)} of ${number(rows.length)} · mean reward ${meanReward(passing).mean}`;
}

// The mean reward, as text, of those rows in which the policy spoke and that have a reward, and how many they are.
function meanReward(rows) {
  const scored = rows.filter((row) => typeof row.reward === "number" && row.turns > 0);
  const sum = scored.reduce((total, row) => total + row.reward, 0);
  return { mean: scored.length ? (sum / scored.length).toFixed(3) : "–", scored: scored.length };
}

start().catch((error) => document.getElementById("notices").append(failure(error)));
