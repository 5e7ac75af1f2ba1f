// Archives as tar has them: files and folders, and nothing else.

import * as fs from "node:fs/promises";
import { dirname, join, posix } from "node:path";

const block = 512;
const maxFiles = 100_000;
const cutOff = "the archive is cut off";

function header(name: string, mode: number, size: number, type: string): Buffer {
  const h = Buffer.alloc(block);
  const octal = (at: number, n: number, x: number) => h.write(x.toString(8).padStart(n - 1, "0"), at, "ascii");
  h.write(name, 0, 100);
  octal(100, 8, mode & 0o777);
  octal(108, 8, 0);
  octal(116, 8, 0);
  octal(124, 12, size);
  octal(136, 12, 0);
  h.write("        " + type, 148, "ascii");
  h.write("ustar\u000000", 257, "ascii");
  h.write(h.reduce((a, b) => a + b, 0).toString(8).padStart(6, "0") + "\0 ", 148, "ascii");
  return h;
}

/** The record that a name too long for a header has before it. */
function longName(name: string): Buffer {
  const rest = ` path=${name}\n`;
  let n = Buffer.byteLength(rest);
  n += String(n + String(n).length).length;
  const data = Buffer.from(n + rest);
  return Buffer.concat([header("PaxHeader", 0o644, data.length, "x"), data, Buffer.alloc((block - (data.length % block)) % block)]);
}

/** Writes files and folders, each under its target; gives the size. */
export async function pack(to: string, all: { path: string; target: string }[]): Promise<number> {
  const out = await fs.open(to, "w", 0o600);
  try {
    const add = async (name: string, as: string): Promise<void> => {
      const info = await fs.stat(name);
      if (!info.isFile() && !info.isDirectory()) return;
      if (Buffer.byteLength(as) > 99) await out.write(longName(info.isDirectory() ? as + "/" : as));
      if (info.isDirectory()) {
        await out.write(header(as + "/", info.mode, 0, "5"));
        for (const e of (await fs.readdir(name)).sort()) await add(join(name, e), posix.join(as, e));
        return;
      }
      await out.write(header(as, info.mode, info.size, "0"));
      let left = info.size;
      const f = await fs.open(name);
      try {
        for await (const part of f.createReadStream({ end: Math.max(info.size - 1, 0) }) as AsyncIterable<Buffer>) {
          left -= part.length;
          await out.write(part);
        }
      } finally {
        await f.close();
      }
      if (left !== 0) throw new Error(`${name} changes while it is read`);
      await out.write(Buffer.alloc((block - (info.size % block)) % block));
    };
    for (const { path, target } of all) await add(path, target);
    await out.write(Buffer.alloc(2 * block));
    return (await out.stat()).size;
  } finally {
    await out.close();
  }
}

/** Takes the declared outputs out of an archive, within dir: of one that is cut off, what there is, before it fails. */
export async function unpack(from: string, dir: string, declared: string[]): Promise<void> {
  const asked = declared.map((d) => posix.normalize(d).replace(/\/$/, ""));
  const links = new Map<string, string>();
  const f = await fs.open(from);
  try {
    let at = 0;
    let given: string | undefined; // by a record before the entry
    for (let n = 0; ; n++) {
      if (n > maxFiles) throw new Error(`there are more than ${maxFiles} files`);
      const h = await read(f, at, block);
      at += block;
      if (h.every((b) => b === 0)) break;
      const size = octal(h, 124, 12);
      if (!(size >= 0)) throw new Error("the archive is damaged");
      const type = String.fromCharCode(h[156] ?? 0);
      const data = at;
      at += Math.ceil(size / block) * block;
      if (type === "x" || type === "L") {
        if (size > 1 << 20) throw new Error("a name is too long");
        const record = (await read(f, data, size)).toString();
        given = type === "L" ? record.replace(/\0.*$/s, "") : (/(?:^|\n)\d+ path=([^\n]*)\n/.exec(record)?.[1] ?? given);
        continue;
      }
      const prefix = text(h, 345, 155);
      const name = posix.normalize(given ?? (prefix ? prefix + "/" : "") + text(h, 0, 100)).replace(/\/$/, "");
      given = undefined;
      const wanted = asked.some((d) => d === "." || name === d || name.startsWith(d + "/"));
      if (!wanted || !local(name)) continue;
      if (type === "5") await fs.mkdir(join(dir, name), { recursive: true });
      if (type === "2") links.set(name, posix.join(posix.dirname(name), text(h, 157, 100)));
      if (type === "0" || type === "\0") {
        await fs.mkdir(dirname(join(dir, name)), { recursive: true });
        const to = await fs.open(join(dir, name), "w", (octal(h, 100, 8) & 0o755) | 0o600);
        try {
          for (let done = 0; done < size; ) {
            const part = await some(f, data + done, Math.min(size - done, 1 << 20));
            if (part.length === 0) throw new Error(cutOff);
            await to.write(part);
            done += part.length;
          }
        } finally {
          await to.close();
        }
      }
    }
  } finally {
    await f.close();
  }
  for (const [name, to] of links) { // files in the place of links to them
    if (!local(to) || !(await fs.lstat(join(dir, to)).catch(() => undefined))?.isFile()) continue;
    await fs.mkdir(dirname(join(dir, name)), { recursive: true });
    await fs.copyFile(join(dir, to), join(dir, name));
  }
}

function local(name: string): boolean {
  return name !== "" && !name.startsWith("/") && name !== ".." && !name.startsWith("../");
}

function text(h: Buffer, at: number, n: number): string {
  return h.subarray(at, at + n).toString().replace(/\0.*$/s, "");
}

function octal(h: Buffer, at: number, n: number): number {
  return parseInt(text(h, at, n).trim() || "0", 8);
}

async function read(f: fs.FileHandle, at: number, n: number): Promise<Buffer> {
  const data = await some(f, at, n);
  if (data.length !== n) throw new Error(cutOff);
  return data;
}

async function some(f: fs.FileHandle, at: number, n: number): Promise<Buffer> {
  const data = Buffer.alloc(n);
  return data.subarray(0, (await f.read(data, 0, n, at)).bytesRead);
}
