// Back ends that are driven by programs: calling those, tasks as texts for a shell,
// and what such a task leaves in its folder.

import { spawn } from "node:child_process";

import type { Attempt } from "./pcm_attempts.js";
import type { StartRequest } from "./pcm_backend.js";
import { CallError, Code } from "./pcm_errors.js";
import { fShell } from "./pcm_values.js";

const atOnce = 8;
const waiting: (() => void)[] = [];
let running = 0;

export interface Call {
  stdin?: number; // an open file; else there is nothing to read
  seconds?: number; // that it may take; default 20
  most?: number; // bytes that it may print; default 4 MiB
  to?: (part: Buffer) => void; // takes what it prints as it comes
}

/** Runs a program and gives what it prints. Any end but a good one is an error. Some run at once, others wait. */
export async function call(command: string[], how: Call = {}): Promise<Buffer> {
  if (running < atOnce) running++;
  else await new Promise<void>((go) => waiting.push(go));
  try {
    return await run(command, how);
  } finally {
    const next = waiting.shift();
    if (next) next();
    else running--;
  }
}

function run(command: string[], { stdin, seconds = 20, most = 4 << 20, to }: Call): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    const take = to ?? ((part: Buffer) => void parts.push(part));
    let size = 0;
    let words = "";
    let why = "";
    const p = spawn(command[0] ?? "", command.slice(1), { stdio: [stdin ?? "ignore", "pipe", "pipe"] });
    const end = (reason: string) => {
      why ||= reason;
      p.kill("SIGKILL");
      p.stdout?.destroy(); // which what it has started may hold open
      p.stderr?.destroy();
    };
    const late = setTimeout(() => end(`it takes more than ${seconds} s`), seconds * 1000);
    p.stdout?.on("data", (part: Buffer) => {
      size += part.length;
      if (size > most) return end(`it prints more than ${most} bytes`);
      try {
        take(part);
      } catch (e) {
        end(String(e));
      }
    });
    p.stderr?.on("data", (part: Buffer) => (words = (words + part).slice(-1000)));
    p.on("error", (e) => (why ||= e.message));
    p.on("close", (code, signal) => {
      clearTimeout(late);
      if (!why && code === 0) return resolve(Buffer.concat(parts));
      why ||= code === null ? `signal ${signal}` : `exit code ${code}`;
      reject(new CallError(Code.UNAVAILABLE, `${command[0]}: ${why}: ${words.trim()}`));
    });
  });
}

/** The task as words for a shell, with no variables but its own. */
export function taskWords(r: StartRequest, home: string): string {
  const env = Object.entries({ HOME: home, PATH: "/usr/local/bin:/usr/bin:/bin", ...r.env }).map(([k, v]) => `${k}=${v}`);
  return fShell(["env", "-i", ...env, ...r.command, ...r.args]);
}

/**
 * The text for sh that runs the task in a folder, which has a folder "work" in it. Its streams, its
 * process ID and in the end its exit code become files of the folder. It must lead a session: whose
 * processes end with the task, and by signals to it; SIGTERM doesn't end the text itself. The task
 * does not have descriptor 9, so that a lock of the starter's there tells how long the text runs.
 */
export function taskScript(r: StartRequest, folder: string): string {
  return `# PCM made this for attempt ${r.key}.
cd ${fShell(folder)} && trap : TERM && echo $$ >pid.new && mv pid.new pid || exit 125
(cd work && exec 9>&- && exec ${taskWords(r, folder + "/work")}) </dev/null >stdout 2>stderr
echo $? >code.new && mv code.new code
pkill -KILL -s $$
`;
}

/**
 * The text for sh that prints a tar of a task's outputs. Its parameters are the folder that taskScript
 * had, how many bytes to print at most, and the outputs. Nothing is taken from elsewhere by way of links.
 */
export const outputsScript = `cd "$1/work" && where=$(pwd -P) && most=$2 && shift 2 || exit 125
for o; do
  shift
  case $o in */*) up=./\${o%/*} ;; *) up=. ;; esac
  up=$(cd -P "$up" 2>/dev/null && pwd -P)/
  case $up in "$where"/*) [ ! -e "./$o" ] && [ ! -L "./$o" ] || set -- "$@" "./$o" ;; esac
done
[ $# -eq 0 ] || tar -cf - "$@" | head -c "$most"`;

/** How many bytes outputsScript may print: more is over the cap, which shows in what of it is unpacked. */
export function mostOfOutputs(r: StartRequest): number {
  return (r.output_cap_bytes > 0 ? r.output_cap_bytes : 2 ** 40) + (16 << 20);
}

/** Adds what is new of both streams, of which sizes says how much there is. */
export async function follow(a: Attempt, sizes: number[], read: (stream: "stdout" | "stderr", from: number) => Promise<Buffer>): Promise<void> {
  for (const [i, stream] of (["stdout", "stderr"] as const).entries()) {
    for (let had = -1; a.size(stream) > had && a.size(stream) < (sizes[i] ?? 0); ) {
      had = a.size(stream);
      a.write(stream, await read(stream, had));
    }
  }
}
