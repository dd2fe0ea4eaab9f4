// The conversation: messages with their tool calls and results, and beside each what the record says of it.
import { badge, counted, element, folded, freeText, number, readable, seconds } from "./dom.js";
import { OUTCOME_MARKS, rewardMark, weightsOf } from "./episodes.js";
import { placedViolations, violationNote } from "./violations.js";

const ROLES = {
  assistant: ["Policy", "policy"],
  user: ["User simulator", "user"],
  tool: ["Tool result", "tool"],
  system: ["System", "system"],
};

const CALL_STATES = {
  valid: ["✓", "valid", "good"],
  malformed: ["✗", "malformed", "bad"],
  refused: ["⊝", "refused", "warn"],
  unanswered: ["…", "unanswered", "plain"],
};

export function drawConversation(talk, row) {
  const violations = placedViolations(talk);
  const holder = element("div", { class: "conversation" });
  for (const violation of violations.others) holder.append(violationNote(violation));
  for (const [at, message] of talk.messages.entries()) {
    holder.append(drawMessage(talk, message, at));
    for (const violation of violations.byMessage.get(at) ?? []) holder.append(violationNote(violation));
  }
  if (!talk.messages.length) holder.append(element("p", { class: "empty" }, "The record holds no messages."));
  for (const [at, turn] of talk.turns.entries()) {
    if (turn.message_index === null) holder.append(lostTurn(turn, at));
  }
  holder.append(drawEnd(talk, row));
  return holder;
}

// One message; `isShort` leaves out what only the full conversation shows.
export function drawMessage(talk, message, at, isShort = false) {
  const [name, kind] = ROLES[message.role] ?? [String(message.role), "other"];
  const turn = talk.turns.findIndex((candidate) => candidate.message_index === at);
  const isGiven = message.role === "assistant" && turn < 0;
  const flaws = Object.entries(talk.user_flaws ?? {}).filter(
    ([, places]) => Array.isArray(places) && places.includes(at),
  );
  const isError = message.role === "tool" && message.error;
  const calls = Array.isArray(message.tool_calls) ? message.tool_calls : [];
  const whose = message.role === "tool" && message.requestor === "user" ? " for the user" : "";
  return element(
    "article",
    { class: `message ${isGiven ? "other" : kind} ${isError ? "error" : ""}`, tabindex: "-1", "data-message": at },
    element(
      "header",
      {},
      element("span", { class: "role" }, isGiven ? "Assistant" : `${name}${whose}`),
      isGiven ? element("span", { class: "given" }, isShort ? "given" : "given, not sampled") : null,
      isError ? badge("⊝", "error", "warn") : null,
      turn < 0 ? null : turnMarks(talk, talk.turns[turn]),
      flaws.map(([flaw]) => badge("☹", `user flaw: ${flaw.replaceAll("_", " ")}`, "warn")),
      element("span", { class: "grow" }),
      isShort ? null : element("span", { class: "message-facts" }, turn < 0 ? "" : turnFacts(talk.turns[turn], turn)),
      element("span", { class: "position" }, `${at}`),
    ),
    contentOf(message, calls, isShort),
    calls.map((call, place) => drawCall(call, callState(talk, at, place), isShort)),
  );
}

function contentOf(message, calls, isShort) {
  const { content } = message;
  if (content === null || content === undefined || content === "") {
    return calls.length ? null : element("p", { class: "empty" }, "(no text)");
  }
  if (typeof content !== "string") return folded(JSON.stringify(content, null, 2));
  if (message.role === "tool") return folded(readable(content), "code", isShort ? 6 : 14, isShort ? 300 : 1400);
  return content.length > 4000 ? folded(content, "text", 60, 4000) : freeText(content);
}

// What Facts says of the call in this place of the message's calls.
function callState(talk, at, place) {
  return talk.facts.calls.filter((call) => call.message === at)[place] ?? null;
}

function drawCall(call, fact, isShort) {
  const state = fact && CALL_STATES[fact.state];
  const given = typeof call?.arguments === "string" ? call.arguments : "";
  return element(
    "div",
    { class: "call" },
    element(
      "div",
      { class: "call-head" },
      element("span", { class: "call-sign", "aria-hidden": "true" }, "→"),
      element("code", { class: "call-name", dir: "auto" }, String(call?.name ?? "(no name)")),
      state ? badge(...state, fact.problem || null) : null,
      fact?.problem ? element("span", { class: "call-problem" }, fact.problem) : null,
    ),
    given && given !== "{}" ? folded(given, "code", isShort ? 8 : 24) : null,
  );
}

// What the turn did beyond its calls' states, which stand at the calls.
function turnMarks(talk, { facts }) {
  const { gold, communicated } = talk.facts;
  const named = (facts.gold_actions ?? []).map((place) => gold?.[place]?.name ?? `number ${place + 1}`);
  const said = (facts.communicated ?? []).map((place) => communicated?.[place]?.text ?? `number ${place + 1}`);
  return [
    facts.wrote ? badge("✎", "wrote", "plain", "A call changed a database.") : null,
    named.length ? badge("★", counted(named.length, "gold action"), "good", `First match: ${named.join(", ")}`) : null,
    said.length ? badge("❝", counted(said.length, "required text"), "good", `First to say: ${said.join(", ")}`) : null,
  ];
}

function turnFacts(turn, at) {
  const weights = weightsOf(turn) || "no weight version";
  const parts = [`turn ${at + 1}`, `${number(turn.length)} tokens`, weights, seconds(turn.policy_seconds)];
  if (turn.finish_reason === "length") parts.push("✂ cut by length");
  return parts.join(" · ");
}

function lostTurn(turn, at) {
  return element(
    "article",
    { class: "message policy lost", tabindex: "-1" },
    element(
      "header",
      {},
      element("span", { class: "role" }, "Policy"),
      element("span", { class: "grow" }),
      turnFacts(turn, at),
    ),
    element(
      "p",
      { class: "empty" },
      "This turn became no message: the episode ended first. Its tokens are under Tokens.",
    ),
  );
}

function drawEnd(talk, row) {
  const [mark, shown, kind] = rewardMark(row.reward);
  const parts = [
    element(
      "p",
      {},
      badge(OUTCOME_MARKS[row.outcome] ?? "·", row.outcome.replace("_", " "), `outcome ${row.outcome}`),
      ` Ended by ${talk.termination_reason}. `,
      element("span", { class: `reward ${kind}` }, `${mark} `),
      kind === "none" ? "There is no reward, which is not a reward of 0." : `Reward ${shown}.`,
    ),
  ];
  if (talk.fault) {
    const { kind: whose, error, message, retryable, traceback } = talk.fault;
    parts.push(
      element("p", {}, element("strong", {}, `Fault of the ${whose.replace("_", " ")}: `), `${error}: ${message}`),
      element("p", {}, retryable ? "Another attempt may end differently." : "Another attempt would end the same."),
    );
    if (traceback) parts.push(folded(traceback, "code", 12));
  }
  return element(
    "article",
    { class: "message end", tabindex: "-1" },
    element("header", {}, element("span", { class: "role" }, "End")),
    parts,
  );
}
