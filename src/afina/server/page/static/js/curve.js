// The loss of a job as an SVG: training at each step and smoothed, validation where it was measured. Titled, with axes
// and their units, readable without colour (the lines differ in dashes too) and without eyes (a sentence, a table).

import { el, fill, fresh, svg } from "./dom.js";
import { figure, number, t } from "./words.js";

const WIDE = { w: 720, h: 300, left: 58, right: 16, top: 12, bottom: 44 };
const NARROW = { w: 380, h: 260, left: 46, right: 14, top: 12, bottom: 42 };
const SMOOTHED_FROM = 40;
const MOST_POINTS = 400;
const MOST_ROWS = 200;

/** points: [{step, train, valid}] in order; numbers or null. total: steps planned. */
export function lossFigure() {
  const title = el("b", { id: fresh("loss") }, t("loss_title"));
  const said = el("p.quiet");
  const drawing = el("div.drawing");
  const numbers = el("div");
  const legend = el("div.legend", { "aria-hidden": "true" });
  const readout = el("p.readout", { "aria-hidden": "true" }, "\u00a0");
  const node = el("figure.loss", {}, el("figcaption", {}, title), legend, drawing, readout, said, numbers);
  let last = null;
  const redraw = () => last && draw(...last);
  const watcher = new ResizeObserver(redraw);
  watcher.observe(drawing);

  function draw(points, total) {
    last = [points, total];
    const size = drawing.clientWidth && drawing.clientWidth < 520 ? NARROW : WIDE;
    const train = points.filter((p) => Number.isFinite(p.train)).map((p) => [p.step, p.train]);
    const valid = points.filter((p) => Number.isFinite(p.valid)).map((p) => [p.step, p.valid]);
    if (!train.length && !valid.length) {
      fill(drawing, el("p.quiet", {}, t("loss_none")));
      fill(legend);
      fill(said);
      return;
    }
    const smooth = train.length >= SMOOTHED_FROM ? smoothed(train) : null;
    const scale = scales(size, [...train, ...valid], total);
    const label = sentence(train, valid);
    const area = svg("svg.curve", { viewBox: `0 0 ${size.w} ${size.h}`, role: "img", "aria-label": `${t("loss_title")}. ${label}` },
      axes(size, scale),
      svg("path", { class: smooth ? "line raw" : "line train", d: path(thinned(train), scale) }),
      smooth ? svg("path.line.train", { d: path(thinned(smooth), scale) }) : null,
      valid.length ? svg("path.line.valid", { d: path(valid, scale) }) : null,
      valid.map(([x, y]) => svg("circle.dot", { cx: scale.x(x), cy: scale.y(y), r: valid.length > 40 ? 1.5 : 3.5 })),
      train.length === 1 ? svg("circle.first", { cx: scale.x(train[0][0]), cy: scale.y(train[0][1]), r: 3 }) : null);
    pointable(area, size, scale, points, readout);
    fill(drawing, area);
    fill(legend, smooth ? key("raw", t("train_loss")) : null, key("train", t(smooth ? "train_mean" : "train_loss")), valid.length ? key("valid", t("valid_loss")) : null);
    fill(said, label);
    fill(numbers, table(points));
  }
  return { node, draw, close: () => watcher.disconnect() };
}

function key(name, text) {
  const dot = name === "valid" ? svg("circle.dot", { cx: 14, cy: 5, r: 3.5 }) : null;
  return el("span.key", {}, svg("svg", { viewBox: "0 0 28 10", width: 28, height: 10 }, svg("path", { class: `line ${name}`, d: "M0 5H28" }), dot), text);
}

function sentence(train, valid) {
  const said = train.length ? [t("loss_said", { n: number(train.length), a: figure(train[0][1]), b: figure(train.at(-1)[1]) })] : [];
  if (valid.length) said.push(t("loss_said_valid", { v: figure(valid.at(-1)[1]) }));
  return said.join(" ");
}

/** Exponential mean with a memory of about a tenth of the curve. */
function smoothed(line) {
  const weight = 2 / (line.length / 10 + 1);
  let mean = line[0][1];
  return line.map(([x, y]) => [x, (mean += weight * (y - mean))]);
}

/** At most so many points, the lowest and highest of each stretch kept, so that no peak is lost. */
function thinned(line) {
  if (line.length <= MOST_POINTS) return line;
  const size = Math.ceil(line.length / (MOST_POINTS / 2));
  const found = [];
  for (let at = 0; at < line.length; at += size) {
    const part = line.slice(at, at + size).sort((a, b) => a[1] - b[1]);
    found.push(...[part[0], part.at(-1)].sort((a, b) => a[0] - b[0]));
  }
  return found;
}

const path = (line, { x, y }) => line.map((point, i) => `${i ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");

// -- scales and axes -------------------------------------------------------------------------------------------------

function scales(size, points, total) {
  const steps = points.map(([x]) => x);
  const losses = points.map(([, y]) => y);
  const xTicks = nice(0, Math.max(total ?? 0, ...steps, 1), 5, true);
  const top = Math.max(...losses);
  const yTicks = nice(Math.min(0, ...losses), top > 0 ? top : 1, 5, false);
  const [x0, x1] = [0, Math.max(total ?? 0, ...steps, 1)];
  const [y0, y1] = [yTicks[0], yTicks.at(-1)];
  return {
    xTicks: xTicks.filter((tick) => tick <= x1),
    yTicks,
    x: (step) => size.left + ((step - x0) / (x1 - x0)) * (size.w - size.left - size.right),
    y: (loss) => size.h - size.bottom - ((loss - y0) / (y1 - y0)) * (size.h - size.top - size.bottom),
    step: (at) => x0 + ((at - size.left) / (size.w - size.left - size.right)) * (x1 - x0),
  };
}

/** Round numbers that hold low and high, about `count` of them. */
function nice(low, high, count, whole) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((one) => one >= raw - 1e-12);
  if (whole) step = Math.max(1, Math.round(step));
  const ticks = [];
  for (let i = Math.floor(low / step); i <= Math.ceil(high / step - 1e-9); i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function axes(size, scale) {
  const bottom = size.h - size.bottom;
  const right = size.w - size.right;
  const digits = Math.max(...scale.yTicks.map((tick) => (String(tick).split(".")[1] ?? "").length));
  return svg("g.axes", {},
    scale.yTicks.map((tick) => [
      svg("line.grid", { x1: size.left, x2: right, y1: scale.y(tick), y2: scale.y(tick) }),
      svg("text", { x: size.left - 8, y: scale.y(tick) + 4, "text-anchor": "end" }, number(tick, Math.min(digits, 4)))]),
    scale.xTicks.map((tick) => svg("text", { x: scale.x(tick), y: bottom + 17, "text-anchor": "middle" }, number(tick))),
    svg("line.axis", { x1: size.left, x2: right, y1: bottom, y2: bottom }),
    svg("text.unit", { x: (size.left + right) / 2, y: size.h - 6, "text-anchor": "middle" }, t("step_axis")),
    svg("text.unit", { x: 13, y: (size.top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 13 ${(size.top + bottom) / 2})` }, t("loss_axis")));
}

/** A line under the pointer, and the numbers of its step below the figure. */
function pointable(area, size, scale, points, readout) {
  const line = svg("line.pointer", { x1: 0, x2: 0, y1: size.top, y2: size.h - size.bottom, visibility: "hidden" });
  area.append(line);
  area.addEventListener("pointermove", (event) => {
    const at = ((event.clientX - area.getBoundingClientRect().left) / area.clientWidth) * size.w;
    const wanted = scale.step(at);
    const near = points.reduce((best, p) => (Math.abs(p.step - wanted) < Math.abs(best.step - wanted) ? p : best), points[0]);
    line.setAttribute("x1", scale.x(near.step));
    line.setAttribute("x2", scale.x(near.step));
    line.setAttribute("visibility", "visible");
    const said = [t("at_step", { step: number(near.step) })];
    if (Number.isFinite(near.train)) said.push(`${t("train_loss")} ${figure(near.train)}`);
    if (Number.isFinite(near.valid)) said.push(`${t("valid_loss")} ${figure(near.valid)}`);
    fill(readout, said.join(" · "));
  });
  area.addEventListener("pointerleave", () => { line.setAttribute("visibility", "hidden"); fill(readout, "\u00a0"); });
}

function table(points) {
  const rows = points.length > MOST_ROWS ? points.filter((p, i) => i % Math.ceil(points.length / MOST_ROWS) === 0 || Number.isFinite(p.valid)) : points;
  return el("details", {}, el("summary", {}, t("numbers")), el("div.scroll", { tabindex: "0", role: "region", "aria-label": t("numbers") },
    el("table", {}, el("thead", {}, el("tr", {}, [t("step"), t("train_loss"), t("valid_loss")].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.map((p) => el("tr", {}, el("th", { scope: "row" }, number(p.step)), [p.train, p.valid].map((value) => el("td", {}, Number.isFinite(value) ? figure(value) : "–"))))))));
}
