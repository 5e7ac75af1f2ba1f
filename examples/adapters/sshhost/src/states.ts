// What the back end's words mean.

import type { State } from "./pcm_backend.js";
import { own } from "./pcm_values.js";

export const states: Record<string, State> = {
  // pcm:begin states needed
  running: { state: "running" },
  halted: { state: "suspended" },
  done: { state: "ended", outcome: "ok" },
  canceled: { state: "ended", outcome: "stopped" },
  lost: { state: "ended", outcome: "lost", reason: "the host was restarted, or someone ended it there" },
  // pcm:end states
};

/** A state of one's own: unknown words keep what runs running. */
export function state(word: string): State {
  const unknown = { state: "running", reason: `its back end calls its state ${word.slice(0, 60)}, which is not known here` };
  return { ...(own(states, word) ?? unknown) };
}
