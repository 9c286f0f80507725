// Requests to the server, and the session that they need.

let csrf = "";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: the server cannot be reached
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new ApiError("The server cannot be reached. Is it still running?", 0);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(answer.error ?? `The server failed (${response.status}).`, response.status);
  return answer;
}

export const get = (path) => request(path, {});

export const post = (path, fields = {}) =>
  request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(fields),
  });

const tokenOfAddress = () => new URLSearchParams(location.hash.slice(1)).get("token");

// The token lies behind '#', which browsers do not send; it is used once and taken off the address.
export async function openSession(token = tokenOfAddress()) {
  if (token) {
    history.replaceState(null, "", location.pathname);
    await post("/api/session", { token });
  }
  const session = await get("/api/session");
  csrf = session.csrf;
  return session;
}

export const hasNewLink = () => Boolean(tokenOfAddress());

// A link pasted into a tab that shows the page changes only what lies behind '#', and loads nothing.
export function onNewLink(work) {
  addEventListener("hashchange", () => {
    if (hasNewLink()) work();
  });
}
