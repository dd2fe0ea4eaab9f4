// The reward: how it is put together, and each check one by one.
import { badge, element, folded, freeText, table } from "./dom.js";
import { rewardMark } from "./episodes.js";

const MET = ["✓", "met", "good"];
const NOT_MET = ["✗", "not met", "bad"];

const GOLD = {
  matched: ["✓", "matched", "good"],
  wrong_arguments: ["≠", "other arguments", "bad"],
  missing: ["✗", "missing", "bad"],
};

export function drawReward(talk, row) {
  const [mark, shown, kind] = rewardMark(row.reward);
  const info = talk.reward_info ?? {};
  const basis = Array.isArray(info.reward_basis) ? info.reward_basis : null;
  const breakdown = Object.entries(info.reward_breakdown ?? {});
  const { facts } = talk;
  return element(
    "div",
    { class: "reward-view" },
    element(
      "p",
      { class: "headline" },
      element("span", { class: `reward ${kind}` }, `${mark} `),
      kind === "none" ? "No reward. Nothing was scored, which is not a reward of 0." : `Reward ${shown}`,
      talk.provenance.evaluator
        ? element("span", { class: "aside" }, ` by the ${talk.provenance.evaluator} evaluator`)
        : null,
    ),
    basis
      ? element(
          "p",
          {},
          "The reward is the product of: ",
          basis.map((part) => element("code", { class: "basis" }, part)),
        )
      : null,
    breakdown.length
      ? table(
          ["part", "value"],
          breakdown.map(([part, value]) => [part, partMark(value)]),
        )
      : null,
    section(
      "Database",
      facts.database === null
        ? null
        : [[badge(...(facts.database ? MET : NOT_MET)), "The databases are as the task wants them in the end."]],
    ),
    section(
      "Actions that the task wants",
      facts.gold && facts.gold.map((action) => [badge(...GOLD[action.state]), goldAction(action)]),
    ),
    section("What the user was to be told", checks(facts.communicated)),
    section("Assertions on the environment", checks(facts.assertions)),
    section("Assertions that a judge decided", checks(facts.judged)),
    talk.user_review ? drawReview(talk.user_review) : null,
    talk.reward_info
      ? element(
          "details",
          {},
          element("summary", {}, "The evaluator's record"),
          folded(JSON.stringify(talk.reward_info, null, 2), "code", 80, 20000),
        )
      : null,
  );
}

function partMark(value) {
  const [mark, shown, kind] = rewardMark(value);
  return element("span", { class: `reward ${kind}` }, `${mark} ${shown}`);
}

// `rows` null: nobody checked.
function section(title, rows, none = "The task wants none.") {
  let body;
  if (rows === null || rows === undefined)
    body = element("p", { class: "empty" }, "– not checked, or the task has none");
  else if (!rows.length) body = element("p", { class: "empty" }, none);
  else body = table([], rows, "checks");
  return element(
    "section",
    {},
    element("h3", {}, title, rows?.length > 1 ? element("span", { class: "aside" }, ` ${rows.length}`) : null),
    body,
  );
}

function goldAction(action) {
  return [
    element("code", { class: "call-name", dir: "auto" }, action.name),
    action.requestor === "user" ? element("span", { class: "aside" }, " by the user") : null,
    action.arguments === "{}" ? null : folded(action.arguments, "code", 12),
  ];
}

// What τ²'s reviewer says of the user simulator. It never changes the reward.
function drawReview({ model, review, problem }) {
  const title = `User simulator, reviewed by ${model}`;
  if (!review)
    return element(
      "section",
      {},
      element("h3", {}, title),
      element("p", { class: "empty" }, `– no review: ${problem}`),
    );
  const errors = Array.isArray(review.errors) ? review.errors : [];
  const rows = errors.map((error) => {
    const tags = Array.isArray(error.error_tags) ? error.error_tags.join(", ") : "";
    return [
      badge("☹", String(error.severity ?? "error"), "warn"),
      [element("p", {}, `${tags} (turn_idx ${error.turn_idx ?? "not said"})`), freeText(String(error.reasoning ?? ""))],
    ];
  });
  return [
    section(title, rows, "The reviewer found no error."),
    review.summary ? freeText(String(review.summary)) : null,
  ];
}

function checks(found) {
  return (
    found &&
    found.map((check) => [
      badge(...(check.met ? MET : NOT_MET)),
      [freeText(check.text), check.why ? element("p", { class: "aside" }, check.why) : null],
    ])
  );
}
