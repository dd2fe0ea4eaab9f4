// Marks the searched text in the open conversation. The document itself stays as it is.

const NAME = "found";

// Marks every place of the text inside the element, and shows the first one. What hides one is unfolded. An empty text
// marks nothing.
export function highlight(holder, text) {
  if (!globalThis.CSS?.highlights) return;
  CSS.highlights.delete(NAME);
  if (!text) return;
  for (const more of holder.querySelectorAll("button.more")) if (more.holds?.(text)) more.click();
  const ranges = [];
  const walker = document.createTreeWalker(holder, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const lower = node.data.toLowerCase();
    if (lower.length !== node.data.length) continue; // a letter that is two in lower case would shift the places
    for (let at = lower.indexOf(text); at >= 0; at = lower.indexOf(text, at + text.length)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, at + text.length);
      ranges.push(range);
    }
  }
  if (!ranges.length) return;
  CSS.highlights.set(NAME, new Highlight(...ranges));
  ranges[0].startContainer.parentElement.scrollIntoView({ block: "center" });
}
