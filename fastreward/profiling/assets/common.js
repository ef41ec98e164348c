// What both charts need: the data, elements, words for numbers, and the tooltip. Times are microseconds.

const data = JSON.parse(document.getElementById("data").textContent);
const parts = data.parts.map(([kind, name, colour], index) => ({
  kind, index,
  name: { exposed: "reward, exposed", idle: "nothing recorded" }[kind] ?? (kind === "wait" ? `${name} (waits)` : name),
  look: kind === "phase" ? `c${colour}` : kind,
}));

function byId(id) {
  return document.getElementById(id);
}

/** Make an element; `within` is what it is added to. */
function html(tag, within, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  within?.append(element);
  return element;
}

/** The same for SVG. */
function svg(tag, within, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  within?.append(element);
  return element;
}

/** A time in the unit that suits it. */
function timeText(us) {
  const seconds = us / 1e6;
  if (seconds >= 5400) return `${(seconds / 3600).toFixed(1)} h`;
  if (seconds >= 100) return `${seconds.toFixed(0)} s`;
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  if (us >= 1000 || us <= 0) return `${(us / 1000).toFixed(1)} ms`;
  return `${us.toFixed(0)} µs`;
}

function percent(part, whole) {
  const value = whole ? (100 * part) / whole : 0;
  if (value > 0 && value < 0.05) return "<0.1 %";
  return value === 0 ? "0 %" : value >= 9.95 ? `${value.toFixed(0)} %` : `${value.toFixed(1)} %`;
}

/** Round numbers between two bounds, about as many as asked for. */
function ticks(from, to, about) {
  const rough = Math.max(to - from, 1e-9) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((one) => one >= rough);
  const found = [];
  for (let tick = Math.ceil(from / step - 1e-9) * step; tick <= to + 1e-9 * step; tick += step) found.push(tick);
  return found;
}

/** A time on an axis, in one unit for the whole axis. */
function axisText(us, longest) {
  const [unit, size] = longest >= 1e6 ? ["s", 1e6] : longest >= 1e3 ? ["ms", 1e3] : ["µs", 1];
  return `${Number((us / size).toPrecision(12)).toLocaleString("en", { maximumFractionDigits: 3 })} ${unit}`;
}

const tip = {
  show(lines, event) {
    const box = byId("tip");
    box.replaceChildren();
    for (const line of lines) html("div", box, line);
    box.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = box;
    const left = Math.min(event.clientX + 14, window.innerWidth - width - 8);
    const below = event.clientY + 18;
    box.style.left = `${Math.max(8, left)}px`;
    box.style.top = `${below + height > window.innerHeight - 8 ? event.clientY - height - 10 : below}px`;
  },
  hide() {
    byId("tip").hidden = true;
  },
};

/** Call a function when an element's width has changed. */
function onResize(element, action) {
  let width = element.clientWidth;
  new ResizeObserver(() => {
    if (element.clientWidth !== width) {
      width = element.clientWidth;
      action();
    }
  }).observe(element);
}
