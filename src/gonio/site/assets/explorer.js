/* The explorer's runs: checkboxes that tell the chart which runs to draw. The hidden selector of
   the figure carries the choice, so that it is applied like any other and survives a redraw. */
(() => {
  "use strict";

  const figure = document.getElementById("figure-explorer");
  if (!figure) return;
  const boxes = [...figure.querySelectorAll("input[data-run]")];
  const [quantity, axis, projection, carrier] = ["quantity", "axis", "projection", "runs"]
    .map((name) => figure.querySelector(`select[data-param="${name}"]`));
  const panels = figure.querySelector(".panels");
  const says = document.getElementById("explorer-says");

  /* Before the chart is drawn its specification stands in the page: what each run has. */
  const spec = JSON.parse(figure.querySelector(".spec").textContent);
  const rows = Object.values(spec.datasets).flat().filter((row) => "run" in row);

  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.dataset.run);
  function drawable() {
    const has = new Set(rows
      .filter((row) => row.projection === projection.value
        && typeof row[quantity.value] === "number")
      .map((row) => String(row.run)));
    return chosen().filter((run) => has.has(run));
  }

  /* Say what is drawn; a chart of nothing is hidden and told nothing, as it has no axes. */
  function tell() {
    const [picked, drawn] = [chosen().length, drawable().length];
    const title = quantity.selectedOptions[0].textContent;
    panels.hidden = drawn === 0;
    says.hidden = false;
    says.textContent = picked === 0
      ? "No run is chosen."
      : drawn === 0
        ? `None of the chosen runs has this: ${title}, ${projection.value}.`
        : `${drawn} of ${boxes.length} runs: ${title}, ${projection.value}.`
          + (drawn < picked ? ` Of the chosen runs ${picked - drawn} lack it.` : "");
    return drawn > 0;
  }

  function apply() {
    if (!tell()) return;
    carrier.options[0].value = `|${drawable().map((run) => `${run}|`).join("")}`;
    carrier.dispatchEvent(new Event("change"));
  }

  for (const box of boxes) box.addEventListener("change", apply);
  /* On the way down, before the chart hears of it. */
  figure.addEventListener("change", (event) => {
    if (![quantity, axis, projection].includes(event.target)) return;
    event.stopImmediatePropagation();
    apply();
  }, true);
  for (const button of figure.querySelectorAll("button[data-pick]")) {
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = button.dataset.pick === "all";
      apply();
    });
  }
  window.addEventListener("pageshow", apply); /* the browser may have kept other choices */
})();
