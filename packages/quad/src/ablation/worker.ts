// A process that measures variants for `ablate`: with one thread each, two processes draw more pictures than one with two.
import { AblationBench } from "./bench.ts";
import type { FromWorker, ToWorker } from "./workers.ts";

let bench: AblationBench | undefined;
const send = (message: FromWorker) => process.send!(message);

process.on("message", async (message: ToWorker) => {
  try {
    if (message.kind === "open") {
      bench = await AblationBench.open(message.sources);
      send({ kind: "ready" });
      return;
    }
    const started = performance.now();
    const result = await bench!.measure(message.variant, message.groundwork, { onStep: () => send({ kind: "step" }) });
    send({ kind: "result", result: { ...result, seconds: (performance.now() - started) / 1000 } });
  } catch (error) {
    const { message: text, problem } = error as Error & { problem?: never };
    send({ kind: "error", message: text, problem });
  }
});
