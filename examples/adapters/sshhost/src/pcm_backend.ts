// What runs attempts.

import type { Attempt } from "./pcm_attempts.js";
import type { Any } from "./pcm_values.js";

export interface Resources {
  cpu_milli: number;
  memory_bytes: number;
  gpus: number;
  disk_bytes: number;
}

/** A pool of the contract. */
export interface Pool {
  id: string;
  capacity: Resources;
  slots: number;
  labels?: Record<string, string>;
  features?: string[];
  sandbox?: string;
  max_time_ms?: number;
  largest?: Resources;
  no_files?: boolean;
  accelerator?: { vendor: string; model: string; memory_bytes: number };
}

/** What the host wants to have run. */
export interface StartRequest {
  key: string;
  job: string;
  trade: string;
  index: number;
  attempt: number;
  fence: number;
  count: number;
  pool: string;
  command: string[];
  module: string;
  image: string;
  args: string[];
  env: Record<string, string>;
  inputs: { path: string; target: string }[];
  outputs: string[];
  work: string;
  resources: Resources | null;
  network: boolean;
  port: number;
  limit_ms: number;
  output_cap_bytes: number;
  batch: number;
  width: number;
  again: boolean;
}

/** What the site says. */
export interface Config {
  name: string;
  instance: string;
  settings: Record<string, string>;
  secrets: Record<string, string>;
}

/** What a word of the back end means. */
export interface State {
  state: string; // pending, running, suspended or ended
  outcome?: string; // of ended: ok, failed, time_limit, memory, output, stopped or lost
  reason?: string;
}

/** How an attempt stands. */
export interface Seen {
  state: State; // as a rule from the table of states
  word?: string; // the back end's own
  job?: Any; // what the back end said, for Attempt.note.job
  gone?: boolean; // the back end has it no more
  code?: number | null; // exit code, when ended and known
  seconds?: number; // that it ran
  cpu?: number; // seconds
  memory?: number; // bytes at most
}

/**
 * Its methods are called at the same time, but one after the other for one attempt.
 * Errors are CallErrors: see adapter.proto for their codes.
 */
export interface Backend {
  /** Gets settings and secrets. It may come again. */
  configure(c: Config): Promise<void>;
  /** Tells what there is. ours counts our attempts by pool. */
  pools(ours: Record<string, number>): Promise<Pool[]>;
  /** Looks for an attempt that was perhaps begun: its name at the back end, or "". */
  find(a: Attempt): Promise<string>;
  /** Begins an attempt and gives its name at the back end. */
  start(a: Attempt): Promise<string>;
  /** Tells how attempts stand. What is left out is not known at the moment. */
  poll(all: Attempt[]): Promise<Map<Attempt, Seen>>;
  /** Adds what is new to the streams: see Attempt.write. ended: no more will come. */
  logs(a: Attempt, ended: boolean): Promise<void>;
  /** Asks it to end, or with force ends it. */
  stop(a: Attempt, force: boolean): Promise<void>;
  /** Brings the declared outputs into a.request.work. */
  outputs(a: Attempt): Promise<void>;
  /** Deletes what is left of it at the back end. */
  remove(a: Attempt): Promise<void>;
  /** How a task ended, when its output was read. */
  judge?(a: Attempt, s: Seen): Seen;
  /** Halts what runs, lets it go on. */
  suspend?(a: Attempt): Promise<void>;
  resume?(a: Attempt): Promise<void>;
}
