// What the expressions of descriptions are made of: values as JSON has them, whole
// numbers as bigint. A field that is missing ends the expression by a Fault.

/** A value as JSON has it, or an Optional. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type Any = any;
export type Vars = Record<string, Any>;
/** What a template or an expression gives. */
export type Value = ((v: Vars) => Any) | null;

/** Why an expression gives no value. */
export class Fault extends Error {}

export function wrong(text: string): never {
  throw new Fault(text);
}

/** A value, or none. */
export class Optional {
  constructor(
    readonly value: Any = null,
    readonly has = false,
  ) {}
}

/** A null that is written out; others are left out of lists and objects. */
const keptNull = Symbol("null");

export function nothing(): Any {
  return keptNull;
}

function isMap(x: Any): x is Record<string, Any> {
  return typeof x === "object" && x !== null && !Array.isArray(x) && !(x instanceof Optional);
}

/** Turns optionals into what they hold. */
export function plain(x: Any): Any {
  if (x instanceof Optional) return x.has ? plain(x.value) : null;
  if (x === keptNull || x === undefined) return null;
  if (Array.isArray(x)) return x.map(plain);
  if (isMap(x)) return Object.fromEntries(Object.entries(x).map(([k, y]) => [k, plain(y)]));
  return x;
}

/** What an expression or template gives; null if there is none. */
export function evaluate(x: Value | undefined, v: Vars): Any {
  if (!x) return null;
  try {
    return plain(x(v));
  } catch (e) {
    if (e instanceof Fault) throw e;
    throw new Fault(`an expression finds no value: ${e instanceof Error ? e.message : e}`);
  }
}

export function text(x: Value | undefined, v: Vars): string {
  return asText(evaluate(x, v));
}

export function asText(x: Any): string {
  x = plain(x);
  if (x === null) return "";
  return typeof x === "object" ? encode(x) : String(x);
}

/** JSON with whole numbers as they are. */
export function encode(x: Any): string {
  if (typeof x === "bigint") return String(x);
  if (x === null || x === undefined || x === keptNull) return "null";
  if (x instanceof Optional) return encode(plain(x));
  if (Array.isArray(x)) return "[" + x.map(encode).join(",") + "]";
  if (isMap(x)) return "{" + Object.keys(x).sort().map((k) => JSON.stringify(k) + ":" + encode(x[k])).join(",") + "}";
  return JSON.stringify(x);
}

/** Reads JSON; whole numbers become bigint. */
export function decode(source: string): Any {
  let i = 0;
  const bad = (): never => {
    throw new SyntaxError(`no JSON at ${i}`);
  };
  const token = /\s*(?:([[{\]},:])|("(?:[^"\\\u0000-\u001f]|\\.)*")|(-?\d+(?![\d.eE]))|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(true|false|null))\s*/y;
  let found: RegExpExecArray | null = null;
  const next = (): RegExpExecArray => {
    token.lastIndex = i;
    found = token.exec(source);
    if (!found) return bad();
    i = token.lastIndex;
    return found;
  };
  const read = (t: RegExpExecArray, depth: number): Any => {
    if (depth > 200) bad();
    if (t[2] !== undefined) return JSON.parse(t[2]);
    if (t[3] !== undefined) return BigInt(t[3]);
    if (t[4] !== undefined) return Number(t[4]);
    if (t[5] !== undefined) return JSON.parse(t[5]);
    if (t[1] === "[") {
      const all: Any[] = [];
      for (let u = next(); ; u = next()) {
        if (u[1] === "]" && all.length === 0) return all;
        all.push(read(u, depth + 1));
        const after = next()[1];
        if (after === "]") return all;
        if (after !== ",") bad();
      }
    }
    if (t[1] !== "{") bad();
    const all: [string, Any][] = [];
    for (let u = next(); ; u = next()) {
      if (u[1] === "}" && all.length === 0) return {};
      if (u[2] === undefined || next()[1] !== ":") return bad();
      all.push([JSON.parse(u[2]), read(next(), depth + 1)]);
      const after = next()[1];
      if (after === "}") return Object.fromEntries(all);
      if (after !== ",") bad();
    }
  };
  const value = read(next(), 0);
  if (i !== source.length) bad();
  return value;
}

const whole = (x: Any): x is bigint => typeof x === "bigint";
export const isNumber = (x: Any): x is bigint | number => typeof x === "bigint" || typeof x === "number";

function find(x: Any, key: Any): [Any, boolean] {
  if (key instanceof Optional) key = key.value;
  if (Array.isArray(x)) {
    const ok = whole(key) && key >= 0n && key < BigInt(x.length);
    return ok ? [x[Number(key)], true] : [null, false];
  }
  key = asText(key);
  return isMap(x) && Object.hasOwn(x, key) ? [x[key], true] : [null, false];
}

/** What a table has under a name that others chose: nothing that all objects have. */
export function own<T>(table: Record<string, T>, name: string): T | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined;
}

/** Takes fields, of which none may be missing. */
export function get(x: Any, ...names: string[]): Any {
  return names.reduce(at, x);
}

export function at(x: Any, key: Any): Any {
  if (x instanceof Optional) return opt(x, key);
  const [value, ok] = find(x, key);
  return ok ? value : wrong(`there is no ${asText(key)}`);
}

export function opt(x: Any, key: Any): Any {
  if (x instanceof Optional) {
    if (!x.has) return x;
    x = x.value;
  }
  return new Optional(...find(x, key));
}

export function has(x: Any, name: string): boolean {
  return find(x instanceof Optional ? x.value : x, name)[1];
}

/** Follows a JSONPath to one value; null if there is none. */
export function path(x: Any, ...steps: Any[]): Any {
  for (let s of steps) {
    if (whole(s) && s < 0n && Array.isArray(x)) s += BigInt(x.length);
    const [value, ok] = find(x, s);
    if (!ok) return null;
    x = value;
  }
  return x;
}

/** Follows one with wildcards, which are null. */
export function paths(x: Any, ...steps: Any[]): Any[] {
  let found: Any[] = [x];
  for (const s of steps) {
    found = found.flatMap((f) => {
      if (s === null) return Array.isArray(f) ? f : isMap(f) ? Object.keys(f).sort().map((k) => f[k]) : [];
      const [value, ok] = find(f, s);
      return ok ? [value] : [];
    });
  }
  return found;
}

export function concat(...parts: Any[]): string {
  return parts.map(asText).join("");
}

const given = (x: Any): boolean => plain(x) !== null || x === keptNull;

/** A list of what is not nothing. */
export function list(...items: Any[]): Any[] {
  return items.filter(given).map(plain);
}

/** A map of what is not nothing. */
export function object(...pairs: Any[]): Record<string, Any> {
  const all: [string, Any][] = [];
  for (let i = 0; i + 1 < pairs.length; i += 2) if (given(pairs[i + 1])) all.push([pairs[i], plain(pairs[i + 1])]);
  return Object.fromEntries(all);
}

export function mapOf(...pairs: Any[]): Record<string, Any> {
  const all: [string, Any][] = [];
  for (let i = 0; i + 1 < pairs.length; i += 2) all.push([asText(pairs[i]), plain(pairs[i + 1])]);
  return Object.fromEntries(all);
}

export function present(items: Optional[]): Any[] {
  return items.filter((x) => x.has).map((x) => x.value);
}

export function truth(x: Any): boolean {
  return typeof x === "boolean" ? x : wrong(`${asText(x)} is not true or false`);
}

export function both(a: () => Any, b: () => Any): boolean {
  return truth(a()) && truth(b());
}

export function either(a: () => Any, b: () => Any): boolean {
  return truth(a()) || truth(b());
}

export function negate(x: Any): boolean {
  return !truth(x);
}

export function fold(over: Any, accu: Any, cond: (accu: Any, x: Any) => Any, step: (accu: Any, x: Any) => Any, result: (accu: Any) => Any): Any {
  if (!Array.isArray(over) && !isMap(over)) wrong(`${asText(over)} is neither list nor map`);
  for (const x of Array.isArray(over) ? over : Object.keys(over).sort()) {
    if (!truth(cond(accu, x))) break;
    accu = step(accu, x);
  }
  return result(accu);
}

export function eq(a: Any, b: Any): boolean {
  if (isNumber(a) && isNumber(b)) return a == b;
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((x, i) => eq(x, b[i]));
  if (isMap(a) && isMap(b)) {
    const keys = Object.keys(a);
    return keys.length === Object.keys(b).length && keys.every((k) => Object.hasOwn(b, k) && eq(a[k], b[k]));
  }
  return a === b;
}

export function ne(a: Any, b: Any): boolean {
  return !eq(a, b);
}

function order(a: Any, b: Any): number {
  const fit = (isNumber(a) && isNumber(b)) || (typeof a === "string" && typeof b === "string");
  if (!fit) wrong(`${asText(a)} and ${asText(b)} can't be compared`);
  return a < b ? -1 : a > b ? 1 : 0;
}

export function lt(a: Any, b: Any): boolean {
  return order(a, b) < 0;
}

export function le(a: Any, b: Any): boolean {
  return order(a, b) <= 0;
}

export function gt(a: Any, b: Any): boolean {
  return order(a, b) > 0;
}

export function ge(a: Any, b: Any): boolean {
  return order(a, b) >= 0;
}

function calculate(a: Any, b: Any, op: string, exact: (x: bigint, y: bigint) => bigint, other: (x: number, y: number) => number): Any {
  if (!isNumber(a) || !isNumber(b)) return wrong(`${asText(a)} ${op} ${asText(b)} can't be calculated`);
  if (!whole(a) || !whole(b)) return other(Number(a), Number(b));
  const out = exact(a, b);
  return BigInt.asIntN(64, out) === out ? out : wrong("the number is too large");
}

export function add(a: Any, b: Any): Any {
  if (typeof a === "string" && typeof b === "string") return a + b;
  if (Array.isArray(a) && Array.isArray(b)) return [...a, ...b];
  return calculate(a, b, "+", (x, y) => x + y, (x, y) => x + y);
}

export function sub(a: Any, b: Any): Any {
  return calculate(a, b, "-", (x, y) => x - y, (x, y) => x - y);
}

export function mul(a: Any, b: Any): Any {
  return calculate(a, b, "*", (x, y) => x * y, (x, y) => x * y);
}

export function div(a: Any, b: Any): Any {
  return calculate(a, b, "/", (x, y) => (y === 0n ? wrong("division by zero") : x / y), (x, y) => x / y);
}

export function mod(a: Any, b: Any): Any {
  return calculate(a, b, "%", (x, y) => (y === 0n ? wrong("division by zero") : x % y), () => wrong("% needs whole numbers"));
}

export function minus(x: Any): Any {
  return sub(0n, x);
}

export function within(x: Any, where: Any): boolean {
  if (isMap(where)) return Object.hasOwn(where, asText(x));
  return items(where).some((y) => eq(x, y));
}

function string(x: Any): string {
  return typeof x === "string" ? x : wrong(`${asText(x)} is not a text`);
}

function items(x: Any): Any[] {
  return Array.isArray(x) ? x : wrong(`${asText(x)} is not a list`);
}

export function fSize(x: Any): bigint {
  if (typeof x === "string") return BigInt([...x].length);
  if (Array.isArray(x)) return BigInt(x.length);
  return isMap(x) ? BigInt(Object.keys(x).length) : wrong(`${asText(x)} has no size`);
}

export function fContains(s: Any, t: Any): boolean {
  return string(s).includes(string(t));
}

export function fStartsWith(s: Any, t: Any): boolean {
  return string(s).startsWith(string(t));
}

export function fEndsWith(s: Any, t: Any): boolean {
  return string(s).endsWith(string(t));
}

export function fMatches(s: Any, pattern: Any): boolean {
  return new RegExp(string(pattern), "u").test(string(s));
}

export function fInt(x: Any): bigint {
  if (whole(x)) return x;
  if (typeof x === "number" && Number.isFinite(x)) return BigInt(Math.trunc(x));
  if (typeof x === "string" && /^[+-]?\d{1,19}$/.test(x)) return BigInt(x.replace(/^\+/, ""));
  return wrong(`${asText(x)} is not a whole number`);
}

export function fUint(x: Any): bigint {
  return fInt(x);
}

export function fDouble(x: Any): number {
  const f = typeof x === "string" && x.trim() === "" ? NaN : Number(x);
  return Number.isNaN(f) ? wrong(`${asText(x)} is not a number`) : f;
}

export function fString(x: Any): string {
  return asText(x);
}

export function fDyn(x: Any): Any {
  return x;
}

export function fBool(x: Any): boolean {
  const s = asText(x);
  return s === "true" || s === "false" ? s === "true" : wrong(`${s} is not true or false`);
}

export function fOptionalOf(x: Any): Optional {
  return new Optional(x, true);
}

export function fOptionalNone(): Optional {
  return new Optional();
}

export function fOptionalOfNonZeroValue(x: Any): Optional {
  return ["", "0", "false", "[]", "{}"].includes(asText(x)) ? new Optional() : new Optional(x, true);
}

export function fHasValue(x: Optional): boolean {
  return x.has;
}

export function fValue(x: Optional): Any {
  return x.has ? x.value : wrong("there is no value");
}

export function fOrValue(x: Optional, otherwise: Any): Any {
  return x.has ? x.value : otherwise;
}

export function fOr(x: Optional, otherwise: Optional): Optional {
  return x.has ? x : otherwise;
}

export function fSplit(s: Any, sep: Any): string[] {
  return string(s).split(string(sep));
}

export function fJoin(parts: Any, sep: Any): string {
  return items(parts).map(asText).join(string(sep));
}

export function fReplace(s: Any, from: Any, to: Any): string {
  return string(s).split(string(from)).join(string(to));
}

export function fLower(s: Any): string {
  return string(s).toLowerCase();
}

export function fUpper(s: Any): string {
  return string(s).toUpperCase();
}

export function fTrim(s: Any): string {
  return string(s).trim();
}

export function fBase64(s: Any): string {
  return Buffer.from(string(s)).toString("base64");
}

export function fUnbase64(s: Any): string {
  return Buffer.from(string(s), "base64").toString();
}

export function fJson(x: Any): string {
  return encode(x);
}

export function fShell(x: Any): string {
  return (Array.isArray(x) ? x : [x]).map((w) => "'" + asText(w).replaceAll("'", "'\\''") + "'").join(" ");
}

export function fCeildiv(a: Any, b: Any): bigint {
  if (!whole(a) || !whole(b) || b <= 0n) return wrong("ceildiv needs whole numbers, the second over 0");
  return a / b + (a % b > 0n ? 1n : 0n);
}

export function fLeast(values: Any): Any {
  return items(values).reduce((least, x) => (least === null || order(x, least) < 0 ? x : least), null) ?? wrong("least needs a list that is not empty");
}
