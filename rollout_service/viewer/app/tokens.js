// The tokens: what the engine was sent and what it sampled, token by token.
import { linesOf, record } from "./blocks.js";
import { badge, element, number, seconds, showText } from "./dom.js";
import { weightsOf } from "./episodes.js";
import { commonLength, segmentOf } from "./segments.js";
import { placedViolations, violationNote } from "./violations.js";

const LIKELY = Math.log(0.5);
const UNLIKELY = Math.log(0.1);
const MASKS = { 1: "sampled (loss mask 1)", 0: "context (loss mask 0)" };
const FOLD = 160;
const EDGE = 48;

// What tells the facts of a token, by its element. The listeners are the view's: an episode may have 50,000 tokens.
const TELLS = new WeakMap();

export async function drawTokens(talk, row, index) {
  const packed = await record(`block-${row.tokenBlock}`, row.tokenLine);
  if (!packed.segments.length)
    return element("p", { class: "empty" }, "The policy was never asked, so there are no tokens.");
  const heads = await linesOf("heads");
  const texts = await textsOf(packed.vocabulary);
  const { problem } = index.tokenizers[packed.vocabulary];
  const violations = placedViolations(talk);
  const facts = element(
    "p",
    { class: "token-facts", role: "status" },
    "Point at a token, or move with ← and →, to see its log-prob and weight version.",
  );
  const holder = element(
    "div",
    { class: "token-view" },
    legend(),
    problem ? element("p", { class: "problem" }, problem) : null,
    facts,
  );
  const tokenOf = (event) => event.target.closest?.(".token");
  for (const event of ["mouseover", "focusin"]) holder.addEventListener(event, (it) => TELLS.get(tokenOf(it))?.());
  holder.addEventListener("click", (it) => tokenOf(it)?.focus());
  const made = [];
  for (const [at, found] of packed.segments.entries()) {
    const turns = talk.turns.filter((turn) => turn.segment === at);
    const segment = segmentOf(found, JSON.parse(heads[found.head]), turns);
    made.push(segment);
    holder.append(drawSegment(segment, at, made, talk, texts, violations, facts));
  }
  return holder;
}

async function textsOf(vocabulary) {
  const { ids, texts } = await record(`vocabulary-${vocabulary}`, 0);
  return new Map(ids.map((id, at) => [id, texts[at]]));
}

function legend() {
  const sample = (className, text) => element("span", { class: `token ${className}` }, text);
  return element(
    "p",
    { class: "legend" },
    sample("policy likely", "sampled"),
    " by the policy: loss mask 1. Line below: ",
    sample("policy likely", "p ≥ 0.5"),
    " ",
    sample("policy possible", "p ≥ 0.1"),
    " ",
    sample("policy unlikely", "p < 0.1"),
    " · ",
    sample("context", "context"),
    ": loss mask 0 · ",
    element("span", { class: "version" }, "v3"),
    " from here on by weight version 3 · ",
    sample("policy nameless", "1234"),
    " an id without a text of its own",
  );
}

function drawSegment(segment, at, earlier, talk, texts, violations, facts) {
  const sampled = segment.mask.filter((mask) => mask === 1).length;
  const fork = at ? commonLength(segment.ids, earlier[at - 1].ids) : 0;
  const title = earlier.length > 1 || talk.turns.some((turn) => turn.segment > 0) ? `Segment ${at + 1}` : "Tokens";
  const forkText = `Forks from segment ${at} after ${number(fork)} tokens: the chat template rewrote what followed.`;
  return element(
    "section",
    { class: "segment" },
    element(
      "h3",
      {},
      at ? "⋔ " : "",
      title,
      element(
        "span",
        { class: "aside" },
        ` ${number(segment.ids.length)} tokens, ${number(sampled)} sampled, ${number(segment.prompt)} of prompt`,
      ),
    ),
    at ? element("p", { class: "fork" }, forkText) : null,
    (violations.bySegment.get(at) ?? []).map(violationNote),
    segment.spans.map((span) => drawSpan(segment, span, fork, talk, texts, violations, facts)),
  );
}

function drawSpan(segment, span, fork, talk, texts, violations, facts) {
  const body = element("div", { class: `span ${span.mask === 1 ? "sampled" : "given"}`, dir: "ltr" });
  const tokens = (from, to) => {
    const made = [];
    for (let at = from; at < to; at += 1) made.push(...drawToken(segment, at, span, fork, texts, facts));
    return made;
  };
  let shownTo = span.start;
  for (const [from, to] of windowsOf(span, fork)) {
    const [gapStart, gapEnd] = [shownTo, from];
    if (gapEnd > gapStart) {
      const more = element(
        "button",
        { type: "button", class: "more" },
        `… ${number(gapEnd - gapStart)} more context tokens …`,
      );
      more.addEventListener("click", () => more.replaceWith(...tokens(gapStart, gapEnd)));
      body.append(more);
    }
    body.append(...tokens(from, to));
    shownTo = to;
  }
  const turnAt = span.turn ? talk.turns.indexOf(span.turn) : -1;
  const label = span.turn ? turnLabel(span.turn, turnAt) : spanLabel(span);
  return [
    element("div", { class: "span-label" }, label),
    (violations.byTurn.get(turnAt) ?? []).map(violationNote),
    body,
  ];
}

// Which parts of a span are shown at first: all of it, or of a long context its ends and where it forks.
function windowsOf(span, fork) {
  if (span.mask === 1 || span.end - span.start <= FOLD) return [[span.start, span.end]];
  const windows = [[span.start, span.start + EDGE]];
  const put = (from, to) => {
    const last = windows.at(-1);
    if (from <= last[1]) last[1] = Math.max(last[1], to);
    else windows.push([from, to]);
  };
  if (fork > span.start && fork < span.end)
    put(Math.max(span.start, fork - EDGE / 2), Math.min(span.end, fork + EDGE / 2));
  put(span.end - EDGE, span.end);
  return windows;
}

function spanLabel(span) {
  const what = span.mask === 1 ? "Sampled, but in no turn" : span.isPrompt ? "Prompt" : "Context";
  return [element("strong", {}, what), ` ${number(span.end - span.start)} tokens, at ${number(span.start)}`];
}

function turnLabel(turn, at) {
  const weights = weightsOf(turn);
  return [
    element("strong", {}, `Turn ${at + 1}`),
    ` ${number(turn.length)} tokens, at ${number(turn.start)}`,
    ` · weights ${weights || "not recorded"}`,
    turn.prefix_version !== null && turn.versions && turn.prefix_version < turn.versions[0]
      ? `, prefix by v${turn.prefix_version}`
      : "",
    ` · ${number(turn.cached_tokens)} prompt tokens cached · ${seconds(turn.policy_seconds)}`,
    turn.queue_seconds === null ? " · " : `, ${seconds(turn.queue_seconds)} of it waiting · `,
    turn.finish_reason === "length" ? badge("✂", "cut by length", "warn") : `ended by ${turn.finish_reason}`,
    turn.tool_calls.length ? " · " : "",
    turn.tool_calls.map((status) =>
      status === "ok" ? badge("✓", "call", "good") : badge("✗", `call: ${status}`, "bad"),
    ),
    turn.unknown_tokens ? badge("?", `${turn.unknown_tokens} ids without token`, "warn") : null,
    turn.message_index === null ? " · became no message" : ` · message ${turn.message_index}`,
  ];
}

function drawToken(segment, at, span, fork, texts, facts) {
  const id = segment.ids[at];
  const text = texts.get(id) ?? null;
  const logprob = segment.logprobs[at];
  const version = segment.versions[at];
  const likelihood = logprob >= LIKELY ? "likely" : logprob >= UNLIKELY ? "possible" : "unlikely";
  const kind = span.mask === 1 ? `policy ${likelihood}` : "context";
  const made = element("span", {
    class: `token ${kind} ${text === null ? "nameless" : ""}`,
    tabindex: "-1",
    "data-at": at,
  });
  if (text === null) made.textContent = String(id);
  else showText(made, text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥"));
  const tell = () => {
    const words = [`token ${number(at)}: id ${id}`, text === null ? "no text of its own" : JSON.stringify(text)];
    words.push(MASKS[segment.mask[at]] ?? "no loss mask recorded");
    if (segment.mask[at] === 1 || logprob || (version ?? -1) !== -1) {
      words.push(
        logprob === undefined ? "no log-prob recorded" : `log-prob ${logprob}, p ${Math.exp(logprob).toPrecision(3)}`,
      );
      words.push(version === undefined ? "no weight version recorded" : `weight version ${version}`);
    }
    facts.textContent = "";
    showText(facts, words.join(" · "));
  };
  TELLS.set(made, tell);
  const before = [];
  if (at === fork && fork > 0)
    before.push(element("span", { class: "fork-mark", title: "Up to here as the segment before" }, "⋔"));
  if (span.mask === 1 && isNewVersion(segment, at)) before.push(element("span", { class: "version" }, `v${version}`));
  return [...before, made];
}

function isNewVersion(segment, at) {
  for (let earlier = at - 1; earlier >= 0; earlier -= 1) {
    if (segment.mask[earlier] === 1) return segment.versions[earlier] !== segment.versions[at];
  }
  return true;
}

// Moves the focus to the next token, at first to the first sampled one.
export function moveToken(holder, by) {
  const tokens = [...holder.querySelectorAll(".segment .token")];
  const now = tokens.indexOf(document.activeElement);
  const first = tokens.findIndex((token) => token.classList.contains("policy"));
  tokens[now < 0 ? Math.max(first, 0) : now + by]?.focus();
}
