import type { Component } from "../ort.ts";
import type { ScheduleRequest } from "../schedulers/index.ts";

/** What one row of a network's input holds: the input's shape without its batch axis. */
export interface RowInput {
  readonly dims: readonly number[];
  readonly values: ArrayLike<number>;
}

/** Inputs of the denoising network beside the latents, the time and the adapters, by name. */
export type Conditions = Readonly<Record<string, RowInput>>;

/** What one text encoder makes of a prompt; shapes are without the batch axis. */
export interface PromptEncoding {
  /** The first of the outputs that the family asks for: `[tokens, width]`, or `[width]` where it is pooled. */
  readonly states: RowInput;
  /** All outputs that the family asks for, by name. */
  readonly outputs: ReadonlyMap<string, RowInput>;
  /** 1 for every token of the prompt, 0 for padding. */
  readonly mask: readonly number[];
}

/** One text encoder of a family. */
export interface EncoderDefinition {
  /** Folders of the graph and of its tokenizer. */
  readonly component: string;
  readonly tokenizer: string;
  /** Tokens per prompt, where the family says it and not the tokenizer. */
  tokens?(schedulerConfig: Readonly<Record<string, unknown>>): number;
  /** Models are published without it. */
  readonly optional?: boolean;
  /** Names of the outputs that {@link Family.conditions} reads, chosen among those that the graph has. */
  outputs(available: readonly string[]): string[];
  /** What the family's pipeline does to prompts before they are split into tokens. */
  prepare?(prompt: string): string;
}

/** The picture at hand. Latent sizes are in latents. */
export interface Drawing {
  readonly denoiser: Component;
  readonly width: number;
  readonly height: number;
  readonly latentChannels: number;
  readonly latentWidth: number;
  readonly latentHeight: number;
  readonly guidance: number;
}

/** How a network takes latents that are not `[channels, height, width]`. */
export interface LatentLayout {
  /** Shape of one row. */
  readonly dims: readonly number[];
  pack(latents: Float32Array, out: Float32Array): void;
  unpack(row: Float32Array, out: Float32Array): void;
}

/** A kind of model: which graphs a folder has, and how they work together. */
export interface Family {
  /** For messages. */
  readonly name: string;
  /** Values of `_class_name` in `model_index.json`. */
  readonly pipelineClasses: readonly string[];
  /** Folder of the network that denoises. */
  readonly denoiser: "unet" | "transformer";
  /** Name of its input for latents, and of its output. */
  readonly sample: string;
  readonly output: string;
  readonly encoders: readonly EncoderDefinition[];
  /** Whether it predicts the velocity of flow matching, so that it needs a scheduler that does, too. */
  readonly isFlow: boolean;
  /** What calls and tasks that say nothing get. The size is in latents, for networks whose configuration has none. */
  readonly defaults: { readonly guidance: number; readonly steps: number; readonly size: number };
  /** Latents per side that become one token: pictures are multiples of it. */
  readonly patch: number;
  /** What the network is told of the scheduler's timestep: `timestep * scale`, once or for every row of a batch. */
  readonly timestep: { readonly scale: number; readonly perRow: boolean };
  /** Guidance is an input of the network: the one by a second row is then an option of its own, off by default. */
  readonly embedsGuidance?: boolean;
  /** Inputs of the row that a prompt makes. What the graph has no input for is left out. */
  conditions(prompt: ReadonlyMap<string, PromptEncoding>, drawing: Drawing): Conditions;
  /** Inputs of the row that stands for no negative prompt at all, where that is not the empty one. */
  withoutNegative?(conditions: Conditions): Conditions;
  /** Strength of the guidance by the picture, for networks that have rows with and without it; 1: none. */
  readonly imageGuidance?: number;
  /** Folder of a second network, which sees a picture of its own and whose outputs are added inside of the denoiser. */
  readonly control?: string;
  /** Inputs without a batch axis. @param tokens - of the row's text */
  shared?(drawing: Drawing, conditions: Conditions): Conditions;
  layout?(drawing: Drawing): LatentLayout;
  /** What the scheduler has to know of the picture. */
  schedule?(drawing: Drawing, steps: number): Pick<ScheduleRequest, "imageTokens" | "sigmas">;
}

/** The hidden states that come last in a text encoder. */
export function lastStates(available: readonly string[]): string[] {
  return available.includes("last_hidden_state") ? ["last_hidden_state"] : available.slice(0, 1);
}

/** The hidden states before the last layer; the first encoder of two may have no projection. */
export function penultimateAlone(available: readonly string[]): string[] {
  return penultimateStates(available).slice(0, 1);
}

/** The hidden states before the last layer, as a list of one, and the pooled and projected ones. */
export function penultimateStates(available: readonly string[]): string[] {
  const layers = available.filter((name) => /^hidden_states\.\d+$/.test(name)).length;
  return [`hidden_states.${layers - 2}`, "text_embeds"];
}

/** `[tokens, width]` of two encoders side by side: `[tokens, sum of widths]`. */
export function sideBySide(first: RowInput, second: RowInput): RowInput {
  const [tokens, firstWidth] = first.dims;
  const width = firstWidth + second.dims[1];
  return widen(first, width, (values) => {
    for (let token = 0; token < tokens; token++) {
      for (let i = firstWidth; i < width; i++) {
        values[token * width + i] = second.values[token * (width - firstWidth) + i - firstWidth];
      }
    }
  });
}

/** `[tokens, width]` with zeros behind every token. */
export function widen({ dims, values }: RowInput, width: number, fill?: (values: Float32Array) => void): RowInput {
  const [tokens, from] = dims;
  const wide = new Float32Array(tokens * width);
  for (let token = 0; token < tokens; token++) {
    for (let i = 0; i < from; i++) wide[token * width + i] = values[token * from + i];
  }
  fill?.(wide);
  return { dims: [tokens, width], values: wide };
}

/** Rows one behind the other along their first axis. */
export function concatenate(first: RowInput, second: RowInput): RowInput {
  const values = new Float32Array(first.values.length + second.values.length);
  values.set(first.values);
  values.set(second.values, first.values.length);
  return { dims: [first.dims[0] + second.dims[0], ...first.dims.slice(1)], values };
}
