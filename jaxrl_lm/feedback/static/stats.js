// The statistics page.

import { get, onNewLink, openSession } from "./api.js";
import { announce, byId, element, showAlert } from "./dom.js";

const NUM_SHOWN = { pairwise: 2, thumbs: 1, "best-of-4": 4 };
const NONE = "–";

const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : NONE);
const fixed = (value, digits) =>
  value === null
    ? NONE
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "\u2212");

function tile(name, value, note) {
  return element(
    "div",
    { className: "card tile" },
    element("dt", { textContent: name }),
    element("dd", { className: "figure", textContent: value }),
    element("dd", { className: "note", textContent: note }),
  );
}

function row(cells) {
  const [first, ...rest] = cells;
  return element(
    "tr",
    {},
    element("th", { scope: "row", textContent: first, dir: "auto" }),
    ...rest.map((cell) => element("td", { className: "number" }, cell)),
  );
}

function strength(alpha) {
  if (alpha === null) return "needs items with different labels from several annotators";
  return alpha >= 0.8 ? "reliable" : alpha >= 0.667 ? "tentative" : "too low to rely on";
}

function bar(value, whole, label) {
  const made = element("progress", { max: Math.max(whole, 1), value });
  made.setAttribute("aria-label", label);
  return made;
}

const COLUMNS = [
  ["Labels", (person, stats) => element("span", { className: "with-bar" }, bar(person.num_labels, stats.num_items, `${person.num_labels} labels of ${stats.num_items} items`), element("span", { textContent: person.num_labels }))],
  ["Skips", (person) => String(person.num_skips)],
  ["Ties", (person) => String(person.num_ties), "pairwise"],
  ["Good", (person) => percent(person.num_labels - person.num_down, person.num_labels), "thumbs"],
  ["Median time", (person) => (person.median_seconds === null ? NONE : `${fixed(person.median_seconds, 1)} s`)],
  ["Labels per hour", (person) => fixed(person.labels_per_hour, 0)],
  ["First shown", (person) => percent(person.num_first_chosen, person.num_choices), "pairwise", "best-of-4"],
];

function show(stats) {
  const columns = COLUMNS.filter(([, , ...modes]) => modes.length === 0 || modes.includes(stats.mode));
  const finished = stats.num_items_by_labels.slice(stats.overlap).reduce((sum, num) => sum + num, 0);
  const left = stats.num_items - finished;
  byId("tiles").replaceChildren(
    tile("Items labelled", `${finished} / ${stats.num_items}`, left ? `${left} left` : "complete"),
    tile("Labels", fixed(stats.num_labels, 0), `${stats.mode}, ${stats.overlap} ${stats.overlap === 1 ? "label" : "labels"} per item`),
    tile("Annotators", String(stats.people.length), stats.num_shared ? `${stats.num_shared} shared items` : "no shared items"),
    tile("Krippendorff’s α", fixed(stats.alpha, 2), strength(stats.alpha)),
  );
  byId("people-head").replaceChildren(
    element("tr", {}, element("th", { scope: "col", textContent: "Name" }), ...columns.map(([name]) => element("th", { scope: "col", className: "number", textContent: name }))),
  );
  byId("people").replaceChildren(...stats.people.map((person) => row([person.name, ...columns.map(([, cell]) => cell(person, stats))])));
  byId("pairs").replaceChildren(
    ...stats.pairs.map((pair) => row([pair.names.join(" & "), String(pair.num_shared), percent(pair.agreement, 1), fixed(pair.kappa, 2)])),
  );
  byId("no-people").hidden = stats.people.length > 0;
  byId("no-pairs").hidden = stats.pairs.length > 0;
  byId("even-share").textContent = percent(1, NUM_SHOWN[stats.mode]);
}

async function load() {
  try {
    show(await get("/api/stats"));
    showAlert("");
    announce("The figures are up to date.");
  } catch (error) {
    showAlert(error.message);
  }
}

byId("refresh").addEventListener("click", load);
const start = () => openSession().then(load, (error) => showAlert(error.message));
onNewLink(start);
start();
