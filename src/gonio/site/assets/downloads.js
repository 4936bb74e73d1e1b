/* Every figure as SVG, PNG or CSV: the drawing as it stands on the page, with its legend, in the
   reader's theme and with the series the reader picked; the numbers of its table. */
(() => {
  "use strict";

  const NS = "http://www.w3.org/2000/svg";
  const MARGIN = 16;
  const PNG_SCALE = 2;

  function make(tag, attributes, text) {
    const node = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  /* A line of the page as text of the drawing, where it stands on the page. */
  function label(element, origin, text) {
    const box = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    return make("text", {
      x: box.left - origin.left, y: box.top - origin.top + box.height / 2,
      "dominant-baseline": "central", fill: style.color,
      "font-family": style.fontFamily, "font-size": style.fontSize,
      "font-weight": style.fontWeight,
    }, text);
  }

  /* A text node's place: labels of the legend stand right of their mark. */
  function textOf(element, origin) {
    const node = [...element.childNodes].filter((n) => n.nodeType === 3 && n.data.trim()).pop();
    if (!node) return null;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    const style = getComputedStyle(element);
    return make("text", {
      x: box.left - origin.left, y: box.top - origin.top + box.height / 2,
      "dominant-baseline": "central", fill: style.color,
      "font-family": style.fontFamily, "font-size": style.fontSize,
    }, node.data.trim());
  }

  function legendOf(figure, origin) {
    const group = make("g", {});
    for (const key of figure.querySelectorAll(".legend .key")) {
      const box = key.querySelector("input");
      if (box && !box.checked) continue;
      const swatch = key.querySelector("svg.swatch");
      const band = key.querySelector(".swatch-chance");
      const mark = (swatch || band || key).getBoundingClientRect();
      const [left, top] = [mark.left - origin.left, mark.top - origin.top];
      if (swatch) {
        const path = swatch.querySelector("path");
        const scale = mark.width / 16;
        group.append(make("path", {
          d: path.getAttribute("d"), fill: getComputedStyle(swatch).color,
          transform: `translate(${left + mark.width / 2} ${top + mark.height / 2}) scale(${scale})`,
        }));
      } else if (band) {
        const color = getComputedStyle(document.documentElement).getPropertyValue("--chance");
        group.append(band.classList.contains("band")
          ? make("rect", { x: left, y: top, width: mark.width, height: mark.height,
            fill: color.trim(), "fill-opacity": 0.26 })
          : make("line", { x1: left, x2: left + mark.width, y1: top, y2: top,
            stroke: color.trim(), "stroke-width": 1.5, "stroke-dasharray": "5 4" }));
      }
      const words = textOf(key, origin);
      if (words) group.append(words);
    }
    return group;
  }

  function gradientOf(figure, origin) {
    const ramp = figure.querySelector(".gradient .ramp");
    const group = make("g", {});
    if (!ramp) return group;
    const style = getComputedStyle(document.documentElement);
    const fill = make("linearGradient", { id: "ramp" });
    for (let n = 1; n <= 7; n += 1) {
      const color = style.getPropertyValue(`--d${n}`).trim();
      fill.append(make("stop", { offset: (n - 1) / 6, "stop-color": color }));
    }
    const box = ramp.getBoundingClientRect();
    group.append(fill, make("rect", {
      x: box.left - origin.left, y: box.top - origin.top,
      width: box.width, height: box.height, fill: "url(#ramp)",
    }));
    for (const end of figure.querySelectorAll(".gradient .ends > span")) {
      group.append(label(end, origin, end.textContent));
    }
    return group;
  }

  /* What the reader chose in the figure's selectors, as a line of text. */
  function choicesOf(figure) {
    const said = [...figure.querySelectorAll("label.choice")].map((choice) => {
      const select = choice.querySelector("select");
      return `${choice.firstChild.textContent.trim()}: ${select.selectedOptions[0].textContent}`;
    });
    return said.join("; ");
  }

  /* The whole figure as one SVG element. */
  function drawing(figure) {
    const drawn = [...figure.querySelectorAll(".chart svg.marks")];
    const whole = figure.getBoundingClientRect();
    const bottom = Math.max(...drawn.map((svg) => svg.getBoundingClientRect().bottom));
    const top = figure.querySelector(".figure-title").getBoundingClientRect().top;
    const origin = { left: whole.left - MARGIN, top: top - MARGIN };
    const width = Math.ceil(whole.width + 2 * MARGIN);
    const height = Math.ceil(bottom - top + 2 * MARGIN);
    const chosen = choicesOf(figure);
    const root = make("svg", {
      xmlns: NS, width, height: height + (chosen ? 20 : 0), role: "img",
      viewBox: `0 0 ${width} ${height + (chosen ? 20 : 0)}`,
    });
    const title = figure.querySelector(".figure-title");
    root.append(make("title", {}, title.textContent.trim()));
    root.append(make("desc", {}, figure.querySelector(".words").textContent.trim()));
    const paper = getComputedStyle(document.body).backgroundColor;
    root.append(make("rect", { width: "100%", height: "100%", fill: paper }));
    root.append(label(title, origin, title.textContent.trim()));
    root.append(legendOf(figure, origin), gradientOf(figure, origin));
    for (const heading of figure.querySelectorAll(".panel-title")) {
      root.append(label(heading, origin, heading.textContent.trim()));
    }
    for (const svg of drawn) {
      const box = svg.getBoundingClientRect();
      const copy = svg.cloneNode(true);
      copy.setAttribute("x", box.left - origin.left);
      copy.setAttribute("y", box.top - origin.top);
      copy.setAttribute("overflow", "visible");
      root.append(copy);
    }
    if (chosen) {
      root.append(make("text", {
        x: MARGIN, y: height + 4, fill: getComputedStyle(title).color,
        "font-family": getComputedStyle(figure.querySelector(".controls")).fontFamily,
        "font-size": "13px",
      }, chosen));
    }
    return root;
  }

  function svgText(figure) {
    return new XMLSerializer().serializeToString(drawing(figure));
  }

  function pngBlob(figure) {
    const root = drawing(figure);
    const text = new XMLSerializer().serializeToString(root);
    const image = new Image();
    return new Promise((resolve, reject) => {
      image.onload = () => {
        const canvas = document.createElement("canvas");
        canvas.width = PNG_SCALE * root.getAttribute("width");
        canvas.height = PNG_SCALE * root.getAttribute("height");
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0, canvas.width, canvas.height);
        canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no picture"))));
      };
      image.onerror = () => reject(new Error("the drawing cannot be painted"));
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    });
  }

  /* Numbers as other programs read them; text that a spreadsheet would run is quoted as text. */
  function csvCell(text) {
    const superscripts = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
    let plain = text.trim().replace(/\s+/g, " ");
    const number = plain.replace(/\u202f/g, "").replace(/\u2212/g, "-").replace(
      / \u00d7 10([\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)$/, (_, power) =>
        `e${[...power].map((c) => (c === "\u207b" ? "-" : superscripts.indexOf(c))).join("")}`);
    if (/^[-+]?[\d.]+(e-?\d+)?%?$/.test(number)) plain = number;
    else if (plain === "\u2014") plain = "";
    else if (/^[=+\-@]/.test(plain)) plain = `'${plain}`;
    return /[",\n]/.test(plain) ? `"${plain.replace(/"/g, '""')}"` : plain;
  }

  function csvText(figure) {
    const rows = [...figure.querySelectorAll("details.numbers tr")];
    return `${rows.map((row) => [...row.cells].map((c) => csvCell(c.textContent)).join(","))
      .join("\r\n")}\r\n`;
  }

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const FORMATS = {
    SVG: (figure) => new Blob([svgText(figure)], { type: "image/svg+xml" }),
    PNG: pngBlob,
    CSV: (figure) => new Blob([csvText(figure)], { type: "text/csv" }),
  };

  function connect(figure) {
    const caption = figure.querySelector("figcaption");
    if (!caption || !figure.querySelector(".chart")) return;
    const line = document.createElement("p");
    line.className = "downloads";
    line.append("Save as ");
    const title = figure.querySelector(".figure-title").textContent.trim();
    for (const [format, draw] of Object.entries(FORMATS)) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "key";
      button.textContent = format;
      button.setAttribute("aria-label", `Save as ${format}: ${title}`);
      button.addEventListener("click", async () => {
        try {
          save(await draw(figure), `gonio-${figure.id}.${format.toLowerCase()}`);
        } catch (error) {
          console.error(error);
        }
      });
      line.append(button);
    }
    caption.append(line);
  }

  document.querySelectorAll(".figure").forEach(connect);
})();
