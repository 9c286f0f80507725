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
  // What stands there already is not said again at every look.
  if (byId("alert-text").textContent !== text) byId("alert-text").textContent = text;
}

// Stays until the person goes on; the status says it to screen readers.
export function showNotice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text;
}
