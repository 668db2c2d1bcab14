import { Command } from "commander";
import { type ExposeOptions, expose } from "../expose/expose.ts";
import { collectPairs, parseRank, parseSlots } from "./arguments.ts";
import { stageOptions } from "./interrupt.ts";
import { reportToJson, warnOfLostKeys } from "./report.ts";
import { formatTable, type Terminal } from "./terminal.ts";

interface Options {
  adapter: Record<string, string>;
  out: string;
  rank: NonNullable<ExposeOptions["rank"]>;
  slots: NonNullable<ExposeOptions["slots"]>;
}

export function exposeCommand(terminal: () => Terminal): Command {
  return new Command("expose")
    .summary("turn a model's LoRA layers into graph inputs")
    .description(
      "Writes a model folder whose graphs take adapters as inputs: one frozen graph, and per adapter one small file.\nSwitching a task then means binding other buffers. Unbound, the graph is the base model.",
    )
    .argument("<model>", "diffusers/Optimum ONNX folder")
    .option(
      "-a, --adapter <name=path>",
      "LoRA file or PEFT folder; repeatable; NAME alone looks in MODEL/adapters",
      collectPairs,
      {},
    )
    .requiredOption("-o, --out <folder>", "folder to write")
    .option(
      "--rank <rank>",
      "dynamic (any rank at run time; CPU, WASM) or a fixed rank, zero-padded (GPU, NPU)",
      parseRank,
      {
        kind: "dynamic",
      },
    )
    .option(
      "--slots <which>",
      "layers to open: used (by the given adapters), all, or a regular expression to add",
      parseSlots,
      "used",
    )
    .addHelpText(
      "after",
      '\nExample:\n  quad expose models/pocket --adapter flat --adapter sketch --adapter erase --out exposed\n  quad run exposed --task flat --prompt "crab animal marine" --seed 7 --out crab.png',
    )
    .action(async (model: string, options: Options) => {
      const out = terminal();
      const result = await expose(model, {
        out: options.out,
        adapters: options.adapter,
        rank: options.rank,
        slots: options.slots,
        ...stageOptions(out),
      });
      out.endProgress();
      for (const { name, report } of result.adapters) warnOfLostKeys(out, name, report);
      const slots = Object.fromEntries(
        Object.entries(result.slots.components).map(([name, component]) => [name, component.slots.length]),
      );
      out.result({
        out: result.out,
        replaced: result.replaced,
        rank: result.slots.rank,
        slots,
        adapters: Object.fromEntries(
          result.adapters.map(({ name, format, rank, layers, report }) => [
            name,
            { format, rank, layers, ...reportToJson(report) },
          ]),
        ),
      });
      const rank = result.slots.rank.kind === "fixed" ? `rank ${result.slots.rank.rank}` : "any rank";
      for (const [component, count] of Object.entries(slots)) out.print(`${component}: ${count} slots, ${rank}`);
      if (result.adapters.length > 0) {
        const rows = result.adapters.map(({ name, format, rank, layers }) => [name, format, rank, layers]);
        out.print(`\n${formatTable([["adapter", "format", "rank", "layers"], ...rows])}`);
      }
      const before =
        result.replaced && ` in place of the exposed folder with ${result.replaced.join(", ") || "no adapters"}`;
      out.print(`\nWrote ${result.out}${before ?? ""}`);
    });
}
