// The spans of a stretch of time in rows of threads, with zoom. Spans that are too small to see are drawn as one.

const spans = data.spans.map(([row, depth, key, begin, length, outcome, exposed, facts]) => {
  const [kind, name, part] = data.keys[key];
  return { row, depth, kind, name, part, begin, length, outcome, exposed, facts };
});

class Timeline {
  constructor(root) {
    this.root = root;
    this.drag = null;
    root.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("dblclick", () => this.look(...this.whole));
    root.addEventListener("pointerdown", (event) => this.dragBegins(event));
    root.addEventListener("pointermove", (event) => this.pointer(event));
    root.addEventListener("pointerup", () => this.dragEnds(true));
    root.addEventListener("pointercancel", () => this.dragEnds(false));
    root.addEventListener("pointerleave", () => tip.hide());
    byId("listing").addEventListener("toggle", () => this.list());
    onResize(root, () => this.draw());
  }

  /** Show a stretch, of one rank or (`null`) of all; `name` is what it is called. */
  show(begin, length, rank, name) {
    this.whole = [begin, begin + Math.max(length, 1)];
    this.name = name;
    const [from, to] = this.whole;
    this.spans = spans.filter((span) => {
      const ends = span.begin + span.length;
      return span.begin < to && ends > from && (rank === null || data.rows[span.row].rank === rank);
    });
    this.place();
    this.look(...this.whole);
  }

  /** Give each row that has spans its height. */
  place() {
    const depths = new Map();
    for (const { row, depth } of this.spans) depths.set(row, Math.max(depths.get(row) ?? 0, depth + 1));
    this.tops = new Map();
    let top = 24;
    for (const [row, deep] of [...depths].sort(([a], [b]) => a - b)) {
      this.tops.set(row, top + 18);
      top += 18 + 19 * deep + 7;
    }
    this.height = top + 4;
  }

  /** Look at what is between two times, within the stretch. */
  look(from, to) {
    const [first, last] = this.whole;
    const length = Math.min(Math.max(to - from, 5), last - first);
    this.from = Math.max(first, Math.min(from, last - length));
    this.to = this.from + length;
    this.draw();
  }

  /** Zoom by a factor around a place between 0 (left) and 1 (right). */
  zoom(factor, place = 0.5) {
    const length = this.to - this.from, centre = this.from + place * length;
    this.look(centre - place * length * factor, centre + (1 - place) * length * factor);
  }

  move(part) {
    const by = part * (this.to - this.from);
    this.look(this.from + by, this.to + by);
  }

  x(us) {
    return ((us - this.from) / (this.to - this.from)) * this.width;
  }

  draw() {
    if (!this.spans) return;
    this.width = Math.max(this.root.clientWidth, 50);
    const drawing = svg("svg", null, { width: this.width, height: this.height, "aria-hidden": "true" });
    this.drawAxis(drawing);
    for (const [row, top] of this.tops) {
      svg("text", drawing, { class: "row-name", x: 6, y: top - 5 }, rowName(data.rows[row]));
    }
    const seen = this.spans.filter((span) => span.begin < this.to && span.begin + span.length > this.from);
    this.boxes = [];
    for (const lane of lanesOf(seen)) this.drawLane(drawing, lane);
    this.root.replaceChildren(drawing);
    this.say(seen.length);
    this.list();
  }

  drawAxis(drawing) {
    const [begin] = this.whole, longest = this.to - begin;
    for (const tick of ticks(this.from - begin, this.to - begin, Math.max(2, this.width / 120))) {
      const x = this.x(begin + tick);
      svg("line", drawing, { class: "grid", x1: x, x2: x, y1: 18, y2: this.height });
      const anchor = x < 24 ? "start" : x > this.width - 24 ? "end" : "middle";
      svg("text", drawing, { x: Math.max(x, 2), y: 13, "text-anchor": anchor }, axisText(tick, longest));
    }
  }

  /**
   * Draw the spans of one row and depth, which do not overlap. Those that are too small to see make a crowd: all that
   * begin on its pixel, and what follows without a gap in the same colour. So there is a mark for a pixel at most.
   */
  drawLane(drawing, lane) {
    const y = this.tops.get(lane[0].row) + 19 * lane[0].depth;
    let crowd = null;
    for (const span of lane) {
      const left = Math.max(this.x(span.begin), -2);
      const right = Math.min(this.x(span.begin + span.length), this.width + 2);
      const goesOn = crowd && left - crowd.right < 1 && crowd.spans.at(-1).part === span.part;
      if (right - left >= 1.5) {
        this.drawSpan(drawing, span, left, right, y);
      } else if (crowd && (goesOn || left < crowd.left + 1)) {
        crowd.spans.push(span);
        crowd.right = Math.max(right, crowd.right);
        crowd.box.setAttribute("width", crowd.right - crowd.left);
      } else {
        crowd = { left, right: left + 1, spans: [span], y };
        crowd.box = svg("rect", drawing, { class: lookOf(span), x: left, y, width: 1, height: 17 });
        this.boxes.push(crowd);
      }
    }
  }

  drawSpan(drawing, span, left, right, y) {
    const group = svg("g", drawing, { class: "span" });
    const look = span.kind === "reward" ? "hidden-reward" : `part ${lookOf(span)}`;
    svg("rect", group, { class: look, x: left, y, width: right - left, height: 17, rx: 2 });
    for (const [begin, length] of span.exposed) {
      const first = Math.max(this.x(span.begin + begin), left);
      const last = Math.min(this.x(span.begin + begin + length), right);
      if (last > first) svg("rect", group, { class: "exposed", x: first, y, width: last - first, height: 17 });
    }
    const text = span.name + (span.outcome === "done" ? "" : ` (${span.outcome})`);
    const letters = Math.floor((right - Math.max(left, 0) - 8) / 6.3);
    if (letters >= 3) {
      const shown = text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
      const look = span.kind === "phase" ? "on-part" : "on-pattern";
      svg("text", group, { class: look, x: Math.max(left, 0) + 4, y: y + 12.5 }, shown);
    }
    this.boxes.push({ left, right, y, spans: [span] });
  }

  /** Say in words what is seen. */
  say(count) {
    const [begin] = this.whole;
    const between = `${timeText(this.from - begin)} to ${timeText(this.to - begin)}`;
    const all = this.from === this.whole[0] && this.to === this.whole[1];
    byId("seen").textContent = `${this.name}, ${all ? "all of it" : between}: ${count.toLocaleString("en")} spans.`;
  }

  /** The spans that are seen as a table, as long as it is open. */
  list() {
    const listing = byId("listing"), most = 200;
    if (!listing.open || !this.spans) return;
    const seen = this.spans.filter((span) => span.begin < this.to && span.begin + span.length > this.from);
    const body = listing.querySelector("tbody");
    body.replaceChildren();
    for (const span of seen.slice(0, most)) {
      const row = html("tr", body), { rank, thread } = data.rows[span.row];
      html("th", row, `${"· ".repeat(span.depth)}${span.name}`, { scope: "row" });
      html("td", row, `rank ${rank}, ${thread}`);
      html("td", row, timeText(span.begin - this.whole[0]), { class: "number" });
      html("td", row, timeText(span.length), { class: "number" });
      html("td", row, span.kind === "reward" ? timeText(exposedOf(span)) : "", { class: "number" });
      html("td", row, [outcomeOf(span), ...span.facts].filter(Boolean).join("; "), { class: "more" });
    }
    const rest = seen.length - most;
    listing.querySelector(".hint").textContent = rest > 0 ? `${rest} more: zoom in to see them.` : "";
  }

  wheel(event) {
    const focused = document.activeElement === this.root;
    if (!focused && !event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    const { left } = this.root.getBoundingClientRect();
    this.zoom(Math.exp(Math.sign(event.deltaY) * 0.22), (event.clientX - left) / this.width);
  }

  key(event) {
    const actions = {
      ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2), "+": () => this.zoom(0.6),
      "=": () => this.zoom(0.6), "-": () => this.zoom(1 / 0.6), Escape: () => this.look(...this.whole),
    };
    if (event.key in actions && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  dragBegins(event) {
    if (event.button !== 0) return;
    this.drag = { from: this.inside(event), to: this.inside(event) };
    this.root.setPointerCapture(event.pointerId);
  }

  pointer(event) {
    if (this.drag) {
      this.drag.to = this.inside(event);
      const x = Math.min(this.drag.from, this.drag.to), width = Math.abs(this.drag.to - this.drag.from);
      this.root.querySelector(".selection")?.remove();
      svg("rect", this.root.firstChild, { class: "selection", x, width, y: 0, height: this.height });
      return;
    }
    const x = this.inside(event), y = event.clientY - this.root.getBoundingClientRect().top + this.root.scrollTop;
    const hit = this.boxes?.find((box) => x >= box.left - 1 && x <= box.right + 1 && y >= box.y && y <= box.y + 17);
    if (hit) tip.show(hit.spans.length > 1 ? crowdLines(hit.spans) : spanLines(hit.spans[0], this.whole[0]), event);
    else tip.hide();
  }

  dragEnds(counts) {
    if (!this.drag) return;
    const [left, right] = [this.drag.from, this.drag.to].sort((a, b) => a - b);
    this.drag = null;
    this.root.querySelector(".selection")?.remove();
    if (!counts || right - left < 5) return; // a click gives the focus
    const at = (x) => this.from + (x / this.width) * (this.to - this.from);
    this.look(at(left), at(right));
  }

  /** Where a pointer is, in the drawing's own units. */
  inside(event) {
    const x = event.clientX - this.root.getBoundingClientRect().left - this.root.clientLeft;
    return Math.max(0, Math.min(x, this.width));
  }
}

/** A row's name; the process is named where the rank has several. */
function rowName({ rank, process, thread }) {
  const several = data.rows.some((row) => row.rank === rank && row.process !== process);
  return `rank ${rank} · ${thread}${several ? ` · ${process}` : ""}`;
}

/** Spans by row and depth, each in the order of their begins. */
function lanesOf(seen) {
  const lanes = new Map();
  for (const span of seen) {
    const key = `${span.row}/${span.depth}`;
    if (!lanes.has(key)) lanes.set(key, []);
    lanes.get(key).push(span);
  }
  return lanes.values();
}

function lookOf(span) {
  if (span.kind === "reward") return "exposed";
  return span.kind === "wait" ? "wait" : parts[span.part]?.look ?? "c8";
}

function exposedOf(span) {
  return span.exposed.reduce((sum, [, length]) => sum + length, 0);
}

function outcomeOf(span) {
  return span.outcome === "done" ? "" : span.outcome;
}

/** A span for its tooltip. */
function spanLines(span, begin) {
  const kind = { wait: " (waits)", reward: " (reward)", phase: "" }[span.kind];
  const lines = [`${span.name}${kind}: ${timeText(span.length)}`, `from ${timeText(span.begin - begin)}`];
  if (span.kind === "reward") {
    const exposed = exposedOf(span);
    lines.push(`${timeText(exposed)} exposed, ${timeText(span.length - exposed)} hidden`);
  }
  return [...lines, ...span.facts, ...(outcomeOf(span) ? [span.outcome] : [])];
}

function crowdLines(crowd) {
  const names = new Set(crowd.map((span) => span.name));
  const shown = [...names].slice(0, 5).join(", ") + (names.size > 5 ? " …" : "");
  const sum = crowd.reduce((total, span) => total + span.length, 0);
  return [`${crowd.length} spans: zoom in to see them`, shown, `${timeText(sum)} in all`];
}
