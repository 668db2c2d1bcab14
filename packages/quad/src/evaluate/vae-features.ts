import { existsSync } from "node:fs";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { type Encoders, openEncoders } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { folderFiles } from "../files/folder-files.ts";
import type { Image, ImageFeatures } from "../metrics/index.ts";

/** Cells per side that latents are averaged over. */
const grid = 4;

/**
 * Features of pictures by a model's own autoencoder: the encoder's mean latents times the scaling factor, averaged over a
 * 4 x 4 grid of cells, so that their number (16 x latent channels) is the same for every picture size. They serve a Fréchet
 * distance where no Inception network is at hand; its values compare only within one model.
 */
export class VaeFeatures {
  readonly #encoders: Encoders;

  private constructor(encoders: Encoders) {
    this.#encoders = encoders;
  }

  /** @throws InputError if the folder has no encoder */
  static async open(folder: string): Promise<VaeFeatures> {
    const file = join(folder, "vae_encoder/model.onnx");
    if (!existsSync(file)) throw new InputError({ what: "there is no such file", file, expected: "a VAE encoder" });
    const sessionOptions = { logSeverityLevel: 3 as const };
    return new VaeFeatures(await openEncoders({ ort: ort as never, files: folderFiles(folder), sessionOptions }));
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

  async #row(image: Image): Promise<Float32Array> {
    const { dims, values } = await this.#encoders.encodeImage(image);
    const [channels, rows, columns] = dims;
    const features = new Float32Array(channels * grid * grid);
    const counts = new Float32Array(features.length);
    for (let channel = 0; channel < channels; channel++) {
      for (let y = 0; y < rows; y++) {
        for (let x = 0; x < columns; x++) {
          const cell = Math.floor((y * grid) / rows) * grid + Math.floor((x * grid) / columns);
          features[channel * grid * grid + cell] += values[(channel * rows + y) * columns + x];
          counts[channel * grid * grid + cell]++;
        }
      }
    }
    return features.map((sum, index) => sum / Math.max(counts[index], 1));
  }

  dispose(): Promise<void> {
    return this.#encoders.dispose();
  }
}
