// Why a call does not succeed.

import { status as Code } from "@grpc/grpc-js";

export { Code };

export interface Details {
  status?: number; // of HTTP; 0: no answer
  absent?: boolean; // there is no such thing
  unsent?: boolean; // the back end has not acted on it
}

/** One of the contract's errors: see adapter.proto. */
export class CallError extends Error {
  readonly status: number;
  readonly absent: boolean;
  readonly unsent: boolean;
  answer?: unknown;

  constructor(
    readonly code: Code,
    text: string,
    d: Details = {},
  ) {
    super(text);
    this.status = d.status ?? 0;
    this.absent = d.absent ?? false;
    this.unsent = d.unsent ?? false;
  }
}

export function isAbsent(e: unknown): boolean {
  return e instanceof CallError && e.absent;
}

/** Passes over the error that there is no such thing. */
export async function unlessAbsent(p: Promise<unknown>): Promise<void> {
  try {
    await p;
  } catch (e) {
    if (!isAbsent(e)) throw e;
  }
}

export function message(e: unknown): string {
  return e instanceof Error ? e.message : String(e);
}

/** One line of at most n bytes. */
export function cut(s: string, n: number): string {
  const one = Buffer.from(s.split(/\s+/).filter(Boolean).join(" "));
  let end = Math.min(n, one.length);
  while (end > 0 && end < one.length && ((one[end] ?? 0) & 0xc0) === 0x80) end--;
  return one.subarray(0, end).toString();
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
