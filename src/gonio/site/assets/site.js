/* Draws the charts, connects legends and selectors to them, filters the theorem cards, and lights
   up what a statement of the dependency graph follows from. */
(() => {
  "use strict";

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const token = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const tokens = (prefix, count) =>
    Array.from({ length: count }, (_, i) => token(`${prefix}${i + 1}`));

  /* The page's colors and type, read from the style sheet, as a Vega-Lite configuration. */
  function theme() {
    const sans = token("--sans");
    const [ink, soft, faint, rule] = ["--ink", "--ink-soft", "--ink-faint", "--rule"].map(token);
    return {
      background: "transparent",
      font: sans,
      view: { stroke: null },
      axis: {
        labelColor: soft, titleColor: soft, gridColor: rule, domainColor: faint, tickColor: faint,
        labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8,
        gridWidth: 0.75, tickSize: 4, labelPadding: 4,
      },
      axisX: { tickCount: { signal: "clamp(ceil(width / 45), 3, 12)" } },
      axisY: { domain: false, ticks: false },
      /* Color scales lie above their map: beside it they would take half of a narrow screen. */
      legend: {
        labelColor: soft, titleColor: soft, labelFontSize: 12, gradientThickness: 10,
        orient: "top", direction: "horizontal", gradientLength: 200, offset: 8,
      },
      mark: { color: token("--c1"), tooltip: null },
      text: { color: ink, fill: ink },
      title: { color: soft },
      range: { category: tokens("--c", 8), diverging: tokens("--d", 7) },
      style: {
        chance: { color: token("--chance"), strokeDash: [5, 4], strokeWidth: 1.5 },
        "chance-band": { color: token("--chance"), fillOpacity: 0.18, line: false },
        "chance-bar": { color: token("--chance"), strokeOpacity: 0.32, strokeWidth: 11 },
        "chance-label": { color: token("--ink-soft"), fontSize: 11, fontStyle: "italic" },
        "chance-tick": { color: token("--chance") },
        mean: { color: token("--c2") },
        median: { color: ink },
        cell: { stroke: token("--paper"), strokeWidth: 1 },
      },
    };
  }

  const specs = new WeakMap();
  const drawn = new Map();

  async function draw(holder) {
    if (!specs.has(holder)) {
      specs.set(holder, JSON.parse(holder.querySelector(".spec").textContent));
    }
    const old = drawn.get(holder);
    try {
      const result = await window.vegaEmbed(holder, structuredClone(specs.get(holder)), {
        mode: "vega-lite", renderer: "svg", actions: false, config: theme(),
        tooltip: { theme: "page" },
      });
      if (old) old.finalize();
      drawn.set(holder, result);
      holder.style.minHeight = "";
      applyControls(holder.closest(".figure"), [holder]);
    } catch (error) {
      holder.textContent = "The chart could not be drawn; the table below holds its numbers.";
      console.error(error);
    }
  }

  function setSignal(holder, name, value) {
    const result = drawn.get(holder);
    if (!result) return;
    try {
      result.view.signal(name, value).runAsync();
    } catch {
      /* this chart of the figure has no such parameter */
    }
  }

  /* Bring charts to the state of their figure's legend and selectors. */
  function applyControls(figure, holders) {
    const pressed = figure.querySelector('.key[aria-pressed="true"]');
    for (const holder of holders) {
      for (const select of figure.querySelectorAll("select[data-param]")) {
        setSignal(holder, select.dataset.param, select.value);
      }
      setSignal(holder, "focus", pressed ? pressed.dataset.series : null);
    }
  }

  function connectFigure(figure) {
    const holders = [...figure.querySelectorAll(".chart")];
    for (const key of figure.querySelectorAll(".key[data-series]")) {
      key.addEventListener("click", () => {
        const next = key.getAttribute("aria-pressed") !== "true";
        for (const other of figure.querySelectorAll(".key[data-series]")) {
          other.setAttribute("aria-pressed", String(next && other === key));
        }
        applyControls(figure, holders);
      });
    }
    for (const select of figure.querySelectorAll("select[data-param]")) {
      select.addEventListener("change", () => applyControls(figure, holders));
    }
  }

  async function drawAll() {
    for (const holder of document.querySelectorAll(".chart")) await draw(holder);
    document.documentElement.dataset.charts = "ready";
  }

  function connectFilters() {
    const form = document.getElementById("filters");
    if (!form) return;
    const [text, family, status, theirs] = ["text", "family", "status", "theirs"]
      .map((name) => document.getElementById(`filter-${name}`));
    const cards = [...document.querySelectorAll(".card")];
    const words = new Map(
      cards.map((card) => [card, `${card.textContent} ${card.dataset.latex}`.toLowerCase()]));

    function apply() {
      const wanted = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const card of cards) {
        const letter = card.closest(".family").dataset.family;
        const fits = (!family.value || letter === family.value)
          && (!status.value || card.dataset.status === status.value)
          && (!theirs.value || card.dataset.theirs === theirs.value)
          && wanted.every((word) => words.get(card).includes(word));
        card.hidden = !fits;
        shown += fits;
      }
      for (const group of document.querySelectorAll(".family")) {
        group.hidden = !group.querySelector(".card:not([hidden])");
      }
      document.getElementById("filter-none").hidden = shown > 0;
      document.getElementById("filter-count").textContent =
        `${shown} of ${cards.length} statements`;
    }

    /* theorems.html?status=refuted opens filtered; what is not an option is ignored. */
    function readAddress() {
      const asked = new URLSearchParams(location.search);
      text.value = asked.get("text") || "";
      for (const select of [family, status, theirs]) {
        const value = asked.get(select.id.replace("filter-", ""));
        if ([...select.options].some((option) => option.value === value)) select.value = value;
      }
    }

    /* A link to a card or a family that the filter hides shows everything again. */
    function reveal() {
      const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (target && target.closest("[hidden]")) {
        form.reset();
        apply();
        target.scrollIntoView();
      }
    }

    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(apply));
    window.addEventListener("hashchange", reveal);
    readAddress();
    apply();
    reveal();
  }

  function connectGraph(graph) {
    const rows = new Map([...graph.querySelectorAll("li")].map((row) => [row.dataset.name, row]));
    const arcs = [...graph.querySelectorAll("path")];

    function light(name) {
      graph.classList.toggle("lit", Boolean(name));
      for (const row of rows.values()) row.classList.toggle("near", row.dataset.name === name);
      for (const arc of arcs) {
        const touches = name && (arc.dataset.from === name || arc.dataset.to === name);
        arc.classList.toggle("near", Boolean(touches));
        if (!touches) continue;
        rows.get(arc.dataset.from).classList.add("near");
        rows.get(arc.dataset.to).classList.add("near");
      }
    }

    for (const [name, row] of rows) {
      row.addEventListener("pointerenter", () => light(name));
      row.addEventListener("focusin", () => light(name));
      row.addEventListener("pointerleave", () => light(""));
      row.addEventListener("focusout", () => light(""));
    }
  }

  function connectTheme() {
    const select = document.getElementById("theme");
    if (!window.gonioTheme) return;
    select.value = window.gonioTheme.stored();
    select.closest("label").hidden = false;
    select.addEventListener("change", () => {
      window.gonioTheme.choose(select.value);
      if (window.vegaEmbed) drawAll();
    });
  }

  document.querySelectorAll(".figure").forEach(connectFigure);
  document.querySelectorAll(".arcs").forEach(connectGraph);
  connectFilters();
  connectTheme();
  if (window.vegaEmbed) {
    drawAll();
    dark.addEventListener("change", drawAll);
  }
})();
