// The label page: token, name, then one item after another.

import { hasNewLink, onNewLink, openSession, post } from "./api.js";
import { announce, byId, element, showAlert, showNotice } from "./dom.js";
import { MODES, UNDO_KEYS, shownKey } from "./modes.js";
import { messageText, showText } from "./text.js";

const VIEWS = ["loading", "token", "name", "item", "done"];
const LOOK_AGAIN_MILLISECONDS = 3000; // less than END_SECONDS of server.py
const REPEATED = "Already saved; the first label is kept.";
const NO_SHORTCUTS = "jaxrl-lm-label-no-shortcuts";

let mode; // of MODES
let person = null; // the name shown; sent with each request, so that no label is saved under another name
let item = null; // { id, prompt, completions }: the lease shown
let undoable = null; // the lease of the last label, sent by Undo: a repeated request undoes no other label
let isBusy = false;
let lookAgainTimer = 0;

function show(view) {
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== view;
  const active = document.activeElement; // a button that is hidden now would send focus to the top of the page
  if (active === document.body || active.closest("[hidden]")) byId("main").focus({ preventScroll: true });
}

// Runs one request at a time. A failure is shown and can be retried with the same lease, which counts once.
async function attempt(work) {
  if (isBusy) return;
  isBusy = true;
  clearTimeout(lookAgainTimer);
  for (const button of byId("actions").querySelectorAll("button")) button.setAttribute("aria-disabled", "true");
  try {
    await work();
    showAlert("");
  } catch (error) {
    await onError(error, work);
  } finally {
    isBusy = false;
    for (const button of byId("actions").querySelectorAll("button")) button.removeAttribute("aria-disabled");
    if (hasNewLink()) attempt(start); // pasted during the request
  }
}

async function onError(error, work) {
  const isPassing = error.status === 0 || error.status >= 500;
  byId("retry").hidden = !isPassing;
  byId("retry").onclick = () => attempt(error.retry ?? work);
  if (error.status === 401 || error.status === 403) show("token");
  if (isPassing) lookAgainLater(); // one failed check must not be the last
  // The item, and perhaps the annotator, is out of date.
  const failure = error.status === 409 ? await start().catch((other) => other) : undefined;
  showAlert((failure ?? error).message);
}

const ask = (path, fields = {}) => post(path, { name: person ?? "", ...fields });

async function start(token) {
  const session = await openSession(token);
  item = null;
  showNotice("");
  mode = MODES[session.mode];
  fillHelp();
  byId("known-names").replaceChildren(...session.names.map((name) => element("option", { value: name })));
  showPerson(session.name);
  if (session.name === null) {
    byId("progress").hidden = true;
    show("name");
    byId("name").focus();
  } else {
    await loadNext();
  }
}

function showPerson(name) {
  person = name;
  byId("leave").hidden = name === null;
  byId("person-name").textContent = name ?? "";
  byId("avatar").textContent = name === null ? "" : Array.from(name)[0].toUpperCase();
}

async function loadNext(said = "") {
  showItem(await ask("/api/next"), said);
}

async function giveVerdict(action) {
  if (item === null) return loadNext();
  const answer = await ask("/api/label", { lease: item.id, verdict: action.verdict });
  const said = answer.is_repeat ? REPEATED : `Saved: ${action.said}.`;
  showNotice(answer.is_repeat ? REPEATED : "");
  undoable = item.id;
  item = null; // saved, even if loading the next item fails
  return loadNext(said).catch((error) => {
    error.retry = () => loadNext(said);
    throw error;
  });
}

async function undo() {
  if (undoable === null) return;
  showNotice("");
  showItem(await ask("/api/undo", { lease: undoable }), "Undone: label it again.");
}

function showItem(answer, said) {
  item = answer.item;
  undoable = answer.undoable;
  showProgress(answer.progress);
  if (item === null) {
    showDone(answer, said);
    return;
  }
  byId("question").textContent = mode.question;
  showText(byId("prompt"), item.prompt);
  byId("prompt").scrollTop = 0;
  byId("view-item").dataset.count = String(item.completions.length);
  byId("answers").replaceChildren(...item.completions.map(answerCard));
  byId("actions").replaceChildren(...mode.actions.map(actionButton), undoButton());
  show("item");
  window.scrollTo(0, 0);
  announce(`${said} Item ${answer.progress.num_mine + 1}. ${mode.question}`.trim());
}

function answerCard(completion, place) {
  const id = `answer-title-${place}`;
  const title = element("h2", { id, textContent: mode.titles[place] });
  const text = element("div", { className: "text scroll", tabIndex: 0, dir: "auto" });
  text.setAttribute("role", "region");
  text.setAttribute("aria-labelledby", id);
  showText(text, completion);
  const size = element("span", { className: "size", textContent: sizeOf(completion) });
  const card = element("article", { className: "card answer" }, element("header", {}, title, size), text);
  card.setAttribute("aria-labelledby", id);
  return card;
}

function sizeOf(completion) {
  const text = typeof completion === "string" ? completion : completion.map(messageText).join(" ");
  const count = text.split(/\s+/u).filter(Boolean).length;
  return `${count.toLocaleString("en")} ${count === 1 ? "word" : "words"}`;
}

function actionButton(action) {
  const button = element(
    "button",
    { type: "button", className: action.kind, onclick: () => attempt(() => giveVerdict(action)) },
    element("span", { textContent: action.label }),
    hint(action.keys[0]),
  );
  button.dataset.verdict = action.verdict;
  button.setAttribute("aria-keyshortcuts", action.keys.join(" "));
  return button;
}

function undoButton() {
  const button = element(
    "button",
    { type: "button", id: "undo", className: "quiet", onclick: () => attempt(undo), disabled: undoable === null },
    element("span", { textContent: "Undo" }),
    hint(UNDO_KEYS[0]),
  );
  button.setAttribute("aria-keyshortcuts", UNDO_KEYS.join(" "));
  return button;
}

function hint(key) {
  const kbd = element("kbd", { textContent: shownKey(key) });
  kbd.setAttribute("aria-hidden", "true");
  return kbd;
}

function showProgress(progress) {
  byId("progress").hidden = false;
  byId("progress-bar").max = Math.max(progress.num_items, 1);
  byId("progress-bar").value = progress.num_done;
  const mine = progress.num_mine === progress.num_done ? "" : ` · ${progress.num_mine} by you`;
  byId("progress-text").textContent = `${progress.num_done} of ${progress.num_items} done${mine}`;
}

function showDone({ progress, is_ending: isEnding }, said) {
  const isWaiting = progress.num_waiting > 0;
  const isLeft = progress.num_done < progress.num_items;
  const title = isWaiting ? "No item available now" : isLeft ? "Nothing left for you" : "All done, thank you";
  const text = isWaiting
    ? "Other annotators are working on the remaining items. If one becomes available, it appears here automatically."
    : isLeft
      ? "You have labelled or skipped every item. The rest need other annotators."
      : `All ${progress.num_items} items are labelled.`;
  byId("done-title").textContent = title;
  byId("done-text").textContent = text;
  byId("done-ending").hidden = !isEnding;
  byId("look-again").hidden = !isWaiting;
  byId("undo-done").hidden = undoable === null;
  show("done");
  announce(`${said} ${title}. ${text} ${isEnding ? byId("done-ending").textContent : ""}`.trim());
  lookAgainLater();
}

// Polls while other annotators hold the remaining items.
function lookAgainLater() {
  clearTimeout(lookAgainTimer);
  if (byId("view-done").hidden || byId("look-again").hidden) return;
  lookAgainTimer = setTimeout(() => attempt(() => loadNext()), LOOK_AGAIN_MILLISECONDS);
}

function fillHelp() {
  const rows = [...mode.actions, { label: "Undo", keys: UNDO_KEYS }, { label: "Help", keys: ["?"] }];
  byId("help-mode").textContent = mode.help;
  byId("help-keys").replaceChildren(
    ...rows.map((row) => {
      const keys = row.keys.flatMap((key) => [element("kbd", { textContent: shownKey(key) }), " "]);
      return element("tr", {}, element("th", { scope: "row", textContent: row.label }), element("td", {}, ...keys));
    }),
  );
}

function onKey(event) {
  const isTyping = event.target.closest("input, dialog") !== null;
  // A key held down must not label one item after another.
  if (isTyping || event.repeat || event.ctrlKey || event.altKey || event.metaKey || !byId("shortcuts").checked) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const canUndo = !byId("view-item").hidden ? !byId("undo").disabled : !byId("view-done").hidden;
  const action = byId("view-item").hidden || item === null ? undefined : mode.actions.find((each) => each.keys.includes(key));
  if (action) attempt(() => giveVerdict(action));
  else if (UNDO_KEYS.includes(key) && canUndo) attempt(undo);
  else if (key === "?") byId("help").showModal();
  else return;
  event.preventDefault();
}

function onSubmit(form, work) {
  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(work);
  });
}

onSubmit("token-form", async () => {
  await start(byId("token").value.trim());
  byId("token").value = "";
});
onSubmit("name-form", async () => {
  showPerson((await post("/api/annotator", { name: byId("name").value })).name);
  await loadNext();
});
byId("leave").addEventListener("click", () =>
  attempt(async () => {
    await ask("/api/leave");
    await start();
  }),
);
byId("undo-done").addEventListener("click", () => attempt(undo));
byId("look-again").addEventListener("click", () => attempt(() => loadNext()));
byId("open-help").addEventListener("click", () => byId("help").showModal());
byId("shortcuts").checked = localStorage.getItem(NO_SHORTCUTS) === null;
byId("shortcuts").addEventListener("change", (event) => {
  if (event.target.checked) localStorage.removeItem(NO_SHORTCUTS);
  else localStorage.setItem(NO_SHORTCUTS, "1");
});
document.addEventListener("keydown", onKey);
onNewLink(() => attempt(start));
attempt(start);
