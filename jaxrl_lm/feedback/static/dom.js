// Small helpers of both pages.

export const byId = (id) => document.getElementById(id);

export function element(tag, fields = {}, ...children) {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
}

export function announce(text) {
  byId("status").textContent = text;
}

export function showAlert(text) {
  byId("alert").hidden = !text;
  // An unchanged alert is not announced again at every poll.
  if (byId("alert-text").textContent !== text) byId("alert-text").textContent = text;
}

// Stays until the annotator's next action; the status announces it to screen readers.
export function showNotice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text;
}
