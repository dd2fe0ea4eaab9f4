// The open episode: its heading and its tabs.
import { failure, record } from "./blocks.js";
import { drawConversation } from "./conversation.js";
import { badge, counted, element } from "./dom.js";
import { groupOf, OUTCOME_MARKS, remarksOf, rewardMark } from "./episodes.js";
import { drawGroup } from "./group.js";
import { highlight } from "./highlight.js";
import { drawRecord } from "./record.js";
import { drawReward } from "./reward.js";
import { drawTimeline } from "./timeline.js";
import { drawTokens } from "./tokens.js";

export const TABS = ["Conversation", "Reward", "Tokens", "Timeline", "Group", "Record"];

// `choose(row)` opens another episode, `onlyGroup(row)` filters by this one's group, `searched()` is the searched text,
// and `remember(row, tab)` takes what is opened.
export function makeDetail(holder, index, groups, { choose, onlyGroup, searched, remember }) {
  let tab = TABS[0];
  let opened = 0;
  let row = null;

  const draws = {
    Conversation: (talk) => drawConversation(talk, row),
    Reward: (talk) => drawReward(talk, row),
    Tokens: (talk) => drawTokens(talk, row, index),
    Timeline: (talk) => drawTimeline(talk),
    Group: () => drawGroup(row, groups, choose),
    Record: (talk) => drawRecord(talk, row, index),
  };

  // Only the latest call draws: an episode may be left while its block is unpacked.
  async function open(newRow) {
    const turn = (opened += 1);
    row = newRow;
    if (!row) return put("none", element("p", { class: "empty nothing" }, "No episode passes the filters."));
    remember(row, tab);
    if (row.outcome === "unreadable") return put(`${row.at} unreadable`, drawUnreadable(row, index));
    try {
      const talk = await record(`block-${row.talk}`, row.talkLine);
      const body = await draws[tab](talk);
      if (turn !== opened) return undefined;
      put(
        `${row.at} ${tab}`,
        drawHeading(talk, row, index.checks, groups, onlyGroup),
        drawTabs(tab, detail.show),
        element("div", { class: "tab-body", role: "tabpanel", id: "tab-body", "aria-label": tab }, body),
      );
      highlight(holder.querySelector(".conversation") ?? holder, tab === "Conversation" ? searched() : "");
    } catch (error) {
      if (turn === opened) put(`${row.at} failed`, failure(error));
    }
    return undefined;
  }

  function put(name, ...children) {
    const hadFocus = holder.contains(document.activeElement);
    holder.replaceChildren(...children);
    if (hadFocus) holder.focus({ preventScroll: true });
    holder.dataset.shown = name;
  }

  const detail = {
    open,
    get tab() {
      return tab;
    },
    get row() {
      return row;
    },
    show(name) {
      tab = name;
      return open(row);
    },
  };
  return detail;
}

function drawHeading(talk, row, checks, groups, onlyGroup) {
  const [mark, text, kind] = rewardMark(row.reward);
  const group = groupOf(row);
  const gold = row.gold ? ` · ${row.matched} of ${row.gold} wanted actions` : "";
  const only = element(
    "button",
    { type: "button", class: "quiet", title: "Show only this group (g)" },
    `Group of ${groups.get(group)?.length}`,
  );
  only.addEventListener("click", () => onlyGroup(row));
  return element(
    "header",
    { class: "detail-head" },
    element(
      "div",
      { class: "detail-title" },
      element("span", { class: `reward ${kind}` }, `${mark} ${text}`),
      element("h2", {}, element("span", { class: "domain" }, `${row.domain} `), element("bdi", {}, row.task)),
      badge(OUTCOME_MARKS[row.outcome] ?? "·", row.outcome.replace("_", " "), `outcome ${row.outcome}`),
      remarksOf(row).map((remark) => badge(...remark)),
      element("span", { class: "grow" }),
      group ? only : null,
    ),
    element(
      "p",
      { class: "detail-facts" },
      element("bdi", { class: "id" }, row.id),
      ` · sample ${row.sample}, seed ${talk.seed}, attempt ${talk.attempt} · ${row.split} split`,
      ` · ${counted(row.calls, "call")}${gold} · ended by ${row.ended} · `,
      checkedText(row, checks),
    ),
  );
}

function checkedText(row, checks) {
  const made = checks.join(", ");
  if (row.violations) return `⚠ ${row.violations} found by verify (${made || "types"})`;
  return made ? `verified: ${made}` : "not verified";
}

function drawTabs(tab, show) {
  return element(
    "div",
    { class: "tabs", role: "tablist" },
    TABS.map((name, at) => {
      const isOpen = name === tab;
      const made = element(
        "button",
        {
          type: "button",
          role: "tab",
          "aria-selected": isOpen,
          "aria-controls": "tab-body",
          tabindex: isOpen ? "0" : "-1",
        },
        name,
        element("kbd", {}, String(at + 1)),
      );
      made.addEventListener("click", () => show(name));
      return made;
    }),
  );
}

function drawUnreadable(row, index) {
  const { name } = index.files[row.file];
  return element(
    "div",
    { class: "unreadable" },
    element("h2", {}, "No trajectory can be read here"),
    element("p", {}, row.id.startsWith(name) ? "" : `${name}: `, element("bdi", {}, row.id)),
    element("p", { class: "problem" }, row.said),
  );
}
