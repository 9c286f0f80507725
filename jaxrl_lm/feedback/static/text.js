// Shows untrusted text as plain text: every node is set by textContent, never from markup.

// Control characters except tab and line feed, direction marks, zero-width characters, blanks that count as letters,
// tags and selectors. Keep in step with `_is_unseen` in store.py.
const UNSEEN =
  /[\u0000-\u0008\u000B-\u001F\u007F-\u009F\u00AD\u034F\u061C\u115F\u1160\u180E\u200B\u200E\u200F\u2028-\u202E\u2060-\u206F\u2800\u3164\uFEFF\uFFA0\uFFF9-\uFFFB\u{E0000}-\u{E007F}\u{E0100}-\u{E01EF}]/u;
const RUNS = new RegExp(`${UNSEEN.source}+`, "gu");
const ONES = new RegExp(UNSEEN.source, "gu");

const MAX_NAMED = 2000; // runs of invisible characters spelled out per text; too many nodes slow the browser down

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

// Appends a text; returns how many more runs may be spelled out.
function appendText(parent, text, numNamed) {
  const shown = text.replaceAll("\r\n", "\n");
  let end = 0;
  let numLeft = numNamed;
  for (const match of shown.matchAll(RUNS)) {
    if (numLeft === 0) break;
    parent.append(shown.slice(end, match.index), control(match[0]));
    end = match.index + match[0].length;
    numLeft -= 1;
  }
  parent.append(shown.slice(end).replace(ONES, "\uFFFD"));
  return numLeft;
}

// A message as text: its content (text parts joined), then its tool calls as JSON.
export function messageText(message) {
  const content = message.content ?? "";
  const text = typeof content === "string" ? content : content.map((part) => part.text).join("");
  return message.tool_calls ? text + JSON.stringify(message.tool_calls) : text;
}

// Shows a text, or a conversation as turns with roles.
export function showText(parent, content) {
  parent.replaceChildren();
  if (typeof content === "string") {
    appendText(parent, content, MAX_NAMED);
    return;
  }
  let numNamed = MAX_NAMED;
  for (const message of content) {
    const turn = document.createElement("div");
    const role = document.createElement("span");
    const body = document.createElement("div");
    turn.className = "turn";
    role.className = "role";
    body.className = "turn-body";
    body.dir = "auto";
    numNamed = appendText(role, message.role, numNamed);
    numNamed = appendText(body, messageText(message), numNamed);
    turn.append(role, body);
    parent.append(turn);
  }
}
