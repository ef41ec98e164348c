// A stacked bar for each step of a rank, and the table of the step that is chosen.

class Bars {
  /** `chosen` is called with the step that is chosen. */
  constructor(root, chosen) {
    this.root = root;
    this.chosen = chosen;
    this.steps = [];
    this.at = 0;
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("pointerleave", () => tip.hide());
    onResize(root, () => this.draw());
  }

  /** Show the steps of a rank; the same number stays chosen if it is there. */
  show(rank) {
    const number = this.steps[this.at]?.number;
    this.steps = data.steps.filter((step) => step.rank === rank);
    const same = this.steps.findIndex((step) => step.number === number);
    this.draw();
    this.choose(same >= 0 ? same : this.steps.length - 1);
  }

  key(event) {
    const moves = {
      ArrowLeft: this.at - 1, ArrowDown: this.at - 1, ArrowRight: this.at + 1, ArrowUp: this.at + 1,
      PageDown: this.at - 10, PageUp: this.at + 10, Home: 0, End: this.steps.length - 1,
    };
    if (event.key in moves) {
      event.preventDefault();
      this.choose(moves[event.key]);
    }
  }

  choose(index) {
    this.at = Math.max(0, Math.min(index, this.steps.length - 1));
    const step = this.steps[this.at];
    this.root.setAttribute("aria-valuemin", 1);
    this.root.setAttribute("aria-valuemax", this.steps.length);
    this.root.setAttribute("aria-valuenow", this.at + 1);
    this.root.setAttribute("aria-valuetext", `${stepName(step)}: ${timeText(step.wall)}`);
    byId("previous").disabled = this.at === 0;
    byId("next").disabled = this.at === this.steps.length - 1;
    byId("chosen").textContent = stepText(step);
    this.mark();
    this.fillTable(step);
    this.chosen(step);
  }

  /** Choose the step in which rewards were exposed longest. */
  chooseWorst() {
    const waits = this.steps.map((step) => step.parts[0]);
    this.choose(waits.indexOf(Math.max(...waits)));
  }

  draw() {
    const height = 240, left = 58, bottom = 30, top = 20;
    const count = Math.max(this.steps.length, 1);
    const room = this.root.clientWidth - left - 10;
    this.pitch = Math.max(5, Math.min(64, room / count));
    const width = Math.max(this.root.clientWidth, left + this.pitch * count + 10);
    const longest = scaleOf(this.steps.map((step) => step.wall));
    const y = (us) => height - bottom - (Math.min(us, longest) / longest) * (height - bottom - top);
    this.left = left;
    this.height = height - bottom;
    this.root.replaceChildren();
    const drawing = svg("svg", this.root, { width, height, "aria-hidden": "true" });
    for (const tick of ticks(0, longest, 4)) {
      svg("line", drawing, { class: "grid", x1: left, x2: width - 6, y1: y(tick), y2: y(tick) });
      svg("text", drawing, { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, axisText(tick, longest));
    }
    const every = Math.max(1, Math.ceil(34 / this.pitch));
    this.steps.forEach((step, index) => {
      this.drawStep(drawing, step, index, y);
      if (step.wall > longest) this.drawCut(drawing, step, index, top);
      if (index % every === 0 && step.number !== null) {
        const x = left + (index + 0.5) * this.pitch;
        svg("text", drawing, { x, y: height - 4, "text-anchor": "middle" }, step.number);
      }
    });
    this.marks = svg("g", drawing);
    this.mark();
  }

  drawStep(drawing, step, index, y) {
    const gap = this.pitch > 8 ? this.pitch * 0.18 : 0.5;
    const x = this.left + index * this.pitch + gap / 2;
    const bar = svg("g", drawing, { class: "bar", "data-step": step.number ?? "" });
    let below = 0;
    step.parts.forEach((spent, part) => {
      if (spent > 0) {
        const box = { x, width: this.pitch - gap, y: y(below + spent), height: y(below) - y(below + spent) };
        svg("rect", bar, { class: `part ${parts[part].look}`, ...box });
        below += spent;
      }
    });
    const column = { class: "column", x: x - gap / 2, width: this.pitch, y: 0, height: this.height };
    const hit = svg("rect", bar, column);
    hit.addEventListener("click", () => this.choose(index));
    hit.addEventListener("pointermove", (event) => tip.show(stepLines(step), event));
  }

  /** Say above a bar that is cut off how long the step was. */
  drawCut(drawing, step, index, top) {
    const x = this.left + (index + 0.5) * this.pitch, anchor = x < this.root.clientWidth / 2 ? "start" : "end";
    const from = anchor === "start" ? x - this.pitch / 2 : x + this.pitch / 2;
    svg("text", drawing, { x: from, y: top - 4, "text-anchor": anchor }, `▲ ${timeText(step.wall)}`);
  }

  /** Mark the chosen step: a frame and a triangle below it. */
  mark() {
    if (!this.marks || !this.steps.length) return;
    const x = this.left + this.at * this.pitch, middle = x + this.pitch / 2, under = this.height;
    this.marks.replaceChildren();
    svg("rect", this.marks, { class: "mark", x: x - 1, width: this.pitch + 2, y: 1, height: under, rx: 2 });
    const points = `${middle - 6},${under + 11} ${middle + 6},${under + 11} ${middle},${under + 3}`;
    svg("polygon", this.marks, { class: "marker", points });
    const { scrollLeft, clientWidth } = this.root;
    if (x < scrollLeft + this.left || x + this.pitch > scrollLeft + clientWidth) {
      this.root.scrollLeft = middle - clientWidth / 2;
    }
  }

  fillTable(step) {
    const body = byId("parts").tBodies[0];
    const walls = this.steps.reduce((sum, one) => sum + one.wall, 0);
    body.replaceChildren();
    for (const part of parts) {
      const all = this.steps.reduce((sum, one) => sum + one.parts[part.index], 0);
      if (!all && part.kind !== "exposed") continue;
      const row = html("tr", body);
      const name = html("th", row, "", { scope: "row" });
      const swatch = svg("svg", name, { class: "swatch", viewBox: "0 0 14 14", "aria-hidden": "true" });
      svg("rect", swatch, { class: part.look, x: 0.5, y: 0.5, width: 13, height: 13, rx: 2 });
      name.append(part.name);
      const spent = step.parts[part.index];
      const cells = [timeText(spent), percent(spent, step.wall)];
      cells.push(timeText(all / this.steps.length), percent(all, walls));
      for (const cell of cells) html("td", row, cell, { class: "number" });
    }
  }
}

/** How far the axis goes: to the longest step, unless a few, as the first often is, would flatten the others. */
function scaleOf(walls) {
  const ordered = [...walls].sort((a, b) => a - b);
  const longest = Math.max(1, ordered.at(-1) ?? 1);
  const usual = 1.5 * ordered[Math.floor(0.9 * (ordered.length - 1))];
  return longest > 1.3 * usual ? usual : longest;
}

function stepName(step) {
  return step.number === null ? "All of the time" : `Step ${step.number}`;
}

/** A step in a sentence. */
function stepText(step) {
  const said = [`rewards ${timeText(step.parts[0])} exposed`];
  if (step.hidden !== undefined) said.push(`${timeText(step.hidden)} hidden`);
  if (step.tail !== undefined && step.tail !== null) said.push(`tail ${timeText(step.tail)}`);
  const rewards = Object.entries(step.rewards).map(([name, us]) => `${name} ${timeText(us)}`);
  const which = rewards.length > 1 ? ` (exposed: ${rewards.join(", ")})` : "";
  return `${stepName(step)} of rank ${step.rank}: ${timeText(step.wall)}; ${said.join(", ")}${which}.`;
}

/** A step for its tooltip: what it consists of, the largest first. */
function stepLines(step) {
  const order = parts.filter((part) => step.parts[part.index] > 0);
  order.sort((a, b) => step.parts[b.index] - step.parts[a.index]);
  const lines = order.map(({ name, index }) => {
    return `${name}: ${timeText(step.parts[index])}, ${percent(step.parts[index], step.wall)}`;
  });
  return [`${stepName(step)}, ${timeText(step.wall)}`, ...lines.slice(0, 9)];
}
