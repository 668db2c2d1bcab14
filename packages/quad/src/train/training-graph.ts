import { InputError } from "@quad-lora/base";
import {
  type AdamWOptions,
  adamW,
  Builder,
  buildGradients,
  clipByGlobalNorm,
  type Model,
  type PackedParameter,
  type PackedParameters,
  peakBytes,
  runPasses,
  type SegmentOptions,
  scheduleForMemory,
  type Value,
  writeTemporary,
} from "@quad-lora/onnx";
import type { TensorData } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { mean } from "../metrics/mean.ts";

export interface TrainingGraphOptions extends Required<Pick<AdamWOptions, "weightDecay">>, SegmentOptions {
  /** Gradients are scaled down together to this Euclidean norm; infinity leaves them. */
  clipNorm: number;
  /** Decay of the running mean of gradients. */
  beta1?: number;
  /** Decay of the running mean of squared gradients. */
  beta2?: number;
  epsilon?: number;
  /** Numbers to return beside the loss, by name: what it consists of. */
  terms?: Readonly<Record<string, Value>>;
  /** Let gradients pass through Round unchanged, for graphs that simulate quantization. */
  straightThroughRound?: boolean;
}

/** A graph whose run is one training step: forward, backward and the AdamW update. */
export interface TrainingGraph {
  readonly model: Model;
  /** Number of trained values. */
  readonly size: number;
  /** Where each tensor lies in the vector of parameters. */
  readonly layout: readonly PackedParameter[];
  readonly beta1: number;
  readonly beta2: number;
  /** Names of the numbers returned beside the loss. */
  readonly terms: readonly string[];
  /** Estimate of what a step keeps in memory at most: weights, parameters, activations and gradients. */
  readonly peakBytes: number;
}

/** Names of a training graph's own inputs and outputs; the other inputs are the batch. */
export const trainingNames = {
  mean: "training.mean",
  square: "training.square",
  learningRate: "training.learning_rate",
  correction1: "training.correction1",
  correction2: "training.correction2",
  loss: "training.loss",
  gradientNorm: "training.gradient_norm",
  nextParameters: "training.next_parameters",
  nextMean: "training.next_mean",
  nextSquare: "training.next_square",
  /** Followed by a term's name. */
  term: "training.term.",
} as const;

/**
 * Turns a graph with a loss into one that also computes the gradients and the updated parameters. Its outputs become the
 * loss, the gradients' norm before clipping, and the parameters and AdamW's two running means after the step. Edits
 * `model` in place.
 * @param loss - a single number computed by the graph
 * @param parameters - what is trained, from `packInputs`
 * @throws InputError where an operator between parameters and loss has no gradient
 */
export async function buildTrainingGraph(
  model: Model,
  loss: Value,
  { vector, size, layout }: PackedParameters,
  options: TrainingGraphOptions,
): Promise<TrainingGraph> {
  const { graph } = model;
  const terms = Object.entries(options.terms ?? {});
  const { clipNorm, weightDecay, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, straightThroughRound = false } = options;
  const segments = { ...(options.segments ? { segments: options.segments } : {}) };
  const gradient = buildGradients(model, {
    outputs: [{ value: loss }],
    wrt: [vector],
    straightThroughRound,
    ...(options.checkpoint ? { checkpoint: options.checkpoint } : segments),
  }).get(vector)!;
  const build = new Builder(model);
  build.scope = "training";
  // A limit that no gradient reaches leaves the factor at 1, and the norm is wanted in any case.
  const clipped = clipByGlobalNorm(build, [gradient], Number.isFinite(clipNorm) ? clipNorm : 3e38);
  const scalar = (name: string) => graph.addInput(name, "float32", []);
  const next = adamW(
    build,
    {
      parameter: vector,
      gradient: clipped.gradients[0],
      mean: graph.addInput(trainingNames.mean, "float32", [size]),
      square: graph.addInput(trainingNames.square, "float32", [size]),
      learningRate: scalar(trainingNames.learningRate),
      correction1: scalar(trainingNames.correction1),
      correction2: scalar(trainingNames.correction2),
    },
    { beta1, beta2, epsilon, weightDecay },
  );
  const outputs: [string, Value][] = [
    [trainingNames.loss, loss],
    [trainingNames.gradientNorm, clipped.norm],
    [trainingNames.nextParameters, next.parameter],
    [trainingNames.nextMean, next.mean],
    [trainingNames.nextSquare, next.square],
    ...terms.map(([name, value]): [string, Value] => [`${trainingNames.term}${name}`, value]),
  ];
  graph.outputs.splice(0, graph.outputs.length, ...outputs.map(([, value]) => value));
  await runPasses(model);
  // Passes may put another value in an output's place, so that names come last.
  graph.outputs.forEach((value, index) => {
    value.name = outputs[index][0];
  });
  const names = terms.map(([name]) => name);
  return { model, size, layout, beta1, beta2, terms: names, peakBytes: peakBytes(graph, scheduleForMemory(graph)) };
}

/** What AdamW carries from step to step; three vectors of the parameters' length. */
export interface OptimizerState {
  parameters: Float32Array;
  mean: Float32Array;
  square: Float32Array;
}

/** A training graph opened in ONNX Runtime. */
export class TrainingSession {
  readonly size: number;
  readonly layout: readonly PackedParameter[];
  readonly #session: ort.InferenceSession;
  readonly #betas: readonly [number, number];
  readonly #terms: readonly string[];
  readonly #parametersName: string;

  private constructor(graph: TrainingGraph, session: ort.InferenceSession, parametersName: string) {
    this.size = graph.size;
    this.layout = graph.layout;
    this.#session = session;
    this.#betas = [graph.beta1, graph.beta2];
    this.#terms = graph.terms;
    this.#parametersName = parametersName;
  }

  /**
   * @param parametersName - the name given to `packInputs`
   * @param threads - results are the same bytes only for the same number of threads
   */
  static async open(graph: TrainingGraph, parametersName: string, threads = 2): Promise<TrainingSession> {
    return new TrainingSession(graph, await openFromFile(graph.model, threads), parametersName);
  }

  /**
   * One step from `state`, which stays as it is.
   * @param step - counted from 1, for AdamW's correction of its young means
   * @param batch - the graph's other inputs, by name
   */
  async step(
    state: OptimizerState,
    step: number,
    learningRate: number,
    batch: Readonly<Record<string, TensorData>>,
  ): Promise<{ loss: number; gradientNorm: number; terms: Record<string, number>; state: OptimizerState }> {
    const vector = (data: Float32Array) => new ort.Tensor("float32", data, [this.size]);
    const scalar = (value: number) => new ort.Tensor("float32", Float32Array.of(value), []);
    const feeds: Record<string, ort.Tensor> = {
      [this.#parametersName]: vector(state.parameters),
      [trainingNames.mean]: vector(state.mean),
      [trainingNames.square]: vector(state.square),
      [trainingNames.learningRate]: scalar(learningRate),
      [trainingNames.correction1]: scalar(1 - this.#betas[0] ** step),
      [trainingNames.correction2]: scalar(1 - this.#betas[1] ** step),
    };
    for (const [name, { type, data, dims }] of Object.entries(batch)) {
      feeds[name] = new ort.Tensor(type, data as Float32Array, dims);
    }
    const outputs = await this.#session.run(feeds);
    const floats = (name: string) => outputs[name].data as Float32Array;
    return {
      loss: floats(trainingNames.loss)[0],
      gradientNorm: floats(trainingNames.gradientNorm)[0],
      terms: Object.fromEntries(this.#terms.map((name) => [name, floats(`${trainingNames.term}${name}`)[0]])),
      state: {
        parameters: floats(trainingNames.nextParameters),
        mean: floats(trainingNames.nextMean),
        square: floats(trainingNames.nextSquare),
      },
    };
  }

  async release(): Promise<void> {
    await this.#session.release();
  }
}

/** A forward graph with a loss, opened to measure the loss of given parameters without training. */
export class LossSession {
  readonly #session: ort.InferenceSession;
  readonly #parametersName: string;
  readonly #lossName: string;

  private constructor(session: ort.InferenceSession, parametersName: string, lossName: string) {
    this.#session = session;
    this.#parametersName = parametersName;
    this.#lossName = lossName;
  }

  /** Takes a copy of the graph that {@link buildTrainingGraph} gets, whose first output is the loss. */
  static async open(model: Model, parametersName: string, threads = 2): Promise<LossSession> {
    return new LossSession(await openFromFile(model, threads), parametersName, model.graph.outputs[0].name);
  }

  async loss(parameters: Float32Array, batch: Readonly<Record<string, TensorData>>): Promise<number> {
    const feeds: Record<string, ort.Tensor> = {
      [this.#parametersName]: new ort.Tensor("float32", parameters, [parameters.length]),
    };
    for (const [name, { type, data, dims }] of Object.entries(batch)) {
      feeds[name] = new ort.Tensor(type, data as Float32Array, dims);
    }
    return ((await this.#session.run(feeds, [this.#lossName]))[this.#lossName].data as Float32Array)[0];
  }

  /** Mean of the losses of several batches. */
  async meanLoss(parameters: Float32Array, batches: readonly Readonly<Record<string, TensorData>>[]): Promise<number> {
    const losses: number[] = [];
    for (const batch of batches) losses.push(await this.loss(parameters, batch));
    return mean(losses);
  }

  async release(): Promise<void> {
    await this.#session.release();
  }
}

/**
 * Opens a graph for training or for what belongs to it. From a path no copy of the file stays in memory, and external weights
 * are mapped.
 * @throws InputError where ONNX Runtime refuses the graph
 */
export async function openFromFile(model: Model, threads: number): Promise<ort.InferenceSession> {
  const file = await writeTemporary(model);
  try {
    return await ort.InferenceSession.create(file.path, {
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      logSeverityLevel: 3,
      // A planned memory pattern holds a second copy of all activations after the first run.
      enableMemPattern: false,
      // Graphs that simulate quantization are computed as they are written.
      // Waiting threads do not spin: several adapters are trained side by side.
      extra: { session: { disable_quant_qdq: "1", intra_op: { allow_spinning: "0" } } },
    });
  } catch (error) {
    throw new InputError({ what: `ONNX Runtime refuses the training graph: ${error}`, file: model.file });
  } finally {
    file.remove();
  }
}
