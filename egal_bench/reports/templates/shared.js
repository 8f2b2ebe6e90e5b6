"use strict";
// What the charts share: the data, Plotly, colours, and drawing a chart only when it comes into view.
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const charts = [];

  // Plotly is large: it is read when the first chart is drawn, so that the page opens at once.
  function plotly() {
    if (!window.Plotly) {
      const script = document.createElement("script");
      script.textContent = document.getElementById("plotly").textContent;
      document.head.append(script);
    }
    return window.Plotly;
  }

  // Calls draw(print) when the element comes near the screen; returns a function that draws again from then on.
  function whenVisible(element, draw) {
    const chart = { draw, started: false };
    const observer = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      chart.started = true;
      draw(false);
    }, { rootMargin: "300px" });
    observer.observe(element);
    charts.push(chart);
    return () => { if (chart.started) draw(false); };
  }

  function theme(print) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name, onPaper) => (print ? onPaper : style.getPropertyValue(name).trim());
    return { text: colour("--text", "#000000"), line: colour("--line", "#bbbbbb"), soft: colour("--soft", "#444444"),
      accent: colour("--worse", "#a63d00") };
  }

  function layout(colours, x, y) {
    const axis = { gridcolor: colours.line, zerolinecolor: colours.line, automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { color: colours.text, family: "system-ui, sans-serif" }, margin: { l: 50, r: 10, t: 10, b: 45 },
      xaxis: { ...axis, title: { text: x } }, yaxis: { ...axis, title: { text: y } },
    };
  }

  const legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
  const paper = { width: 680, height: 430, autosize: false, showlegend: true, legend }; // fits A4 and US letter

  // On paper there is no form that names the colours and no window to fill: a chart has a legend and a fixed size.
  function plot(element, traces, layout, print) {
    const settings = { displaylogo: false, responsive: !print, displayModeBar: print ? false : "hover" };
    plotly().react(element, traces, { ...layout, ...(print ? paper : {}) }, settings);
  }

  // Plotly reads a few tags and entities in its texts; names are text and nothing else.
  const asText = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const fill = (select, options) => select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    charts.filter((chart) => chart.started).forEach((chart) => chart.draw(false));
  });
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
    charts.forEach((chart) => { chart.started = true; chart.draw(true); });
  });
  addEventListener("afterprint", () => {
    opened.forEach((details) => { details.open = false; });
    charts.forEach((chart) => chart.draw(false));
  });
  for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
  return { data, plot, whenVisible, theme, layout, legend, asText, fill };
})();
