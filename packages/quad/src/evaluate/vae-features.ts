import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { z } from "zod";
import { parseJsonFile } from "../files/json.ts";
import type { Image, ImageFeatures } from "../metrics/index.ts";

/** Cells per side that latents are averaged over. */
const grid = 4;

const configSchema = z.looseObject({ scaling_factor: z.number().positive().default(0.18215) });

/**
 * Features of pictures by a model's own autoencoder: the encoder's mean latents times the scaling factor, averaged over a
 * 4 x 4 grid of cells, so that their number (16 x latent channels) is the same for every picture size. They serve a Fréchet
 * distance where no Inception network is at hand; its values compare only within one model.
 */
export class VaeFeatures {
  readonly #session: InferenceSession;
  readonly #scale: number;
  readonly #file: string;

  private constructor(session: InferenceSession, scale: number, file: string) {
    this.#session = session;
    this.#scale = scale;
    this.#file = file;
  }

  /** @throws InputError if the folder has no encoder */
  static async open(folder: string): Promise<VaeFeatures> {
    const file = join(folder, "vae_encoder/model.onnx");
    if (!existsSync(file)) throw new InputError({ what: "there is no such file", file, expected: "a VAE encoder" });
    const config = join(folder, "vae_decoder/config.json");
    const text = existsSync(config) ? await readFile(config, "utf8") : "{}";
    const { scaling_factor: scale } = parseJsonFile(config, text, configSchema);
    return new VaeFeatures(await InferenceSession.create(file, { logSeverityLevel: 3 }), scale, file);
  }

  /** `[images, 16 * channels]` */
  async of(images: readonly Image[]): Promise<ImageFeatures> {
    const rows: Float32Array[] = [];
    for (const image of images) rows.push(await this.#row(image));
    const dim = rows[0]?.length ?? 0;
    const data = new Float32Array(rows.length * dim);
    for (const [index, row] of rows.entries()) data.set(row, index * dim);
    return { data, dim };
  }

  async #row({ width, height, data }: Image): Promise<Float32Array> {
    const plane = width * height;
    const planes = Float32Array.from(
      { length: 3 * plane },
      (_, i) => data[3 * (i % plane) + Math.floor(i / plane)] / 127.5 - 1,
    );
    const sample = new Tensor("float32", planes, [1, 3, height, width]);
    const outputs = await this.#session.run({ [this.#session.inputNames[0]]: sample });
    const name = "latent_parameters" in outputs ? "latent_parameters" : this.#session.outputNames[0];
    const latents = outputs[name];
    if (latents.type !== "float32" || latents.dims.length !== 4) {
      throw new InputError({
        what: "the encoder's output is not a float32 [1, channels, height, width]",
        file: this.#file,
      });
    }
    // Mean and log-variance stand side by side in Optimum's exports.
    const channels = name === "latent_parameters" ? latents.dims[1] / 2 : latents.dims[1];
    const [, , rows, columns] = latents.dims;
    const values = latents.data as Float32Array;
    const features = new Float32Array(channels * grid * grid);
    const counts = new Float32Array(features.length);
    for (let channel = 0; channel < channels; channel++) {
      for (let y = 0; y < rows; y++) {
        for (let x = 0; x < columns; x++) {
          const cell = Math.floor((y * grid) / rows) * grid + Math.floor((x * grid) / columns);
          features[channel * grid * grid + cell] += this.#scale * values[(channel * rows + y) * columns + x];
          counts[channel * grid * grid + cell]++;
        }
      }
    }
    return features.map((sum, index) => sum / Math.max(counts[index], 1));
  }

  dispose(): Promise<void> {
    return this.#session.release();
  }
}
