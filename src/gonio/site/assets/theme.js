/* The theme the reader chose, before the page is painted; without a choice, that of the system. */
(() => {
  "use strict";

  const root = document.documentElement;
  const key = "gonio-theme";

  function stored() {
    try {
      return localStorage.getItem(key) || "";
    } catch {
      return ""; /* storage is switched off: the choice lasts as long as the page */
    }
  }

  function apply(choice) {
    const media = { light: "not all", dark: "all" }[choice] || "(prefers-color-scheme: dark)";
    document.getElementById("dark-scheme").media = media;
    root.style.colorScheme = choice;
    root.dataset.theme = choice || "auto";
  }

  apply(stored());
  window.gonioTheme = {
    stored,
    choose(choice) {
      try {
        localStorage.setItem(key, choice);
      } catch {
        /* as above */
      }
      apply(choice);
    },
  };
})();
