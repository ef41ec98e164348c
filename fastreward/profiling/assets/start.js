// Both charts together with what chooses and moves them.

const timeline = new Timeline(byId("timeline"));
const bars = new Bars(byId("bars"), (step) => showStep(step));
const ranks = [...new Set(data.steps.map((step) => step.rank))];

function showStep(step) {
  const rank = byId("all-ranks").checked ? null : step.rank;
  const whose = rank === null ? "all ranks" : `rank ${rank}`;
  timeline.show(step.begin, step.wall, rank, `${stepName(step)}, ${whose}`);
}

function start() {
  if (!data.steps.length) return;
  byId("steps").hidden = false;
  byId("timeline-section").hidden = false;
  for (const rank of ranks) html("option", byId("rank"), rank, { value: rank });
  byId("rank-choice").hidden = ranks.length < 2;
  byId("all-ranks-choice").hidden = ranks.length < 2;
  const actions = {
    previous: () => bars.choose(bars.at - 1), next: () => bars.choose(bars.at + 1), worst: () => bars.chooseWorst(),
    "zoom-in": () => timeline.zoom(0.6), "zoom-out": () => timeline.zoom(1 / 0.6),
    earlier: () => timeline.move(-0.2), later: () => timeline.move(0.2),
    whole: () => timeline.look(...timeline.whole),
  };
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  byId("rank").addEventListener("change", () => bars.show(Number(byId("rank").value)));
  byId("all-ranks").addEventListener("change", () => showStep(bars.steps[bars.at]));
  sayLeftOut("steps", "earlier steps are not drawn, one by one; the figures below hold them.");
  sayLeftOut("spans", "earlier spans are not drawn; the figures below hold them.");
  bars.show(ranks[0]);
}

function sayLeftOut(what, text) {
  const count = data.left_out[what];
  if (!count) return;
  byId(`${what}-left-out`).hidden = false;
  byId(`${what}-left-out`).textContent = `${count.toLocaleString("en")} ${text}`;
}

start();
