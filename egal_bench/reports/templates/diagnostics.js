"use strict";
// The charts of the diagnostics: the pool of a query, and the calibration of the final models.
(() => {
  const { data, asText, fill } = report;
  const unique = (values) => [...new Set(values)];
  const named = (values) => values.map((value) => [value, value]);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  // A chart with selects: each offers what the rows allow that the selects before it have chosen.
  function chart(id, rows, names, draw) {
    const element = document.getElementById(id);
    if (!element) return;
    const form = document.getElementById(id + "-controls"), described = document.getElementById(id + "-described");
    const chosen = (until) => rows.filter((row) => names.slice(0, until)
      .every((name) => String(row[name]) === form.elements[name].value));
    const offer = (from) => names.slice(from).forEach((name, i) => {
      const values = unique(chosen(from + i).map((row) => row[name])), before = form.elements[name].value;
      fill(form.elements[name], named(values));
      if (values.map(String).includes(before)) form.elements[name].value = before;
      else if (name === "strategy") form.elements[name].value = values.find((value) => value.startsWith("egal")) || values.find((value) => value !== data.baseline) || values[0];
      else if (name === "query") form.elements[name].value = values[values.length - 1];
    });
    offer(0);
    const redraw = report.whenVisible(element, (print) => {
      const colours = report.theme(print), { traces, x, y, sentence, limits } = draw(chosen(names.length)[0], colours);
      const layout = report.layout(colours, x, y);
      Object.assign(layout.yaxis, limits.y);
      Object.assign(layout.xaxis, limits.x);
      layout.legend = report.legend;
      layout.margin.t = 40;
      report.plot(element, traces, layout, print);
      described.textContent = sentence;
      element.setAttribute("aria-label", sentence);
    });
    names.forEach((name, i) => form.elements[name].addEventListener("change", () => { offer(i + 1); redraw(); }));
  }

  chart("pool", data.pool, ["dataset", "strategy", "query"], (row, colours) => {
    const points = (name, samples, marker) => ({ x: samples[0], y: samples[1], mode: "markers", name, marker,
      hovertemplate: "H %{x}, D %{y}<extra>" + name + "</extra>" });
    const about = ([h, d], name) => h.length + " " + name + " samples" +
      (h.length ? " with mean H " + mean(h).toFixed(2) + " and mean D " + mean(d).toFixed(2) : "");
    return {
      traces: [points("not bought", row.others, { color: colours.soft, size: 5, opacity: 0.45 }),
        points("bought", row.bought, { color: colours.accent, size: 8, symbol: "diamond", line: { color: colours.text, width: 1 } })],
      x: "entropy H, nats", y: "misalignment D", limits: { x: { rangemode: "tozero" }, y: { range: [-0.04, 1.04] } },
      sentence: row.dataset + ", " + row.strategy + ", query " + row.query + " of seed " + row.seed + ": " +
        about(row.bought, "bought") + ", " + about(row.others, "other") + ".",
    };
  });

  chart("calibration", data.calibration, ["dataset", "strategy"], (row, colours) => {
    const base = data.calibration.find((other) => other.dataset === row.dataset && other.strategy === data.baseline);
    const curve = (own, colour, dash) => ({ x: own.confidence, y: own.accuracy, mode: "lines+markers", name: asText(own.strategy),
      line: { color: colour, dash, width: 2 }, marker: { size: 7 },
      error_y: { type: "data", symmetric: false, array: own.high.map((v, i) => v - own.accuracy[i]),
        arrayminus: own.low.map((v, i) => own.accuracy[i] - v), color: colour, thickness: 1, width: 3 } });
    const gap = (own) => { const n = own.samples.reduce((a, b) => a + b, 0);
      return (own.accuracy.reduce((sum, v, i) => sum + own.samples[i] * (v - own.confidence[i]), 0) / n).toFixed(1); };
    const others = base && base !== row ? [base] : [];
    return {
      traces: [{ x: [0, 100], y: [0, 100], mode: "lines", name: "calibrated", line: { color: colours.line, width: 2 }, hoverinfo: "skip" },
        ...others.map((own) => curve(own, colours.text, "dot")), curve(row, colours.accent, "solid")],
      x: "confidence, %", y: "accuracy, %", limits: { x: { range: [0, 102] }, y: { range: [-3, 103] } },
      sentence: row.dataset + ": accuracy minus mean confidence is " +
        [row, ...others].map((own) => gap(own).replace("-", "−") + " points for " + own.strategy).join(", ") + "; 95 % intervals of the accuracy.",
    };
  });
})();
