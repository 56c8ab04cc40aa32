// Of every page that page.py makes: charts that follow light, dark, paper, filter and a chosen run;
// tables that sort and filter. No network, nothing kept.
(() => {
  "use strict";
  const palettes = JSON.parse(document.getElementById("palettes").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const NARROW = 560; // pixels of a chart, below which it is drawn as on a phone
  const PAPER = 680; // pixels: A4 and Letter without their margins
  const state = { hidden: new Set(), pinned: null, paper: false };
  const charts = [];

  // Colours ------------------------------------------------------------------------------------
  const palette = () => palettes[dark.matches && !state.paper ? "dark" : "light"];

  function mix(one, two, share) {
    const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    const of = (i) => Math.round(part(one, i) + (part(two, i) - part(one, i)) * share);
    return `rgb(${of(0)},${of(1)},${of(2)})`;
  }

  function colour(name, colours) {
    const [word, at] = name.slice(1).split(" ");
    if (word !== "ramp") return colours[word];
    const place = Math.min(Math.max(Number(at), 0), 1) * (colours.ramp.length - 1);
    const low = Math.min(Math.floor(place), colours.ramp.length - 2);
    return mix(colours.ramp[low], colours.ramp[low + 1], place - low);
  }

  // A copy with the names of colours replaced, and only where a colour stands: texts are anyone's.
  function coloured(value, colours, key = "") {
    if (Array.isArray(value)) return value.map((one) => coloured(one, colours, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([k, v]) => [k, coloured(v, colours, k)]));
    }
    const named = typeof value === "string" && value.startsWith("$") && /color$/.test(key);
    return named ? colour(value, colours) : value;
  }

  // Charts -------------------------------------------------------------------------------------
  function base(colours) {
    const axis = {
      gridcolor: colours.grid, linecolor: colours.line, zerolinecolor: colours.line,
      tickcolor: colours.line, automargin: true, title: { standoff: 10, font: { color: colours.soft, size: 13 } },
      zeroline: false,
    };
    const family = getComputedStyle(document.body).fontFamily;
    return {
      axis,
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
        font: { family, size: 12.5, color: colours.soft }, showlegend: false,
        margin: { l: 56, r: 16, t: 12, b: 44 }, dragmode: touch.matches ? false : "zoom",
        hoverlabel: {
          bgcolor: colours.paper, bordercolor: colours.line, align: "left", namelength: -1,
          font: { family, size: 13, color: colours.ink },
        },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.soft, activecolor: colours.ink },
        uirevision: "kept", // zoom and legend outlive a repaint
      },
    };
  }

  function merged(below, above) {
    const made = { ...below };
    for (const [key, value] of Object.entries(above || {})) {
      const both = value && typeof value === "object" && !Array.isArray(value) && made[key];
      made[key] = both && typeof both === "object" ? merged(both, value) : value;
    }
    return made;
  }

  function followed(trace, colours) {
    const meta = trace.meta || {};
    if (meta.run !== undefined) {
      if (state.hidden.has(meta.run)) Object.assign(trace, { opacity: 0.05, hoverinfo: "skip", hovertemplate: null });
      if (meta.run === state.pinned) {
        trace.opacity = 1;
        if (trace.line) Object.assign(trace.line, { color: colours.pin, width: (trace.line.width || 2) + 1 });
        if (trace.marker) trace.marker.color = colours.pin;
      }
    }
    if (meta.runs && trace.marker) {
      const given = trace.marker.color;
      trace.marker.color = meta.runs.map((run, i) =>
        run === state.pinned ? colours.pin : Array.isArray(given) ? given[i] : given);
      const opacity = trace.marker.opacity ?? 1;
      trace.marker.opacity = meta.runs.map((run) => (state.hidden.has(run) ? 0.06 : opacity));
    }
    return trace;
  }

  function paint(chart) {
    const colours = palette();
    const { axis, layout } = base(colours);
    const width = state.paper ? Math.min(PAPER, chart.paper) : chart.plot.clientWidth;
    let told = coloured(chart.figure.layout || {}, colours);
    if (width < NARROW && chart.figure.narrow) told = merged(told, coloured(chart.figure.narrow, colours));
    const full = merged(layout, told);
    for (const key of Object.keys(full)) if (/^[xy]axis/.test(key)) full[key] = merged(axis, full[key]);
    for (const key of ["xaxis", "yaxis"]) full[key] = full[key] || axis;
    full.height = full.height || chart.figure.height;
    if (state.paper) full.width = width;
    chart.plot.style.height = `${full.height}px`;
    const data = chart.figure.data.map((trace) => followed(coloured(trace, colours), colours));
    const config = {
      displaylogo: false, showTips: false, responsive: !state.paper, displayModeBar: touch.matches ? false : "hover",
      modeBarButtons: [["toImage", "resetScale2d"]],
    };
    return window.Plotly.react(chart.plot, data, full, config);
  }

  const repaint = () => charts.filter((chart) => chart.drawn).forEach(paint);

  async function draw(chart) {
    await paint(chart);
    chart.drawn = true;
    chart.plot.on("plotly_click", (event) => {
      const point = event.points[0];
      const meta = point.data.meta || {};
      const run = meta.run ?? (meta.runs || [])[point.pointIndex ?? point.pointNumber];
      if (run !== undefined) pin(run);
    });
  }

  async function drawAll() {
    for (const holder of document.querySelectorAll(".holder")) {
      const figure = JSON.parse(holder.querySelector("script").textContent);
      const half = holder.closest(".grid") && !holder.closest(".wide");
      charts.push({ figure, plot: holder.querySelector(".plot"), paper: half ? 325 : PAPER });
    }
    for (const chart of charts) {
      await draw(chart).catch((error) => console.error(error)); // the others are drawn, still
      await new Promise((done) => setTimeout(done)); // the page stays alive meanwhile
    }
    document.documentElement.dataset.ready = String(charts.length);
  }

  // Runs that are followed ---------------------------------------------------------------------
  function pin(run) {
    state.pinned = state.pinned === run ? null : run;
    for (const row of document.querySelectorAll("tr[data-run]")) {
      const pinned = row.dataset.run === state.pinned;
      row.classList.toggle("pinned", pinned);
      row.querySelector("button")?.setAttribute("aria-pressed", pinned);
    }
    repaint();
  }

  // Tables -------------------------------------------------------------------------------------
  const number = (text) => (text === undefined || text === "" ? NaN : Number(text));

  function compare(one, two) {
    const [a, b] = [number(one), number(two)];
    if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
    return one < two ? -1 : one > two ? 1 : 0;
  }

  function sort(table, place, direction) {
    const body = table.tBodies[0];
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [row, row.cells[place].dataset.v]);
    rows.sort(([, a], [, b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * compare(a, b);
    });
    body.append(...rows.map(([row]) => row));
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      if (i === place) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
  }

  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      head.querySelector("button").addEventListener("click", () => {
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        sort(table, place, head.getAttribute("aria-sort") === first ? other : first);
      });
    });
  }

  // `max_lr>0.05 acc>=80% finished`: every term must hold; a word is looked for in the whole row.
  function term(text, keys) {
    const found = /^(.+?)(<=|>=|!=|=|<|>)(.+)$/.exec(text);
    const place = found ? keys.indexOf(found[1].toLowerCase()) : -1;
    if (place < 0) return (row) => row.textContent.toLowerCase().includes(text.toLowerCase());
    const [, , sign, told] = found;
    const wanted = /^[\d.]+%$/.test(told) ? String(parseFloat(told) / 100) : told.toLowerCase();
    return (row) => {
      const value = row.cells[place].dataset.v;
      if (value === undefined) return false;
      const order = compare(value.toLowerCase(), wanted);
      return { "<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0, "=": order === 0, "!=": order !== 0 }[sign];
    };
  }

  function filtered(box) {
    const [input, output, table] = ["input", "output", "table"].map((name) => box.querySelector(name));
    const keys = [...table.tHead.rows[0].cells].map((head) => (head.dataset.key || "").toLowerCase());
    const rows = [...table.tBodies[0].rows];
    let waiting = 0;
    input.addEventListener("input", () => {
      const terms = input.value.split(/\s+/).filter(Boolean).map((text) => term(text, keys));
      state.hidden.clear();
      for (const row of rows) {
        row.hidden = !terms.every((holds) => holds(row));
        if (row.hidden && row.dataset.run !== undefined) state.hidden.add(row.dataset.run);
      }
      output.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
      clearTimeout(waiting);
      waiting = setTimeout(repaint, 150);
    });
  }

  // Paper --------------------------------------------------------------------------------------
  function paper(on) {
    state.paper = on;
    document.documentElement.classList.toggle("paper", on);
    for (const one of document.querySelectorAll("details")) {
      if (on) one.dataset.was = one.open ? "1" : "";
      one.open = on || one.dataset.was === "1";
    }
    for (const table of document.querySelectorAll("table")) fit(table, on);
    repaint();
  }

  // A table that is too wide for the paper is made smaller: nobody can scroll there.
  function fit(table, on) {
    table.style.zoom = "";
    if (!on) return;
    table.style.width = "min-content";
    table.style.zoom = Math.min(1, PAPER / table.offsetWidth);
    table.style.width = "";
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll(".filtered").forEach(filtered);
  document.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-run]");
    if (row && !String(getSelection())) pin(row.dataset.run);
  });
  dark.addEventListener("change", repaint);
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (state.paper || (width < 720) === (innerWidth < 720)) return;
    width = innerWidth; // only the narrow form is ours: plotly follows the width by itself
    repaint();
  });
  drawAll();
})();
