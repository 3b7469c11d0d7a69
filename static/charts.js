// Charts: an element with data-chart holds a table of numbers and an empty frame; Chartist draws the one into the other.
// The server sends numbers only. Without this script the table is shown.
//
// Attributes that a chart uses:
//   data-from="0"          what the y axis holds at least; data-unit=" %" stands behind its numbers; data-whole: no fractions
//   data-dots, data-look   on the head of a column: its points are marked; the class series-N of its line
//   data-x                 on the head of a row: its place
//   data-y, data-low, data-high, data-lit   on a cell: its value, its interval, and whether it is the one in force
const { FixedScaleAxis, LineChart, Svg } = window.Chartist;
const ABOUT = 4;
const MARGIN = 0.03;
const MOST_LABELS = 8;
const NAMES = { line: "line", grid: "grid", label: "label", point: "dot" };

// Chartist writes style attributes, which the page's policy forbids; through the property the same is allowed.
const setAttributes = Svg.prototype.attr;
Svg.prototype.attr = function attr(given, namespace) {
  if (typeof given === "string" || !("style" in given)) return setAttributes.call(this, given, namespace);
  const { style, ...others } = given;
  this.getNode().style.cssText = style;
  return setAttributes.call(this, others, namespace);
};

/** Round numbers from at most `low` to at least `high`; whole ones on demand. */
export function roundSteps(low, high, { about = ABOUT, whole = false } = {}) {
  if (high - low < 1e-9) {
    const spread = Math.abs(high) > 1e-8 ? Math.abs(high) * 0.1 : 0.1;
    return roundSteps(low - spread, high + spread, { about, whole });
  }
  const rough = (high - low) / about;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const sizes = [1, 2, 2.5, 5, 10].map((factor) => factor * unit).filter((size) => size >= rough * (1 - 1e-12));
  const step = whole ? Math.max(1, sizes.find(Number.isInteger) ?? 1) : sizes[0];
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(high / step - 1e-9)); // of values all but on one step: that and the next
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** Numbers as the y axis shows them: all with as many digits as their step needs. */
export function tickLabels(ticks, unit = "") {
  const decimals = (tick) => (String(Math.abs(tick)).split(".")[1] ?? "").length;
  const digits = Math.max(...ticks.map(decimals));
  return ticks.map((tick) => {
    const [whole, fraction] = Math.abs(tick).toFixed(digits).split(".");
    const grouped = whole.replace(/\B(?=(\d{3})+$)/g, "\u202f");
    return (tick < 0 ? "\u2212" : "") + grouped + (fraction ? `.${fraction}` : "") + unit;
  });
}

/** At most `most` of the ordered `places`, evenly far apart, and the last one always: it is what is looked for. */
export function fewer(places, most) {
  if (places.length <= most) return places;
  const step = Math.ceil((places.length - 1) / Math.max(1, most - 1));
  return places.filter((_, index) => (places.length - 1 - index) % step === 0);
}

function numberOf(text) {
  return text === undefined ? null : Number(text);
}

/** What the table of a chart holds. */
function numbersOf(figure) {
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
      const said = `${name}, ${row.name}: ${row.cells[number].textContent.trim()}`;
      return [{ x: row.x, y: Number(y), low: numberOf(low), high: numberOf(high), lit: lit !== undefined, said }];
    });
    // One point alone is no line: it is marked, or nothing could be seen.
    return { look: head.dataset.look, dots: head.dataset.dots !== undefined || samples.length === 1, samples };
  });
  const { from, unit, whole } = figure.dataset;
  return { from: numberOf(from), unit, whole: whole !== undefined, places: rows.map(({ x, name }) => [x, name]), series };
}

function dataOf({ series }) {
  return {
    series: series.map(({ look, dots, samples }) => ({
      className: `series-${look}`,
      data: samples.map(({ x, y, ...meta }) => ({ x, y, meta: { ...meta, dots } })),
    })),
  };
}

/** The axes for a plot `width` wide, whose text is `size` pixels high. */
function optionsOf({ from, unit, whole, places, series }, width, size) {
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
      ticks: fewer(xs, Math.max(2, Math.min(MOST_LABELS, fitting))),
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

/** What Chartist drew, made ours: labels as plain SVG text, points as circles with their words, intervals behind them. */
function finish(event, size) {
  const { type, axis, element, group, x, y } = event;
  if (type === "label") {
    const sideways = axis.units.pos === "y";
    const place = sideways
      ? { x: axis.chartRect.x1 - size / 2, y: y + event.height + size / 3, "text-anchor": "end" }
      : { x, y: axis.chartRect.y1 + size * 1.5, "text-anchor": "middle" };
    element.replace(new Svg("text", place, "label").text(event.text));
  } else if (type === "point") {
    const { low, high, lit, dots, said } = event.meta;
    if (low !== null && high !== null) {
      const [y1, y2] = [low, high].map((value) => event.chartRect.y1 - event.axisY.projectValue(value));
      group.elem("line", { x1: x, x2: x, y1, y2 }, "whisker", true);
    }
    if (!dots) return element.remove();
    const dot = new Svg("circle", { cx: x, cy: y, r: size * (lit ? 0.5 : 0.33) }, lit ? "dot lit" : "dot");
    dot.elem("title").text(said);
    element.replace(dot);
  }
  return undefined;
}

const drawn = new Map();

function textSize(plot) {
  return parseFloat(getComputedStyle(plot).fontSize);
}

function begin(figure, plot, numbers) {
  const one = { numbers, written: JSON.stringify(numbers), width: plot.clientWidth };
  one.chart = new LineChart(plot, dataOf(numbers), optionsOf(numbers, one.width, textSize(plot)));
  one.chart.on("draw", (event) => finish(event, textSize(plot)));
  one.chart.on("created", ({ svg }) => {
    // Paper and a column that changes its width scale the drawing as it is.
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
  one.chart.update(dataOf(one.numbers), optionsOf(one.numbers, one.width, textSize(plot)));
}

const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const one = drawn.get(target);
    if (one && target.clientWidth && target.clientWidth !== one.width) redraw(target, one);
  }
});

/** Draw what is new or has changed, and let go of what has left the page. */
function drawAll() {
  for (const [plot, { chart }] of drawn) {
    if (plot.isConnected) continue;
    widths.unobserve(plot);
    chart.detach();
    drawn.delete(plot);
  }
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const plot = figure.querySelector(".plot");
    const numbers = numbersOf(figure);
    const one = drawn.get(plot);
    if (!one) begin(figure, plot, numbers);
    else if (one.written !== JSON.stringify(numbers)) {
      Object.assign(one, { numbers, written: JSON.stringify(numbers) });
      redraw(plot, one);
    }
  }
}

document.addEventListener("htmx:after:swap", drawAll);
drawAll();
