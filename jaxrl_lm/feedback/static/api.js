// Requests to the server and their session.

// localStorage is per port, unlike cookies, and shared by all tabs, like the cookie.
const SECRET = "jaxrl-lm-label-secret";

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
    headers: { "Content-Type": "application/json", "X-CSRF-Token": localStorage.getItem(SECRET) ?? "" },
    body: JSON.stringify(fields),
  });

const tokenOfAddress = () => new URLSearchParams(location.hash.slice(1)).get("token");

// The token follows '#', which browsers do not send. It is used once and removed from the address.
export async function openSession(token = tokenOfAddress()) {
  if (token) {
    history.replaceState(null, "", location.pathname);
    localStorage.setItem(SECRET, (await post("/api/session", { token })).csrf);
  }
  return get("/api/session");
}

export const hasNewLink = () => Boolean(tokenOfAddress());

// A link pasted into an open tab only changes the part after '#', without loading the page.
export function onNewLink(work) {
  addEventListener("hashchange", () => {
    if (hasNewLink()) work();
  });
}
