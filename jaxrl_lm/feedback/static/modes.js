// The question, titles and buttons of each mode. `verdict` is sent to the server; a number is an index in the order shown.

const skip = { verdict: "skip", label: "Skip", keys: ["s"], said: "skipped", kind: "quiet" };
const pick = (place, letter, more = []) => ({
  verdict: String(place),
  label: `${letter} is best`,
  keys: [letter.toLowerCase(), String(place + 1), ...more],
  said: `${letter} is best`,
  kind: "choice",
});

export const MODES = {
  pairwise: {
    question: "Which completion is better?",
    titles: ["Completion A", "Completion B"],
    help: "Read the prompt and both completions, then choose the one you would rather receive. Choose Tie if neither is better, Skip if you cannot tell.",
    actions: [
      { ...pick(0, "A", ["ArrowLeft"]), label: "A is better", said: "A is better" },
      { verdict: "tie", label: "Tie", keys: ["t", "0"], said: "tie", kind: "choice" },
      { ...pick(1, "B", ["ArrowRight"]), label: "B is better", said: "B is better" },
      skip,
    ],
  },
  thumbs: {
    question: "Is this a good completion?",
    titles: ["Completion"],
    help: "Read the prompt and the completion, then choose Good or Bad. Choose Skip if you cannot tell.",
    actions: [
      { verdict: "up", label: "Good", keys: ["g", "1"], said: "good", kind: "choice" },
      { verdict: "down", label: "Bad", keys: ["b", "2"], said: "bad", kind: "choice" },
      skip,
    ],
  },
  "best-of-4": {
    question: "Which completion is best?",
    titles: ["Completion A", "Completion B", "Completion C", "Completion D"],
    help: "Read the prompt and the four completions, then choose the best one. Choose Skip if you cannot tell.",
    actions: [pick(0, "A"), pick(1, "B"), pick(2, "C"), pick(3, "D"), skip],
  },
};

export const UNDO_KEYS = ["u", "Backspace"];

const SHOWN_KEYS = { ArrowLeft: "←", ArrowRight: "→", Backspace: "⌫" };
export const shownKey = (key) => SHOWN_KEYS[key] ?? key.toUpperCase();
