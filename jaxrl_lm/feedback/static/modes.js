// What each mode asks, shows and accepts. `verdict` is what is sent; a number is the place in the order shown.

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
    question: "Which answer is better?",
    titles: ["Answer A", "Answer B"],
    help: "Read the prompt and both answers, then say which you would rather have been given. Say tie if neither is better, skip if you cannot tell.",
    actions: [
      { ...pick(0, "A", ["ArrowLeft"]), label: "A is better", said: "A is better" },
      { verdict: "tie", label: "Tie", keys: ["t", "0"], said: "tie", kind: "choice" },
      { ...pick(1, "B", ["ArrowRight"]), label: "B is better", said: "B is better" },
      skip,
    ],
  },
  thumbs: {
    question: "Is this a good answer?",
    titles: ["Answer"],
    help: "Read the prompt and the answer, then say whether it is a good one. Skip if you cannot tell.",
    actions: [
      { verdict: "up", label: "Good", keys: ["g", "1"], said: "good", kind: "choice" },
      { verdict: "down", label: "Bad", keys: ["b", "2"], said: "bad", kind: "choice" },
      skip,
    ],
  },
  "best-of-4": {
    question: "Which answer is best?",
    titles: ["Answer A", "Answer B", "Answer C", "Answer D"],
    help: "Read the prompt and the four answers, then say which is the best. Skip if you cannot tell.",
    actions: [pick(0, "A"), pick(1, "B"), pick(2, "C"), pick(3, "D"), skip],
  },
};

export const UNDO_KEYS = ["u", "Backspace"];

const SHOWN_KEYS = { ArrowLeft: "←", ArrowRight: "→", Backspace: "⌫" };
export const shownKey = (key) => SHOWN_KEYS[key] ?? key.toUpperCase();
