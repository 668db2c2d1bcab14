import type { Model } from "@quad-lora/onnx";
import type { Pipeline, TensorData } from "@quad-lora/runtime";
import { openWithGraph } from "../model/open-with-graph.ts";
import { runCall } from "../model/run-call.ts";
import type { Observations, TaskObservations } from "../records/observations.ts";
import type { Trajectory } from "../records/trajectory.ts";
import type { StageOptions } from "../work/progress.ts";
import { histogramGraph, observed, rangeGraph } from "./observing-graph.ts";

export interface ObserveOptions extends StageOptions {
  /** Groups of consecutive time steps that get statistics of their own. */
  stepGroups: number;
  /** Bins of a histogram. */
  bins: number;
  /** Elements of a value that one run contributes to its histogram, at most. */
  sampled: number;
}

export const defaultObserveOptions = { stepGroups: 4, bins: 1024, sampled: 8192 };

/**
 * Runs recorded calls of the denoiser through observing graphs: first for the exact range of every value, then, between
 * the common edges of all tasks, for histograms. Memory does not grow with the number of calls.
 * @param folder - exposed folder the model came from
 * @param model - prepared graph
 * @param names - values to observe
 */
export async function observe(
  folder: string,
  component: string,
  model: Model,
  names: readonly string[],
  trajectories: readonly Trajectory[],
  options: ObserveOptions,
): Promise<Observations> {
  const { stepGroups, bins } = options;
  const groupOf = ({ step, steps }: { step: number; steps: number }) => Math.floor((step * stepGroups) / steps);
  const tasks = trajectories.map(
    ({ task }): TaskObservations => ({
      task,
      minima: new Float32Array(stepGroups * names.length).fill(0),
      maxima: new Float32Array(stepGroups * names.length).fill(0),
      counts: new Float64Array(stepGroups * names.length * bins),
    }),
  );
  await visit("ranges", rangeGraph(model, names), (taskIndex, group, outputs) => {
    const { minima, maxima } = tasks[taskIndex];
    const extremes = outputs[observed.extremes].data as Float32Array;
    const start = group * names.length;
    // From zero on: every range holds it.
    for (let index = 0; index < names.length; index++) {
      minima[start + index] = Math.min(minima[start + index], extremes[2 * index]);
      maxima[start + index] = Math.max(maxima[start + index], extremes[2 * index + 1]);
    }
  });
  const low = new Float32Array(names.length);
  const high = new Float32Array(names.length);
  for (const { minima, maxima } of tasks) {
    for (let index = 0; index < minima.length; index++) {
      low[index % names.length] = Math.min(low[index % names.length], minima[index]);
      high[index % names.length] = Math.max(high[index % names.length], maxima[index]);
    }
  }
  const density = low.map((value, index) => (high[index] > value ? bins / (high[index] - value) : 0));
  const edges: Record<string, TensorData> = {
    [observed.low]: { type: "float32", dims: [names.length], data: low },
    [observed.binsPerUnit]: { type: "float32", dims: [names.length], data: density },
  };
  const histograms = histogramGraph(model, names, bins, options.sampled);
  await visit(
    "histograms",
    histograms,
    (taskIndex, group, outputs) => {
      const { counts } = tasks[taskIndex];
      const found = outputs[observed.counts].data as Float32Array;
      const start = group * found.length;
      for (let index = 0; index < found.length; index++) counts[start + index] += found[index];
    },
    edges,
  );
  return { names: [...names], stepGroups, bins, low, high, tasks };

  async function visit(
    stage: string,
    graph: Model,
    take: (task: number, group: number, outputs: Record<string, TensorData>) => void,
    bound: Record<string, TensorData> = {},
  ): Promise<void> {
    const pipeline: Pipeline = await openWithGraph(folder, component, graph);
    pipeline.bind(component, bound);
    const total = trajectories.reduce((sum, { calls }) => sum + calls.length, 0);
    let done = 0;
    try {
      for (const [taskIndex, { task, calls }] of trajectories.entries()) {
        await pipeline.use(task);
        for (const call of calls) {
          options.signal?.throwIfAborted();
          take(taskIndex, groupOf(call), await runCall(pipeline, component, call.inputs));
          options.onProgress?.(`observing ${stage}`, ++done, total);
        }
      }
    } finally {
      await pipeline.dispose();
    }
  }
}
