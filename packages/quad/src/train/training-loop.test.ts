import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { Builder, Graph, inferShapes, Model, meanSquaredError, packInputs } from "@quad-lora/onnx";
import { SeededRandom } from "@quad-lora/runtime";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildTrainingGraph, TrainingSession } from "./training-graph.ts";
import { type BatchSource, learningRateAt, type TrainingOptions, trainingLoop } from "./training-loop.ts";

const folder = mkdtempSync(join(tmpdir(), "quad-loop-"));
let session: TrainingSession;

const [rows, inputs] = [8, 3];
const truth = [0.5, -1, 2];

/** Linear regression: `y = x w`, batches drawn from the random stream. */
const regression: BatchSource = (_step, random) => {
  const x = Float32Array.from({ length: rows * inputs }, () => random.normal());
  const y = Float32Array.from({ length: rows }, (_, row) =>
    truth.reduce((sum, weight, column) => sum + weight * x[row * inputs + column], 0),
  );
  return {
    x: { type: "float32", dims: [rows, inputs], data: x },
    y: { type: "float32", dims: [rows, 1], data: y },
  };
};

beforeAll(async () => {
  const graph = new Graph("regression");
  const model = new Model(graph);
  model.opsets.set("", 17);
  const x = graph.addInput("x", "float32", [rows, inputs]);
  const y = graph.addInput("y", "float32", [rows, 1]);
  const w = graph.addInput("w", "float32", [inputs, 1]);
  const prediction = graph.apply("MatMul", [x, w]);
  graph.outputs.push(prediction);
  await inferShapes(model, {});
  const packed = packInputs(model, [w], "parameters");
  const loss = meanSquaredError(new Builder(model), prediction, y);
  const training = await buildTrainingGraph(model, loss, packed, { clipNorm: 5, weightDecay: 0 });
  session = await TrainingSession.open(training, "parameters");
});
afterAll(async () => {
  await session.release();
  rmSync(folder, { recursive: true, force: true });
});

const settings = { steps: 40, learningRate: 0.1, warmup: 4, averageDecay: 0.9, seed: 3 };
const checkpointAt = (name: string, every = 5) => ({ path: join(folder, name), every, identity: "regression" });
const train = (options: Partial<TrainingOptions> = {}, batch = regression) =>
  trainingLoop(session, new Float32Array(inputs), batch, { ...settings, ...options });

describe("training", () => {
  test("finds the weights", async () => {
    const { parameters, last, curve } = await train({ steps: 300, averageDecay: 0 });
    expect(parameters).toBe(last);
    truth.forEach((weight, index) => {
      expect(last[index]).toBeCloseTo(weight, 3);
    });
    expect(curve.losses).toHaveLength(300);
    expect(curve.losses[299]).toBeLessThan(1e-5 * curve.losses[0]);
  });

  test("is repeatable, byte for byte, and another seed gives something else", async () => {
    const [first, second, other] = [await train(), await train(), await train({ seed: 4 })];
    expect(second.last).toEqual(first.last);
    expect(second.curve).toEqual(first.curve);
    expect(other.curve.losses).not.toEqual(first.curve.losses);
  });

  test("one step is AdamW's", async () => {
    const batch = regression(0, new SeededRandom(settings.seed)) as Record<string, { data: Float32Array }>;
    const { x, y } = batch;
    // Gradient of the mean squared error at w = 0: -2 / rows * x' y.
    const gradient = truth.map((_, column) => {
      let sum = 0;
      for (let row = 0; row < rows; row++) sum += x.data[row * inputs + column] * y.data[row];
      return (-2 / rows) * sum;
    });
    const norm = Math.hypot(...gradient);
    const { last, curve } = await train({ steps: 1, warmup: 0, averageDecay: 0 });
    expect(curve.gradientNorms[0]).toBeCloseTo(norm, 4);
    // The first corrected step is the sign of the gradient, whatever its size.
    gradient.forEach((value, index) => {
      expect(last[index]).toBeCloseTo(-settings.learningRate * Math.sign(value), 5);
    });
  });

  test("the moving average follows its recursion", async () => {
    const seen: Float32Array[] = [];
    const trajectory: Float32Array[] = [];
    const collectInto = (list: Float32Array[]) => ({
      every: 1,
      evaluate: async (parameters: Float32Array) => {
        list.push(parameters.slice());
        return -list.length;
      },
    });
    const result = await train({ evaluation: collectInto(seen) });
    await train({ averageDecay: 0, evaluation: collectInto(trajectory) });
    let average = new Float64Array(inputs);
    trajectory.forEach((parameters, index) => {
      const decay = Math.min(0.9, (2 + index) / (11 + index));
      average = average.map((value, place) => decay * value + (1 - decay) * parameters[place]);
      average.forEach((value, place) => {
        expect(seen[index][place]).toBeCloseTo(value, 4);
      });
    });
    expect(result.best?.step).toBe(settings.steps);
  });

  test("the best evaluated parameters are the result", async () => {
    const values = [4, 1, 3, 2];
    const measured: Float32Array[] = [];
    const evaluate = async (parameters: Float32Array) => {
      measured.push(parameters.slice());
      return values[measured.length - 1];
    };
    const { parameters, best, curve } = await train({ evaluation: { every: 10, evaluate } });
    expect(best).toMatchObject({ step: 20, value: 1 });
    expect(parameters).toEqual(measured[1]);
    expect(curve.evaluations).toEqual(values.map((value, index) => ({ step: 10 * (index + 1), value })));
  });

  test("a loss that is not finite ends it", async () => {
    const broken: BatchSource = async (step, random) => {
      const batch = await regression(step, random);
      if (step === 2) (batch.x.data as Float32Array)[0] = Number.NaN;
      return batch;
    };
    const error = await train({}, broken).catch((reason) => reason);
    expect(error).toBeInstanceOf(InputError);
    expect(error.message).toMatch(/step 3: training diverged.*Lower the learning rate/);
  });
});

describe("going on after a stop", () => {
  const evaluation = { every: 8, evaluate: async (parameters: Float32Array) => Math.hypot(...parameters) };

  test.each([1, 4, 5, 17, 39])("killed in step %i: the same as without a stop", async (killedAt) => {
    const whole = await train({ evaluation });
    const checkpoint = checkpointAt(`killed-${killedAt}`);
    const dying: BatchSource = (step, random) => {
      if (step === killedAt) throw new Error("killed");
      return regression(step, random);
    };
    await expect(train({ evaluation, checkpoint }, dying)).rejects.toThrow("killed");
    const { resumedFrom, ...resumed } = await train({ evaluation, checkpoint });
    expect(resumedFrom).toBe(killedAt - (killedAt % 5));
    const { resumedFrom: _fresh, ...expected } = whole;
    expect(resumed).toEqual(expected);
  });

  test.each([1, 7, 20])("aborted after step %i: a checkpoint of that step", async (abortedAt) => {
    const whole = await train();
    const checkpoint = checkpointAt(`aborted-${abortedAt}`, 1000);
    const controller = new AbortController();
    const reason = new Error("enough");
    const onStep = ({ step }: { step: number }) => step === abortedAt && controller.abort(reason);
    await expect(
      train({ checkpoint, signal: controller.signal, onStep: (progress) => void onStep(progress) }),
    ).rejects.toBe(reason);
    const resumed = await train({ checkpoint });
    expect(resumed.resumedFrom).toBe(abortedAt);
    expect(resumed.last).toEqual(whole.last);
    expect(resumed.average).toEqual(whole.average);
    expect(resumed.curve).toEqual(whole.curve);
  });

  test("a checkpoint of another run is refused", async () => {
    const checkpoint = checkpointAt("other");
    await train({ checkpoint });
    const error = await train({ checkpoint: { ...checkpoint, identity: "else" } }).catch((reason) => reason);
    expect(error).toBeInstanceOf(InputError);
    expect(error.message).toContain(checkpoint.path);
  });

  test("the loss curve is written as JSON", async () => {
    const curvePath = join(folder, "curve.json");
    const { curve } = await train({ curvePath });
    expect(existsSync(curvePath)).toBe(true);
    expect(JSON.parse(readFileSync(curvePath, "utf8"))).toEqual({
      format: "quad-training-curve",
      version: 1,
      ...curve,
    });
  });
});

test("the learning rate warms up linearly and follows half a cosine to zero", () => {
  const options = { steps: 110, learningRate: 2, warmup: 10 };
  expect(learningRateAt(0, options)).toBeCloseTo(0.2);
  expect(learningRateAt(9, options)).toBe(2);
  expect(learningRateAt(10, options)).toBe(2);
  expect(learningRateAt(60, options)).toBeCloseTo(1);
  expect(learningRateAt(35, options)).toBeCloseTo(1 + Math.SQRT1_2);
  expect(learningRateAt(109, options)).toBeLessThan(0.001);
  expect(learningRateAt(70, { ...options, schedule: "constant" })).toBe(2);
});
