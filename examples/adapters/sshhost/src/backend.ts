// The back end: what you write stands between pcm:begin and pcm:end.

import type { Attempt } from "./pcm_attempts.js";
import type { Backend, Config, Pool, Seen } from "./pcm_backend.js";
import { CallError, Code } from "./pcm_errors.js";
// pcm:begin imports
import * as fs from "node:fs";
import { join } from "node:path";

import { state } from "./states.js";
import { pack, unpack } from "./pcm_tar.js";
import { call, type Call, follow, mostOfOutputs, outputsScript, taskScript } from "./pcm_tool.js";
import { fShell } from "./pcm_values.js";

// What the host runs. An attempt's folder appears whole, by one rename, with its lock held until its end.
const LAUNCH = `umask 077; mkdir -p "$1" && cd "$1" && part=$(mktemp -d ".$2.XXXXXX") || exit 3
tar -C "$part" --no-same-owner -xf - && mkdir -p "$part/work" && exec 9>"$part/lock" && flock 9 || { rm -rf "$part"; exit 3; }
[ ! -e "$2" ] && mv -T "$part" "$2" 2>/dev/null || { rm -rf "$part"; [ -d "$2" ]; exit; }
setsid sh "$2/run" </dev/null >/dev/null 2>&1 &`;
const LOOK = `cd "$1" 2>/dev/null || { [ ! -e "$1" ]; exit; }
shift; for d; do
  [ -d "$d" ] || continue
  if ! flock -n -s "$d/lock" true; then w=running; [ ! -e "$d/halted" ] || w=halted
  elif [ -e "$d/asked" ]; then w=canceled; elif [ -e "$d/code" ]; then w=done; else w=lost; fi
  echo "$d" "$w" "$(cat "$d/code" 2>/dev/null || echo 0)" $(stat -c %s "$d/stdout" "$d/stderr" 2>/dev/null)
done`;
const SIGNAL = `cd "$1" && ! flock -n -s lock true || exit 0
for i in 1 2 3 4 5 6 7 8 9; do [ -e pid ] || sleep 0.5; done
if [ "$2" = CONT ]; then rm -f halted; elif [ "$2" = STOP ]; then : >halted; else : >asked; fi
pkill "-$2" -s "$(cat pid)" || :
[ "$2" != TERM ] || pkill -CONT -s "$(cat pid)" || :`;
const REMOVE = `cd "$1" || exit 0; chmod -R u+rwx -- "$2" 2>/dev/null; rm -rf -- "$2" ".$2".*`;
// pcm:end imports

// pcm:begin pace
export const pollMilliseconds = 500;
// pcm:end pace

/** See pcm_backend.ts for what its methods owe; adapter.proto for what the host does with it. */
export class Sshhost implements Backend {
  config?: Config;

  // pcm:begin own
  args: string[] = [];

  /** Runs a text on the host. All calls share one connection, which is kept in the working folder. */
  ssh(script: string, args: string[], how?: Call): Promise<Buffer> {
    return call(["ssh", ...this.args, "exec " + fShell(["sh", "-c", script, "sshhost", ...args])], how);
  }

  setting(name: string, otherwise?: string): string {
    const value = this.config?.settings[name] ?? otherwise;
    if (!value || !/^[\w\/][\w.:\/-]*$/.test(value)) throw new CallError(Code.INVALID_ARGUMENT, `setting ${name} is missing, or has more than letters, digits and _.:/-`);
    return value;
  }

  name(a: Attempt): string {
    return `${this.config?.instance}.${a.request.key}`;
  }

  where(a: Attempt): string {
    return `${this.setting("folder")}/${this.name(a)}`;
  }

  async look(all: Attempt[]): Promise<Map<string, string[]>> {
    const seen = new Map<string, string[]>();
    for (let i = 0; i < all.length; i += 200) {
      const lines = (await this.ssh(LOOK, [this.setting("folder"), ...all.slice(i, i + 200).map((a) => this.name(a))])).toString().split("\n");
      for (const [name = "", ...rest] of lines.map((line) => line.split(" "))) seen.set(name, rest);
    }
    return seen;
  }

  async suspend(a: Attempt): Promise<void> {
    await this.ssh(SIGNAL, [this.where(a), "STOP"]);
  }

  async resume(a: Attempt): Promise<void> {
    await this.ssh(SIGNAL, [this.where(a), "CONT"]);
  }
  // pcm:end own

  async configure(c: Config): Promise<void> {
    // pcm:begin configure needed
    this.config = c;
    for (const name of ["identity", "known_hosts", "folder"]) {
      if (!this.setting(name).startsWith("/")) throw new CallError(Code.INVALID_ARGUMENT, `setting ${name} is no absolute path`);
    }
    const options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "UserKnownHostsFile=" + this.setting("known_hosts"), "GlobalKnownHostsFile=none", "IdentitiesOnly=yes",
      "IdentityAgent=none", "ClearAllForwardings=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ControlMaster=auto", "ControlPersist=60", "ControlPath=%C"];
    this.args = ["-F", "none", "-T", "-i", this.setting("identity"), "-p", this.setting("port", "22"), "-l", this.setting("user"), ...options.flatMap((o) => ["-o", o]), "--", this.setting("host")];
    // pcm:end configure
  }

  async pools(ours: Record<string, number>): Promise<Pool[]> {
    // pcm:begin pools needed
    const said = (await this.ssh("nproc && sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo", [])).toString();
    const [cpus = 0, kib = 0] = said.split("\n").map(Number);
    if (!(cpus > 0 && kib > 0)) throw new CallError(Code.UNAVAILABLE, "the host does not tell its processors and memory");
    const capacity = { cpu_milli: cpus * 1000, memory_bytes: kib * 1024, gpus: 0, disk_bytes: 0 };
    return [{ id: "host", capacity, slots: Number(this.setting("slots", String(cpus))), features: ["FEATURE_COMMAND", "FEATURE_NETWORK"] }];
    // pcm:end pools
  }

  async find(a: Attempt): Promise<string> {
    // pcm:begin find needed
    return (await this.look([a])).has(this.name(a)) ? this.name(a) : "";
    // pcm:end find
  }

  async start(a: Attempt): Promise<string> {
    // pcm:begin start needed
    const { image, module, resources, inputs } = a.request;
    if (image || module || resources?.gpus) throw new CallError(Code.FAILED_PRECONDITION, "the host runs commands without images, modules and GPUs");
    const [run, tar] = [join(a.folder, "run"), join(a.folder, "start.tar")];
    fs.writeFileSync(run, taskScript(a.request, this.where(a)));
    await pack(tar, [{ path: run, target: "run" }, ...inputs.map((x) => ({ path: x.path, target: "work/" + x.target }))]);
    const stdin = fs.openSync(tar, "r");
    try {
      await this.ssh(LAUNCH, [this.setting("folder"), this.name(a)], { stdin, seconds: 600 });
    } finally {
      fs.closeSync(stdin);
      fs.rmSync(tar);
    }
    return this.name(a);
    // pcm:end start
  }

  async poll(all: Attempt[]): Promise<Map<Attempt, Seen>> {
    // pcm:begin poll needed
    const jobs = await this.look(all);
    return new Map(all.map((a) => {
      const [word = "gone", code, ...job] = jobs.get(a.id) ?? [];
      return [a, { state: state(word), word, job: job.map(Number), gone: word === "gone", code: Number(code) || null }];
    }));
    // pcm:end poll
  }

  async logs(a: Attempt, ended: boolean): Promise<void> {
    // pcm:begin logs needed
    const part = 'tail -c "+$2" -- "$1" | head -c 1048576';
    await follow(a, (a.note["job"] ?? []).map(Number), (stream, from) => this.ssh(part, [`${this.where(a)}/${stream}`, `${from + 1}`]));
    // pcm:end logs
  }

  async stop(a: Attempt, force: boolean): Promise<void> {
    // pcm:begin stop needed
    await this.ssh(SIGNAL, [this.where(a), force ? "KILL" : "TERM"]);
    // pcm:end stop
  }

  async outputs(a: Attempt): Promise<void> {
    // pcm:begin outputs needed
    if (a.request.outputs.length === 0) return;
    const [tar, most] = [join(a.folder, "outputs.tar"), mostOfOutputs(a.request)];
    const to = fs.openSync(tar, "w", 0o600);
    try {
      await this.ssh(outputsScript, [this.where(a), `${most}`, ...a.request.outputs], { most, seconds: 600, to: (part) => fs.writeSync(to, part) });
      const { size } = fs.fstatSync(to);
      if (size > 0) await unpack(tar, a.request.work, a.request.outputs).catch((e) => (size < most ? Promise.reject(e) : undefined));
    } finally {
      fs.closeSync(to);
      fs.rmSync(tar);
    }
    // pcm:end outputs
  }

  async remove(a: Attempt): Promise<void> {
    // pcm:begin remove needed
    await this.ssh(REMOVE, [this.setting("folder"), this.name(a)]);
    // pcm:end remove
  }
}
