import { InputError } from "@quad-lora/base";
import type { InferenceSession } from "onnxruntime-common";
import type { VaeConfig } from "./configs.ts";
import { pixelsPerLatent, readVaeConfig } from "./default-size.ts";
import type { FolderFiles } from "./files.ts";
import { imageToPlanes, type Mask, planesToImage, type RgbImage } from "./images.ts";
import { Component, disposedError, floatsOf, floatTensor, type OrtModule } from "./ort.ts";

/** The variational autoencoder between pictures and latents; the encoder is opened when first needed. */
export class Autoencoder {
  readonly config: VaeConfig;
  readonly #ort: OrtModule;
  readonly #decoder: Component | undefined;
  readonly #openEncoder: () => Promise<Component>;
  #encoder: Promise<Component> | undefined;
  #isReleased = false;
  readonly #grey = new Map<string, Float32Array>();

  private constructor(
    ort: OrtModule,
    config: VaeConfig,
    openEncoder: () => Promise<Component>,
    decoder: Component | undefined,
  ) {
    this.#ort = ort;
    this.#decoder = decoder;
    this.config = config;
    this.#openEncoder = openEncoder;
  }

  static async open(
    ort: OrtModule,
    files: FolderFiles,
    optionsFor: (component: string) => InferenceSession.SessionOptions | undefined,
  ): Promise<Autoencoder> {
    const config = await readVaeConfig(files);
    const decoder = await Component.open(ort, files, "vae_decoder", optionsFor("vae_decoder"));
    const openEncoder = () => Component.open(ort, files, "vae_encoder", optionsFor("vae_encoder"));
    return new Autoencoder(ort, config, openEncoder, decoder);
  }

  /** Without the decoder, to encode only. */
  static async openEncoder(
    ort: OrtModule,
    files: FolderFiles,
    optionsFor: (component: string) => InferenceSession.SessionOptions | undefined,
  ): Promise<Autoencoder> {
    const openEncoder = () => Component.open(ort, files, "vae_encoder", optionsFor("vae_encoder"));
    return new Autoencoder(ort, await readVaeConfig(files), openEncoder, undefined);
  }

  get decoder(): Component {
    if (this.#decoder) return this.#decoder;
    throw new Error("this autoencoder was opened to encode only");
  }

  get latentChannels(): number {
    const channels = this.#decoder?.input("latent_sample").shape[1];
    return typeof channels === "number" ? channels : this.config.latent_channels;
  }

  /** Pixels per latent along one side. */
  get factor(): number {
    return pixelsPerLatent(this.config);
  }

  /** The encoder's graph. @throws InputError after {@link release}: nothing would free it */
  async encoder(): Promise<Component> {
    if (this.#isReleased) throw disposedError();
    return (this.#encoder ??= this.#openEncoder());
  }

  /**
   * The mean of the encoding, shifted and scaled as the configuration says: `[latent channels, height / factor, width / factor]`.
   * Pixels under the mask are mid-grey.
   */
  async encode(image: RgbImage, mask?: Mask): Promise<Float32Array> {
    return this.#encode(imageToPlanes(image, mask), image.width, image.height);
  }

  /** The encoding of a mid-grey picture, which stands for "no picture". Kept per size. */
  async encodeGrey(width: number, height: number): Promise<Float32Array> {
    const key = `${width}x${height}`;
    const known = this.#grey.get(key);
    if (known) return known;
    const latents = await this.#encode(new Float32Array(3 * width * height), width, height);
    this.#grey.set(key, latents);
    return latents;
  }

  /** Scaled latents as the decoder takes them. */
  unscale(latents: Float32Array): Float32Array {
    const { scaling_factor: scale, shift_factor } = this.config;
    const shift = shift_factor ?? 0;
    return latents.map((value) => value / scale + shift);
  }

  /** The picture of scaled latents. */
  async decode(latents: Float32Array, width: number, height: number): Promise<RgbImage & { data: Uint8Array }> {
    const port = this.decoder.input("latent_sample");
    const dims = [1, this.latentChannels, height / this.factor, width / this.factor];
    const unscaled = this.unscale(latents);
    const outputs = await this.decoder.run({ [port.name]: floatTensor(this.#ort, port.type, unscaled, dims) });
    const sample = outputs.sample ?? Object.values(outputs)[0];
    return planesToImage(floatsOf(sample), width, height);
  }

  async release(): Promise<void> {
    this.#isReleased = true;
    await this.#decoder?.release();
    // One that could not be opened holds nothing.
    await (await this.#encoder?.catch(() => undefined))?.release();
  }

  async #encode(planes: Float32Array, width: number, height: number): Promise<Float32Array> {
    const encoder = await this.encoder();
    const port = encoder.input("sample");
    const outputs = await encoder.run({
      [port.name]: floatTensor(this.#ort, port.type, planes, [1, 3, height, width]),
    });
    // Optimum gives mean and log-variance side by side; older exports give latents, already sampled or the mean.
    const output = outputs.latent_parameters ?? outputs.latent_sample ?? Object.values(outputs)[0];
    const channels = output.dims[1];
    if (channels !== this.latentChannels && channels !== 2 * this.latentChannels) {
      throw new InputError({
        what: "the encoder's output is neither latents nor mean and log-variance",
        file: encoder.file,
        expected: `${this.latentChannels} or ${2 * this.latentChannels} channels`,
        got: String(channels),
      });
    }
    const size = this.latentChannels * output.dims[2] * output.dims[3];
    const { scaling_factor: scale, shift_factor } = this.config;
    const shift = shift_factor ?? 0;
    return floatsOf(output)
      .slice(0, size)
      .map((value) => (value - shift) * scale);
  }
}
