// Blocks of packed lines, unpacked when something in them is wanted. The last few stay unpacked.
import { element } from "./dom.js";

const KEPT = 12;
const unpacked = new Map();

// The lines of a block. Waits for it while the browser still reads the file.
export async function linesOf(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(name));
  const lines = unpacked.get(name);
  unpacked.delete(name);
  unpacked.set(name, lines);
  if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
  try {
    return await lines;
  } catch (error) {
    unpacked.delete(name);
    throw error;
  }
}

export async function record(name, line) {
  return JSON.parse((await linesOf(name))[line]);
}

export async function unpack(name) {
  const content = await contentOf(name);
  const stream = new Blob([bytesOf(content)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return (await new Response(stream).text()).split("\n");
}

async function contentOf(name) {
  for (;;) {
    const found = document.getElementById(name);
    if (found && found.textContent.length === Number(found.dataset.length)) return found.textContent;
    if (document.readyState !== "loading") {
      throw new Error(`This page is not whole: its part ${name} is missing. Write it again with rollout-service view.`);
    }
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

function bytesOf(content) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(content);
  const text = atob(content);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return bytes;
}

export function failure(error) {
  return element(
    "p",
    { class: "problem", role: "alert" },
    element("strong", {}, "✗ Not shown. "),
    String(error.message || error),
  );
}
