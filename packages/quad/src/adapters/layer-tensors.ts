import { InputError } from "@quad-lora/base";
import type { SafetensorsReader } from "../files/safetensors.ts";
import type { LayerTensors, Mismatch } from "./methods/method.ts";
import { withoutWrapper } from "./module-index.ts";
import type { AdapterTarget } from "./names/target.ts";
import type { ScaleSource } from "./peft-config.ts";
import type { AdapterFormat } from "./types.ts";

/** The tensors of one layer as the file groups them. */
export interface KeyGroup {
  /** Prefix and module in the file's spelling. */
  readonly path: string;
  /** Keys by part. */
  readonly keys: Map<string, string>;
  format?: AdapterFormat;
}

/** One layer's tensors in an open file. */
export class FileLayer implements LayerTensors {
  readonly target: AdapterTarget;
  readonly #reader: SafetensorsReader;
  readonly #group: KeyGroup;
  readonly #source: ScaleSource | undefined;

  constructor(reader: SafetensorsReader, group: KeyGroup, target: AdapterTarget, source: ScaleSource | undefined) {
    this.target = target;
    this.#reader = reader;
    this.#group = group;
    this.#source = source;
  }

  /** Spellings of the module's path that a configuration's patterns may mean. */
  get #names(): string[] {
    const own = withoutWrapper(this.#group.path);
    return this.target.kind === "split" ? [own] : [own, this.target.module.name];
  }

  has(part: string): boolean {
    return this.#group.keys.has(part);
  }

  shape(part: string): readonly number[] {
    return this.#reader.entries.get(this.#key(part))!.shape;
  }

  async read(part: string): Promise<Float32Array> {
    const key = this.#key(part);
    refuseIntegers(this.#reader, key);
    return this.#readFinite(key);
  }

  async alpha(): Promise<number | undefined | Mismatch> {
    if (!this.has("alpha")) return this.#source?.alphaOf(this.#names);
    const alpha = await this.#readFinite(this.#key("alpha"));
    if (alpha.length === 1) return alpha[0];
    return { expected: "a single number as alpha", got: `[${this.shape("alpha").join(", ")}]` };
  }

  async scale(rank: number | undefined): Promise<number | Mismatch> {
    const expected = this.#source?.rankOf(this.#names);
    if (expected !== undefined && rank !== undefined && expected !== rank)
      return { expected: `rank ${expected} by the adapter's configuration`, got: `rank ${rank}` };
    const alpha = await this.alpha();
    if (typeof alpha === "object") return alpha;
    const divisor = rank ?? expected;
    if (alpha === undefined || divisor === undefined) return 1;
    return this.#source ? this.#source.scale(alpha, divisor) : alpha / divisor;
  }

  assertFinite(values: Float32Array, part: string): void {
    assertFinite(values, this.#reader.path, this.#key(part));
  }

  async #readFinite(key: string): Promise<Float32Array> {
    const values = await this.#reader.readFloat32(key);
    assertFinite(values, this.#reader.path, key);
    return values;
  }

  #key(part: string): string {
    return this.#group.keys.get(part)!;
  }
}

/** Integers in place of weights are codes of some quantization, whose scales the file does not hold. */
function refuseIntegers(reader: SafetensorsReader, key: string): void {
  const { dtype } = reader.entries.get(key)!;
  if (!/^(I|U)\d+$|^BOOL$/.test(dtype)) return;
  throw new InputError({
    what: "the adapter's weights are integers",
    file: reader.path,
    where: key,
    expected: "F32, F16 or BF16",
    got: dtype,
    fix: "Use the file as it was trained, before any quantization.",
  });
}

function assertFinite(values: Float32Array, file: string, key: string): void {
  for (let i = 0; i < values.length; i++)
    if (!Number.isFinite(values[i]))
      throw new InputError({
        what: "the adapter's weights are not finite",
        file,
        where: key,
        got: `${values[i]} at element ${i}`,
        fix: "The training overflowed or the file is damaged: use another checkpoint.",
      });
}
