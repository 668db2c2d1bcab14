// What processes that measure variants for `ablate` do: with one thread each, two draw more pictures than one with two.
import type { StageContext } from "../work/stage.ts";
import { AblationBench, type BenchSources, type Groundwork } from "./bench.ts";
import type { Variant } from "./variants.ts";

export interface MeasureTask {
  sources: BenchSources;
  variant: Variant;
  groundwork: Groundwork;
}

export type Measured = Awaited<ReturnType<AblationBench["measure"]>> & { seconds: number };

export type MeasureContext = Pick<StageContext, "signal" | "onProgress" | "share">;

export const tasks = {
  async measure({ sources, variant, groundwork }: MeasureTask, context: MeasureContext): Promise<Measured> {
    const bench = await context.share("bench", () => AblationBench.open(sources));
    const started = performance.now();
    const onStep = () => context.onProgress?.("variants", 1, 1);
    const result = await bench.measure(variant, groundwork, { signal: context.signal, onStep });
    return { ...result, seconds: (performance.now() - started) / 1000 };
  },
};
