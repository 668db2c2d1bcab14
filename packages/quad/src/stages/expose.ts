import { join } from "node:path";
import { describeReport } from "../adapters/describe-report.ts";
import { expose } from "../expose/expose.ts";
import type { Stage } from "../work/stage.ts";

/** Model folder and LoRA files by name -> `exposed/`. */
export const exposeStage: Stage<{ model: string; adapters: Record<string, string> }> = {
  name: "expose",
  version: 1,
  async run({ model, adapters }, folder, { signal, onProgress, onWarning }) {
    const result = await expose(model, { out: join(folder, "exposed"), adapters, signal, onProgress });
    for (const { name, report } of result.adapters) for (const text of describeReport(name, report)) onWarning?.(text);
  },
};
