// The trajectories of one group, side by side.
import { record } from "./blocks.js";
import { badge, counted, element, seconds } from "./dom.js";
import { drawMessage } from "./conversation.js";
import { groupOf, kindOfGroup, NO_REWARD, OUTCOME_MARKS, remarksOf, rewardMark } from "./episodes.js";

const MOST = 16;

export async function drawGroup(row, groups, choose) {
  const members = [...(groups.get(groupOf(row)) ?? [row])].sort((a, b) => a.sample - b.sample);
  const from = Math.max(0, Math.min(members.indexOf(row) - MOST / 2, members.length - MOST));
  const shown = members.slice(from, from + MOST);
  const talks = await Promise.all(shown.map((member) => record(`block-${member.talk}`, member.talkLine)));
  const rewards = members.map((member) => rewardMark(member.reward));
  return element(
    "div",
    { class: "group" },
    element(
      "p",
      { class: "headline" },
      members.length === 1 ? "One trajectory" : `${members.length} trajectories of the same task`,
      kindOfGroup(members) === NO_REWARD ? ", not all with a reward: " : `, rewards ${kindOfGroup(members)}: `,
      rewards.map(([mark, text, kind]) => element("span", { class: `reward ${kind}`, title: text }, `${mark} `)),
    ),
    members.length > MOST ? element("p", { class: "aside" }, `${MOST} around this one are shown.`) : null,
    element(
      "div",
      { class: "columns" },
      shown.map((member, at) => drawColumn(member, talks[at], member === row, choose)),
    ),
  );
}

function drawColumn(member, talk, isCurrent, choose) {
  const [mark, text, kind] = rewardMark(member.reward);
  const open = element(
    "button",
    { type: "button", class: "quiet", disabled: isCurrent },
    isCurrent ? "This one" : "Open",
  );
  open.addEventListener("click", () => choose(member));
  return element(
    "section",
    { class: `column ${isCurrent ? "current" : ""}`, tabindex: "0", "aria-label": `Sample ${member.sample}` },
    element(
      "header",
      {},
      element("strong", {}, `#${member.sample} `),
      element("span", { class: `reward ${kind}` }, `${mark} ${text}`),
      element("span", { class: "grow" }),
      open,
      element(
        "div",
        { class: "column-facts" },
        badge(OUTCOME_MARKS[member.outcome] ?? "·", member.outcome.replace("_", " "), `outcome ${member.outcome}`),
        ` ${counted(member.turns, "turn")} · ${counted(member.policyTokens, "token")} · ${seconds(member.seconds)} `,
        remarksOf(member).map((remark) => badge(...remark)),
      ),
    ),
    talk.messages.map((message, at) => drawMessage(talk, message, at, true)),
  );
}
