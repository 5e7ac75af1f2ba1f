// PCM's conformance suite, which all adapters pass. It needs a back end: ADAPTER_SETTINGS
// is a JSON object of the settings, and the secrets are in the environment under their
// names. PCM is the program, if it isn't in PATH. ADAPTER_TRIAL, also JSON, is what else
// 'pcm adapter test --config' should know.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const secrets: string[] = [];

const unsupported: Record<string, string> = {
  // pcm:begin unsupported
  "memory limit": "the host sets tasks no limits",
  "out of memory": "the host sets tasks no limits",
  "too little memory": "the host sets tasks no limits",
  "use of CPU": "the host does not measure",
  "use of memory": "the host does not measure",
  accelerators: "the host's accelerators are not offered",
  "no network": "tasks have the host's network",
  "read-only inputs": "a task has copies of its own",
  images: "it runs programs of the host",
  arrays: "each task is a session of its own",
  exec: "plug-ins of generated projects have no such call",
  copy: "plug-ins of generated projects have no such call",
  service: "the host may be behind a firewall that lets ssh alone through",
  waiting: "a host has no queue: what is given to it runs at once",
  // pcm:end unsupported
};

const { env } = process;
const settings = env["ADAPTER_SETTINGS"];

test("conformance", { skip: settings === undefined && "ADAPTER_SETTINGS does not say where a back end to test with is" }, () => {
  const main = fileURLToPath(new URL("main.js", import.meta.url));
  chmodSync(main, 0o755);
  const trial = {
    name: "sshhost",
    command: [process.execPath, main],
    settings: JSON.parse(settings ?? "{}"),
    secrets: Object.fromEntries(secrets.filter((name) => env[name]).map((name) => [name, "env:" + name])),
    unsupported,
    ...JSON.parse(env["ADAPTER_TRIAL"] ?? "{}"),
  };
  const dir = mkdtempSync(join(tmpdir(), "sshhost-"));
  try {
    const config = join(dir, "trial.yaml");
    writeFileSync(config, JSON.stringify(trial));
    const done = spawnSync(env["PCM"] ?? "pcm", ["adapter", "test", "--config", config], { encoding: "utf8", maxBuffer: 64 << 20 });
    console.log(done.stdout, done.stderr);
    assert.equal(done.error, undefined);
    assert.equal(done.status, 0);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
