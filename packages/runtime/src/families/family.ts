import type { Autoencoder } from "../autoencoder.ts";
import type { Mask, RgbImage } from "../images.ts";
import type { Component } from "../ort.ts";

/** What one row of a network's input holds: the input's shape without its batch axis. */
export interface RowInput {
  readonly dims: readonly number[];
  readonly values: ArrayLike<number>;
}

/**
 * Inputs of the denoising network beside latents, time and adapters, for one row of a batch, by name. An input of the graph
 * that has no batch axis (ids of positions, a scale) has the dims of the graph itself; it is the same for every row.
 */
export type Conditions = Readonly<Record<string, RowInput>>;

/** One text encoder of a family. */
export interface EncoderDefinition {
  /** Folders of the graph and of its tokenizer. */
  readonly component: string;
  readonly tokenizer: string;
  /** Tokens per prompt, where the family says it and not the tokenizer. */
  tokens?(schedulerConfig: Readonly<Record<string, unknown>>): number;
  /** Models are published without it. */
  readonly optional?: boolean;
  /** Padding is hidden from the encoder itself, by its `attention_mask`. */
  readonly masked?: boolean;
  /** Names of the outputs that {@link Family.encodePrompt} reads, chosen among those that the graph has. */
  outputs(available: readonly string[]): string[];
  /** What the family's pipeline does to prompts before they are split into tokens. */
  prepare?(prompt: string): string;
}

/** What one text encoder makes of a prompt. */
export interface PromptEncoding {
  /** The first of the outputs that the family asked for: hidden states `[tokens, width]` mostly. */
  readonly states: RowInput;
  /** All outputs that it asked for, by name, without the batch axis. */
  readonly outputs: ReadonlyMap<string, RowInput>;
  /** 1 for the prompt's tokens, 0 for padding. */
  readonly mask: readonly number[];
}

/** What an image is to a model: a start for the noise schedule, a condition beside the latents, or what a mask leaves. */
export type ImageUse = "start" | "condition" | "inpaint";

/** The picture at hand. Latent sizes are in latents. */
export interface Drawing {
  readonly denoiser: Component;
  readonly autoencoder: Autoencoder;
  /** Content of `model_index.json`. */
  readonly index: Readonly<Record<string, unknown>>;
  readonly width: number;
  readonly height: number;
  readonly latentChannels: number;
  readonly latentWidth: number;
  readonly latentHeight: number;
  readonly guidance: number;
  readonly imageGuidance: number;
  /** Guidance by a second row where the network also takes guidance as an input. */
  readonly trueGuidance: number;
  readonly imageUse: ImageUse;
  readonly image: RgbImage | undefined;
  /** As large as the picture. */
  readonly mask: Mask | undefined;
  readonly controlImage: RgbImage | undefined;
  readonly controlScale: number;
  /** Scaled latents of the image, `[channels, height, width]`; encoded once. */
  imageLatents(): Promise<Float32Array>;
}

/** How a network takes latents that are not `[channels, height, width]`. */
export interface LatentLayout {
  /** Shape of one row. */
  readonly dims: readonly number[];
  pack(latents: Float32Array, out: Float32Array): void;
  unpack(row: Float32Array, out: Float32Array): void;
}

/** One row of a batch. */
export interface Row {
  readonly conditions: Conditions;
  /** Channels behind the latents, `[more channels, height, width]`. */
  readonly behind?: Float32Array;
}

/**
 * What the network is evaluated on at every step, and how the predictions become one: from the first row on, each is led
 * away from the one before, `p = p0 + sum of strengths[k] (p(k+1) - p(k))`. A single row is its own prediction.
 */
export interface Guided {
  readonly rows: readonly Row[];
  /** One fewer than rows. */
  readonly strengths: readonly number[];
}

/** Encoded prompts. The negative one is encoded when it is asked for. */
export interface Prompts {
  readonly prompt: Conditions;
  negative(): Promise<Conditions>;
}

/** A network that runs before the denoising one at every step, on the same latents and time, and gives some of its inputs. */
export interface Companion {
  readonly component: string;
  /** Inputs of its own, the same in every row; it also gets those that the denoising network has and it takes. */
  conditions(drawing: Drawing, graph: Component): Conditions;
  /** Name of the denoising network's input for one of its outputs. */
  inputFor(output: string): string;
}

/** A kind of model: which graphs a folder has, and how they work together. */
export interface Family {
  /** For messages. */
  readonly name: string;
  /** Values of `_class_name` in `model_index.json`; `Onnx` and `ORT` in front of them are ignored. */
  readonly pipelineClasses: readonly string[];
  /** Folder of the network that denoises. */
  readonly denoiser: "unet" | "transformer";
  /** Inputs of that network by which the family is told from others with the same class. */
  readonly requires: readonly string[];
  /** Name of its input for latents, and of its output. */
  readonly sample: string;
  readonly output: string;
  readonly encoders: readonly EncoderDefinition[];
  readonly companion?: Companion;
  /** Whether it predicts the velocity of flow matching, so that it needs a scheduler that does, too. */
  readonly isFlow: boolean;
  /** What calls and tasks that say nothing get. The size is in latents, for networks whose configuration has none. */
  readonly defaults: {
    readonly guidance: number;
    readonly imageGuidance?: number;
    readonly steps: number;
    readonly size: number;
  };
  /** Latents per side that become one token: pictures are multiples of it. */
  readonly patch: number;
  /** What the network is told of the scheduler's timestep: `timestep * scale`, once or for every row of a batch. */
  readonly timestep: { readonly scale: number; readonly perRow: boolean };
  /** Guidance is an input of the network: the one by a second row is then an option of its own, off by default. */
  readonly embedsGuidance?: boolean;
  /** What the network's further channels make of an image; without it, an image is a start. */
  imageUse?(denoiser: Component, latentChannels: number): ImageUse;
  /**
   * Inputs that a prompt makes: what calls can pass in a prompt's place.
   * @param texts - by the encoder's folder; optional ones may be missing
   * @param textWidth - width of the denoiser's text input, where the graph fixes it
   */
  encodePrompt(texts: ReadonlyMap<string, PromptEncoding>, textWidth: number | undefined): Conditions;
  /** Stands for a negative prompt that was not given. Without it, or where it returns undefined, the empty prompt is encoded. */
  absentNegative?(prompt: Conditions, index: Readonly<Record<string, unknown>>): Conditions | undefined;
  /** Inputs of every row that do not come from its prompt: sizes, positions, embedded guidance. */
  constants?(drawing: Drawing, prompt: Conditions): Conditions;
  /** The rows of a batch. Without it: classifier-free guidance between the negative prompt and the prompt. */
  guide?(prompts: Prompts, drawing: Drawing): Promise<Guided>;
  layout?(drawing: Drawing): LatentLayout;
  /** Noise levels before shifting, descending in (0, 1], one per step. Without it, those of the scheduler. */
  sigmas?(steps: number): readonly number[];
}

/** The hidden states that come last in a text encoder. */
export function lastStates(available: readonly string[]): string[] {
  return available.includes("last_hidden_state") ? ["last_hidden_state"] : available.slice(0, 1);
}

/** The hidden states before the last layer, without a final normalization. Exporters number all, from the embeddings on. */
export function penultimateStates(available: readonly string[]): string[] {
  const numbers = available.flatMap((name) => name.match(/^hidden_states\.(\d+)$/)?.[1] ?? []).map(Number);
  return [`hidden_states.${Math.max(1, ...numbers) - 1}`];
}

/** The same, and the pooled and projected state. */
export function penultimateAndPooled(available: readonly string[]): string[] {
  return [...penultimateStates(available), "text_embeds"];
}
