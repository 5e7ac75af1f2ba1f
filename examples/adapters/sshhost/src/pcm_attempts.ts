// The attempts that were given to this plug-in: kept on disk, watched, read from.

import { EventEmitter } from "node:events";
import * as fs from "node:fs";
import { join } from "node:path";

import type { Backend, Seen, StartRequest } from "./pcm_backend.js";
import { CallError, Code, cut, isAbsent, message, sleep } from "./pcm_errors.js";
import { type Any, decode, encode } from "./pcm_values.js";

/** What Watch tells. */
export interface Status {
  key: string;
  fence: number;
  state: string;
  native: string;
  reason: string;
  outcome: string;
  exit_code: number;
  started_ms: number;
  ended_ms: number;
  cpu_ms: number;
  memory_bytes: number;
  stdout_bytes: number;
  stderr_bytes: number;
}

/** How long the end of an attempt waits for output that can't be read, in milliseconds. */
const patience = 120_000;

const ENDED = "STATE_ENDED";
const states: Record<string, string> = { pending: "STATE_PENDING", suspended: "STATE_SUSPENDED", ended: ENDED };
const outcomes: Record<string, string> = {
  ok: "OUTCOME_OK",
  failed: "OUTCOME_FAILED",
  time_limit: "OUTCOME_TIME_LIMIT",
  memory: "OUTCOME_MEMORY",
  output: "OUTCOME_OUTPUT",
  stopped: "OUTCOME_STOPPED",
};

function failure(code: number): string {
  if (code === 127) return "exit code 127: its program was not found";
  return code > 128 && code < 193 ? `exit code ${code}: ended by signal ${code - 128}` : `exit code ${code}`;
}

/** One that was given to the plug-in. */
export class Attempt {
  id = ""; // the back end's name for it; "" while there is none
  note: Record<string, Any> = {}; // what the back end wants to know later; saved with it
  state: Status;
  asked = false; // stop was called
  doubt: boolean; // the back end may have it, though it didn't say so
  known = false; // it was begun
  private gone = 0; // looks in a row that did not show it
  private mute = 0; // since when the output of what has ended can't be read
  private queue: Promise<unknown> = Promise.resolve();

  constructor(
    readonly owner: Attempts,
    readonly request: StartRequest,
  ) {
    this.doubt = request.again;
    this.state = {
      key: request.key, fence: request.fence, state: "STATE_PENDING", native: "", reason: "", outcome: "OUTCOME_UNSPECIFIED",
      exit_code: 0, started_ms: 0, ended_ms: 0, cpu_ms: 0, memory_bytes: 0, stdout_bytes: 0, stderr_bytes: 0,
    };
  }

  static load(owner: Attempts, file: string): Attempt {
    const kept = JSON.parse(fs.readFileSync(file, "utf8"));
    const a = new Attempt(owner, kept.request);
    a.state = kept.state;
    a.id = kept.id;
    a.note = decode(kept.note);
    a.asked = kept.asked;
    a.known = kept.known;
    a.doubt = kept.doubt || !kept.known;
    for (const stream of ["stdout", "stderr"] as const) {
      const size = kept.sizes?.[stream] ?? Infinity;
      if (a.size(stream) > size) fs.truncateSync(join(a.folder, stream), size); // what came later comes again
    }
    return a;
  }

  get folder(): string {
    return join(this.owner.dir, this.request.key);
  }

  /** One call of the back end at a time. */
  turn<T>(f: () => Promise<T>): Promise<T> {
    const next = this.queue.then(f, f);
    this.queue = next.catch(() => undefined);
    return next;
  }

  /** Keeps the attempt on disk. */
  save(): void {
    const { request, state, id, asked, doubt, known } = this;
    const sizes = { stdout: this.size("stdout"), stderr: this.size("stderr") }; // as far as note knows of them
    const kept = JSON.stringify({ request, state, id, asked, doubt, known, note: encode(this.note), sizes });
    fs.mkdirSync(this.folder, { recursive: true, mode: 0o700 });
    const to = join(this.folder, "attempt.json");
    fs.writeFileSync(to + ".new", kept, { mode: 0o600 });
    fs.renameSync(to + ".new", to);
  }

  /** Adds to a stream. */
  write(stream: "stdout" | "stderr", data: Uint8Array): void {
    const most = this.request.output_cap_bytes;
    if (data.length === 0 || (most > 0 && this.size(stream) > most)) return; // the host ends it
    fs.appendFileSync(join(this.folder, stream), data, { mode: 0o600 });
  }

  size(stream: "stdout" | "stderr"): number {
    return fs.statSync(join(this.folder, stream), { throwIfNoEntry: false })?.size ?? 0;
  }

  ended(): boolean {
    return this.state.state === ENDED;
  }

  /** Tells whether the back end has it. */
  runs(): boolean {
    return this.known && !this.ended();
  }

  /** Looks for the attempt where it may be there, else starts it. */
  async begin(): Promise<void> {
    const backend = this.owner.backend;
    if (this.doubt) {
      const found = await backend.find(this);
      if (found) return this.began(found);
    }
    this.doubt = true; // until it says otherwise
    this.save();
    try {
      return this.began(await backend.start(this));
    } catch (e) {
      if (e instanceof CallError) {
        const uncertain = [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN].includes(e.code);
        this.doubt = uncertain && !e.unsent;
      }
      throw e;
    }
  }

  private began(id: string): void {
    this.id = id;
    this.known = true;
    this.doubt = false;
    this.owner.touch(this);
    this.save();
  }

  /** Takes a look at the back end into account. */
  async see(look: Seen): Promise<void> {
    if (this.ended()) return;
    if (look.job !== undefined) this.note["job"] = look.job;
    this.gone = look.gone ? this.gone + 1 : 0;
    if (look.gone) {
      if (this.gone < 3) return;
      look.state = { state: "ended", outcome: this.asked ? "stopped" : "lost", reason: "the back end has it no more" };
    }
    const over = look.state.state === "ended";
    // That it runs is known before what it prints, which may come slowly.
    if (!over && this.state.state === states["pending"]) this.update(look, over);
    if ((look.state.state !== "pending" || this.asked) && !(await this.read(over, look.state.outcome))) return;
    look = this.owner.backend.judge?.(this, look) ?? look;
    this.update(look, over);
    if (over) this.save();
  }

  /** Reads the output; tells whether its end, if it has ended, can be told. */
  private async read(over: boolean, outcome = ""): Promise<boolean> {
    try {
      await this.owner.backend.logs(this, over && outcome !== "memory" && outcome !== "stopped");
    } catch (e) {
      if (!(over && isAbsent(e))) {
        console.error(`can't read the output of ${this.request.key}: ${message(e)}`);
        this.mute ||= Date.now();
        return !over || Date.now() - this.mute >= patience;
      }
    }
    this.mute = 0;
    return true;
  }

  private update(look: Seen, over: boolean): void {
    const was = this.state;
    const now: Status = { ...was, ...this.judge(look), stdout_bytes: this.size("stdout"), stderr_bytes: this.size("stderr") };
    now.cpu_ms = Math.max(was.cpu_ms, Math.trunc((look.cpu ?? 0) * 1000));
    now.memory_bytes = Math.max(was.memory_bytes, Math.trunc(look.memory ?? 0));
    if (!was.started_ms && now.state !== "STATE_PENDING") {
      now.started_ms = Date.now() - (over ? Math.trunc((look.seconds ?? 0) * 1000) : 0);
    }
    if (now.state === ENDED) now.ended_ms = Date.now();
    if (JSON.stringify(now) !== JSON.stringify(was)) {
      this.state = now;
      this.owner.touch(this);
    }
  }

  /** What the back end's words mean. */
  private judge(look: Seen): Partial<Status> {
    const meant = look.state;
    const s = {
      native: cut(look.word ?? "", 64), reason: cut(meant.reason ?? "", 240),
      state: states[meant.state] ?? "STATE_RUNNING", outcome: "OUTCOME_UNSPECIFIED", exit_code: 0,
    };
    if (s.state !== ENDED) return s;
    let code = look.code ?? 0;
    s.outcome = outcomes[meant.outcome ?? ""] ?? "OUTCOME_SITE";
    if (s.outcome === "OUTCOME_OK" && code !== 0) s.outcome = "OUTCOME_FAILED";
    if (s.outcome === "OUTCOME_FAILED" && code !== 0) s.reason = failure(code);
    if (s.outcome === "OUTCOME_STOPPED" && !this.asked) {
      s.outcome = "OUTCOME_SITE";
      s.reason = "it was ended at its back end, not by its buyer";
    }
    if (s.outcome !== "OUTCOME_OK" && code <= 0) code = ["OUTCOME_STOPPED", "OUTCOME_MEMORY"].includes(s.outcome) ? 137 : 255;
    s.exit_code = code >= 0 && code <= 255 ? code : 255;
    return s;
  }
}

/** All there are. */
export class Attempts {
  readonly changed = new EventEmitter();
  private byKey = new Map<string, Attempt>();
  private serial = new Map<string, number>();
  private count = 0;

  constructor(
    readonly dir: string,
    readonly backend: Backend,
    private every: number,
  ) {
    fs.mkdirSync(dir, { recursive: true, mode: 0o700 });
    for (const name of fs.readdirSync(dir).sort()) {
      const file = join(dir, name, "attempt.json");
      if (!fs.existsSync(file)) continue;
      const a = Attempt.load(this, file);
      this.byKey.set(a.request.key, a);
      this.touch(a);
    }
  }

  /** Tells of a change. */
  touch(a: Attempt): void {
    this.serial.set(a.request.key, ++this.count);
    this.changed.emit("changed");
  }

  /** What has changed since, and until when that holds. */
  news(told: number): [Status[], number] {
    const all: Status[] = [];
    for (const [key, n] of this.serial) {
      const a = this.byKey.get(key);
      if (n > told && a) all.push({ ...a.state });
    }
    return [all, this.count];
  }

  get(key: string): Attempt | undefined {
    return this.byKey.get(key);
  }

  /** A sorted copy. */
  list(): Attempt[] {
    return [...this.byKey.values()].sort((a, b) => (a.request.key < b.request.key ? -1 : 1));
  }

  /** Counts attempts that have not ended, by pool. */
  ours(): Record<string, number> {
    const n: Record<string, number> = {};
    for (const a of this.list()) if (!a.ended()) n[a.request.pool] = (n[a.request.pool] ?? 0) + 1;
    return n;
  }

  /** Begins an attempt once, however often it is called. */
  async start(request: StartRequest): Promise<Attempt> {
    const a = this.byKey.get(request.key) ?? new Attempt(this, request);
    this.byKey.set(request.key, a);
    await a.turn(async () => {
      if (a.known || a.ended()) return;
      try {
        await a.begin();
      } catch (e) {
        if (!a.doubt) this.forget(a);
        throw e;
      }
    });
    return a;
  }

  forget(a: Attempt): void {
    if (this.byKey.get(a.request.key) === a) {
      this.byKey.delete(a.request.key);
      this.serial.delete(a.request.key);
    }
    fs.rmSync(a.folder, { recursive: true, force: true });
  }

  /** Polls the back end for ever. */
  async run(): Promise<never> {
    for (;;) {
      await sleep(this.every);
      try {
        const all = this.list().filter((a) => a.runs());
        const seen = all.length > 0 ? [...(await this.backend.poll(all))] : [];
        for (let i = 0; i < seen.length; i += 8) {
          await Promise.all(seen.slice(i, i + 8).map(([a, look]) => a.turn(() => a.see(look))));
        }
      } catch (e) {
        console.error(`can't see how attempts stand: ${message(e)}`); // the next look may be better
      }
    }
  }
}
