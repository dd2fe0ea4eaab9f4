// Searches the text of conversations, block by block, so that the page stays usable meanwhile.
import { unpack } from "./blocks.js";

// Calls `progress(share, found)` after each block; returns the numbers of the rows that hold the text, or null if
// `isWanted()` became false.
export async function searchConversations(rows, text, isWanted, progress) {
  const byBlock = new Map();
  for (const row of rows) {
    if (typeof row.talk !== "number") continue;
    if (!byBlock.has(row.talk)) byBlock.set(row.talk, []);
    byBlock.get(row.talk).push(row);
  }
  const found = new Set();
  let done = 0;
  for (const [block, members] of byBlock) {
    const lines = await unpack(`block-${block}`);
    for (const row of members) if (holds(JSON.parse(lines[row.talkLine]), text)) found.add(row.at);
    done += 1;
    if (!isWanted()) return null;
    progress(done / byBlock.size, found);
  }
  return found;
}

function holds(talk, text) {
  const has = (value) => typeof value === "string" && value.toLowerCase().includes(text);
  return talk.messages.some(
    (message) =>
      has(message.content) ||
      (Array.isArray(message.tool_calls) && message.tool_calls.some((call) => has(call?.name) || has(call?.arguments))),
  );
}
