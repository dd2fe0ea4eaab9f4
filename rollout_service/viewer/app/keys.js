// Keys, and the page that names them.
import { element, table } from "./dom.js";
import { TABS } from "./detail.js";
import { moveToken } from "./tokens.js";

const KEYS = [
  ["j k ↓ ↑", "next and previous episode; in an open episode, next and previous message"],
  ["Enter", "open the chosen episode; in the search field, search all conversations"],
  ["Esc", "back to the list; in the search field, leave it"],
  ["[ ]", "previous and next episode, also from an open one"],
  [`1 … ${TABS.length}`, TABS.join(", ")],
  ["← →", "under Tokens: previous and next token"],
  ["n N", "next and previous violation in the open episode"],
  ["/", "search"],
  ["g", "only this group, or all again"],
  ["c", "clear the filters"],
  [
    "Home End PgUp PgDn",
    "first, last, and a page of episodes; in an open episode, its top, its end, and a page",
  ],
  ["t", "theme: system, light, dark"],
  ["?", "these keys"],
];

export function makeHelp(dialog) {
  const close = element("button", { type: "button" }, "Close");
  close.addEventListener("click", () => dialog.close());
  dialog.append(
    element("h2", {}, "Keys"),
    table(
      [],
      KEYS.map(([keys, what]) => [
        keys.split(" ").map((key) => (key === "…" ? "… " : [element("kbd", {}, key), " "])),
        what,
      ]),
      "facts keys",
    ),
    close,
  );
}

// What in an open episode j and k go through: messages, or what a tab has in their place.
const STEPS = [".message", ".span-label", ".time-row", "section"].map((name) => `.tab-body ${name}`).join();

// Keys by which a select, a button or a summary is worked itself.
const OWN_KEYS = ["Enter", " ", "ArrowDown", "ArrowUp", "Home", "End", "PageDown", "PageUp"];

// Scrolls the open episode by so many pages.
function scroll(holder, pages) {
  const body = holder.querySelector(".tab-body");
  if (!body) return;
  const top = body.scrollTop + pages * (body.clientHeight - 40);
  body.scrollTop = Math.min(Math.max(top, 0), body.scrollHeight);
}

// Moves the focus to the next of these elements of the open episode, or scrolls where there are none.
function goTo(holder, selector, by) {
  const elements = [...holder.querySelectorAll(selector)];
  if (!elements.length) return holder.querySelector(".tab-body")?.scrollBy({ top: by * 120 });
  const now = elements.indexOf(document.activeElement);
  const last = elements.length - 1;
  const to = elements[now < 0 ? (by > 0 ? 0 : last) : Math.min(Math.max(now + by, 0), last)];
  to.tabIndex = -1;
  to.focus({ preventScroll: true });
  return to.scrollIntoView({ block: "nearest" });
}

// Shows the next tab, and keeps the focus on the tabs.
async function showNextTab(holder, detail, by) {
  const at = (TABS.indexOf(detail.tab) + by + TABS.length) % TABS.length;
  await detail.show(TABS[at]);
  holder.querySelector('[role="tab"][aria-selected="true"]')?.focus();
}

// What each key does outside the search field.
function actionsOf({ list, listHolder, detail, detailHolder, filters, help, theme, onlyGroup }) {
  const inDetail = () => detailHolder.contains(document.activeElement);
  const step = (by) => (inDetail() ? goTo(detailHolder, STEPS, by) : list.move(by));
  const actions = {
    j: () => step(1),
    k: () => step(-1),
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    "]": () => list.move(1),
    "[": () => list.move(-1),
    Home: () => (inDetail() ? scroll(detailHolder, -Infinity) : list.choose(0)),
    End: () => (inDetail() ? scroll(detailHolder, Infinity) : list.choose(list.rows.length - 1)),
    PageDown: () => (inDetail() ? scroll(detailHolder, 1) : list.move(list.page())),
    PageUp: () => (inDetail() ? scroll(detailHolder, -1) : list.move(-list.page())),
    ArrowRight: () => moveToken(detailHolder, 1),
    ArrowLeft: () => moveToken(detailHolder, -1),
    Enter: () => detailHolder.focus(),
    Escape: () => listHolder.focus(),
    "/": () => filters.search.focus(),
    g: () => detail.row && onlyGroup(detail.row),
    c: () => filters.clear(),
    t: () => theme.next(),
    n: () => goTo(detailHolder, ".violation", 1),
    N: () => goTo(detailHolder, ".violation", -1),
    "?": () => help.showModal(),
  };
  for (const [at, name] of TABS.entries()) {
    actions[String(at + 1)] = () =>
      detail.show(name).then(() => inDetail() || detailHolder.focus({ preventScroll: true }));
  }
  return actions;
}

// `parts` are the page's parts that keys act on, by name.
export function listenToKeys(parts) {
  const { listHolder, detail, detailHolder, filters, help, searchAll } = parts;
  const actions = actionsOf(parts);
  const inSearch = { Enter: searchAll, Escape: () => listHolder.focus(), ArrowDown: () => listHolder.focus() };
  const onTab = {
    ...actions,
    ArrowRight: () => showNextTab(detailHolder, detail, 1),
    ArrowLeft: () => showNextTab(detailHolder, detail, -1),
  };

  function actionOf({ key, target }) {
    if (target === filters.search) return inSearch[key];
    if (OWN_KEYS.includes(key) && target.closest("select, button, summary")) return undefined;
    if (target.tagName === "SELECT" && key.length === 1) return undefined;
    return (target.role === "tab" ? onTab : actions)[key];
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const action = actionOf(event);
    if (!action) return;
    event.preventDefault();
    action();
  });
}
