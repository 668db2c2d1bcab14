import { InputError } from "@quad-lora/base";
import { Command } from "commander";
import { toRuntimeTensors, toSafetensors } from "../files/runtime-tensors.ts";
import { openSafetensors, writeSafetensors } from "../files/safetensors.ts";
import { openFolder } from "../model/open-folder.ts";
import { collectStrengths } from "./arguments.ts";
import { selectionOf } from "./selection.ts";
import { formatTable, type Terminal } from "./terminal.ts";

interface Options {
  inputs: string;
  task?: string;
  use: Record<string, number>;
  component: string;
  out: string;
}

export function probeCommand(terminal: () => Terminal): Command {
  return new Command("probe")
    .summary("run a graph once on given tensors")
    .description(
      "Runs one graph of an exposed folder once, with adapters bound, on the tensors of a safetensors file: the tensors named as\nthe graph's own inputs (others are ignored). The outputs are written under their own names.",
    )
    .argument("<folder>", "exposed folder, bundle or plain ONNX model folder")
    .requiredOption("--inputs <file>", "safetensors with the graph's inputs")
    .option("-t, --task <name>", "task: an adapter's name, or base")
    .option("-u, --use <name=strength>", "adapter to bind and its strength; repeatable", collectStrengths, {})
    .option("--component <name>", "which graph", "unet")
    .requiredOption("-o, --out <file>", "safetensors to write")
    .addHelpText(
      "after",
      "\nExample:\n  quad probe exposed --inputs tensors.safetensors --use flat=0.7 --use sketch=0.5 --out out.safetensors",
    )
    .action(async (folder: string, options: Options) => {
      const out = terminal();
      const selection = selectionOf(options);
      const pipeline = await openFolder(folder);
      try {
        await pipeline.use(selection);
        const file = await openSafetensors(options.inputs);
        const wanted = await pipeline.inputsOf(options.component);
        try {
          const missing = wanted.filter(({ name }) => !file.entries.has(name)).map(({ name }) => name);
          if (missing.length > 0) {
            throw new InputError({
              what: `the file lacks ${missing.join(", ")}`,
              file: options.inputs,
              expected: wanted.map(({ name }) => name).join(", "),
              got: [...file.entries.keys()].slice(0, 8).join(", ") || "no tensors",
            });
          }
          const inputs = await toRuntimeTensors(file, wanted);
          const outputs = await pipeline.runComponent(options.component, inputs);
          await writeSafetensors(options.out, toSafetensors(outputs));
          const rows = Object.entries(outputs).map(([name, { type, dims }]) => [name, type, `[${dims.join(", ")}]`]);
          out.result({
            out: options.out,
            selection,
            outputs: Object.fromEntries(
              rows.map(([name, type], index) => [name, { type, dims: Object.values(outputs)[index].dims }]),
            ),
          });
          out.print(formatTable([["output", "type", "shape"], ...rows]));
          out.print(`\nWrote ${options.out}`);
        } finally {
          await file.close();
        }
      } finally {
        await pipeline.dispose();
      }
    });
}
