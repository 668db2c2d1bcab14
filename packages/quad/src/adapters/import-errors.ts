import { InputError } from "@quad-lora/base";
import type { ReportBuilder } from "./report-builder.ts";
import type { AdaptableModule } from "./types.ts";

/**
 * The error where an adapter fits nothing of the model, or nothing of its denoiser: one whose text encoder's keys alone fit would
 * draw pictures that look almost right.
 */
export function nothingFits(input: {
  readonly file: string;
  readonly keys: readonly string[];
  /** A path of the file that belongs to a denoiser. */
  readonly denoiserPath: string | undefined;
  readonly modules: readonly AdaptableModule[];
  readonly report: ReportBuilder;
  /** Layers of the model without a module name. */
  readonly unnamed: number | undefined;
}): InputError {
  const { file, keys, denoiserPath, modules, report, unnamed } = input;
  const names = modules.slice(0, 3).map(({ component, name }) => `${component}.${name}`);
  const misfit = report.mismatched[0];
  const isPartial = report.matched.length > 0;
  const shown = isPartial ? keys.filter((key) => denoiserPath && key.startsWith(denoiserPath)) : keys;
  const renaming = unnamed
    ? `The model's graph has ${unnamed === 1 ? "a layer" : `${unnamed} layers`} without a module name: export it again, without tools that rename or drop names of nodes.`
    : "Check that it is a LoRA, that it was made for this model's architecture (SD 1.5, SDXL, ...), and that the model exposes the modules it adapts.";
  return new InputError({
    what: isPartial
      ? `none of this adapter's keys for the denoiser fits the model; ${report.matched.length} for other components do`
      : "no layer of this adapter fits the model",
    file,
    where: misfit?.key,
    expected: misfit?.expected ?? `keys for modules such as ${names.join(", ") || "(the model has no adaptable ones)"}`,
    got: misfit?.got ?? (shown.slice(0, 3).join(", ") || "a file without tensors"),
    fix: renaming,
  });
}
