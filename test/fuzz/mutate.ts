/** Numbers from a seed (mulberry32): a finding is repeated by its seed alone. */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

type Random = () => number;
const below = (random: Random, limit: number) => Math.floor(random() * limit);
const pick = <Item>(random: Random, items: readonly Item[]): Item => items[below(random, items.length)];

/** What damaged downloads, wrong tools and attackers put where a value is expected. */
const oddValues: readonly unknown[] = [
  ...[null, true, 0, -1, 0.5, 1e9, 2 ** 31, 2 ** 40, 2 ** 53, 1e15, 1e300, -1e300],
  ...["", "x", "../x", "/dev/zero", "a".repeat(5000), "\u0000", "\u001b[2J", "(a+)+$", "__proto__", "constructor"],
  ...[[], {}, [[]], [null], { a: { b: [] } }, { toString: 1 }],
];
const oddKeys = ["__proto__", "constructor", "toString", "hasOwnProperty", "length", "", "../x", "0"];

/** Changes some bytes. */
function mutateBytes(bytes: Uint8Array, random: Random): Uint8Array {
  // Not `slice`, which of a Buffer is no copy.
  const copy = Uint8Array.from(bytes);
  switch (below(random, 6)) {
    case 0:
      for (let count = 1 + below(random, 4); count > 0; count--) copy[below(random, copy.length)] = below(random, 256);
      return copy;
    case 1:
      copy[below(random, Math.min(copy.length, 512))] ^= 1 << below(random, 8);
      return copy;
    case 2:
      return copy.subarray(0, below(random, copy.length));
    case 3: {
      const at = below(random, copy.length);
      const end = Math.min(copy.length, at + 1 + below(random, 64));
      copy.copyWithin(at, end);
      return copy.subarray(0, copy.length - (end - at));
    }
    case 4: {
      const at = below(random, copy.length);
      const from = below(random, copy.length);
      copy.set(copy.subarray(from, from + Math.min(32, copy.length - Math.max(at, from))), at);
      return copy;
    }
    default: {
      const at = below(random, Math.max(1, copy.length - 8));
      const value = pick(random, [
        0n,
        1n,
        0x7fffffffn,
        0xffffffffn,
        0x7fffffffffffffffn,
        1n << 40n,
        0xffffffffffffffffn,
      ]);
      if (copy.length >= 8) new DataView(copy.buffer, copy.byteOffset).setBigUint64(at, value, true);
      return copy;
    }
  }
}

/** Changes one or more values or keys of a JSON text, or the text where it is none. */
function mutateJson(text: string, random: Random): string {
  let root: unknown;
  try {
    root = JSON.parse(text);
  } catch {
    return Buffer.from(mutateBytes(Buffer.from(text), random)).toString("latin1");
  }
  for (let count = 1 + below(random, 2); count > 0; count--) {
    const places: { holder: Record<string, unknown>; key: string }[] = [];
    const visit = (value: unknown) => {
      if (typeof value !== "object" || value === null) return;
      for (const key of Object.keys(value)) {
        places.push({ holder: value as Record<string, unknown>, key });
        if (places.length < 3000) visit((value as Record<string, unknown>)[key]);
      }
    };
    visit(root);
    if (places.length === 0) return JSON.stringify(pick(random, oddValues));
    // Values near the root decide more: half of the time among the first ones.
    const { holder, key } = places[below(random, random() < 0.5 ? Math.min(places.length, 20) : places.length)];
    const define = (name: string, value: unknown) => {
      // JSON has no arrays with names.
      const place = Array.isArray(holder) && !/^\d+$/.test(name) ? key : name;
      Object.defineProperty(holder, place, { value, enumerable: true, configurable: true, writable: true });
    };
    switch (below(random, 5)) {
      case 0:
        delete holder[key];
        break;
      case 1:
        define(pick(random, oddKeys), holder[key]);
        break;
      case 2: {
        let nested: unknown = holder[key];
        for (let depth = pick(random, [1, 3, 3000]); depth > 0; depth--)
          nested = random() < 0.5 ? [nested] : { a: nested };
        define(key, nested);
        break;
      }
      default:
        define(key, pick(random, oddValues));
    }
  }
  return stringify(root);
}

/** `JSON.stringify` without recursion, which thousands of levels would end. */
function stringify(root: unknown): string {
  const parts: string[] = [];
  const pending: (string | { value: unknown })[] = [{ value: root }];
  while (pending.length > 0) {
    const next = pending.pop() as string | { value: unknown };
    if (typeof next === "string") {
      parts.push(next);
      continue;
    }
    const { value } = next;
    if (Array.isArray(value)) {
      pending.push("]");
      for (let index = value.length - 1; index >= 0; index--)
        pending.push({ value: value[index] }, index > 0 ? "," : "");
      pending.push("[");
    } else if (typeof value === "object" && value !== null) {
      const entries = Object.entries(value);
      pending.push("}");
      for (let index = entries.length - 1; index >= 0; index--) {
        const [key, item] = entries[index];
        pending.push({ value: item }, `${index > 0 ? "," : ""}${JSON.stringify(key)}:`);
      }
      pending.push("{");
    } else {
      parts.push(JSON.stringify(value) ?? "null");
    }
  }
  return parts.join("");
}

/** One damaged form of a file. @param isText - JSON, whose structure is changed more often than its bytes */
export function mutate(bytes: Uint8Array, isText: boolean, seed: number): Uint8Array {
  const random = randomFrom(seed);
  if (isText && random() < 0.8) return Buffer.from(mutateJson(Buffer.from(bytes).toString(), random));
  return mutateBytes(bytes, random);
}
