import { floatValues, withRows } from "../model/denoiser-calls.ts";
import { thin } from "../profile/sensitivity.ts";
import { type Encoding, encodingRange } from "../quantization/index.ts";
import type { TaskNoise } from "../records/evaluation.ts";
import type { Trajectory } from "../records/trajectory.ts";
import type { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import { encodingInputs } from "../simulate/simulation-graph.ts";
import type { StageOptions } from "../work/progress.ts";
import { adaptersOf } from "./cases.ts";
import type { Simulations } from "./simulations.ts";

export interface NoiseOptions extends StageOptions {
  /** Denoiser calls per task that everything is measured on. */
  calls: number;
  /** A bundle whose own adapters are measured; else the originals are encoded on the profile. */
  bundle?: string | undefined;
}

/**
 * Where a task's error comes from: the noise that each cause adds to the denoiser's output on its own, over the output's
 * power. A layer's share is the difference that rounding and clipping its inputs alone makes, with all other activations
 * exact; so noise of layers adds up to about the whole as long as it is small.
 */
export async function measureNoise(
  simulations: Simulations,
  trajectories: readonly Trajectory[],
  options: NoiseOptions,
): Promise<Record<string, TaskNoise>> {
  const { profile, tasks } = simulations.sources;
  const simulated = await simulations.simulate();
  const { points, layers, pipeline } = simulated;
  try {
    const encodings = simulations.profileEncodings(points);
    const isBetween = points.map(({ kind }) => kind === "activation");
    const result: Record<string, TaskNoise> = {};
    const total = trajectories.length * (layers.length + 4);
    let done = 0;
    for (const trajectory of trajectories) {
      const { task } = trajectory;
      // Tasks without guidance run single rows; the simulated graph has a fixed number of them.
      const calls = thin(trajectory, options.calls).calls.map((call) => withRows(call, profile.shape));
      const selection = adaptersOf(task, tasks.get(task) ?? {});
      const run = async (active: (index: number) => boolean): Promise<Float32Array[]> => {
        options.signal?.throwIfAborted();
        bindEncodings(simulated, encodings, active);
        const outputs: Float32Array[] = [];
        for (const call of calls) outputs.push((await simulated.predict(call)).slice());
        options.onProgress?.(`measuring layers: ${task}`, ++done, total);
        return outputs;
      };
      const exact = calls.map((call) => floatValues(call.output));

      for (const [name, bytes] of await simulations.original(task)) pipeline.addAdapter(name, bytes);
      await pipeline.use(selection);
      const rounded = await run(() => false);
      const bundled = options.bundle ? await simulations.bundled(options.bundle, task) : null;
      for (const [name, values] of bundled ?? simulations.encoded(task, "shared")) simulated.setAdapter(name, values);
      await pipeline.use(selection);
      const encoded = await run(() => false);
      const relative = (outputs: readonly Float32Array[], reference: readonly Float32Array[]) =>
        difference(outputs, reference) / power(exact);
      const noise: TaskNoise = {
        total: relative(await run(() => true), exact),
        weights: relative(rounded, exact),
        adapter: relative(encoded, rounded),
        between: isBetween.some(Boolean) ? relative(await run((index) => isBetween[index]), encoded) : null,
        layers: {},
      };
      if (noise.between === null) done++;
      for (const { name } of layers) {
        const outputs = await run((index) => points[index].layer === name);
        noise.layers[name] = relative(outputs, encoded);
      }
      result[task] = noise;
    }
    return result;
  } finally {
    await simulated.dispose();
  }
}

/** Grid so fine and wide that rounding to it changes no float32 value by more than 2^-21. */
const exactGrid = { scale: 2 ** -20, low: -1e30, high: 1e30 };

/** Sets the encodings of the active points; the others let every value through. */
function bindEncodings(
  simulated: SimulatedPipeline,
  encodings: readonly Encoding[],
  active: (index: number) => boolean,
): void {
  const ranges = encodings.map((encoding, index) =>
    active(index)
      ? { scale: encoding.scale[0], low: encodingRange(encoding).min, high: encodingRange(encoding).max }
      : exactGrid,
  );
  const vector = (key: keyof typeof exactGrid) => ({
    type: "float32" as const,
    dims: [ranges.length],
    data: Float32Array.from(ranges, (range) => range[key]),
  });
  simulated.pipeline.bind(simulated.component, {
    [encodingInputs.scale]: vector("scale"),
    [encodingInputs.low]: vector("low"),
    [encodingInputs.high]: vector("high"),
  });
}

function difference(a: readonly Float32Array[], b: readonly Float32Array[]): number {
  let sum = 0;
  for (const [index, values] of a.entries()) {
    for (let i = 0; i < values.length; i++) sum += (values[i] - b[index][i]) ** 2;
  }
  return sum;
}

function power(values: readonly Float32Array[]): number {
  let sum = 0;
  for (const list of values) for (const value of list) sum += value * value;
  return sum;
}
