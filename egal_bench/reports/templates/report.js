"use strict";
// The learning curves, their controls and their numbers, and the slider of the galleries.
(() => {
  const { data, asText, fill } = report;
  const form = document.getElementById("controls"), chart = document.getElementById("curves");
  const described = document.getElementById("described"), numbers = document.getElementById("numbers");
  const hidden = new Map(); // strategy name -> whether it is hidden, kept when the data set changes

  const known = (values) => values.filter((v) => v !== null);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const sd = (values) => {
    if (values.length < 2) return null;
    const m = mean(values);
    return Math.sqrt(values.reduce((a, b) => a + (b - m) ** 2, 0) / (values.length - 1));
  };

  fill(form.elements.dataset, data.datasets.map((d, i) => [i, d.name]));
  fill(form.elements.metric, data.metrics.map((m) => [m.id, m.label]));
  form.elements.metric.value = data.metric;
  if (!data.datasets.length) {
    described.textContent = "There is no value to draw.";
    return;
  }

  const redraw = report.whenVisible(chart, draw);
  const dataset = () => data.datasets[Number(form.elements.dataset.value)];
  const isHidden = (s) => hidden.has(s.name) ? hidden.get(s.name) : !s.shown;
  const styleOf = (s, text) => ({ color: s.colour || text, dash: s.dash, width: 2 });

  function listStrategies() {
    const box = document.getElementById("strategies");
    box.replaceChildren();
    for (const s of dataset().strategies) {
      const label = document.createElement("label"), input = document.createElement("input");
      input.type = "checkbox";
      input.checked = !isHidden(s);
      input.addEventListener("change", () => { hidden.set(s.name, !input.checked); redraw(); });
      const dashes = { solid: "", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 4", longdashdot: "10 3 2 3" };
      const swatch = document.createElementNS("http:\/\/www.w3.org/2000/svg", "svg");
      const line = document.createElementNS("http:\/\/www.w3.org/2000/svg", "line");
      swatch.setAttribute("viewBox", "0 0 32 12");
      swatch.setAttribute("aria-hidden", "true");
      for (const [key, value] of Object.entries({ x1: 0, x2: 32, y1: 6, y2: 6, "stroke-width": 3,
        stroke: s.colour || "currentColor", "stroke-dasharray": dashes[s.dash] })) line.setAttribute(key, value);
      swatch.append(line);
      label.append(input, swatch, s.name + (s.baseline ? " (baseline)" : ""));
      box.append(label);
    }
  }

  // The values [seed][budget] of a strategy, or its differences to the baseline's runs with the same seeds.
  function valuesOf(s, metric, view) {
    const own = s.values[metric];
    if (!own || view === "value") return own || [];
    const base = dataset().strategies.find((other) => other.baseline);
    if (!base || !base.values[metric]) return [];
    return s.seeds.map((seed, i) => {
      const row = base.values[metric][base.seeds.indexOf(seed)];
      return own[i].map((v, r) => (v === null || !row || row[r] === null ? null : v - row[r]));
    });
  }

  // {centre, low, high}, each [budget]
  function summary(s, metric, view, spread, factor) {
    const scale = (v) => (v === null ? null : factor * v);
    if (spread === "iqm") {
      const triples = (view === "value" ? s.iqm : s.differenceIqm)[metric] || [];
      return Object.fromEntries(["centre", "low", "high"].map((name, i) => [name, triples.map((t) => (t ? scale(t[i]) : null))]));
    }
    const rows = valuesOf(s, metric, view), result = { centre: [], low: [], high: [] };
    dataset().labels.forEach((_, r) => {
      const values = known(rows.map((row) => row[r])), m = values.length ? mean(values) : null, d = sd(values);
      result.centre.push(scale(m));
      result.low.push(d === null ? null : scale(m - d));
      result.high.push(d === null ? null : scale(m + d));
    });
    return result;
  }

  function band(x, s, colour) {
    const at = x.map((_, i) => i).filter((i) => s.low[i] !== null && s.low[i] !== undefined && x[i] !== null);
    return { x: [...at.map((i) => x[i]), ...[...at].reverse().map((i) => x[i])],
      y: [...at.map((i) => s.high[i]), ...[...at].reverse().map((i) => s.low[i])],
      fill: "toself", fillcolor: colour + "26", line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false };
  }

  function draw(print) {
    const [metric, x, spread, view] = ["metric", "x", "spread", "view"].map((name) => form.elements[name].value);
    const about = data.metrics.find((m) => m.id === metric), set = dataset();
    const colours = report.theme(print), text = colours.text;
    const strategies = set.strategies.filter((s) => !isHidden(s) && !(view === "difference" && s.baseline));
    const traces = [], rows = [];
    for (const s of strategies) {
      const xs = x === "labels" ? set.labels : s.masks, own = styleOf(s, text), sums = summary(s, metric, view, spread, about.factor);
      if (spread === "seeds") {
        valuesOf(s, metric, view).forEach((row, i) => traces.push({ x: xs, y: row.map((v) => (v === null ? null : about.factor * v)),
          mode: "lines", line: { ...own, width: 1 }, opacity: .6, name: asText(s.name), showlegend: i === 0,
          text: xs.map(() => asText(s.name) + ", seed " + s.seeds[i]), hoverinfo: "x+y+text" }));
      } else {
        traces.push(band(xs, sums, own.color));
        traces.push({ x: xs, y: sums.centre, mode: "lines+markers", line: own, marker: { size: 5 }, name: asText(s.name),
          text: xs.map(() => asText(s.name)), hoverinfo: "x+y+text" });
      }
      rows.push([s.name, ...sums.centre.map((c, r) => (c === null || c === undefined ? "–" : c.toFixed(2) +
        (spread !== "iqm" && sums.low[r] !== null ? " ± " + (c - sums.low[r]).toFixed(2) :
          spread === "iqm" && sums.low[r] !== null ? " (" + sums.low[r].toFixed(2) + " to " + sums.high[r].toFixed(2) + ")" : "")))]);
    }
    const words = about.label + (about.factor === 100 ? ", %" : "") + (view === "difference" ? ", minus " + data.baseline : "");
    const layout = report.layout(colours, x === "labels" ? "labels" : "masks looked at", asText(words));
    if (view === "difference") layout.yaxis.zerolinecolor = text;
    layout.showlegend = false; // the form names the strategies
    report.plot(chart, traces, layout, print);
    const kind = { sd: "mean ± standard deviation", iqm: "interquartile mean and its 95 % interval", seeds: "each seed" }[spread];
    const sentence = set.name + ": " + words + " against " + x + ", " + kind + ", " + strategies.length + " of " + set.strategies.length + " strategies.";
    described.textContent = sentence;
    chart.setAttribute("aria-label", sentence + " The numbers are in the table below.");
    fillNumbers([x === "labels" ? "strategy \\ labels" : "strategy \\ labels (masks differ)", ...set.labels], rows);
  }

  function fillNumbers(header, rows) {
    numbers.replaceChildren();
    const head = numbers.createTHead().insertRow(), body = numbers.createTBody();
    for (const cell of header) head.append(Object.assign(document.createElement("th"), { scope: "col", textContent: cell }));
    for (const row of rows) {
      const line = body.insertRow();
      line.append(Object.assign(document.createElement("th"), { scope: "row", textContent: row[0] }));
      for (const cell of row.slice(1)) line.insertCell().textContent = cell;
    }
  }

  for (const select of form.querySelectorAll("select")) {
    select.addEventListener("change", () => { if (select.name === "dataset") listStrategies(); redraw(); });
  }
  for (const button of form.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      dataset().strategies.forEach((s) => hidden.set(s.name, !button.dataset.all));
      listStrategies();
      redraw();
    });
  }
  const opacity = document.getElementById("opacity");
  if (opacity) {
    opacity.addEventListener("input", () => {
      for (const image of document.querySelectorAll(".cam")) image.style.opacity = opacity.value / 100;
    });
  }
  listStrategies();
})();
