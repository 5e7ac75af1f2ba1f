// The contract's server: see adapter.proto.

import * as fs from "node:fs";
import { join } from "node:path";

import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

import { type Attempt, Attempts } from "./pcm_attempts.js";
import type { Backend, StartRequest } from "./pcm_backend.js";
import { CallError, Code, cut, message, unlessAbsent } from "./pcm_errors.js";
import { type Any, asText, decode, Fault } from "./pcm_values.js";

const version = 1;
const maxMessage = 4 << 20;

type Method = (r: Any) => Promise<Any>;

class Server {
  private attempts?: Attempts;

  constructor(
    private backend: Backend,
    private about: string,
    private state: string,
    private every: number,
  ) {}

  methods: Record<string, Method> = {
    Handshake: async (r) => {
      if (r.version_min > version || r.version_max < version) {
        const host = `${r.version_min} to ${r.version_max}`;
        throw new CallError(Code.FAILED_PRECONDITION, `this plug-in speaks version ${version} of the contract, the host ${host}`);
      }
      const settings: Record<string, string> = {};
      try {
        for (const [k, v] of Object.entries(decode(r.settings_json || "{}"))) settings[k] = asText(v);
      } catch (e) {
        throw new CallError(Code.INVALID_ARGUMENT, `the settings are no JSON object: ${message(e)}`);
      }
      await this.backend.configure({ name: r.name, instance: r.instance, settings, secrets: r.secrets });
      if (!this.attempts) {
        this.attempts = new Attempts(join(this.state, "attempts"), this.backend, this.every);
        void this.attempts.run();
      }
      return {
        version, nonce: process.env["PCM_PLUGIN_NONCE"] ?? "", about: cut(this.about, 128),
        roles: this.backend.suspend ? ["ROLE_SUSPEND"] : [], logs_every_ms: 500,
      };
    },
    Pools: async () => ({ pools: (await this.backend.pools(this.all().ours())).slice(0, 64) }),
    Start: async (r: StartRequest) => {
      if (!/^[a-z0-9-][a-z0-9.-]{0,95}$/.test(r.key)) throw new CallError(Code.INVALID_ARGUMENT, `"${r.key}" is no key of an attempt`);
      if (r.command.length === 0 && !r.image) throw new CallError(Code.INVALID_ARGUMENT, "there is nothing to run");
      return { native_id: cut((await this.all().start(r)).id, 64) };
    },
    List: async (r) => {
      const all = this.all().list().filter((a) => a.request.key > r.after);
      return { statuses: all.slice(0, 1000).map((a) => a.state), more: all.length > 1000 };
    },
    Logs: async (r) => {
      const a = this.known(r.key);
      const ended = a.ended();
      const most = Math.min(Math.max(r.max_bytes, 1), 1 << 20);
      const stdout = readFrom(join(a.folder, "stdout"), r.stdout_offset, most);
      const stderr = readFrom(join(a.folder, "stderr"), r.stderr_offset, most);
      return { stdout, stderr, eof: ended && stdout.length < most && stderr.length < most };
    },
    Outputs: async (r) => {
      const a = this.known(r.key);
      await a.turn(() => this.backend.outputs(a));
      return {};
    },
    Stop: async (r) => {
      const a = this.all().get(r.key);
      if (!a || a.ended()) return {};
      await a.turn(async () => {
        a.asked = true;
        a.save();
        if (!a.known) throw new CallError(Code.UNAVAILABLE, "it is not known yet whether the back end has it");
        await unlessAbsent(this.backend.stop(a, r.force));
      });
      return {};
    },
    Remove: async (r) => {
      const a = this.all().get(r.key);
      if (!a) return {};
      if (!a.ended()) throw new CallError(Code.ABORTED, "it has not ended");
      await a.turn(async () => {
        await unlessAbsent(this.backend.remove(a));
        this.all().forget(a);
      });
      return {};
    },
    Suspend: (r) => this.halt(r.key, (a) => this.backend.suspend?.(a)),
    Resume: (r) => this.halt(r.key, (a) => this.backend.resume?.(a)),
  };

  watch(call: grpc.ServerWritableStream<Any, Any>): void {
    let attempts: Attempts;
    try {
      attempts = this.all();
    } catch (e) {
      call.emit("error", failure(e));
      return;
    }
    let told = 0;
    let waits = false;
    const tell = () => {
      waits = false;
      const [news, count] = attempts.news(told);
      told = count;
      for (let i = 0; i < news.length; i += 1000) call.write({ statuses: news.slice(i, i + 1000) });
    };
    const soon = () => {
      if (!waits) setTimeout(tell, 50);
      waits = true;
    };
    tell();
    call.write({ snapshot_complete: true });
    const beat = setInterval(() => call.write({}), Math.max(call.request.heartbeat_ms, 100));
    attempts.changed.on("changed", soon);
    const end = () => {
      clearInterval(beat);
      attempts.changed.off("changed", soon);
    };
    call.on("cancelled", end).on("close", end).on("error", end);
  }

  private all(): Attempts {
    if (!this.attempts) throw new CallError(Code.FAILED_PRECONDITION, "the first call is Handshake");
    return this.attempts;
  }

  private known(key: string): Attempt {
    const a = this.all().get(key);
    if (!a) throw new CallError(Code.NOT_FOUND, "there is no such attempt");
    return a;
  }

  private async halt(key: string, act: (a: Attempt) => Promise<void> | undefined): Promise<Any> {
    if (!this.backend.suspend) throw new CallError(Code.UNIMPLEMENTED, "this back end can't suspend");
    const a = this.known(key);
    await a.turn(async () => {
      if (!a.runs()) throw new CallError(Code.ABORTED, "it doesn't run");
      await act(a);
    });
    return {};
  }
}

function readFrom(file: string, offset: number, most: number): Buffer {
  if (!fs.existsSync(file)) return Buffer.alloc(0);
  const f = fs.openSync(file, "r");
  try {
    const data = Buffer.alloc(most);
    return data.subarray(0, fs.readSync(f, data, 0, most, offset));
  } finally {
    fs.closeSync(f);
  }
}

/** Makes a status of gRPC of what was thrown. */
function failure(e: unknown): Partial<grpc.StatusObject> {
  if (e instanceof CallError) return { code: e.code, details: cut(e.message, 1000) };
  if (e instanceof Fault) return { code: Code.INVALID_ARGUMENT, details: cut(e.message, 1000) };
  console.error(e);
  return { code: Code.INTERNAL, details: cut(`the plug-in has a fault: ${message(e)}`, 1000) };
}

/** Runs the plug-in until it is told to end; every is the milliseconds between polls. */
export function serve(backend: Backend, about: string, every: number): void {
  const socket = process.env["PCM_PLUGIN_SOCKET"];
  const state = process.env["PCM_PLUGIN_STATE"];
  if (!socket || !state) {
    console.error("PCM_PLUGIN_SOCKET or PCM_PLUGIN_STATE is not set: PCM starts this program, as adapters.plugins of its configuration says");
    process.exit(1);
  }
  const proto = new URL("../adapter.proto", import.meta.url).pathname;
  const contract = loadSync(proto, { keepCase: true, longs: Number, enums: String, defaults: true, arrays: true, objects: true, oneofs: true });
  const service = contract["pcm.adapter.v1.Adapter"] as unknown as grpc.ServiceDefinition;
  const server = new Server(backend, about, state, every);
  const handlers: grpc.UntypedServiceImplementation = {
    Watch: (call: grpc.ServerWritableStream<Any, Any>) => server.watch(call),
  };
  for (const [name, method] of Object.entries(server.methods)) {
    handlers[name] = (call: grpc.ServerUnaryCall<Any, Any>, done: grpc.sendUnaryData<Any>) => {
      method(call.request).then(
        (answer) => done(null, answer),
        (e: unknown) => done(failure(e)),
      );
    };
  }
  const g = new grpc.Server({ "grpc.max_receive_message_length": maxMessage, "grpc.max_send_message_length": maxMessage });
  g.addService(service, handlers);
  g.bindAsync("unix:" + socket, grpc.ServerCredentials.createInsecure(), (e) => {
    if (e) {
      console.error(`can't listen on ${socket}: ${e.message}`);
      process.exit(1);
    }
  });
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => process.exit(0));
}
