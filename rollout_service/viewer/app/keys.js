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

export function listenToKeys({ list, listHolder, detail, detailHolder, filters, help, theme, onlyGroup, searchAll }) {
  const inDetail = () => detailHolder.contains(document.activeElement);

  function step(by) {
    if (!inDetail()) return list.move(by);
    const messages = [
      ...detailHolder.querySelectorAll(
        ".tab-body .message, .tab-body .span-label, .tab-body .time-row, .tab-body section",
      ),
    ];
    return goTo(messages, by);
  }

  // Scrolls the open episode by so many pages.
  function scroll(pages) {
    const body = detailHolder.querySelector(".tab-body");
    if (!body) return;
    const top = body.scrollTop + pages * (body.clientHeight - 40);
    body.scrollTop = Math.min(Math.max(top, 0), body.scrollHeight);
  }

  // Moves the focus to the next of these elements, or scrolls where there are none.
  function goTo(elements, by) {
    const body = detailHolder.querySelector(".tab-body");
    if (!elements.length) return body?.scrollBy({ top: by * 120 });
    const now = elements.indexOf(document.activeElement);
    const to =
      elements[now < 0 ? (by > 0 ? 0 : elements.length - 1) : Math.min(Math.max(now + by, 0), elements.length - 1)];
    to.tabIndex = -1;
    to.focus({ preventScroll: true });
    return to.scrollIntoView({ block: "nearest" });
  }

  // Shows the next tab, and keeps the focus on the tabs.
  async function neighbour(by) {
    const at = (TABS.indexOf(detail.tab) + by + TABS.length) % TABS.length;
    await detail.show(TABS[at]);
    detailHolder.querySelector('[role="tab"][aria-selected="true"]')?.focus();
  }

  const actions = {
    j: () => step(1),
    k: () => step(-1),
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    "]": () => list.move(1),
    "[": () => list.move(-1),
    Home: () => (inDetail() ? scroll(-Infinity) : list.choose(0)),
    End: () => (inDetail() ? scroll(Infinity) : list.choose(list.rows.length - 1)),
    PageDown: () => (inDetail() ? scroll(1) : list.move(list.page())),
    PageUp: () => (inDetail() ? scroll(-1) : list.move(-list.page())),
    ArrowRight: () => moveToken(detailHolder, 1),
    ArrowLeft: () => moveToken(detailHolder, -1),
    Enter: () => detailHolder.focus(),
    Escape: () => listHolder.focus(),
    "/": () => filters.search.focus(),
    g: () => detail.row && onlyGroup(detail.row),
    c: () => filters.clear(),
    t: () => theme.next(),
    n: () => goTo([...detailHolder.querySelectorAll(".violation")], 1),
    N: () => goTo([...detailHolder.querySelectorAll(".violation")], -1),
    "?": () => help.showModal(),
  };
  for (const [at, name] of TABS.entries()) {
    actions[String(at + 1)] = () =>
      detail.show(name).then(() => inDetail() || detailHolder.focus({ preventScroll: true }));
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const { target } = event;
    if (target === filters.search) {
      if (event.key === "Enter") searchAll();
      else if (event.key === "Escape" || event.key === "ArrowDown") listHolder.focus();
      else return;
      event.preventDefault();
      return;
    }
    const isOwn = target.closest("select, button, summary");
    if (isOwn && ["Enter", " ", "ArrowDown", "ArrowUp", "Home", "End", "PageDown", "PageUp"].includes(event.key))
      return;
    if (target.tagName === "SELECT" && event.key.length === 1) return;
    if (target.role === "tab" && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      event.preventDefault();
      neighbour(event.key === "ArrowRight" ? 1 : -1);
      return;
    }
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
