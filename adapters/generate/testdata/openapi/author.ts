// What an author writes into the project of jobs.yaml in TypeScript, by region.
// pcm:begin imports
import * as fs from "node:fs";
import { join } from "node:path";

import type * as t from "./api_types.js";
import { pack, unpack } from "./pcm_tar.js";
import { mostOfOutputs } from "./pcm_tool.js";
import { state } from "./states.js";
// pcm:end imports

// pcm:begin pace
export const pollMilliseconds = 200;
// pcm:end pace

  // pcm:begin own
  name(a: Attempt): string {
    return this.config?.instance + "." + a.request.key;
  }

  async jobs(all: Attempt[]): Promise<Map<string, t.Job>> {
    const found = await this.api.listJobs({ name: all.map((a) => this.name(a)) });
    return new Map((found.jobs ?? []).map((job) => [job.name ?? "", job]));
  }
  // pcm:end own

    // pcm:begin pools
    const { sizes = [] } = await this.api.listSizes();
    return sizes.map((s) => ({
      id: s.name ?? "", slots: Number(s.slots ?? 0), features: ["FEATURE_COMMAND", "FEATURE_NETWORK"],
      capacity: { cpu_milli: Number(s.cpu_milli ?? 0), memory_bytes: Number(s.memory_bytes ?? 0), gpus: 0, disk_bytes: 0 },
    }));
    // pcm:end pools

    // pcm:begin find
    return (await this.jobs([a])).get(this.name(a))?.id ?? "";
    // pcm:end find

    // pcm:begin start
    const { image, module, resources, inputs, pool, command, args, env } = a.request;
    if (image || module || resources?.gpus) throw new CallError(Code.FAILED_PRECONDITION, "the service runs commands without images, modules and GPUs");
    let files: string | undefined;
    if (inputs.length > 0) {
      const file = join(a.folder, "start.tar");
      await pack(file, inputs);
      files = (await this.api.putFiles({ file })).id;
      fs.rmSync(file);
    }
    return (await this.api.makeJob({ name: this.name(a), size: pool || "small", command: [...command, ...args], environment: env, files })).id ?? "";
    // pcm:end start

    // pcm:begin poll
    const jobs = await this.jobs(all);
    return new Map(all.map((a) => {
      const { state: word = "", exit_code: code } = jobs.get(this.name(a)) ?? {};
      return [a, { state: state(word), word, gone: !word, code: Number(code ?? 0) }];
    }));
    // pcm:end poll

    // pcm:begin logs
    for (const stream of ["stdout", "stderr"] as const) {
      for (let had = -1, rounds = 0; had < a.size(stream) && (ended || rounds < 8); rounds++) {
        had = a.size(stream);
        a.write(stream, await this.api.readOutput({ id: a.id, stream, from: had }));
      }
    }
    // pcm:end logs

    // pcm:begin stop
    await this.api.signalJob({ signal: force ? "KILL" : "TERM" }, { id: a.id });
    // pcm:end stop

    // pcm:begin outputs
    const { outputs, work } = a.request;
    if (outputs.length === 0) return;
    const [tar, most] = [join(a.folder, "outputs.tar"), mostOfOutputs(a.request)];
    const to = fs.openSync(tar, "w", 0o600);
    try {
      await this.api.getFiles({ id: a.id, path: outputs, most }, (part) => fs.writeSync(to, part), most);
      const { size } = fs.fstatSync(to);
      if (size > 0) await unpack(tar, work, outputs).catch((e) => (size < most ? Promise.reject(e) : undefined));
    } finally {
      fs.closeSync(to);
      fs.rmSync(tar);
    }
    // pcm:end outputs

    // pcm:begin remove
    await this.api.deleteJob({ id: a.id });
    // pcm:end remove
