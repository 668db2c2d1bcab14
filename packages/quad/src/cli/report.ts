import type { AdapterReport } from "../adapters/types.ts";
import type { Terminal } from "./terminal.ts";

/** An adapter's report as `--json` prints it: keys only. */
export function reportToJson(report: AdapterReport) {
  return {
    matched: report.matched.length,
    unmatched: report.unmatched.map(({ key }) => key),
    mismatched: report.mismatched.map(({ key }) => key),
    warnings: report.warnings,
  };
}

const shown = 5;

/** Tells of every key of an adapter file that will have no effect, and of what else changes the adapter. */
export function warnOfLostKeys(terminal: Terminal, name: string, report: AdapterReport): void {
  for (const text of report.warnings.slice(0, shown)) terminal.warn(`adapter "${name}": ${text}`);
  if (report.warnings.length > shown)
    terminal.warn(`adapter "${name}": ${report.warnings.length - shown} more warnings; quad inspect --json lists all`);
  const lost = [
    ...report.unmatched.map(({ key, reason }) => `${key}: ${reason}`),
    ...report.mismatched.map(({ key, module, expected, got }) => `${key}: ${module} takes ${expected}, got ${got}`),
  ];
  if (lost.length === 0) return;
  const total = report.matched.length + lost.length;
  const more = lost.length > shown ? `\n  ... and ${lost.length - shown} more; quad inspect --json lists all` : "";
  terminal.warn(
    `adapter "${name}": ${lost.length} of ${total} keys have no effect on this model\n  ${lost.slice(0, shown).join("\n  ")}${more}`,
  );
}
