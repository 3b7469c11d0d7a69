// Charts: an element with data-chart contains a table of numbers and an empty frame. Chartist draws the table into the
// frame. The server sends only numbers, and without this script the table is shown.
//
// Attributes of a chart:
//   data-from="0"          a value that the y axis includes; data-unit=" %" follows its labels; data-whole: no fractions
//   data-dots, data-look   on a column header: whether its points are marked; the N of its class series-N
//   data-x                 on a row header: its place on the x axis
//   data-y, data-low, data-high, data-lit   on a cell: its value, its interval, whether its point is highlighted
const { FixedScaleAxis, LineChart, Svg } = window.Chartist;
const STEPS = 4; // on the y axis, about
const MARGIN = 0.03;
const MAX_LABELS = 8;
const NAMES = { line: "line", grid: "grid", label: "label", point: "dot" };

// Chartist writes style attributes, which the content security policy forbids. Setting the property is allowed.
const setAttributes = Svg.prototype.attr;
Svg.prototype.attr = function attr(given, namespace) {
  if (typeof given === "string" || !("style" in given)) return setAttributes.call(this, given, namespace);
  const { style, ...others } = given;
  this.getNode().style.cssText = style;
  return setAttributes.call(this, others, namespace);
};

/** Round numbers that cover `low` to `high`; integers where `whole` is set. */
export function roundSteps(low, high, { about = STEPS, whole = false } = {}) {
  if (high - low < 1e-9) {
    const spread = Math.abs(high) > 1e-8 ? Math.abs(high) * 0.1 : 0.1;
    return roundSteps(low - spread, high + spread, { about, whole });
  }
  const rough = (high - low) / about;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const sizes = [1, 2, 2.5, 5, 10].map((factor) => factor * unit).filter((size) => size >= rough * (1 - 1e-12));
  const step = whole ? Math.max(1, sizes.find(Number.isInteger) ?? 1) : sizes[0];
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(high / step - 1e-9)); // where all values lie on one step: that one and the next
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** The labels of the y axis in the language of the page, all with as many digits as the step needs. */
export function tickLabels(ticks, unit = "", language = document.documentElement.lang) {
  const decimals = (tick) => (String(Math.abs(tick)).split(".")[1] ?? "").length;
  const digits = Math.max(...ticks.map(decimals));
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, numberingSystem: "latn" };
  const format = new Intl.NumberFormat(language, options);
  const write = ({ type, value }) => (type === "group" && language === "en" ? "\u202f" : value);
  return ticks.map((tick) => (tick < 0 ? "\u2212" : "") + format.formatToParts(Math.abs(tick)).map(write).join("") + unit);
}

/** At most `most` of the sorted `places`, at equal distances, always with the last one: it is of most interest. */
export function thinOut(places, most) {
  if (places.length <= most) return places;
  const step = Math.ceil((places.length - 1) / Math.max(1, most - 1));
  return places.filter((_, index) => (places.length - 1 - index) % step === 0);
}

function numberOf(text) {
  return text === undefined ? null : Number(text);
}

/** Reads the table of a chart. */
function readTable(figure) {
  const rows = [...figure.querySelectorAll("tbody tr")].map((row) => {
    const [head, ...cells] = row.cells;
    return { x: Number(head.dataset.x), name: head.textContent.trim(), cells };
  });
  const heads = [...figure.querySelectorAll("thead th")].slice(1);
  const series = heads.map((head, number) => {
    const name = head.textContent.trim();
    const samples = rows.flatMap((row) => {
      const { y, low, high, lit } = row.cells[number].dataset;
      if (y === undefined) return [];
      const label = `${name}, ${row.name}: ${row.cells[number].textContent.trim()}`;
      return [{ x: row.x, y: Number(y), low: numberOf(low), high: numberOf(high), lit: lit !== undefined, label }];
    });
    // A single point draws no line, so it is always marked.
    return { look: head.dataset.look, dots: head.dataset.dots !== undefined || samples.length === 1, samples };
  });
  const { from, unit, whole } = figure.dataset;
  return { from: numberOf(from), unit, whole: whole !== undefined, places: rows.map(({ x, name }) => [x, name]), series };
}

function chartData({ series }) {
  return {
    series: series.map(({ look, dots, samples }) => ({
      className: `series-${look}`,
      data: samples.map(({ x, y, ...meta }) => ({ x, y, meta: { ...meta, dots } })),
    })),
  };
}

/** The options of a chart with the given plot width and text size, both in pixels. */
function chartOptions({ from, unit, whole, places, series }, width, size) {
  const samples = series.flatMap((one) => one.samples);
  const values = samples.flatMap(({ y, low, high }) => [y, low, high]).concat(from).filter((one) => one !== null);
  const ticks = roundSteps(Math.min(...values), Math.max(...values), { whole });
  const labels = tickLabels(ticks, unit);
  const room = (texts) => Math.max(...texts.map((text) => text.length)) * size * 0.6 + size;
  const names = new Map(places);
  const xs = [...names.keys()];
  const margin = (xs.at(-1) - xs[0]) * MARGIN || 1;
  const fitting = Math.floor((width - room(labels)) / room([...names.values()]));
  return {
    lineSmooth: false,
    classNames: NAMES,
    chartPadding: { top: size, right: size, bottom: 0, left: 0 },
    axisX: {
      type: FixedScaleAxis,
      highLow: { low: xs[0] - margin, high: xs.at(-1) + margin },
      ticks: thinOut(xs, Math.max(2, Math.min(MAX_LABELS, fitting))),
      labelInterpolationFnc: (x) => names.get(x),
      showGrid: false,
      offset: 2 * size,
    },
    axisY: {
      type: FixedScaleAxis,
      highLow: { low: ticks[0], high: ticks.at(-1) },
      ticks,
      labelInterpolationFnc: (_, index) => labels[index],
      offset: room(labels),
    },
  };
}

/** Changes what Chartist drew: labels to plain SVG text, points to circles with titles; and adds intervals. */
function adjust(event, size) {
  const { type, axis, element, group, x, y } = event;
  if (type === "label") {
    const sideways = axis.units.pos === "y";
    const place = sideways
      ? { x: axis.chartRect.x1 - size / 2, y: y + event.height + size / 3, "text-anchor": "end" }
      : { x, y: axis.chartRect.y1 + size * 1.5, "text-anchor": "middle" };
    element.replace(new Svg("text", place, "label").text(event.text));
  } else if (type === "point") {
    const { low, high, lit, dots, label } = event.meta;
    if (low !== null && high !== null) {
      const [y1, y2] = [low, high].map((value) => event.chartRect.y1 - event.axisY.projectValue(value));
      group.elem("line", { x1: x, x2: x, y1, y2 }, "whisker", true);
    }
    if (!dots) return element.remove();
    const dot = new Svg("circle", { cx: x, cy: y, r: size * (lit ? 0.5 : 0.33) }, lit ? "dot lit" : "dot");
    dot.elem("title").text(label);
    element.replace(dot);
  }
  return undefined;
}

const drawn = new Map();

function textSize(plot) {
  return parseFloat(getComputedStyle(plot).fontSize);
}

function draw(figure, plot, numbers) {
  const one = { numbers, serialized: JSON.stringify(numbers), width: plot.clientWidth };
  one.chart = new LineChart(plot, chartData(numbers), chartOptions(numbers, one.width, textSize(plot)));
  one.chart.on("draw", (event) => adjust(event, textSize(plot)));
  one.chart.on("created", ({ svg }) => {
    // Print, and a column whose width changes, scale the drawing.
    svg.attr({ viewBox: `0 0 ${svg.width()} ${svg.height()}` });
    if (figure.dataset.drawn !== undefined) return;
    figure.dataset.drawn = "";
    figure.querySelector("details").open = false;
  });
  drawn.set(plot, one);
  widths.observe(plot);
}

function redraw(plot, one) {
  one.width = plot.clientWidth;
  one.chart.update(chartData(one.numbers), chartOptions(one.numbers, one.width, textSize(plot)));
}

const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const one = drawn.get(target);
    if (one && target.clientWidth && target.clientWidth !== one.width) redraw(target, one);
  }
});

/** Draws charts that are new or have changed, and forgets those that have left the page. */
function drawAll() {
  for (const [plot, { chart }] of drawn) {
    if (plot.isConnected) continue;
    widths.unobserve(plot);
    chart.detach();
    drawn.delete(plot);
  }
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const plot = figure.querySelector(".plot");
    const numbers = readTable(figure);
    const one = drawn.get(plot);
    if (!one) draw(figure, plot, numbers);
    else if (one.serialized !== JSON.stringify(numbers)) {
      Object.assign(one, { numbers, serialized: JSON.stringify(numbers) });
      redraw(plot, one);
    }
  }
}

document.addEventListener("htmx:after:swap", drawAll);
drawAll();
