import { describeReport } from "../adapters/describe-report.ts";
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

/** Tells of every key of an adapter file that will have no effect, and of what else changes the adapter. */
export function warnOfLostKeys(terminal: Terminal, name: string, report: AdapterReport): void {
  for (const text of describeReport(name, report)) terminal.warn(text);
}
