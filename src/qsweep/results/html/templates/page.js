"use strict";
// Charts: specifications name colours as CSS variables; they are drawn again when the scheme changes.
(() => {
  const root = document.documentElement;
  const read = (element) => JSON.parse(element.textContent);
  const charts = document.getElementById("charts");
  const specs = charts ? unpacked(read(charts)) : [];
  const config = document.getElementById("config");
  const places = [...document.querySelectorAll(".chart")];
  const MANY = 1500;

  // Points come as columns, a field of few texts as words and numbers of them.
  function points(columns) {
    const lists = Object.entries(columns).map(([name, list]) =>
      [name, list.words ? list.of.map((i) => list.words[i]) : list]);
    const count = lists.length ? lists[0][1].length : 0;
    return Array.from({ length: count }, (_, i) =>
      Object.fromEntries(lists.map(([name, list]) => [name, list[i]])));
  }

  function unpacked({ rows, specs: packed }) {
    const common = points(rows);
    packed.forEach((spec) => {
      if (spec.data && spec.data.columns) {
        const own = points(spec.data.columns);
        spec.data = { values: own.map((point) => ({ ...common[point.row], ...point })) };
      }
    });
    return packed;
  }

  function painted(value, style) {
    if (Array.isArray(value)) return value.map((item) => painted(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, style)]));
    }
    if (typeof value === "string" && /^var\(--[\w-]+\)$/.test(value)) {
      return style.getPropertyValue(value.slice(4, -1)).trim();
    }
    return value;
  }

  function size(spec) {
    return spec.data && spec.data.values ? spec.data.values.length : 0;
  }

  // What the legends of a specification name.
  function names(part) {
    if (!part || typeof part !== "object") return [];
    const domain = part.scale && part.legend !== null && part.scale.domain;
    const own = Array.isArray(domain) ? domain.filter((name) => typeof name === "string") : [];
    return own.concat(...Object.entries(part).filter(([key]) => key !== "data")
      .map(([, value]) => names(value)));
  }

  async function draw(place, printing) {
    const spec = specs[Number(place.dataset.chart)];
    const width = printing ? 900 : Math.max(place.clientWidth, 260);
    const style = getComputedStyle(root);
    const look = painted(read(config), style);
    // As many columns as the longest name leaves room for, beside the axis on the left.
    const room = width - 90;
    const wanted = 34 + 6.8 * Math.max(8, ...names(spec).map((name) => name.length));
    look.legend.columns = Math.max(1, Math.min(8, Math.floor(room / wanted)));
    look.legend.labelLimit = Math.max(60, room / look.legend.columns - 30);
    // Pictures above each other have a width each, to which their axes come; what leaves text out
    // where it is narrow has a parameter that is told the width.
    const inner = Math.max(width - ((spec.usermeta || {}).aside || 84), 120);
    const params = (spec.params || []).map((p) => p.name === "room" ? { ...p, value: inner } : p);
    const sized = spec.vconcat
      ? { vconcat: painted(spec, style).vconcat.map((part) => ({ ...part, width: inner })), params }
      : { width: width - 8, autosize: { type: "fit-x", contains: "padding" } };
    const whole = {
      ...painted(spec, style),
      $schema: "https://vega.github.io/schema/vega-lite/v6.json",
      ...sized,
      config: look,
    };
    if (place.view) place.view.finalize();
    const made = await window.vegaEmbed(place, whole, {
      actions: false,
      ast: true,  // no code is made from texts: the page forbids it
      renderer: size(spec) > MANY ? "canvas" : "svg",
      tooltip: { theme: "custom", disableDefaultStyle: true },
    });
    place.view = made;
    place.dataset.width = String(place.clientWidth);
  }

  function drawSome(some, printing) {
    return Promise.all(some.map((place) => draw(place, printing).catch((error) => {
      place.textContent = "This picture could not be drawn: " + error.message;
    })));
  }

  // What is folded away has no width; it is drawn when it is opened.
  const unfolded = () => places.filter((place) => !place.closest("details:not([open])"));
  function drawAll(printing) {
    places.forEach((place) => { delete place.dataset.width; });
    return drawSome(unfolded(), printing);
  }
  const stale = () => unfolded().filter((p) => p.dataset.width !== String(p.clientWidth));

  // The scheme before printing, while that is going on.
  let before;
  if (config && window.vegaEmbed) {
    drawAll(false).then(() => { root.dataset.ready = "yes"; });
    let waiting = 0;
    window.addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => drawSome(stale(), false), 150);
    });
    document.querySelectorAll("details:has(.chart)").forEach((fold) => {
      fold.addEventListener("toggle", () => { if (!before) drawSome(stale(), false); });
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(false));
  } else {
    root.dataset.ready = "yes";
  }

  // Light or dark by hand; paper is always light.
  const button = document.getElementById("scheme");
  const isDark = () => root.dataset.scheme
    ? root.dataset.scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  button.hidden = false;
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  label();
  button.addEventListener("click", () => {
    root.dataset.scheme = isDark() ? "light" : "dark";
    label();
    if (config) drawAll(false);
  });
  const opened = [];
  window.addEventListener("beforeprint", () => {
    before = root.dataset.scheme || "system";
    root.dataset.scheme = "light";
    document.querySelectorAll("details:not([open])").forEach((d) => {
      d.open = true;
      opened.push(d);
    });
    if (config) drawAll(true);
  });
  window.addEventListener("afterprint", () => {
    if (before === "system") delete root.dataset.scheme; else root.dataset.scheme = before;
    before = undefined;
    opened.splice(0).forEach((d) => { d.open = false; });
    if (config) drawAll(false);
  });
})();

// Tables: sort by a heading, filter, copy as Markdown.
document.querySelectorAll("section:has(> .tools)").forEach((section) => {
  const tools = section.querySelector(".tools");
  const table = section.querySelector("table.trials");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const said = tools.querySelector(".said");
  const pick = (name) => tools.querySelector(name);
  tools.hidden = false;

  const value = (cell) => cell.dataset.v === undefined ? cell.textContent : cell.dataset.v;
  const wanted = (name, row, key) => {
    const select = pick(name);
    return !select || !select.value || row.dataset[key] === select.value;
  };

  function filter() {
    const text = pick(".find").value.trim().toLowerCase();
    let shown = 0;
    rows.forEach((row) => {
      const fits = wanted(".series", row, "series") && wanted(".verdict", row, "verdict")
        && wanted(".place", row, "place") && row.textContent.toLowerCase().includes(text);
      row.hidden = !fits;
      shown += fits;
    });
    said.textContent = `${shown} of ${rows.length} rows`;
  }

  function sort(heading, index) {
    const down = heading.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("thead th").forEach((th) => th.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const found = value(row.cells[index]);
      const number = Number(found);
      return found === "" ? null : Number.isNaN(number) ? found.toLowerCase() : number;
    };
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0)
        : typeof a === "number" ? -1 : 1;
      return down ? -order : order;
    };
    rows.map((row) => [key(row), row]).sort((a, b) => compare(a[0], b[0]))
      .forEach(([, row]) => body.append(row));
    said.textContent = `sorted by ${heading.textContent.trim()}, ${heading.getAttribute("aria-sort")}`;
  }

  function markdown() {
    const line = (cells) => "| " + [...cells].map((cell) =>
      cell.textContent.trim().replace(/([\\|`*\[\]<>])/g, "\\$1")).join(" | ") + " |";
    const rule = [...table.tHead.rows[0].cells]
      .map((th) => th.classList.contains("number") ? "---:" : "---");
    return [line(table.tHead.rows[0].cells), "| " + rule.join(" | ") + " |",
      ...[...body.rows].filter((row) => !row.hidden).map((row) => line(row.cells))].join("\n") + "\n";
  }

  async function copy() {
    const text = markdown();
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // A page opened from a file, or inside a frame, may not have the clipboard.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) { said.textContent = "The browser does not allow copying here"; return; }
    }
    said.textContent = "Copied";
  }

  table.querySelectorAll("thead th").forEach((heading, index) =>
    heading.querySelector("button").addEventListener("click", () => sort(heading, index)));
  tools.querySelectorAll("input, select").forEach((control) =>
    control.addEventListener("input", filter));
  pick(".copy").addEventListener("click", copy);
  filter();
});
