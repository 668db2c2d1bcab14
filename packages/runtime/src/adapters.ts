import { concatenateAlong, InputError, type NumberArray, sliceAlong } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import { type BundleIdentity, readAdapterFile } from "./adapter-file.ts";
import { type AdapterInput, adapterInputs, concrete, zerosOf } from "./adapter-inputs.ts";
import type { SlotsFile } from "./configs.ts";
import { type Component, floatTensor, type OrtModule, tensorData, tensorFrom } from "./ort.ts";

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

/**
 * The adapters of one pipeline, and the tensors that select among them.
 *
 * An adapter's tensors are made once, when it is added. Selecting one passes them by reference; a blend
 * `sum_i s_i B_i (A_i x)` is one adapter again, with the A and B of its members side by side along the rank and
 * `s_i` repeated over the ranks of member i. Graphs of bundles take integer codes instead of floats: all adapters share the
 * scales and 0 stands for zero, so that codes side by side are the blend too, and nothing is ever rounded here.
 */
export class AdapterBank {
  readonly #ort: OrtModule;
  readonly #fixedRank: number | undefined;
  readonly #identity: BundleIdentity | undefined;
  readonly #inputs: AdapterInput[] = [];
  /** Component to strength input. */
  readonly #strengthInputs = new Map<string, { name: string; type: Tensor.Type; inputs: string[] }>();
  readonly #adapters = new Map<string, Stack>();
  #base: Stack | undefined;
  /** The blend in use, kept while only its strengths change. */
  #blend: { key: string; stack: Stack } | undefined;
  #zeros = new ArrayBuffer(0);

  /**
   * @param components - the opened graphs that `slots` speaks of
   * @param file - of the slots, for messages
   * @param identity - of the bundle the graphs belong to: adapters made for another one are then refused
   * @throws InputError when the graphs have not the inputs that the slots name
   */
  constructor(
    ort: OrtModule,
    slots: SlotsFile,
    components: ReadonlyMap<string, Pick<Component, "input">>,
    file: string,
    identity?: BundleIdentity,
  ) {
    this.#ort = ort;
    this.#identity = identity;
    this.#fixedRank = slots.rank.kind === "fixed" ? slots.rank.rank : undefined;
    for (const [name, layout] of Object.entries(slots.components)) {
      const component = components.get(name);
      if (!component) {
        throw new InputError({ what: "slots for a graph that this pipeline does not open", file, where: name });
      }
      const inputs = adapterInputs(layout, component, file);
      this.#inputs.push(...inputs);
      const { strengthInput } = layout;
      const { type } = component.input(strengthInput);
      this.#strengthInputs.set(name, { name: strengthInput, type, inputs: inputs.map((input) => input.name) });
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
   * Graphs with float inputs take files of any float type; those with integer inputs take codes (I8, I16) of their bundle.
   *
   * @throws InputError when tensors are unknown or halved, shapes or element types do not fit, the rank exceeds what the graph
   *   takes, or the codes belong to another bundle
   */
  add(name: string, bytes: Uint8Array, file: string): void {
    const { tensors, ownRank, rank } = readAdapterFile(bytes, file, this.#inputs, this.#identity);
    const tensorRank = this.#fixedRank ?? rank;
    if (rank > tensorRank) {
      throw new InputError({
        what: "the adapter's rank exceeds the graph's",
        file,
        expected: `at most ${tensorRank}`,
        got: String(rank),
        fix: `Expose the model with rank ${rank} or more.`,
      });
    }
    const complete = new Map<string, Tensor>();
    for (const input of this.#inputs) {
      const values = tensors.get(input.name);
      const dims = concrete(input.shape, tensorRank);
      const padded = values && sliceAlong(values, concrete(input.shape, rank), input.rankAxis, tensorRank);
      complete.set(
        input.name,
        padded ? tensorFrom(this.#ort, { type: input.type, data: padded, dims }) : this.#zero(input, tensorRank),
      );
    }
    // A file may be padded itself: then only its own ranks take part in blends.
    this.#adapters.set(name, { ranks: [ownRank], tensors: complete });
    this.#blend = undefined;
  }

  /**
   * The tensors of a selection. Nothing is copied unless several adapters are blended for the first time in a row.
   *
   * @throws InputError for a name that was not added, a strength that is not a finite number, or more ranks than the graph takes
   */
  select(strengths: Strengths): AdapterFeeds {
    for (const [name, strength] of strengths) {
      if (Number.isFinite(strength)) continue;
      throw new InputError({ what: `the strength of adapter ${name} is not a finite number`, got: String(strength) });
    }
    const names = [...strengths.keys()].filter((name) => strengths.get(name) !== 0).sort();
    const stack = this.#stack(names);
    const total = stack.ranks.reduce((sum, rank) => sum + rank, 0);
    const factors = new Float32Array(this.#fixedRank ?? total);
    let at = 0;
    stack.ranks.forEach((rank, index) => {
      factors.fill(strengths.get(names[index])!, at, at + rank);
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
      return members[0];
    }
    const key = names.join("\n");
    if (this.#blend?.key !== key) this.#blend = { key, stack: this.#concatenate(members, names) };
    return this.#blend.stack;
  }

  #concatenate(members: readonly Stack[], names: readonly string[]): Stack {
    const ranks = members.map((member) => member.ranks[0]);
    const sum = ranks.reduce((total, rank) => total + rank, 0);
    if (this.#fixedRank !== undefined && sum > this.#fixedRank) {
      throw new InputError({
        what: `the graph takes rank ${this.#fixedRank}, and a blend needs the sum of its members`,
        got: names.map((name, index) => `${name} ${ranks[index]}`).join(" + "),
        fix: "Blend fewer adapters, or expose the model with a larger or dynamic rank.",
      });
    }
    const rank = this.#fixedRank ?? sum;
    const tensors = new Map<string, Tensor>();
    for (const { name, shape, rankAxis, type } of this.#inputs) {
      const parts = members.map((member, index) => {
        const tensor = tensorData(member.tensors.get(name)!);
        return sliceAlong(tensor.data as NumberArray, tensor.dims, rankAxis, ranks[index]);
      });
      const joined = concatenateAlong(parts, concrete(shape, 1), rankAxis);
      const data = sliceAlong(joined, concrete(shape, sum), rankAxis, rank);
      tensors.set(name, tensorFrom(this.#ort, { type, data, dims: concrete(shape, rank) }));
    }
    return { ranks, tensors };
  }

  #nothing(rank: number): Map<string, Tensor> {
    return new Map(this.#inputs.map((input) => [input.name, this.#zero(input, rank)]));
  }

  /** Zeros for a slot without an adapter: all slots share one buffer, as large as the largest needs. */
  #zero(input: AdapterInput, rank: number): Tensor {
    const dims = concrete(input.shape, rank);
    const needed = Math.max(...this.#inputs.map(({ shape }) => product(concrete(shape, rank))));
    const largestElement = 4;
    if (this.#zeros.byteLength < needed * largestElement) this.#zeros = new ArrayBuffer(needed * largestElement);
    return tensorFrom(this.#ort, { type: input.type, data: zerosOf(input, this.#zeros, product(dims)), dims });
  }

  #rankOf(stack: Stack): number | undefined {
    const input = this.#inputs[0];
    return input && stack.tensors.get(input.name)!.dims[input.rankAxis];
  }
}

function product(sizes: readonly number[]): number {
  return sizes.reduce((result, size) => result * size, 1);
}
