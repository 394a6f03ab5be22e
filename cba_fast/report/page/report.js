"use strict";
// Sorts tables, and moves the boxes of the gallery through all thresholds. Without this script the
// page shows the same figures, and the boxes at the best threshold of each run.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortTable(table, head, column));
  });
}

function sortTable(table, head, column) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // cells without a value come last
    const order = column ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
    return up ? order : -order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

// The box at a threshold is that of the last step at or below it.
function boxAt(steps, threshold) {
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (steps[middle][0] <= threshold) low = middle;
    else high = middle - 1;
  }
  return steps[low].slice(1);
}

const area = ([x0, y0, x1, y1]) => (x1 - x0 + 1) * (y1 - y0 + 1); // both corners belong to a box

function bestIou(box, truth) {
  return Math.max(...truth.map((other) => {
    const width = Math.min(box[2], other[2]) - Math.max(box[0], other[0]) + 1;
    const height = Math.min(box[3], other[3]) - Math.max(box[1], other[1]) + 1;
    const shared = Math.max(width, 0) * Math.max(height, 0);
    return shared / (area(box) + area(other) - shared);
  }));
}

const cards = [...document.querySelectorAll(".card")].map((element) => ({
  element,
  name: element.dataset.name,
  figures: [...element.querySelectorAll("figure")],
  runs: data.cards[Number(element.dataset.card)],
  ious: [],
}));
let thresholds = data.best; // of each run, as a position among all thresholds

function moveBoxes() {
  for (const card of cards) {
    card.runs.forEach((run, n) => {
      if (!run) return;
      const [x0, y0, x1, y1] = boxAt(run.steps, thresholds[n]);
      const figure = card.figures[n];
      for (const rect of figure.querySelectorAll(".moving")) {
        rect.setAttribute("x", x0);
        rect.setAttribute("y", y0);
        rect.setAttribute("width", x1 - x0 + 1);
        rect.setAttribute("height", y1 - y0 + 1);
      }
      card.ious[n] = bestIou([x0, y0, x1, y1], run.truth);
      const answer = card.ious[n] >= data.iou ? "localized" : "missed";
      figure.querySelector(".iou").textContent = `IoU ${card.ious[n].toFixed(3)}, ${answer}`;
    });
  }
  const shown = thresholds.map((t) => data.thresholds[t]);
  const same = shown.every((t) => t === shown[0]);
  const isBest = thresholds.every((t, n) => t === data.best[n]);
  const text = (same ? `${shown[0]}` : shown.join(" / ")) + (isBest ? " (best)" : "");
  byId("threshold-value").textContent = text;
  byId("threshold").setAttribute("aria-valuetext", text);
}

function arrange() {
  const sort = byId("sort").value;
  const run = byId("run") ? Number(byId("run").value) : 0;
  const cause = byId("cause").value;
  const text = byId("text").value.toLowerCase();
  const missing = (value) => (value === undefined ? Infinity : value); // images without a map last
  const keys = {
    up: (card) => missing(card.ious[run]),
    down: (card) => missing(-card.ious[run] || undefined),
    near: (card) => missing(Math.abs(card.ious[run] - data.iou)),
    change: (card) => -Math.abs(card.ious[0] - card.ious[1]) || 0,
  };
  const order = (a, b) =>
    sort === "name"
      ? a.name.localeCompare(b.name, "en", { numeric: true })
      : keys[sort](a) - keys[sort](b);
  let count = 0;
  for (const card of [...cards].sort(order)) {
    const causes = card.figures.map((figure) => figure.dataset.cause);
    const fits = (!cause || causes[run] === cause) && card.name.toLowerCase().includes(text);
    card.element.hidden = !fits;
    count += fits;
    byId("cards").append(card.element);
  }
  byId("count").textContent = `${count} of ${cards.length} images shown`;
}

if (cards.length) {
  byId("threshold").addEventListener("input", (event) => {
    thresholds = data.best.map(() => Number(event.target.value));
    moveBoxes();
  });
  byId("best").addEventListener("click", () => {
    thresholds = data.best;
    byId("threshold").value = data.best[0];
    moveBoxes();
    arrange();
  });
  for (const id of ["threshold", "sort", "run", "cause"]) {
    byId(id)?.addEventListener("change", arrange);
  }
  byId("text").addEventListener("input", arrange);
  const setOpacity = () =>
    document.documentElement.style.setProperty("--heat", byId("opacity").value / 100);
  byId("opacity").addEventListener("input", setOpacity);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("controls").hidden = byId("slider").hidden = false;
  setOpacity();
  moveBoxes();
  arrange();
}
