// Elements, and text in them. Text from a trajectory reaches the page only through showText or as a text node, never
// as markup.

// Characters that do not show, or that change how their neighbours show: controls, bidirectional marks, zero widths,
// and halves of surrogate pairs.
const HIDDEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f" +
    "\\ufeff\\ufff9-\\ufffb]|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
  "g",
);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("aria-")) made.setAttribute(name, String(value));
    else if (value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  append(made, children);
  return made;
}

function append(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) parent.append(child);
    else showText(parent, String(child));
  }
}

// Appends text to an element. Hidden characters are shown by their code points.
export function showText(parent, text) {
  let shownTo = 0;
  for (const found of text.matchAll(HIDDEN)) {
    const at = found.index;
    if (at > shownTo) parent.append(text.slice(shownTo, at));
    const code = found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    const mark = document.createElement("span");
    mark.className = "hidden-character";
    mark.title = `The character U+${code}`;
    mark.textContent = `U+${code}`;
    parent.append(mark);
    shownTo = at + 1;
  }
  if (shownTo < text.length) parent.append(text.slice(shownTo));
  return parent;
}

// Free text of a trajectory, in its own direction.
export function freeText(text) {
  return showText(element("div", { class: "text", dir: "auto" }), text);
}

export function badge(mark, label, kind, title = null) {
  return element(
    "span",
    { class: `badge ${kind}`, title },
    element("span", { class: "mark", "aria-hidden": "true" }, mark),
    label,
  );
}

export function table(head, rows, className = "facts") {
  return element(
    "table",
    { class: className },
    head.length
      ? element(
          "thead",
          {},
          element(
            "tr",
            {},
            head.map((cell) => element("th", { scope: "col" }, cell)),
          ),
        )
      : null,
    element(
      "tbody",
      {},
      rows.map((cells) =>
        element(
          "tr",
          {},
          cells.map((cell) => element("td", {}, cell)),
        ),
      ),
    ),
  );
}

// Long text, of which the beginning is shown first. Its button says whether the whole text `holds` a text.
export function folded(text, className = "code", lines = 14, characters = 1400) {
  const holder = element("div", { class: "folded" });
  const cut = Math.min(nthLine(text, lines), characters);
  const body = showText(
    element("pre", { class: className, dir: "auto" }),
    text.length > cut * 1.2 ? text.slice(0, cut) : text,
  );
  holder.append(body);
  if (text.length > cut * 1.2) {
    const more = element("button", { type: "button", class: "more" }, `Show all ${number(text.length)} characters`);
    more.addEventListener("click", () => {
      body.textContent = "";
      showText(body, text);
      more.remove();
    });
    more.holds = (wanted) => text.toLowerCase().includes(wanted);
    holder.append(more);
  }
  return holder;
}

function nthLine(text, lines) {
  let at = -1;
  for (let line = 0; line < lines; line += 1) {
    at = text.indexOf("\n", at + 1);
    if (at < 0) return text.length;
  }
  return at;
}

// JSON text with line breaks and indentation. Nothing but white space between values is changed.
function indented(text) {
  let out = "";
  let depth = 0;
  let inString = false;
  for (let at = 0; at < text.length; at += 1) {
    const character = text[at];
    if (inString) {
      out += character;
      if (character === "\\") out += text[(at += 1)] ?? "";
      else if (character === '"') inString = false;
    } else if (character === '"') {
      inString = true;
      out += character;
    } else if (character === "{" || character === "[") {
      const rest = text.slice(at + 1).match(/^\s*[}\]]/);
      if (rest) {
        out += character + rest[0].trim();
        at += rest[0].length;
      } else out += character + line((depth += 1));
    } else if (character === "}" || character === "]") out += line((depth -= 1)) + character;
    else if (character === ",") out += character + line(depth);
    else if (character === ":") out += ": ";
    else if (!/\s/.test(character)) out += character;
  }
  return out;
}

function line(depth) {
  return `\n${"  ".repeat(Math.max(depth, 0))}`;
}

// The text, indented if it is a JSON object or array.
export function readable(text) {
  if (!/^\s*[{[]/.test(text) || text.length > 200000) return text;
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  return indented(text);
}

export function number(value) {
  if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
  return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

// A number of things: "1 turn", "2 turns".
export function counted(count, thing) {
  return `${number(count)} ${thing}${count === 1 ? "" : "s"}`;
}

export function seconds(value) {
  if (typeof value !== "number") return "–";
  if (value === 0) return "0 s";
  if (value < 0.0995) return `${(value * 1000).toPrecision(2)} ms`;
  return value < 99.95 ? `${value.toPrecision(3)} s` : `${number(value)} s`;
}
