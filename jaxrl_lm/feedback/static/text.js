// Texts of models and strangers, shown as text: every node is made by textContent, none from markup.

// Controls but for tab and line feed; signs that change the direction of text; signs without width; tags.
const UNSEEN =
  /[\u0000-\u0008\u000B-\u001F\u007F-\u009F\u00AD\u061C\u180E\u200B\u200E\u200F\u2028-\u202E\u2060-\u206F\uFEFF\uFFF9-\uFFFB\u{E0000}-\u{E007F}]+/gu;

const CONTROLS = [
  "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR", "SO", "SI",
  "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US",
];

function nameOf(character) {
  const code = character.codePointAt(0);
  if (code < CONTROLS.length) return CONTROLS[code];
  if (code === 0x7f) return "DEL";
  return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

function control(characters) {
  const span = document.createElement("span");
  const names = Array.from(characters, nameOf);
  span.className = "control";
  span.textContent = names.join(" ");
  span.title = `not printable: ${names.slice(0, 20).join(" ")}`;
  return span;
}

export function appendText(parent, text) {
  let end = 0;
  for (const match of text.matchAll(UNSEEN)) {
    parent.append(text.slice(end, match.index), control(match[0]));
    end = match.index + match[0].length;
  }
  parent.append(text.slice(end));
}

// A text, or a conversation as turns with their roles.
export function showText(parent, content) {
  parent.replaceChildren();
  if (typeof content === "string") {
    appendText(parent, content);
    return;
  }
  for (const message of content) {
    const turn = document.createElement("div");
    const role = document.createElement("span");
    const body = document.createElement("div");
    turn.className = "turn";
    role.className = "role";
    body.className = "turn-body";
    body.dir = "auto";
    appendText(role, message.role);
    appendText(body, message.content);
    turn.append(role, body);
    parent.append(turn);
  }
}
