import type { Tensor } from "onnxruntime-common";
import { concatenateAlong, sliceAlong } from "./arrays.ts";
import type { Slot, SlotsFile } from "./configs.ts";
import { InputError } from "./errors.ts";
import { type Component, floatTensor, type OrtModule, tensorData, tensorFrom } from "./ort.ts";
import { parseSafetensors, toFloat32 } from "./safetensors.ts";

/** Adapter names with their strengths; empty is the base model. */
export type Strengths = ReadonlyMap<string, number>;

/** Tensors for every adapter input of one selection, ready to be passed to a run: component, then input name. */
export type AdapterFeeds = ReadonlyMap<string, Record<string, Tensor>>;

/** The slots' tensors without strengths: one adapter, several side by side, or none. */
interface Stack {
  /** Ranks that mean something, per member; the tensors may be padded beyond their sum. */
  ranks: readonly number[];
  /** By graph input, complete: slots an adapter leaves out are zeros. */
  tensors: ReadonlyMap<string, Tensor>;
}

/** One adapter input of a graph. */
interface AdapterInput {
  name: string;
  type: Tensor.Type;
  shape: Slot["shapeA"];
  rankAxis: number;
}

/**
 * The adapters of one pipeline, and the tensors that select among them.
 *
 * An adapter's tensors are made once, when it is added. Selecting one passes them by reference; a blend
 * `sum_i s_i B_i (A_i x)` is one adapter again, with the A and B of its members side by side along the rank and
 * `s_i` repeated over the ranks of member i.
 */
export class AdapterBank {
  readonly #ort: OrtModule;
  readonly #fixedRank: number | undefined;
  readonly #inputs: AdapterInput[] = [];
  /** Component to strength input. */
  readonly #strengthInputs = new Map<string, { name: string; type: Tensor.Type; inputs: string[] }>();
  readonly #adapters = new Map<string, Stack>();
  #base: Stack | undefined;
  /** The blend in use, kept while only its strengths change. */
  #blend: { key: string; stack: Stack } | undefined;
  #zeros = new Float32Array(0);

  /**
   * @param components the opened graphs that `slots` speaks of
   * @param file of the slots, for messages
   * @throws InputError when the graphs have not the inputs that the slots name
   */
  constructor(
    ort: OrtModule,
    slots: SlotsFile,
    components: ReadonlyMap<string, Pick<Component, "input">>,
    file: string,
  ) {
    this.#ort = ort;
    this.#fixedRank = slots.rank.kind === "fixed" ? slots.rank.rank : undefined;
    for (const [name, { strengthInput, slots: layers }] of Object.entries(slots.components)) {
      const component = components.get(name);
      if (!component) {
        throw new InputError({ what: "slots for a graph that this pipeline does not open", file, where: name });
      }
      const names: string[] = [];
      for (const slot of layers) {
        for (const [input, shape] of [
          [slot.inputA, slot.shapeA],
          [slot.inputB, slot.shapeB],
        ] as const) {
          const rankAxis = shape.indexOf("rank");
          if (rankAxis < 0 || rankAxis !== shape.lastIndexOf("rank")) {
            throw new InputError({ what: 'a shape needs the dimension "rank" exactly once', file, where: input });
          }
          this.#inputs.push({ name: input, type: component.input(input).type, shape, rankAxis });
          names.push(input);
        }
      }
      const { type } = component.input(strengthInput);
      this.#strengthInputs.set(name, { name: strengthInput, type, inputs: names });
    }
  }

  get names(): string[] {
    return [...this.#adapters.keys()];
  }

  has(name: string): boolean {
    return this.#adapters.has(name);
  }

  /** Forgets an adapter; tensors of a selection already made stay valid. */
  remove(name: string): void {
    this.#adapters.delete(name);
    this.#blend = undefined;
  }

  /**
   * Reads an adapter: safetensors with the graph inputs' names, one rank for the whole file. Slots it leaves out do nothing.
   *
   * @throws InputError when tensors are unknown or halved, shapes do not fit, or the rank exceeds what the graph takes
   */
  add(name: string, bytes: Uint8Array, file: string): void {
    const { tensors, metadata, rank } = this.#read(bytes, file);
    const tensorRank = this.#fixedRank ?? rank;
    if (rank > tensorRank) {
      throw new InputError({
        what: "the adapter's rank exceeds the graph's",
        file,
        expected: `at most ${tensorRank}`,
        got: String(rank),
        fix: `Expose the model with rank ${rank} or more`,
      });
    }
    const complete = new Map<string, Tensor>();
    for (const input of this.#inputs) {
      const values = tensors.get(input.name);
      const dims = concrete(input.shape, tensorRank);
      const padded = values && sliceAlong(values, concrete(input.shape, rank), input.rankAxis, tensorRank);
      complete.set(
        input.name,
        padded ? floatTensor(this.#ort, input.type, padded, dims) : this.#zero(input, tensorRank),
      );
    }
    // A file may be padded itself: then only its own ranks take part in blends.
    const stated = Number(metadata["quad.rank"] ?? rank);
    const own = Number.isInteger(stated) && stated > 0 && stated < rank ? stated : rank;
    this.#adapters.set(name, { ranks: [own], tensors: complete });
    this.#blend = undefined;
  }

  /**
   * The tensors of a selection. Nothing is copied unless several adapters are blended for the first time in a row.
   *
   * @throws InputError for a name that was not added, a strength that is no finite number, or more ranks than the graph takes
   */
  select(strengths: Strengths): AdapterFeeds {
    for (const [name, strength] of strengths) {
      if (Number.isFinite(strength)) continue;
      throw new InputError({ what: `the strength of adapter ${name} is no finite number`, got: String(strength) });
    }
    const names = [...strengths.keys()].filter((name) => strengths.get(name) !== 0).sort();
    const stack = this.#stack(names);
    const total = stack.ranks.reduce((sum, rank) => sum + rank, 0);
    const factors = new Float32Array(this.#fixedRank ?? total);
    let at = 0;
    stack.ranks.forEach((rank, index) => {
      factors.fill(strengths.get(names[index]!)!, at, at + rank);
      at += rank;
    });
    const feeds = new Map<string, Record<string, Tensor>>();
    for (const [component, { name, type, inputs }] of this.#strengthInputs) {
      const record: Record<string, Tensor> = {};
      for (const input of inputs) record[input] = stack.tensors.get(input)!;
      // Ranks that a dynamic file pads with zeros need a factor too.
      const length = this.#fixedRank ?? this.#rankOf(stack) ?? total;
      const values = length === factors.length ? factors : sliceAlong(factors, [factors.length], 0, length);
      record[name] = floatTensor(this.#ort, type, values, [length]);
      feeds.set(component, record);
    }
    return feeds;
  }

  #stack(names: readonly string[]): Stack {
    if (names.length === 0) return (this.#base ??= { ranks: [], tensors: this.#nothing(this.#fixedRank ?? 0) });
    const members = names.map((name) => {
      const member = this.#adapters.get(name);
      if (member) return member;
      throw new InputError({ what: `no adapter ${name}`, expected: `one of ${this.names.join(", ") || "none"}` });
    });
    if (members.length === 1) {
      this.#blend = undefined;
      return members[0]!;
    }
    const key = names.join("\n");
    if (this.#blend?.key !== key) this.#blend = { key, stack: this.#concatenate(members, names) };
    return this.#blend.stack;
  }

  #concatenate(members: readonly Stack[], names: readonly string[]): Stack {
    const ranks = members.map((member) => member.ranks[0]!);
    const sum = ranks.reduce((total, rank) => total + rank, 0);
    if (this.#fixedRank !== undefined && sum > this.#fixedRank) {
      throw new InputError({
        what: `the graph takes rank ${this.#fixedRank}, and a blend needs the sum of its members`,
        got: names.map((name, index) => `${name} ${ranks[index]}`).join(" + "),
        fix: "Blend fewer adapters, or expose the model with a larger or dynamic rank",
      });
    }
    const rank = this.#fixedRank ?? sum;
    const tensors = new Map<string, Tensor>();
    for (const { name, shape, rankAxis, type } of this.#inputs) {
      const parts = members.map((member, index) => {
        const tensor = tensorData(member.tensors.get(name)!);
        return sliceAlong(tensor.data as Float32Array | Uint16Array, tensor.dims, rankAxis, ranks[index]!);
      });
      const joined = concatenateAlong(parts, concrete(shape, 1), rankAxis);
      const data = sliceAlong(joined, concrete(shape, sum), rankAxis, rank);
      tensors.set(name, tensorFrom(this.#ort, { type, data, dims: concrete(shape, rank) }));
    }
    return { ranks, tensors };
  }

  #read(bytes: Uint8Array, file: string) {
    const parsed = parseSafetensors(bytes, file);
    const known = new Map(this.#inputs.map((input) => [input.name, input]));
    const tensors = new Map<string, Float32Array>();
    let rank: number | undefined;
    for (const [name, tensor] of parsed.tensors) {
      const input = known.get(name);
      if (!input) {
        throw new InputError({
          what: "the graphs have no such adapter input",
          file,
          where: name,
          fix: "The adapter was prepared for another exposed model: run quad expose with it again",
        });
      }
      rank ??= tensor.shape[input.rankAxis] ?? 0;
      const expected = concrete(input.shape, rank);
      if (tensor.shape.join() !== expected.join()) {
        throw new InputError({
          what: "the tensor's shape does not fit the graph",
          file,
          where: name,
          expected: `[${expected.join(", ")}]`,
          got: `[${tensor.shape.join(", ")}]`,
        });
      }
      tensors.set(name, toFloat32(tensor, file));
    }
    if (!rank) throw new InputError({ what: "the file holds no adapter tensors", file });
    for (let index = 0; index < this.#inputs.length; index += 2) {
      const [a, b] = [this.#inputs[index]!.name, this.#inputs[index + 1]!.name];
      if (tensors.has(a) === tensors.has(b)) continue;
      throw new InputError({ what: "one half of a slot is missing", file, where: tensors.has(a) ? b : a });
    }
    return { tensors, metadata: parsed.metadata, rank };
  }

  #nothing(rank: number): Map<string, Tensor> {
    return new Map(this.#inputs.map((input) => [input.name, this.#zero(input, rank)]));
  }

  /** Zeros for a slot without an adapter: all slots share one buffer, as large as the largest needs. */
  #zero({ type, shape }: AdapterInput, rank: number): Tensor {
    const dims = concrete(shape, rank);
    const size = dims.reduce((product, length) => product * length, 1);
    if (this.#zeros.length < size) {
      const largest = this.#inputs.map((input) => concrete(input.shape, rank).reduce((a, b) => a * b, 1));
      this.#zeros = new Float32Array(Math.max(...largest));
    }
    return floatTensor(this.#ort, type, this.#zeros.subarray(0, size), dims);
  }

  #rankOf(stack: Stack): number | undefined {
    const input = this.#inputs[0];
    return input && stack.tensors.get(input.name)!.dims[input.rankAxis];
  }
}

function concrete(shape: Slot["shapeA"], rank: number): number[] {
  return shape.map((size) => (size === "rank" ? rank : size));
}
