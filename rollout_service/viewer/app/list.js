// The list of episodes. Only the rows in view are in the document.
import { badge, counted, element, number } from "./dom.js";
import { OUTCOME_MARKS, remarksOf, rewardMark } from "./episodes.js";

const ROW_HEIGHT = 62;
const MARGIN = 6;

// `opened(row)` is called when a row is chosen, `entered` on a double click.
export function makeList(holder, opened, entered) {
  const space = element("div", { class: "list-space" });
  holder.append(space);
  let rows = [];
  let current = 0;
  let drawn = "";

  function draw(force = false) {
    const first = Math.max(0, Math.floor(holder.scrollTop / ROW_HEIGHT) - MARGIN);
    const last = Math.min(rows.length, Math.ceil((holder.scrollTop + holder.clientHeight) / ROW_HEIGHT) + MARGIN);
    const wanted = `${first} ${last}`;
    if (wanted === drawn && !force) return;
    drawn = wanted;
    space.replaceChildren(...rows.slice(first, last).map((row, offset) => drawRow(row, first + offset)));
  }

  function drawRow(row, place) {
    const made = element(
      "div",
      {
        class: `row ${place === current ? "current" : ""}`,
        role: "option",
        id: `row-${row.at}`,
        "aria-selected": place === current,
        "aria-posinset": place + 1,
        "aria-setsize": rows.length,
      },
      contentOfRow(row),
    );
    made.style.top = `${place * ROW_HEIGHT}px`;
    made.addEventListener("click", () => list.choose(place));
    made.addEventListener("dblclick", entered);
    return made;
  }

  const list = {
    get rows() {
      return rows;
    },
    get current() {
      return rows[current] ?? null;
    },
    // Shows these rows, with the one chosen that was, if it is among them.
    show(newRows) {
      const kept = newRows.indexOf(list.current);
      rows = newRows;
      current = Math.max(kept, 0);
      space.style.height = `${rows.length * ROW_HEIGHT}px`;
      list.reveal(kept < 0);
      if (kept < 0) opened(list.current);
    },
    choose(place) {
      if (!rows.length) return;
      current = Math.min(Math.max(place, 0), rows.length - 1);
      list.reveal();
      opened(rows[current]);
    },
    move(by) {
      list.choose(current + by);
    },
    chooseRow(row) {
      const place = rows.indexOf(row);
      if (place >= 0) list.choose(place);
      return place >= 0;
    },
    page() {
      return Math.max(1, Math.floor(holder.clientHeight / ROW_HEIGHT) - 1);
    },
    reveal(toTop = false) {
      const top = current * ROW_HEIGHT;
      if (toTop) holder.scrollTop = 0;
      else if (top < holder.scrollTop) holder.scrollTop = top;
      else if (top + ROW_HEIGHT > holder.scrollTop + holder.clientHeight)
        holder.scrollTop = top + ROW_HEIGHT - holder.clientHeight;
      draw(true);
      if (rows.length) holder.setAttribute("aria-activedescendant", `row-${rows[current].at}`);
      else holder.removeAttribute("aria-activedescendant");
    },
  };
  holder.addEventListener("scroll", () => draw(), { passive: true });
  new ResizeObserver(() => draw(true)).observe(holder);
  return list;
}

function contentOfRow(row) {
  const [mark, shown, kind] = rewardMark(row.reward);
  const isReadable = row.outcome !== "unreadable";
  const reward = element(
    "span",
    { class: `reward ${kind}`, title: `Reward: ${shown}` },
    element("span", { class: "mark", "aria-hidden": "true" }, mark),
    element("span", { class: "reward-number" }, kind === "none" ? "" : shown),
  );
  const title = isReadable
    ? [
        element("span", { class: "domain" }, row.domain),
        element("span", { class: "task", dir: "auto", title: row.task }, row.task),
      ]
    : element("span", { class: "task" }, row.id);
  const outcome = badge(OUTCOME_MARKS[row.outcome] ?? "·", row.outcome.replace("_", " "), `outcome ${row.outcome}`);
  const numbers = isReadable
    ? `#${row.sample} · ${counted(row.turns, "turn")} · ${number(row.policyTokens)} tok.`
    : row.said;
  const found = remarksOf(row);
  const remarks = found.map(([sign, text, kindOfRemark]) =>
    badge(sign, found.length > 1 ? shortened(text) : text, kindOfRemark, text),
  );
  return [
    reward,
    element("div", { class: "row-title" }, title, element("span", { class: "grow" }), outcome),
    element(
      "div",
      { class: "row-numbers" },
      element("span", { class: "figures" }, numbers),
      element("span", { class: "grow" }),
      remarks.slice(0, 4),
    ),
  ];
}

// The number alone, if any, where several remarks share the line; the whole text is the remark's title.
function shortened(text) {
  return text.match(/^\d+/)?.[0] ?? "";
}
