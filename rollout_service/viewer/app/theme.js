// Light or dark: as the system has it, unless the reader chose. The choice is kept where the browser allows it.

const THEMES = ["system", "light", "dark"];
const KEY = "rollout-service-theme";

export function makeTheme(button) {
  let theme = "system";
  try {
    theme = THEMES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : theme;
  } catch {
    // A browser may keep nothing for local files.
  }
  function show() {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  }
  const made = {
    next() {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // See above.
      }
      show();
    },
  };
  button.addEventListener("click", made.next);
  show();
  return made;
}
